"""Networks: published ReLU totals, resolutions, library nets, and errors that say what to do."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from torch import nn

from autorep.models.registry import build_model, own_models


def relu_total(model: nn.Module) -> int:
    """ReLUs per image, counted on the meta device: only shapes are computed."""
    total = 0

    def count(module: nn.Module, args: tuple, y: torch.Tensor) -> None:
        nonlocal total
        total += y[0].numel()

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(count)
    model(torch.empty(1, *model.input_shape, device="meta"))
    return total


def build_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, **options)


@pytest.mark.parametrize(("name", "at_32"), [
    ("resnet18_in", 491_520), ("resnet34_in", 901_120), ("wide_resnet_22_8", 1_359_872), ("resnet20", 188_416)])
def test_published_relu_totals(name, at_32):
    assert relu_total(build_meta(name)) == at_32
    assert relu_total(build_meta(name, image_size=64)) == 4 * at_32


@pytest.mark.parametrize(("name", "num_parameters"), [
    ("resnet18_in", 11_173_962), ("resnet20", 272_474), ("resnet32", 466_906), ("wide_resnet_22_8", 17_158_106),
    ("wide_resnet_16_8_drop02", 10_961_370), ("wide_resnet_28_10_drop02", 36_479_194), ("vgg", 14_724_042)])
def test_parameter_counts(name, num_parameters):
    assert sum(p.numel() for p in build_meta(name).parameters()) == num_parameters


@pytest.mark.parametrize("name", own_models())
def test_every_relu_is_a_distinct_module_called_once(name):
    model = build_meta(name)
    calls = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.ReLU):
            assert path.rpartition(".")[2].startswith("relu")
            assert not module.inplace
            calls[path] = 0
            module.register_forward_hook(lambda *_, path=path: calls.__setitem__(path, calls[path] + 1))
    model(torch.empty(2, *model.input_shape, device="meta"))
    assert calls
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("name", own_models())
@pytest.mark.parametrize("image_size", [28, 32, 64])
def test_other_resolutions_channels_and_classes(name, image_size):
    model = build_meta(name, num_classes=7, in_channels=1, image_size=image_size)
    assert model.input_shape == (1, image_size, image_size)
    assert model(torch.empty(2, *model.input_shape, device="meta")).shape == (2, 7)
    assert model.fc.out_features == 7


def test_quickstart_net_runs_on_digits():
    model = build_model("resnet8", in_channels=1, image_size=8)
    assert model(torch.randn(2, 1, 8, 8)).isfinite().all()


def test_convolutions_start_kaiming_fan_out():
    conv = build_model("resnet18_in").stages[3][1].conv2
    expected = (2 / (512 * 9)) ** 0.5
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("name", "default"), [
    ("wide_resnet_22_8", set()), ("wide_resnet_16_8_drop02", {0.2}), ("vgg", set()),
    ("torchvision:efficientnet_b0", {0.2})])
def test_dropout_default_and_override(name, default):
    def probabilities(model: nn.Module) -> set[float]:
        return {m.p for m in model.modules() if isinstance(m, nn.Dropout)}

    assert probabilities(build_meta(name)) == default
    assert probabilities(build_meta(name, dropout=0.4)) == {0.4}
    assert not probabilities(build_meta(name, dropout=0.0)) - {0.0}


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "timm:vgg11"])
def test_dropout_where_there_is_none(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
        assert any(m.p == 0.3 for m in build_meta(name, dropout=0.3).modules() if isinstance(m, nn.Dropout))
        return
    with pytest.raises(ValueError, match=f"dropout=0.3: {name} has no dropout.*wide_resnet_22_8"):
        build_meta(name, dropout=0.3)


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_torchvision_by_name(name):
    model = build_meta(name, num_classes=5, image_size=64)
    assert isinstance(model, torchvision.models.ResNet)
    assert model.fc.out_features == 5
    assert model.input_shape == (3, 64, 64)
    with pytest.raises(ValueError, match="in_channels=1.*resnet20"):
        build_model(name, in_channels=1)


def test_auxiliary_classifiers_are_left_out():
    model = build_meta("torchvision:googlenet", num_classes=5, image_size=64).train()
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 5)


def test_timm_by_name():
    pytest.importorskip("timm")
    model = build_model("timm:resnet10t", num_classes=5, in_channels=1, image_size=64).eval()
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 5)
    with pytest.raises(ValueError, match="timm:resnet10t"):
        build_model("timm:resnet10x")


def test_timm_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        build_model("timm:resnet10t")


@pytest.mark.parametrize(("name", "classifier"), [("resnet18", "fc"), ("squeezenet1_1", "classifier.1")])
def test_pretrained_weights_with_another_number_of_classes(name, classifier, monkeypatch):
    published = torchvision.models.get_model(name, num_classes=1000).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published)
    same = build_model(name, 1000, pretrained=True).state_dict()
    assert all(torch.equal(same[key], published[key]) for key in published)
    other = build_model(name, 7, pretrained=True)
    assert other.get_submodule(classifier).weight.shape[0] == 7
    kept = [k for k in published if not k.startswith(classifier)]
    assert all(torch.equal(other.state_dict()[key], published[key]) for key in kept)


def test_no_published_weights_for_own_nets():
    with pytest.raises(ValueError, match="--pretrained_path"):
        build_model("resnet20", pretrained=True)


@pytest.mark.parametrize(("name", "suggestion"), [
    ("resnet18in", "resnet18_in"), ("torchvision:efficientnetb2", "torchvision:efficientnet_b2"), ("nothing", "vgg"),
    ("hub:resnet18", "torchvision:NAME")])
def test_unknown_names(name, suggestion):
    with pytest.raises(ValueError, match=f"invalid arch {name!r}.*{suggestion}"):
        build_model(name)


@pytest.mark.parametrize(("name", "suggestion"), [
    ("mobileone_s0", "timm:mobileone_s0"), ("torchvision:mobileone_s0", "timm:mobileone_s0"),
    ("timm:alexnet", "torchvision:alexnet"), ("timm:resnet18in", "resnet18_in"), ("timm:resnet5O", "timm:resnet50"),
    ("torchvision:resnet5O", "torchvision:resnet50")])
def test_unknown_names_are_looked_for_in_all_libraries(name, suggestion):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=rf"invalid arch {name!r}: did you mean .*\b{suggestion}[,?]"):
        build_model(name)


def test_unknown_weights_of_timm_name_those_that_there_are():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"'timm:resnet18.in1k': timm has no such weights; .*timm:resnet18.tv_in1k"):
        build_model("timm:resnet18.in1k")


def test_bad_numbers():
    with pytest.raises(ValueError, match="num_classes=0"):
        build_model("resnet20", 0)
