"""The published act types and the gates that they mean: the one table."""

from __future__ import annotations

from typing import Any

from autorep.config import GateConfig

# Act type -> (what replaces a dropped ReLU, whether the mask has hysteresis); None is a network without gates.
_TABLE: dict[str, tuple[str, bool] | None] = {
    "nn.ReLU": None,
    "ReLU_masked": ("identity", False),
    "ReLU_masked_relay": ("identity", True),
    "ReLU_masked_autopoly_relay": ("polynomial", True),
    "ReLU_masked_dapa_relay": ("dapa", True),
}
ACT_TYPES = tuple(_TABLE)


def gate_of(act_type: str, **settings: Any) -> GateConfig | None:
    """The gate of an act type; None for `nn.ReLU`.

    Args:
        settings: fields of the gate; the act type decides the threshold of a plain gate and the degree of the identity.

    Raises:
        ValueError: no such act type, or an invalid field.
    """
    if act_type not in _TABLE:
        raise ValueError(f"invalid act_type={act_type!r}: expected one of {', '.join(ACT_TYPES)}")
    if (entry := _TABLE[act_type]) is None:
        return None
    replacement, hysteresis = entry
    decided = {"degree": 1} if replacement == "identity" else {}
    return GateConfig(**settings | decided | ({} if hysteresis else {"threshold": 0.0}), replacement=replacement)


def act_type_of(gate: GateConfig | None) -> str:
    """The act type of a gate: the inverse of `gate_of`."""
    if gate is None:
        return "nn.ReLU"
    plain = gate.replacement == "identity" and gate.threshold == 0
    return next(name for name, entry in _TABLE.items() if entry == (gate.replacement, not plain))
