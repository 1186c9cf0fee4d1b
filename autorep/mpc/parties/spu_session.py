"""One party's side of the secure computation on SPU. Imports the engine; runs in its own environment."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from spu import api, libspu

from autorep.mpc.engines import SERVER, Engine
from autorep.mpc.parties.meter import ASIDE
from autorep.mpc.parties.share_layout import ShareLayout
from autorep.mpc.parties.spu_compiler import ONE, PUBLIC, SECRET, ZERO, Compiled, UnitCompiler
from autorep.mpc.ring.compute import Backend
from autorep.mpc.ring.lowering import Program
from autorep.mpc.ring.parameters import public_parameters
from autorep.mpc.ring.program import Unit, stages, units


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
    config.trunc_allow_msb_error = program.fixed.truncation == "local"
    config.enable_pphlo_profile = True
    config.experimental_enable_colocated_optimization = engine.private_weights
    return config


class SecureSession:
    """Runs the units of a program on shares, beside peers that do the same.

    Args:
        links: the engine's connections to the peers, one per lane.
        batch: images per query.
    """

    def __init__(self, links: list[Any], engine: Engine, program: Program, batch: int) -> None:
        self._engine, self._program = engine, program
        self._compiler = UnitCompiler(program, engine, batch)
        config = runtime_config(engine, program)
        self._runtime, self._io = api.Runtime(links[0], config), api.Io(engine.parties, config)
        self._side, self._side_thread = None, ThreadPoolExecutor(1)
        if len(links) > 1:
            self._side = api.Runtime(links[1], config)
        self.executions: list[str] = []
        self._set(ONE, self._public(np.array([1])))
        self._layouts: dict[tuple[int, ...], ShareLayout] = {}
        self._set(ZERO, self._layout((1,)).share(np.zeros((engine.components, 1), np.int64)))
        self._plan = [self._prepare(unit) for unit in units(program)]
        self._last_use = {name: i for i, compiled in enumerate(self._plan) for name in compiled.unit.inputs}

    def share(self, values: np.ndarray) -> list[libspu.Share]:
        """Split ring elements (int64) into one share per party, by rank; each alone is random."""
        return list(self._io.make_shares(np.ascontiguousarray(values), SECRET, -1))

    def reconstruct(self, shares: list[libspu.Share]) -> np.ndarray:
        """The ring elements behind the shares of all parties, by rank."""
        return self._io.reconstruct(shares)

    def keep_private(self, name: str, values: np.ndarray | None, rank: int) -> None:
        """Set a weight that stays in the clear at the server; the client holds a placeholder (values None)."""
        own = np.zeros(self._compiler.secret_shapes[name], np.int64) if values is None else values
        self._runtime.set_var(name, self._io.make_shares(own, SECRET, SERVER)[rank])

    def set_share(self, name: str, share: libspu.Share) -> None:
        """Set this party's share of a secret value."""
        self._runtime.set_var(name, share)

    def cache_weights(self) -> None:
        """Let the engine keep the masked weights of matrix products: they are sent once, at their first use."""
        for name, shape in self._compiler.secret_shapes.items():
            if name.rpartition("/")[2].startswith("weight"):
                self._execute("cache", [name], name, self._compiler.compile_cache(shape))

    def run(self, input_share: libspu.Share, side_by_side: bool) -> tuple[libspu.Share, list[float]]:
        """One query: this party's share of the input to its share of the logits, and the seconds of each unit.

        With `side_by_side`, two units that are independent of each other run at the same time (see `stages`), if the
        engine has a second lane. The profile mixes up what the two send, so both are left out of it.
        """
        self._runtime.set_var(self._program.input_name, input_share)
        two_lanes = self._side is not None and side_by_side
        seconds = []
        for stage in stages([compiled.unit for compiled in self._plan], two_lanes):
            seconds += self._run_pair(*stage) if len(stage) == 2 else [self._run_unit(*stage, f"unit{stage[0]}")]
        result = self._runtime.get_var(self._program.output_name)
        self._runtime.del_var(self._program.output_name)
        return result, seconds

    def _run_unit(self, i: int, execution: str) -> float:
        """Run unit i on the main lane and delete the operands that no later unit reads; returns the seconds."""
        unit, arguments, code = self._plan[i]
        started = time.perf_counter()
        if unit.local:
            self._run_locally(unit)
        else:
            self._execute(execution, arguments, unit.output, code)
        elapsed = time.perf_counter() - started
        self._delete_operands(i)
        return elapsed

    def _run_pair(self, main: int, side: int) -> list[float]:
        """Run unit `main` on the main lane while unit `side` runs on the other; returns the seconds of each.

        The side lane has a runtime of its own, which knows no variables of the main one. So the operands of the side
        unit are fetched before the main unit starts. Its result is deferred until the main unit has ended, because
        the main lane's runtime is in use until then.
        """
        unit = self._plan[side].unit
        operands = {name: self._runtime.get_var(name) for name in unit.inputs}
        deferred = self._side_thread.submit(self._run_aside, side, operands)
        main_seconds = self._run_unit(main, ASIDE)
        share, side_seconds = deferred.result()
        self._runtime.set_var(unit.output, share)
        self._delete_operands(side)
        return [main_seconds, side_seconds]

    def _run_aside(self, i: int, operands: dict[str, libspu.Share]) -> tuple[libspu.Share, float]:
        """Run unit i on the side lane, whose runtime is left as it was; returns the result and the seconds."""
        unit, arguments, code = self._plan[i]
        started = time.perf_counter()
        for name, share in operands.items():
            self._side.set_var(name, share)
        self._side.run(libspu.Executable(name=ASIDE, input_names=arguments, output_names=[unit.output], code=code))
        share = self._side.get_var(unit.output)
        for name in {*operands, unit.output}:
            self._side.del_var(name)
        return share, time.perf_counter() - started

    def _run_locally(self, unit: Unit) -> None:
        """A unit that only moves or adds, on each component of this party's own shares."""
        shares = [(self._runtime.get_var(name), self._compiler.shape(name)) for name in unit.inputs]
        own = [self._layout(shape).components(share) for share, shape in shares]
        backend = Backend(np, _never, self._program.fixed, self._engine.opens_operands)
        result = np.stack([unit.run(backend, list(operands), {}) for operands in zip(*own, strict=True)])
        self._runtime.set_var(unit.output, self._layout(result.shape[1:]).share(result))

    def _layout(self, shape: tuple[int, ...]) -> ShareLayout:
        if shape not in self._layouts:
            self._layouts[shape] = ShareLayout(self._io, shape, self._engine.components)
        return self._layouts[shape]

    def _delete_operands(self, i: int) -> None:
        for name in set(self._plan[i].unit.inputs):
            if self._last_use[name] == i:
                self._runtime.del_var(name)

    def _public(self, values: np.ndarray) -> libspu.Share:
        return self._io.make_shares(np.ascontiguousarray(values), PUBLIC)[0]

    def _set(self, name: str, share: libspu.Share) -> None:
        for runtime in filter(None, (self._runtime, self._side)):
            runtime.set_var(name, share)

    def _prepare(self, unit: Unit) -> Compiled:
        """A unit ready to run: a local one has shares of known layouts, any other has code and public parameters."""
        self._compiler.shapes[unit.output] = unit.out_shape
        if unit.local:
            for shape in map(self._compiler.shape, (*unit.inputs, unit.output)):
                self._layout(shape)
            return Compiled(unit, list(unit.inputs), b"")
        public = {} if unit.part == "kept" else public_parameters(unit.step, self._program.fixed)
        for key, values in public.items():
            self._set(f"{unit.step.op.name}/{key}", self._public(values))
        return self._compiler.compile(unit, public)

    def _execute(self, name: str, inputs: list[str], output: str, code: bytes) -> None:
        if name != ASIDE:
            self.executions.append(name)
        self._runtime.run(libspu.Executable(name=name, input_names=inputs, output_names=[output], code=code))


def _never(value: np.ndarray) -> np.ndarray:
    raise AssertionError("a local unit truncates nothing")
