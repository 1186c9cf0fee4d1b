"""One party's side of the secure computation on SPU. Imports the engine; runs in its own environment.

Every value is a 64-bit ring element that SPU knows as an integer, so that nothing is truncated behind our back. The
one thing that integers lack is the truncation itself: seen as fixed-point numbers (same ring element, other type), a
product with the number whose ring element is 1 changes nothing and is truncated by the engine's fraction bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from spu import api, libspu
from spu.experimental import make_cached_var
from spu.utils import frontend

from autorep.mpc.engines import Engine
from autorep.mpc.parties.meter import ASIDE
from autorep.mpc.parties.share_layout import ShareLayout
from autorep.mpc.ring.lowering import Program
from autorep.mpc.ring.parameters import public_parameters, secret_shapes
from autorep.mpc.ring.program import Backend, Unit, units

SERVER, CLIENT = 0, 1
_ONE = "one"
_SECRET, _PUBLIC = libspu.Visibility.VIS_SECRET, libspu.Visibility.VIS_PUBLIC


def log_to(path: Path) -> None:
    """Send the engine's log, which holds its profile, to a file."""
    options = libspu.logging.LogOptions()
    options.enable_console_logger = False
    options.system_log_path = str(path)
    options.trace_log_path = str(path) + ".trace"
    options.max_log_file_size = 2**30
    libspu.logging.setup_logging(options)


def runtime_config(engine: Engine, program: Program) -> libspu.RuntimeConfig:
    """The engine's configuration: ring of 64 bits, truncation by the format's truncation bits, profile on."""
    config = libspu.RuntimeConfig(protocol=getattr(libspu.ProtocolKind, engine.protocol),
                                  field=libspu.FieldType.FM64, fxp_fraction_bits=program.fixed.truncation_bits)
    config.enable_pphlo_profile = True
    config.experimental_enable_colocated_optimization = engine.private_weights
    return config


class SecureSession:
    """Compiles the units of a program and runs them on shares, beside a peer that does the same.

    Args:
        links: the engine's connections to the peer, one per lane.
        batch: images per query.
    """

    def __init__(self, links: list[Any], engine: Engine, program: Program, batch: int) -> None:
        jax.config.update("jax_enable_x64", True)
        self._engine, self._program, self._batch = engine, program, batch
        config = runtime_config(engine, program)
        self._runtime, self._io = api.Runtime(links[0], config), api.Io(2, config)
        self._side, self._side_thread = None, ThreadPoolExecutor(1)
        if len(links) > 1:
            self._side = api.Runtime(links[1], config)
        self._secret_shapes = secret_shapes(program, engine.opens_operands)
        self._compiled: dict[Any, bytes] = {}
        self._shapes = {program.input_name: program.steps[0].in_shapes[0]}
        self.executions: list[str] = []
        self._set_public(_ONE, np.array([1]))
        self._layouts: dict[tuple[int, ...], ShareLayout] = {}
        self._plan = [self._prepare(unit) for unit in units(program)]

    def share(self, values: np.ndarray) -> tuple[libspu.Share, libspu.Share]:
        """Split ring elements (int64) into the server's and the client's share; either alone is random."""
        return tuple(self._io.make_shares(np.ascontiguousarray(values), _SECRET, -1))

    def reconstruct(self, shares: list[libspu.Share]) -> np.ndarray:
        """The ring elements behind both shares."""
        return self._io.reconstruct(shares)

    def keep_private(self, name: str, values: np.ndarray | None, rank: int) -> None:
        """Set a weight that stays in the clear at the server; the client holds a placeholder (values None)."""
        own = np.zeros(self._secret_shapes[name], np.int64) if values is None else values
        self._runtime.set_var(name, self._io.make_shares(own, _SECRET, SERVER)[rank])

    def set_share(self, name: str, share: libspu.Share) -> None:
        """Set this party's share of a secret value."""
        self._runtime.set_var(name, share)

    def cache_weights(self) -> None:
        """Let the engine keep the masked weights of matrix products: they are sent once, at their first use."""
        for name, shape in self._secret_shapes.items():
            if name.rpartition("/")[2].startswith("weight"):
                code = self._compile(("cache", shape), make_cached_var, [np.zeros(shape, np.int64)], [_SECRET])
                self._execute("cache", [name], name, code)

    def run(self, input_share: libspu.Share, side_by_side: bool) -> tuple[libspu.Share, list[float]]:
        """One query: this party's share of the input to its share of the logits, and the seconds of each unit.

        With `side_by_side`, a unit that needs nothing from the one before runs at the same time as it, if the engine
        has a second lane; the profile mixes up what the two send, so that both are taken out of it.
        """
        self._runtime.set_var(self._program.input_name, input_share)
        last_use = {name: i for i, (unit, _, _) in enumerate(self._plan) for name in unit.inputs}
        seconds, pending = [], None
        for i, (unit, _, _) in enumerate(self._plan):
            following = self._plan[i + 1][0] if i + 1 < len(self._plan) else None
            if self._side is not None and side_by_side and following is not None and following.beside:
                pending = self._side_thread.submit(self._run_aside, i + 1, self._fetch(following))
            if pending is not None and unit.beside:
                share, elapsed = pending.result()
                self._runtime.set_var(unit.output, share)
                pending = None
            else:
                elapsed = self._run_unit(i, alone=pending is None)
            seconds.append(elapsed)
            for name in set(unit.inputs):
                if last_use[name] == i:
                    self._runtime.del_var(name)
        result = self._runtime.get_var(self._program.output_name)
        self._runtime.del_var(self._program.output_name)
        return result, seconds

    def _run_unit(self, i: int, alone: bool) -> float:
        unit, names, code = self._plan[i]
        started = time.perf_counter()
        if unit.local:
            self._run_locally(unit)
        else:
            self._execute(f"unit{i}" if alone else ASIDE, names, unit.output, code)
        return time.perf_counter() - started

    def _run_locally(self, unit: Unit) -> None:
        """A unit that only moves or adds, on this party's own shares."""
        shares = [(self._runtime.get_var(name), (self._batch, *self._shapes[name])) for name in unit.inputs]
        own = [self._layouts[shape].elements(share) for share, shape in shares]
        result = unit.run(Backend(np, _never, self._program.fixed, self._engine.opens_operands), own, {})
        self._runtime.set_var(unit.output, self._layouts[result.shape].share(result))

    def _fetch(self, unit: Unit) -> dict[str, libspu.Share]:
        return {name: self._runtime.get_var(name) for name in unit.inputs}

    def _run_aside(self, i: int, inputs: dict[str, libspu.Share]) -> tuple[libspu.Share, float]:
        unit, names, code = self._plan[i]
        started = time.perf_counter()
        for name, share in inputs.items():
            self._side.set_var(name, share)
        self._side.run(libspu.Executable(name=ASIDE, input_names=names, output_names=[unit.output], code=code))
        share = self._side.get_var(unit.output)
        for name in {*inputs, unit.output}:
            self._side.del_var(name)
        return share, time.perf_counter() - started

    def _set_public(self, name: str, values: np.ndarray) -> None:
        share = self._io.make_shares(np.ascontiguousarray(values), _PUBLIC)[0]
        for runtime in filter(None, (self._runtime, self._side)):
            runtime.set_var(name, share)

    def _prepare(self, unit: Unit) -> tuple[Unit, list[str], bytes]:
        """The unit, its arguments and its code; a local one has no code, but shares of known layouts."""
        step, fixed = unit.step, self._program.fixed
        self._shapes[unit.output] = unit.out_shape
        if unit.local:
            for name in (*unit.inputs, unit.output):
                shape = (self._batch, *self._shapes[name])
                self._layouts.setdefault(shape, ShareLayout(self._io, shape))
            return unit, list(unit.inputs), b""
        prefix = f"{step.op.name}/"
        public = {} if unit.part == "kept" else public_parameters(step, fixed)
        for key, values in public.items():
            self._set_public(prefix + key, values)
        secret = {k: s for k, s in self._secret_shapes.items() if k.startswith(prefix)}
        shapes = [(self._batch, *self._shapes[name]) for name in unit.inputs]
        keys = [k.removeprefix(prefix) for k in secret] + list(public)
        private = libspu.Visibility.VIS_PRIVATE if self._engine.private_weights else _SECRET
        visibility = [_SECRET] * len(shapes) + [private] * len(secret) + [_PUBLIC] * (len(public) + 1)
        examples = [np.zeros(s, np.int64) for s in [*shapes, *secret.values()]] + [*public.values(), np.array([1])]
        signature = (unit.part, repr(sorted(step.op.attrs.items())), step.divide, tuple(keys),
                     tuple((e.shape, e.dtype.str) for e in examples), _gate_sizes(unit))
        code = self._compile(signature, self._function(unit, keys), examples, visibility)
        return unit, [*unit.inputs, *secret, *(prefix + k for k in public), _ONE], code

    def _function(self, unit: Unit, keys: list[str]) -> Callable:
        num_inputs = len(unit.inputs)

        def compute(*values: Any) -> Any:
            parameters = dict(zip(keys, values[num_inputs:-1], strict=True))
            return unit.run(self._backend(values[-1]), list(values[:num_inputs]), parameters)

        return compute

    def _backend(self, one: Any) -> Backend:
        def truncate(value: Any) -> Any:
            unit = jax.lax.bitcast_convert_type(one, jnp.float64).reshape((1,) * value.ndim)
            product = jax.lax.bitcast_convert_type(value, jnp.float64) * jnp.broadcast_to(unit, value.shape)
            return jax.lax.bitcast_convert_type(product, jnp.int64)

        return Backend(jnp, truncate, self._program.fixed, self._engine.opens_operands)

    def _compile(self, signature: Any, function: Callable, examples: list[np.ndarray], visibility: list) -> bytes:
        if signature not in self._compiled:
            names = [f"in{i}" for i in range(len(examples))]
            executable, _ = frontend.compile(frontend.Kind.JAX, function, examples, {}, names, visibility,
                                             lambda flat: ["out"])
            self._compiled[signature] = executable.code
        return self._compiled[signature]

    def _execute(self, name: str, inputs: list[str], output: str, code: bytes) -> None:
        if name != ASIDE:
            self.executions.append(name)
        self._runtime.run(libspu.Executable(name=name, input_names=inputs, output_names=[output], code=code))


def _gate_sizes(unit: Unit) -> tuple:
    plan = unit.step.gate
    if plan is None or unit.part == "kept":
        return ()
    return (*((d, len(p)) for d, p in sorted(plan.polynomial.items())), len(plan.identity), len(plan.constant))


def _never(value: np.ndarray) -> np.ndarray:
    raise AssertionError("a local unit truncates nothing")
