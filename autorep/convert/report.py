"""What a conversion did, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from autorep.convert.sites import Site


@dataclass(frozen=True)
class ConversionReport:
    """The converted model and all its sites, converted or not; prints as a table.

    Args:
        comparisons: of elements, such as `x > 0` or a clamp from both sides, which may be activations but are no sites.
    """

    model: nn.Module
    sites: tuple[Site, ...]
    comparisons: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [("site", "kind", "shape", "per image", "converted")]
        rows += [(s.name, s.kind, "x".join(map(str, s.shape)), f"{s.num:,}",
                  "yes" if s.converted else "no: left out by filter_fn") for s in self.sites]
        converted = sum(s.num for s in self.sites if s.converted)
        rows.append(("total", f"{len(self.sites)} sites", "", f"{sum(s.num for s in self.sites):,}", f"{converted:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:>{widths[2]}}  {num:>{widths[3]}}  {status}"
            for name, kind, shape, num, status in rows)
        if not self.comparisons:
            return table
        return f"{table}\nneither converted nor counted, though they compare elements: {', '.join(self.comparisons)}"
