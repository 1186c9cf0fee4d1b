"""The maskings of a network: as trained, with every ReLU, with none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.tables import TITLES


def with_masking(graph: Graph, masking: str) -> Graph:
    """The graph as it is ("trained"), with every ReLU kept ("all_relu"), or with none ("no_relu").

    Raises:
        ValueError: another masking.
    """
    if masking not in TITLES:
        raise ValueError(f"invalid masking={masking!r}: expected one of {', '.join(TITLES)}")
    if masking == "trained":
        return graph
    masks = {key: np.full_like(value, masking == "all_relu") for key, value in graph.public.items()
             if key.endswith("/mask")}
    return replace(graph, public={**graph.public, **masks})
