"""What replaces a dropped ReLU, and the names of methods in legends and tables."""

from __future__ import annotations

BASELINE = "all ReLUs"


def replacement_of(act_type: str, degree: int | None, price: str | None = None) -> str:
    """What replaces a dropped ReLU: "identity", "linear", "quadratic", another "degree k", or `BASELINE`.

    Under a price it is "mixed": whichever of them pays.
    """
    if act_type == "nn.ReLU":
        return BASELINE
    if price:
        return "mixed"
    if act_type in ("ReLU_masked", "ReLU_masked_relay"):
        return "identity"
    return {1: "linear", 2: "quadratic"}.get(degree, f"degree {degree}")


def method_label(act_type: str, degree: int | None, price: str | None = None) -> str:
    """A short name for an act type and its degree, or for a search for a price."""
    if price:
        return f"mixed, for {price}"
    if act_type == "ReLU_masked":
        return "identity, plain gate"
    if act_type == "ReLU_masked_autopoly_relay":
        return f"{replacement_of(act_type, degree)}, trained from identity"
    if act_type == "ReLU_masked_dapa_relay":
        return f"{replacement_of(act_type, degree)}, DaPa"
    return replacement_of(act_type, degree)
