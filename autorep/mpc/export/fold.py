"""Batch norms are folded into the layers before them."""

from __future__ import annotations

from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.bundle.ops import Op


def fold_batch_norms(ops: list[Op], arrays: Arrays) -> tuple[list[Op], Arrays]:
    """Fold every affine that is the only reader of a conv or linear into the weights of that layer."""
    by_name, arrays, renamed, kept = {op.name: op for op in ops}, dict(arrays), {}, []
    users = {name: sum(name in op.inputs for op in ops) for name in by_name}
    for op in ops:
        num_readers = users.get(op.inputs[0], 0)
        op = Op(op.name, op.kind, tuple(renamed.get(n, n) for n in op.inputs), op.attrs)
        before = by_name.get(op.inputs[0])
        if op.kind == "affine" and num_readers == 1 and before is not None and before.kind in ("conv", "linear"):
            scale, shift = arrays.pop(f"{op.name}/scale"), arrays.pop(f"{op.name}/shift")
            weight, bias = arrays[f"{before.name}/weight"], arrays[f"{before.name}/bias"]
            arrays[f"{before.name}/weight"] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            arrays[f"{before.name}/bias"] = bias * scale + shift
            renamed[op.name] = before.name
        else:
            kept.append(op)
    return kept, arrays
