"""Units of a secure program compiled for SPU. Imports the engine.

Every value is a 64-bit ring element that SPU takes for an integer, so it truncates nothing on its own. Integers lack
the one operation that we need, truncation itself. So a value is seen as a fixed-point number, the same ring element of
another type, and multiplied by the number whose ring element is 1: that changes nothing, and the engine truncates the
product by its fraction bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from spu import libspu
from spu.experimental import make_cached_var
from spu.utils import frontend

from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.engines import Engine
from autorep.mpc.ring.compute import Backend
from autorep.mpc.ring.lowering import Program
from autorep.mpc.ring.parameters import secret_shapes
from autorep.mpc.ring.program import Unit

# Variables of every unit: a share of zero, of which all parties know that it is one; the public ring element 1.
ZERO, ONE = "zero", "one"
SECRET, PUBLIC, PRIVATE = (getattr(libspu.Visibility, f"VIS_{name}") for name in ("SECRET", "PUBLIC", "PRIVATE"))


class Compiled(NamedTuple):
    """A unit, the names of its arguments, and its code; a local unit has no code."""

    unit: Unit
    arguments: list[str]
    code: bytes


class UnitCompiler:
    """Compiles units for queries of `batch` images; units that differ in names only are compiled once."""

    def __init__(self, program: Program, engine: Engine, batch: int) -> None:
        jax.config.update("jax_enable_x64", True)
        self._fixed, self._engine, self._batch = program.fixed, engine, batch
        self._compiled: dict[Any, bytes] = {}
        self.secret_shapes = secret_shapes(program, engine.opens_operands)
        self.shapes = {program.input_name: program.steps[0].in_shapes[0]}

    def shape(self, name: str) -> tuple[int, ...]:
        """[N, ...] of a tensor."""
        return (self._batch, *self.shapes[name])

    def compile(self, unit: Unit, public: Arrays) -> Compiled:
        """A unit that runs under the engine. `public`: its public parameters, set as "step/parameter"."""
        prefix = f"{unit.step.op.name}/"
        secret = {k: s for k, s in self.secret_shapes.items() if k.startswith(prefix)}
        shapes = [self.shape(name) for name in unit.inputs]
        keys = [k.removeprefix(prefix) for k in secret] + list(public)
        weights = PRIVATE if self._engine.private_weights else SECRET
        visibility = [SECRET] * len(shapes) + [weights] * len(secret) + [PUBLIC] * len(public) + [SECRET, PUBLIC]
        examples = [np.zeros(s, np.int64) for s in [*shapes, *secret.values()]]
        examples += [*public.values(), np.array([0]), np.array([1])]
        signature = (unit.part, repr(sorted(unit.step.op.attrs.items())), unit.step.divide, tuple(keys),
                     tuple((e.shape, e.dtype.str) for e in examples), _gate_sizes(unit))
        code = self._code(signature, self._function(unit, keys), examples, visibility)
        return Compiled(unit, [*unit.inputs, *secret, *(prefix + k for k in public), ZERO, ONE], code)

    def compile_cache(self, shape: tuple[int, ...]) -> bytes:
        """The code that lets the engine keep a masked weight of a shape."""
        return self._code(("cache", shape), make_cached_var, [np.zeros(shape, np.int64)], [SECRET])

    def _function(self, unit: Unit, keys: list[str]) -> Callable:
        num_inputs = len(unit.inputs)

        def compute(*values: Any) -> Any:
            parameters = dict(zip(keys, values[num_inputs:-2], strict=True))
            return unit.run(self._backend(*values[-2:]), list(values[:num_inputs]), parameters)

        return compute

    def _backend(self, zero: Any, one: Any) -> Backend:
        def truncate(value: Any) -> Any:
            unit = jax.lax.bitcast_convert_type(one, jnp.float64).reshape((1,) * value.ndim)
            product = jax.lax.bitcast_convert_type(value, jnp.float64) * jnp.broadcast_to(unit, value.shape)
            return jax.lax.bitcast_convert_type(product, jnp.int64)

        return Backend(jnp, truncate, self._fixed, self._engine.opens_operands, zero=zero.reshape(()))

    def _code(self, signature: Any, function: Callable, examples: list[np.ndarray], visibility: list) -> bytes:
        if signature not in self._compiled:
            names = [f"in{i}" for i in range(len(examples))]
            executable, _ = frontend.compile(frontend.Kind.JAX, function, examples, {}, names, visibility,
                                             lambda flat: ["out"])
            self._compiled[signature] = executable.code
        return self._compiled[signature]


def _gate_sizes(unit: Unit) -> tuple:
    plan = unit.step.gate
    if plan is None or unit.part == "kept":
        return ()
    return (*((d, len(p)) for d, p in sorted(plan.polynomial.items())), len(plan.identity), len(plan.constant))
