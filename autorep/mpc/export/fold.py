"""Batch norms and other affine maps are folded into the layers before them."""

from __future__ import annotations

from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.bundle.ops import Op

_WEIGHTS = {"conv": ("weight", "bias"), "linear": ("weight", "bias"), "affine": ("scale", "shift")}


def fold_batch_norms(ops: list[Op], arrays: Arrays) -> tuple[list[Op], Arrays]:
    """Fold every affine that is the only reader of a conv, linear or affine into the weights of that."""
    by_name, arrays, renamed, kept = {op.name: op for op in ops}, dict(arrays), {}, []
    users = {name: sum(name in op.inputs for op in ops) for name in by_name}
    for op in ops:
        num_readers = users.get(op.inputs[0], 0)
        op = Op(op.name, op.kind, tuple(renamed.get(n, n) for n in op.inputs), op.attrs)
        before = by_name.get(op.inputs[0])
        if op.kind == "affine" and num_readers == 1 and before is not None and before.kind in _WEIGHTS:
            scale, shift = arrays.pop(f"{op.name}/scale"), arrays.pop(f"{op.name}/shift")
            weight_key, bias_key = (f"{before.name}/{key}" for key in _WEIGHTS[before.kind])
            arrays[weight_key] = arrays[weight_key] * scale.reshape(-1, *[1] * (arrays[weight_key].ndim - 1))
            arrays[bias_key] = arrays[bias_key] * scale + shift
            renamed[op.name] = before.name
        else:
            kept.append(op)
    return kept, arrays
