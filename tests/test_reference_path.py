"""Networks on the arithmetic that GPUs run, here on the CPU: the reference, called directly, in both memory layouts."""

import copy

import pytest
import torch
import torch.nn.functional as F

from autorep.config import GateConfig
from autorep.convert.swap import convert_relus_
from autorep.gates import gated_relu
from autorep.gates.reference import gated_relu_reference
from autorep.models.registry import build_model
from autorep.search.masks import project_to_budget_, update_masks_

pytestmark = pytest.mark.slow

# One of each family: (image size, whether its activations are ReLU).
FAMILIES = {
    "resnet8": (32, True), "resnet18_in": (32, True), "wide_resnet_16_8_drop02": (16, True), "vgg": (32, True),
    "torchvision:resnet18": (64, True), "torchvision:resnext50_32x4d": (32, True),
    "torchvision:alexnet": (64, True), "torchvision:densenet121": (32, True), "torchvision:googlenet": (32, True),
    "torchvision:squeezenet1_1": (32, True), "torchvision:shufflenet_v2_x0_5": (32, True),
    "torchvision:mnasnet0_5": (32, True), "torchvision:regnet_y_400mf": (32, True),
    "torchvision:regnet_x_400mf": (32, True), "torchvision:inception_v3": (80, True),
    "torchvision:mobilenet_v2": (32, False), "torchvision:mobilenet_v3_small": (32, False),
    "torchvision:efficientnet_b0": (32, False), "timm:resnet10t": (32, True), "timm:repvgg_a0": (32, True),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setattr(gated_relu, "gated_relu", gated_relu_reference)


def gradients(model, images):
    """Logits and all gradients of weights, with dropout drawn from one seed."""
    torch.manual_seed(1)
    logits = model.train()(images)
    F.cross_entropy(logits, torch.arange(len(images)) % 5).backward()
    return [logits.detach(), *(p.grad for name, p in model.named_parameters()
                               if not name.endswith((".score", ".coefficients")))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_conversion_and_a_step_equal_the_dense_network(name, layout):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    size, is_relu = FAMILIES[name]
    torch.manual_seed(0)
    model = build_model(name, 5, image_size=size).to(memory_format=LAYOUTS[layout])
    dense = copy.deepcopy(model)
    images = torch.randn(3, 3, size, size).contiguous(memory_format=LAYOUTS[layout])
    config = GateConfig(kept=None if is_relu else "relu")
    convert_relus_(model, torch.zeros(1, 3, size, size), config)  # raises where an output is not that of before
    ours, theirs = gradients(model, images), gradients(dense, images)
    if is_relu:
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    project_to_budget_(model, 100)
    ours = gradients(model, images)
    update_masks_(model, 100)
    assert all(gradient.isfinite().all() for gradient in ours)
