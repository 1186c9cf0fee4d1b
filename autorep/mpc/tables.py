"""What a run or an estimate found, as text tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Masking -> its title. A bundle is priced and run as trained, with every ReLU kept, and with none.
TITLES = {"all_relu": "all ReLU", "trained": "as trained", "no_relu": "no ReLU left"}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right. The first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                               for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def megabytes(count: float) -> str:
    """Bytes as MB (10^6), with enough digits for small nets."""
    return f"{count / 1e6:.3f}" if count < 1e7 else f"{count / 1e6:.1f}"


def critical_rounds(rows: Sequence[dict[str, Any]]) -> int:
    """Rounds that follow one another: a unit beside the one before it adds only the rounds that it has more."""
    total = previous = 0
    for row in rows:
        total += max(0, row["messages"] - previous) if row["beside"] else row["messages"]
        previous = row["messages"]
    return total


def error_text(error: float | None) -> str:
    """The largest logit error; None where the plaintext logits are not finite either."""
    return "not finite" if error is None else f"{error:.1e}"


def run_table(figures: dict[str, dict[str, Any]], count_name: str) -> str:
    """One row per masking of the network."""
    rows = [("net", "ReLUs", "layers with ReLU", "seconds", "min", "max", "MB", count_name, "max error", "agreement",
             "accuracy")]
    for name, found in figures.items():
        seconds = found["seconds"]
        rows.append((TITLES[name], f"{found['relu_kept']:,}", str(found["layers_with_relu"]),
                     f"{seconds['median']:.3f}", f"{seconds['min']:.3f}", f"{seconds['max']:.3f}",
                     megabytes(found["bytes"]["total"]), str(found["rounds"]), error_text(found["max_error"]),
                     f"{100 * found['agreement']:.1f} %",
                     "unknown" if found["accuracy"] is None else f"{100 * found['accuracy']:.1f} %"))
    return table(rows)


def kind_table(found: dict[str, Any], count_name: str) -> str:
    """One row per kind of operation of one masking; polynomials may run while comparisons are under way."""
    rows = [("kind", "seconds", "MB", count_name)]
    rows += [(kind, f"{price['seconds']:.3f}", megabytes(price["bytes"]), str(price["messages"]))
             for kind, price in found["by_kind"].items()]
    return table(rows)


def layer_table(found: dict[str, Any], count_name: str) -> str:
    """One row per layer and kind of one masking, without layers that send nothing."""
    roles = list(found["by_layer"][0]["sent"])
    rows = [("layer", "kind", "seconds", *(f"MB from {role}" for role in roles), count_name)]
    rows += [(row["layer"], row["kind"], f"{row['seconds']:.4f}", *(megabytes(row["sent"][role]) for role in roles),
              str(row["messages"])) for row in found["by_layer"] if row["messages"]]
    return table(rows)
