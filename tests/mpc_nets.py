"""Small networks as bundles, made by hand without torch, for the tests of private inference."""

from __future__ import annotations

import numpy as np

from autorep.mpc.bundle.graph import Arrays, Graph, Samples
from autorep.mpc.bundle.interpreter import logits_float, record_ranges
from autorep.mpc.bundle.ops import Op, array_shapes, infer_shapes

_CONV3 = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": (1,)}
_POOL2 = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0, 0, 0)}

RESIDUAL = (
    Op("conv1", "conv", ("input",), {**_CONV3, "out_channels": (4,)}),
    Op("relu1", "gate", ("conv1",), {"degree": (2,)}),
    Op("conv2", "conv", ("relu1",), {**_CONV3, "out_channels": (4,)}),
    Op("sum", "add", ("conv2", "relu1"), {}),
    Op("relu2", "gate", ("sum",), {"degree": (2,)}),
    Op("down", "conv", ("relu2",), {**_CONV3, "stride": (2, 2), "out_channels": (6,)}),
    Op("relu3", "gate", ("down",), {"degree": (1,)}),
    Op("pool", "avg_pool", ("relu3",), {"kernel": (3, 3), "stride": (3, 3), "padding": (0, 0, 0, 0)}),
    Op("flat", "flatten", ("pool",), {}),
    Op("fc", "linear", ("flat",), {"out_features": (3,)}),
)
EVERYTHING = (
    Op("norm", "affine", ("input",), {}),
    Op("relu0", "gate", ("norm",), {"degree": (4,)}),
    Op("conv1", "conv", ("relu0",), {**_CONV3, "groups": (2,), "out_channels": (4,)}),
    Op("side", "conv", ("relu0",), {"kernel": (1, 1), "stride": (2, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1),
                                    "groups": (1,), "out_channels": (4,)}),
    Op("max", "max_pool", ("conv1",), {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}),
    Op("both", "concat", ("max", "side"), {}),
    Op("squeezed", "avg_pool", ("max",), {"kernel": (3, 3), "stride": (3, 3), "padding": (0, 0, 0, 0)}),
    Op("features", "flatten", ("squeezed",), {}),
    Op("weights", "unflatten", ("features",), {}),
    Op("excited", "mul", ("weights", "max"), {}),
    Op("shuffled", "pick", ("excited",), {"channels": (2, 0, 3, 2)}),
    Op("moved", "rearrange", ("shuffled",), {"shape": (4, 3, 3)}),
    Op("apart", "sub", ("moved", "side"), {}),
    Op("product", "mul", ("apart", "side"), {}),
    Op("all", "concat", ("both", "product"), {}),
    Op("relu1", "gate", ("all",), {"degree": (0,)}),
    Op("mean", "avg_pool", ("relu1",), {"kernel": (2, 2), "stride": (1, 1), "padding": (0, 0, 0, 0)}),
    Op("conv2", "conv", ("mean",), {**_CONV3, "dilation": (2, 2), "padding": (2, 2, 2, 2), "out_channels": (5,)}),
    Op("max2", "max_pool", ("conv2",), _POOL2),
    Op("flat", "flatten", ("max2",), {}),
    Op("fc", "linear", ("flat",), {"out_features": (3,)}),
)


def make_net(ops: tuple[Op, ...], *, kept: float = 0.3, input_shape: tuple[int, ...] = (2, 6, 6), num_images: int = 5,
             seed: int = 0) -> tuple[Graph, Arrays, Samples]:
    """Random weights, masks that keep a share of `kept`, and coefficients of every class of pixels."""
    rng = np.random.default_rng(seed)
    shapes = infer_shapes(ops, "input", input_shape)
    weights = {name: rng.normal(0, 1, shape) / np.sqrt(max(1, np.prod(shape[1:])))
               for name, shape in array_shapes(ops, shapes, secret=True).items()}
    public = {}
    for name, shape in array_shapes(ops, shapes, secret=False).items():
        if name.endswith("/mask"):
            public[name] = rng.random(shape) < kept
        elif name.endswith("/positions"):
            public[name] = rng.integers(-1, np.prod(shape), shape)
        else:
            public[name] = rng.uniform(-0.5, 0.5, shape)
    for op in ops:
        if op.kind == "gate":
            _vary(public[f"{op.name}/mask"], public[f"{op.name}/coefficients"])
    images = rng.normal(0, 1, (num_images, *input_shape)).astype(np.float32)
    graph = Graph("input", input_shape, ops, public, {}, {"made": "for a test"})
    graph = Graph("input", input_shape, ops, public, record_ranges(graph, weights, images), graph.meta)
    samples = Samples(images, rng.integers(0, 3, num_images), logits_float(graph, weights, images))
    return graph, weights, samples


def _vary(mask: np.ndarray, coefficients: np.ndarray) -> None:
    """Channels 0 and 1 keep no pixel: 0 becomes linear, 1 the identity. Channel 2 mixes kept with linear pixels."""
    mask[0] = mask[1] = False
    for channel in range(min(3, len(coefficients))):
        coefficients[channel, 2:] = 0
    if len(coefficients) > 1 and coefficients.shape[1] > 1:
        coefficients[1, :2] = (0, 1)
