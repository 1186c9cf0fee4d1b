"""ONNX files of bundles: onnxruntime gives the bundle's logits in either form, for every operation and batch size."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from mpc_nets import EVERYTHING, RESIDUAL, make_net
from torch import nn

from autorep import GateConfig, convert_relus_, iter_gates
from autorep.mpc.__main__ import main
from autorep.mpc.bundle.files import save_bundle
from autorep.mpc.bundle.interpreter import logits_float
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.bundle.ops import KINDS, Op
from autorep.mpc.export.to_bundle import export_model

onnx = pytest.importorskip("onnx", reason="the optional package onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the optional package onnxruntime is not installed")

from autorep.mpc.export.to_onnx import FORMS, onnx_model  # noqa: E402

ON_FEATURES = (
    Op("flat", "flatten", ("input",), {}),
    Op("fc1", "linear", ("flat",), {"out_features": (9,)}),
    Op("norm", "affine", ("fc1",), {}),
    Op("relu", "gate", ("norm",), {"degree": (2,)}),
    Op("curved", "polynomial", ("fc1",), {"degree": (3,)}),
    Op("both", "concat", ("relu", "curved"), {}),
    Op("square", "mul", ("both", "both"), {}),
    Op("fc2", "linear", ("square",), {"out_features": (3,)}),
)
UNEVEN_POOLS = (
    Op("max", "max_pool", ("input",), {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 2, 0, 1)}),
    Op("mean", "avg_pool", ("max",), {"kernel": (2, 3), "stride": (1, 2), "padding": (0, 1, 2, 1)}),
    Op("flat", "flatten", ("mean",), {}),
)


def logits_onnx(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["trained", "all_relu", "no_relu"])
@pytest.mark.parametrize("ops", [RESIDUAL, EVERYTHING, ON_FEATURES, UNEVEN_POOLS],
                         ids=["residual", "everything", "features", "pools"])
def test_onnxruntime_gives_the_reference_logits(ops, name, form):
    graph, weights, samples = make_net(ops)
    graph = with_masking(graph, name)
    expected, model = logits_float(graph, weights, samples.images), onnx_model(graph, weights, form)
    for batch in (1, 3):
        np.testing.assert_allclose(logits_onnx(model, samples.images[:batch]), expected[:batch], 1e-5, 1e-5)


def test_the_nets_above_hold_every_kind_of_operation_and_degree():
    ops = (*RESIDUAL, *EVERYTHING, *ON_FEATURES)
    assert {op.kind for op in ops} == set(KINDS)
    assert {op.attrs["degree"][0] for op in ops if op.kind == "gate"} >= {0, 1, 2}


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_a_gate_that_mixes_relus_with_polynomials_of_each_degree(form, degree):
    ops = (Op("gate", "gate", ("input",), {"degree": (degree,)}), Op("flat", "flatten", ("gate",), {}))
    graph, weights, samples = make_net(ops, input_shape=(5, 4, 3))
    assert 0 < graph.public["gate/mask"].mean() < 1
    np.testing.assert_allclose(logits_onnx(onnx_model(graph, weights, form), samples.images), samples.logits, atol=1e-5)


def test_gathering_computes_each_pixel_once():
    graph, weights, _ = make_net(RESIDUAL)
    model = onnx.shape_inference.infer_shapes(onnx_model(graph, weights, "gather"))
    widths = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in model.graph.value_info}
    types = {node.op_type for node in model.graph.node}
    for op in (op for op in RESIDUAL if op.kind == "gate"):
        mask = graph.public[f"{op.name}/mask"]
        assert (widths[f"{op.name}/relu"], widths[f"{op.name}/dropped"]) == (mask.sum(), (~mask).sum())
    assert "Where" not in types and "Where" in {n.op_type for n in onnx_model(graph, weights, "mask").graph.node}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6))
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.pool(self.relu(self.block(x) + x)))


@pytest.mark.parametrize("form", FORMS)
def test_command_writes_what_torch_computes(form, tmp_path, capsys):
    torch.manual_seed(0)
    model = convert_relus_(Residual(), torch.randn(1, 3, 7, 7), GateConfig(degree=2)).model.eval()
    for _, gate in iter_gates(model):
        gate.mask.copy_(torch.rand(gate.mask.shape) < 0.4)
        gate.coefficients.data.normal_(0.3, 0.3)
    export_model(model, torch.randn(3, 3, 7, 7), torch.zeros(3, dtype=torch.long), tmp_path)
    assert main(["onnx", str(tmp_path), "--form", form]) == 0
    path = tmp_path / f"model-{form}.onnx"
    assert str(path) in capsys.readouterr().out
    images = torch.randn(4, 3, 7, 7)
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(logits_onnx(onnx.load(path), images.numpy()), expected, atol=1e-4)


def test_other_logits_than_the_reference_are_not_written(tmp_path, capsys):
    graph, weights, samples = make_net(RESIDUAL)
    save_bundle(tmp_path, graph, weights, replace(samples, logits=samples.logits + 1e-3))
    assert main(["onnx", str(tmp_path), "--out", str(tmp_path / "net.onnx")]) == 2
    assert "differs from the reference logits" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.onnx*"))


def test_bad_input_is_refused(tmp_path, capsys):
    graph, weights, samples = make_net(RESIDUAL)
    with pytest.raises(ValueError, match="invalid form='sparse': expected one of mask, gather"):
        onnx_model(graph, weights, "sparse")
    wide = (Op("pool", "avg_pool", ("input",), {"kernel": (2, 2), "stride": (1, 1), "padding": (2, 0, 0, 0)}),
            Op("flat", "flatten", ("pool",), {}))
    with pytest.raises(ValueError, match=r"'pool': invalid padding \[2, 0, 0, 0\]: expected less than"):
        onnx_model(*make_net(wide)[:2], "mask")
    save_bundle(tmp_path, graph, weights, samples)
    assert main(["onnx", str(tmp_path), "--out", str(tmp_path / "missing" / "net.onnx")]) == 2
    assert "a file in a folder that exists" in capsys.readouterr().err


def test_without_the_package_the_error_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "autorep.mpc.export.to_onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["onnx", str(tmp_path)]) == 2
    assert "pip install onnx onnxruntime" in capsys.readouterr().err
