"""Depthwise convolutions, squeeze and excitation under the engine. Skipped where scripts/setup_mpc.sh has not run."""

import pytest
import torch

from autorep import GateConfig, build_model, convert_relus_, iter_gates
from autorep.config import DapaConfig
from autorep.dapa.calibrate import calibrate_
from autorep.mpc.bundle.files import load_graph, load_samples
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.engines import parse_network
from autorep.mpc.export.to_bundle import export_model
from autorep.mpc.parties import launch
from autorep.mpc.parties.launch import RunError, run_task
from autorep.mpc.parties.results import collect
from autorep.mpc.ring.fixed_point import FixedPoint

try:
    launch.engine_python()
except RunError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.engine


def test_mobilenet_v3_is_right_at_its_price(tmp_path):
    torch.manual_seed(0)
    model, images = build_model("torchvision:mobilenet_v3_small", image_size=32), torch.randn(8, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of these images
    model.train()(images)
    convert_relus_(model.eval(), images[:1], GateConfig(kept="relu", sigmoid="poly"))
    calibrate_(model, [images], DapaConfig())
    for _, gate in iter_gates(model):
        gate.mask.copy_(torch.rand(gate.mask.shape) < 0.5)
    export_model(model, images[:1], torch.zeros(1, dtype=torch.long), tmp_path / "bundle")
    graph = load_graph(tmp_path / "bundle")
    task = run_task(str(tmp_path / "bundle"), "trained", "spu-semi2k", parse_network("loopback"), FixedPoint(),
                    out=tmp_path / "run", images=1, batch=1, port=None, queries=1)
    samples = load_samples(tmp_path / "bundle", graph)
    found, expected = collect(task, graph, samples), estimate(graph, FixedPoint(), [])["spu-semi2k"]
    assert found["agreement"] == 1.0 and found["max_error"] < 0.02 * abs(samples.logits).max()
    assert found["rounds"] == expected["rounds"]
    assert 0 < found["bytes"]["total"] - expected["bytes"] < 600  # the headers of input and output
