"""What a dropped ReLU is replaced by, in the words and groups of the field."""

from __future__ import annotations

BASELINE = "all ReLUs"


def replacement_of(act_type: str, degree: int | None) -> str:
    """The board that a run belongs to: "identity", "line", "quadratic", another "degree k", or `BASELINE`."""
    if act_type == "nn.ReLU":
        return BASELINE
    if act_type in ("ReLU_masked", "ReLU_masked_relay"):
        return "identity"
    return {1: "line", 2: "quadratic"}.get(degree, f"degree {degree}")


def method_label(act_type: str, degree: int | None) -> str:
    """A short name for an act type and its degree."""
    if act_type == "ReLU_masked":
        return "identity, plain gate"
    if act_type == "ReLU_masked_autopoly_relay":
        return f"{replacement_of(act_type, degree)}, trained from identity"
    if act_type == "ReLU_masked_dapa_relay":
        return f"{replacement_of(act_type, degree)}, DaPa"
    return replacement_of(act_type, degree)
