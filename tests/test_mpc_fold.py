"""A batch norm is folded into the layer before it, if nothing else reads that layer."""

import numpy as np

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.bundle.interpreter import run_float
from autorep.mpc.bundle.ops import Op
from autorep.mpc.export.fold import fold_batch_norms

_CONV = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": (1,),
         "out_channels": (3,)}


def arrays(rng):
    return {"conv/weight": rng.normal(size=(3, 2, 1, 1)), "conv/bias": rng.normal(size=3),
            "norm/scale": rng.normal(size=3), "norm/shift": rng.normal(size=3)}


def run(ops, weights):
    images = np.random.default_rng(1).normal(size=(2, 2, 4, 4))
    return run_float(Graph("input", (2, 4, 4), tuple(ops), {}, {}), weights, images)[ops[-1].name]


def test_a_batch_norm_that_alone_reads_a_convolution_is_folded():
    ops = [Op("conv", "conv", ("input",), _CONV), Op("norm", "affine", ("conv",)), Op("flat", "flatten", ("norm",))]
    weights = arrays(np.random.default_rng(0))
    folded_ops, folded = fold_batch_norms(ops, weights)
    assert [op.name for op in folded_ops] == ["conv", "flat"] and set(folded) == {"conv/weight", "conv/bias"}
    np.testing.assert_allclose(run(folded_ops, folded), run(ops, weights), atol=1e-12)


def test_a_convolution_with_other_readers_keeps_its_weights():
    ops = [Op("conv", "conv", ("input",), _CONV), Op("norm", "affine", ("conv",)), Op("sum", "add", ("norm", "conv")),
           Op("flat", "flatten", ("sum",))]
    weights = arrays(np.random.default_rng(0))
    folded_ops, folded = fold_batch_norms(ops, weights)
    assert folded_ops == ops
    np.testing.assert_array_equal(folded["conv/weight"], weights["conv/weight"])


def test_of_two_in_a_row_with_a_reader_between_only_the_first_is_folded():
    ops = [Op("conv", "conv", ("input",), _CONV), Op("norm", "affine", ("conv",)), Op("again", "affine", ("norm",)),
           Op("sum", "add", ("norm", "again")), Op("flat", "flatten", ("sum",))]
    weights = arrays(np.random.default_rng(0))
    weights.update({"again/scale": np.array([2.0, 3, 4]), "again/shift": np.array([1.0, 0, -1])})
    folded_ops, folded = fold_batch_norms(ops, weights)
    np.testing.assert_allclose(run(folded_ops, folded), run(ops, weights), atol=1e-12)
