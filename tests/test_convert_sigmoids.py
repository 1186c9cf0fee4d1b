"""Networks with squeeze and excitation: hard sigmoids in the place of sigmoids, exported and priced."""

import pytest
import torch
from test_mpc_export import check
from torch import nn

from autorep import GateConfig, build_model, convert_relus_, iter_gates, revert_gates_
from autorep.convert.sigmoids import HardenedSigmoid
from autorep.mpc.export.to_bundle import export_model


def hardened(model):
    return [module for module in model.modules() if isinstance(module, HardenedSigmoid)]


def test_sigmoids_become_hard_ones_and_come_back():
    torch.manual_seed(0)
    model, images = build_model("torchvision:efficientnet_b0", image_size=32).eval(), torch.randn(2, 3, 32, 32)
    before, dense, seen = dict(model.named_modules()), model(images), []
    for module in model.modules():
        if isinstance(module, nn.Sigmoid):
            module.register_forward_hook(lambda *args: seen.append(1))
    convert_relus_(model, images, GateConfig(kept="original", sigmoid="hard"))
    seen.clear()
    model(images)
    assert len(seen) == 16
    assert len(hardened(model)) == 16 and not any(isinstance(module, nn.Sigmoid) for module in model.modules())
    assert not torch.equal(model(images), dense)
    squeezed = hardened(model)[0]
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(squeezed(x), (x / 6 + 0.5).clamp(0, 1))
    revert_gates_(model)
    assert dict(model.named_modules()) == before and torch.equal(model(images), dense)


def test_without_the_option_sigmoids_stay():
    model = build_model("torchvision:efficientnet_b0", image_size=32).eval()
    convert_relus_(model, torch.randn(1, 3, 32, 32), GateConfig(kept="relu"))
    assert not hardened(model) and any(isinstance(module, nn.Sigmoid) for module in model.modules())
    with pytest.raises(ValueError, match=r"scale_activation: Sigmoid cannot be exported.*sigmoid='hard'"):
        export_model(model, torch.randn(1, 3, 32, 32), torch.zeros(1, dtype=torch.long), "unused")


@pytest.mark.parametrize("name", ["torchvision:efficientnet_b0", "timm:efficientnet_b0", "torchvision:regnet_y_400mf"])
def test_families_with_squeeze_and_excitation_are_exported(name, tmp_path):
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="the optional package timm is not installed")
    torch.manual_seed(0)
    model, images = build_model(name, image_size=32), torch.randn(8, 3, 32, 32)
    model.train()
    with torch.no_grad():
        model(images)  # batch-norm statistics that are not the initial ones
    convert_relus_(model.eval(), images[:1], GateConfig(kept="relu", sigmoid="hard"))
    for _, gate in iter_gates(model):
        gate.mask.copy_(torch.rand(gate.mask.shape) < 0.2)
    graph = check(model, (3, 32, 32), tmp_path, num_images=1)
    assert sum(op.kind == "mul" for op in graph.ops) == len(hardened(model)) > 10
