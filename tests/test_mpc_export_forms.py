"""What other people's networks compute in other words: exported as what it is, and at the price of that."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_mpc_export import check
from torch import nn
from torchvision.transforms import Normalize, v2

from autorep.mpc.bundle.files import load_graph, load_samples, load_weights
from autorep.mpc.bundle.interpreter import logits_float
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.export.to_bundle import export_model
from autorep.mpc.ring.fixed_point import FixedPoint

KEEP = (torch.rand(1, 4, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()
SLOPE = torch.tensor([0.2, -0.5, 1.0, 0.0]).view(4, 1, 1)


class Around(nn.Module):
    """A function between a convolution and a linear layer, or of the image before the linear layer."""

    def __init__(self, function, of_image=False):
        super().__init__()
        self.function, self.of_image, self.conv = function, of_image, nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.LazyLinear(5)
        self.register_buffer("keep", KEEP)
        with torch.no_grad():
            self(torch.zeros(2, 3, 6, 6))
        self.eval()

    def forward(self, x):
        return self.fc(self.function(self, x if self.of_image else self.conv(x)).flatten(1))


@pytest.mark.parametrize("function", [
    lambda net, x: F.relu(x) * net.keep.expand_as(x) + (1 - net.keep.expand_as(x)) * x,
    lambda net, x: net.keep * torch.relu(x) + (1 - net.keep) * (SLOPE * x + 0.1),
    lambda net, x: torch.where(net.keep > 0.5, x.clamp(min=0), 0.3 * x * x + x * SLOPE),
    lambda net, x: x * ((x > 0) * net.keep + SLOPE * (1 - net.keep)),
    lambda net, x: torch.where(net.keep.bool(), torch.maximum(x, torch.zeros_like(x)), x),
], ids=["SNL", "linear", "quadratic", "slope", "maximum"])
def test_gates_that_are_written_out_are_gates(function, tmp_path):
    graph = check(Around(function), (3, 6, 6), tmp_path)
    (gate,) = [op for op in graph.ops if op.kind == "gate"]
    np.testing.assert_array_equal(graph.public[f"{gate.name}/mask"], KEEP[0].bool().numpy())
    assert [op.kind for op in graph.ops] == ["conv", "gate", "flatten", "linear"]


@pytest.mark.parametrize(("function", "kinds"), [
    (lambda net, x: x ** 2, ["gate"]),
    (lambda net, x: 0.5 * x.square() + SLOPE * x - 1, ["gate"]),
    (lambda net, x: (x - 0.1) / 0.3 * 2, []), (lambda net, x: 0.5 * F.relu(x) - 1, ["gate", "affine"]),
    (lambda net, x: F.relu((x - 0.1) / 0.3), ["gate"]),
    (lambda net, x: torch.where(x > 0, x, torch.zeros(())), ["gate"]),
    (lambda net, x: F.relu(x - 0.5) - F.relu(-x), ["affine", "gate", "affine", "gate", "sub"]),
    (lambda net, x: x + 0.1 * F.relu(x), ["gate", "affine", "add"]),
    (lambda net, x: 0.5 * F.relu(x), ["gate", "affine"]),
    (lambda net, x: x.abs(), ["gate", "sub", "affine", "add"]),
    (lambda net, x: (F.relu(x) * net.keep * 0 + x), []),
    (lambda net, x: (x + x.abs()) / 2, ["gate"]),
    (lambda net, x: torch.max(x.new_zeros(()), x), ["gate"]),
    (lambda net, x: F.threshold(x, 0, 0), ["gate"]),
    (lambda net, x: x.masked_fill(x < 0, 0), ["gate"]),
    (lambda net, x: -torch.minimum(-x, torch.zeros(1)), ["gate"]),
    (lambda net, x: F.relu_(x * 1), ["gate"]),
], ids=["square", "quadratic", "affine", "after ReLU", "after affine", "where", "difference", "sum", "line after ReLU",
        "absolute", "nothing", "abs", "max", "threshold", "masked_fill", "minimum", "inplace"])
def test_expressions_become_the_fewest_operations(function, kinds, tmp_path):
    graph = check(Around(function), (3, 6, 6), tmp_path)
    assert [op.kind for op in graph.ops] == ["conv", *kinds, "flatten", "linear"]


def slopes(x):
    return torch.where(x > 0, x, 0.1 * x)


@pytest.mark.parametrize(("function", "comparisons"), [
    (F.relu6, 2), (nn.ReLU6(), 2), (lambda x: F.hardtanh(x, -0.5, max_val=0.2), 2), (nn.Hardtanh(), 2),
    (lambda x: x.clamp(-1500, 1500), 2), (lambda x: torch.clip(x, -0.5, 0.25), 2), (lambda x: x.clamp(min=0.3), 1),
    (lambda x: torch.clamp_max(x, -0.1), 1), (lambda x: x.clamp(-torch.inf, 0.2), 1),
    (lambda x: x.clamp(0.3, torch.inf), 1), (F.hardswish, 2), (nn.Hardswish(inplace=True), 2),
    (lambda x: x * F.relu6(x + 3) / 6, 2), (lambda x: F.leaky_relu(x, negative_slope=0.2), 1), (nn.LeakyReLU(-1.5), 1),
    (nn.PReLU(4), 1), (lambda x: F.prelu(x, torch.tensor([0.3])), 1), (lambda x: F.hardswish(x.mean((2, 3))), 2),
    (lambda x: torch.where(x > 0, x, SLOPE * x), 1), (torch.abs, 1), (lambda x: torch.max(x, 0.2 * x) + 1, 1),
    (lambda x: torch.where(x > 0, SLOPE * x, x) - 1, 1), (lambda x: torch.where(x > 0, SLOPE * x, 0), 1),
    (lambda x: x.clamp(max=0), 1), (lambda x: torch.where(x > 0, x, torch.linspace(0, 2, 6) * x), 1),
    (lambda x: torch.where(x > 0, 2 * x + 1, 0.1 * x + 1), 1), (lambda x: slopes(torch.clamp(x, -0.5, 0.5)), 3),
    (lambda x: slopes(2 * F.relu(x) - 1), 2), (lambda x: (2 * F.relu(x) - 1).abs(), 2),
    (lambda x: torch.maximum(x, x.flip(1)), 1), (lambda x: torch.max(x.mean((2, 3), keepdim=True), x), 1),
])
def test_what_a_few_comparisons_compute_is_exported(function, comparisons, tmp_path):
    net = Around(lambda net, x: function(4 * x))
    net.layer = function if isinstance(function, nn.Module) else None
    graph = check(net, (3, 6, 6), tmp_path)
    assert sum(op.kind == "gate" for op in graph.ops) == comparisons


@pytest.mark.parametrize(("function", "kinds"), [
    (lambda net, x: x * torch.linspace(-1, 1, 6) + net.keep, ["flatten", "affine"]),
    (lambda net, x: net.keep * F.relu(x) + (1 - net.keep) * x * torch.linspace(-1, 1, 6), ["flatten", "gate"]),
])
def test_constants_may_differ_from_pixel_to_pixel(function, kinds, tmp_path):
    graph = check(Around(function), (3, 6, 6), tmp_path)
    assert [op.kind for op in graph.ops] == ["conv", *kinds, "linear"]


def halves(net, x):
    first, second = x[:, :2], x[:, 2:]
    F.relu_(first)
    return torch.cat([second, first], 1)


def assigned(net, x):
    y = x
    y *= 2
    x -= 1
    return x + y.relu()


@pytest.mark.parametrize("function", [
    lambda net, x: (F.relu_(x), x)[1],
    lambda net, x: (F.relu_(x), x.add_(1), x)[2],
    lambda net, x: net.conv(net.act(x)[:, :3]) + x,
    lambda net, x: (F.relu(x.detach(), inplace=True), x)[1],
    halves, assigned,
], ids=["relu_", "twice", "module", "alias", "halves", "assigned"])
def test_what_a_call_writes_into_its_operand_is_read_later(function, tmp_path):
    net = Around(lambda net, x: x)
    net.act, net.function = nn.ReLU(True), function
    assert any(op.kind == "gate" for op in check(net, (3, 6, 6), tmp_path).ops)


def test_a_network_may_write_into_its_images(tmp_path):
    images = torch.randn(4, 3, 2, 2)
    before = images.clone()
    export_model(nn.Sequential(nn.ReLU(True), nn.Flatten(), nn.Linear(12, 3)), images, torch.zeros(4).long(), tmp_path)
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(load_samples(tmp_path, load_graph(tmp_path)).images, before)


@pytest.mark.parametrize("function", [
    lambda net, x: (x[:, :2].relu_(), x)[1],
    lambda net, x: (view := x.flatten(2), x.relu_(), view)[2],
    lambda net, x: (both := x.split(2, 1), x.relu_(), torch.cat(both, 1))[2],
], ids=["part", "view", "tuple"])
def test_what_was_written_in_part_or_through_a_view_cannot_be_read(function, tmp_path):
    with pytest.raises(ValueError, match=r"reading (conv|flatten|split) after relu_ has written into memory of it"):
        export_model(Around(function), torch.randn(2, 3, 6, 6), torch.zeros(2, dtype=torch.long), tmp_path)


@pytest.mark.parametrize("function", [
    lambda net, x: F.relu(x) * torch.rand(4, 6, 6),
    lambda net, x: (torch.where(x > 1, x, 0) * x).mean((2, 3)),
    lambda net, x: torch.where(x > 1000.5, x, net.keep),
    lambda net, x: F.relu(x) * net.keep + (1 - net.keep) * torch.rand(4, 6, 6) * x,
    lambda net, x: F.celu(x),
    lambda net, x: x.clamp(min=SLOPE),
    lambda net, x: x.to(torch.int32).to(x),
    lambda net, x: F.threshold(x, 1e-4, 0),
    lambda net, x: x ** 3,
], ids=["scaled pixels", "read in part", "beyond", "random slopes", "celu", "clamp by tensors", "rounded",
        "threshold", "cube"])
def test_other_expressions_are_refused(function, tmp_path):
    with pytest.raises(ValueError, match="cannot be exported|differs from torch"):
        export_model(Around(function), torch.randn(2, 3, 6, 6), torch.zeros(2, dtype=torch.long), tmp_path)


@pytest.mark.parametrize("last", [nn.Identity(), nn.Softmax(1), nn.LogSoftmax(1)])
def test_small_logits_do_not_hide_a_difference(last, tmp_path):
    net = Around(lambda net, x: torch.where(x > 0.9, x, torch.where(x > 0.3, 0.0, x)))  # only between the values probed
    for parameter in net.fc.parameters():
        parameter.data *= 1e-4
    with pytest.raises(ValueError, match="differs from torch"):
        export_model(nn.Sequential(net, last), torch.randn(2, 3, 6, 6), torch.zeros(2, dtype=torch.long), tmp_path)


def test_samples_that_are_alike_do_not_hide_a_difference(tmp_path):
    net = Around(lambda net, x: x * 2 if isinstance(x, torch.Tensor) else x)  # which a trace is not
    net.conv.bias.data.zero_()
    with pytest.raises(ValueError, match="differs from torch"):
        export_model(net, torch.zeros(2, 3, 6, 6), torch.zeros(2, dtype=torch.long), tmp_path)


def test_a_network_that_insists_on_float32_is_compared_in_it(tmp_path):
    net = Around(lambda net, x: torch.where(x.float() > 0.9, x, torch.where(x > 0.3, 0.0, x)).float())
    with pytest.raises(ValueError, match="^the exported network differs from torch"):
        export_model(net, torch.randn(2, 3, 6, 6), torch.zeros(2, dtype=torch.long), tmp_path)


@pytest.mark.parametrize("function", [
    lambda net, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0),
    lambda net, x: torch.cat([x, x.new_zeros(x.size(0), 3, 6, 6)], 1),
    lambda net, x: torch.cat([x, torch.zeros((x.size(0), 3, x.shape[2], 6))], 1),
    lambda net, x: x.flip(3) if max(4, x.shape[-1]) > 5 and x.dim() == 4 else x,
    lambda net, x: F.adaptive_avg_pool2d(x, 12),
    lambda net, x: torch.cat([F.avg_pool2d(x, 1, 2), F.max_pool2d(x, kernel_size=1, stride=2)], 1),
    lambda net, x: x.transpose(2, 3).flip(3),
    lambda net, x: x[:, 1:, 1:-1, 2:],
    lambda net, x: F.pixel_shuffle(x, 2),
    lambda net, x: F.interpolate(x, scale_factor=2),
    lambda net, x: F.pad(x, (1, 2, 0, 1)).roll(1, 2),
    lambda net, x: F.pad(x, (2, 0, 1, 2), mode="reflect"),
    lambda net, x: F.pad(x, (2, 1, 0, 3), "circular"),
    lambda net, x: x.flatten(2).transpose(1, 2),
    lambda net, x: torch.cat([x, x[:, :, :1, :1].expand_as(x)], 1),
    lambda net, x: F.pad(x[:, :, 2:4, :1].repeat(1, 1, 1, 3).expand_as(x[:, :, :2, :3]), (1, 1)),
    lambda net, x: x.repeat(1, 2, 1, 1),
    lambda net, x: x.unflatten(1, (2, 2)).select(1, 1),
    lambda net, x: x.tile(1, 2, 1, 1).repeat_interleave(2, 2),
    lambda net, x: x.index_select(1, torch.tensor([2, 0])).rot90(1, (2, 3)),
    lambda net, x: F.unfold(x, 2, padding=1),
    lambda net, x: x.tensor_split(2, 1)[1].reshape_as(x[:, :2]).to(torch.float32).type_as(x),
    lambda net, x: torch.hstack([x.fliplr(), x]),
    lambda net, x: x.flatten(2).mT.data,
    lambda net, x: x.flatten(1).T.T.type(torch.float32),
    lambda net, x: torch.cat([*x.chunk(2, 1), *(half.flip(1) for half in x.split([1, 3], 1))], 1),
    lambda net, x: x.flatten(1).view(-1, *x.shape[1:]).transpose(2, 3),
    lambda net, x: torch.dropout(F.alpha_dropout(x, 0.5, training=False), 0.5, train=net.training),
])
def test_whatever_moves_elements_is_exact_and_costs_nothing(function, tmp_path):
    graph = check(Around(function), (3, 6, 6), tmp_path)
    rows = {row["layer"]: row["bytes"] for row in estimate(graph, FixedPoint(), [])["spu-semi2k"]["by_layer"]}
    assert not any(rows[op.name] for op in graph.ops if op.kind not in ("conv", "linear"))


def test_tensors_side_by_side_cost_nothing_in_any_dimension(tmp_path):
    def joined(net, x):
        y, z = net.conv(x), F.relu(net.conv(x.flip(2)))
        rows = torch.cat([y, z[:, :, 1:], x.new_zeros(x.size(0), 4, 1, 6)], 2)
        columns = torch.cat([z, rows[:, :, :6], y], dim=-1)
        return torch.hstack([columns.flatten(1), torch.dstack([y, z]).flatten(1), torch.stack([z, y, z], 2).flatten(1)])

    graph = check(Around(joined, of_image=True), (3, 6, 6), tmp_path)
    rows = {row["layer"]: row["bytes"] for row in estimate(graph, FixedPoint(), [])["spu-semi2k"]["by_layer"]}
    assert not any(rows[op.name] for op in graph.ops if op.kind not in ("conv", "gate", "linear"))


@pytest.mark.parametrize("function", [
    lambda y, z: torch.stack([y, z]).sum(0), lambda y, z: torch.stack([y, z, y.flip(1)]).mean(0),
    lambda y, z: torch.stack([y, z], 1).mean(1), lambda y, z: torch.stack([y, z], -1).amax(-1),
    lambda y, z: torch.stack([y.mean((2, 3)), z.amax((2, 3))]).mean(0),
])
def test_a_stack_is_reduced_in_whatever_dimension(function, tmp_path):
    check(Around(lambda net, x: function(net.conv(x), F.relu(net.conv(x.flip(2)))), of_image=True), (3, 6, 6), tmp_path)


def standardised(net, x):
    weight = net.conv.weight.transpose(0, 1)
    weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
    return F.conv2d(x, weight, stride=2, padding=(1, 0), groups=1)


def of_the_image(convert):
    return lambda net, x: F.conv2d(x, convert(net.conv.weight.transpose(0, 1).double(), x), x.new_zeros(3))


@pytest.mark.parametrize("function", [
    standardised,
    lambda net, x: torch.multiply(x, x.roll(1, 2)).subtract(x.flip(2).multiply(x)),
    lambda net, x: torch.rsub(x, torch.add(x, x.flip(2), alpha=1)),
    lambda net, x: torch.max_pool2d(x, 3, 2, 1),
    lambda net, x: torch.batch_norm(x, SLOPE.flatten(), None, *KEEP[0, :, 0, :2].T, False, 0.1, 1.0, False),
    lambda net, x: F.conv2d(x, net.conv.weight.transpose(0, 1).type(x.type())),
    of_the_image(lambda weight, x: weight.type_as(x)), of_the_image(lambda weight, x: weight.to(x)),
    lambda net, x: x * x.new_tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1),
    lambda net, x: F.linear(x.double().flatten(1), torch.ones(2, 144).double()).type_as(x),
    lambda net, x: x - F.max_pool2d(x, 3, 1, 1),
    lambda net, x: torch.sub(x, F.avg_pool2d(x, 3, 1, 1)),
    lambda net, x: F.max_pool2d(x, 3, 2, padding=1, dilation=2, ceil_mode=True),
    lambda net, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    lambda net, x: F.avg_pool2d(x, (2, 3), 3, (1, 0), ceil_mode=True),  # the last window ends behind the right side
    lambda net, x: F.avg_pool2d(x, 4, 3, ceil_mode=True, count_include_pad=False),
    lambda net, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=4),
    lambda net, x: F.avg_pool2d(x, 1, 2, 0, False, True, 5),
    lambda net, x: F.conv1d(x.flatten(2), net.conv.weight[:, :2, 0], stride=2, padding=1, groups=2),
    lambda net, x: F.max_pool1d(x.flatten(2), 3, padding=1, dilation=2),
    lambda net, x: F.avg_pool1d(x.flatten(2), 5, 3, 2, count_include_pad=False),
    lambda net, x: F.adaptive_avg_pool1d(x.flatten(2), 7), lambda net, x: F.adaptive_max_pool1d(x.flatten(2), 1),
    lambda net, x: x.mean(3).mean(2),
    lambda net, x: x.mean(2, keepdim=True),
    lambda net, x: x.flatten(2).mean(-1),
    lambda net, x: x.sum((2, 3)) * 0.1,
    lambda net, x: x.amax((2, 3)) + F.adaptive_max_pool2d(x, 1).flatten(1),
    lambda net, x: F.adaptive_max_pool2d(x, 2),
    lambda net, x: F.adaptive_max_pool2d(x, (8, 5)),
    lambda net, x: F.adaptive_avg_pool2d(x, (4, 7)),
    lambda net, x: F.adaptive_avg_pool2d(x[:, :, :2], 5),
    lambda net, x: x.mean((2, 3)) @ torch.arange(8.0).view(4, 2),
    lambda net, x: (net.conv.weight[:, :, 0, 0].T @ x.flatten(2)).relu(), lambda net, x: torch.matmul(KEEP[0, 0], x),
    lambda net, x: x * x.mean(1, keepdim=True),
    lambda net, x: x.sum(1) - x[:, 2],
    lambda net, x: F.linear(x.permute(0, 2, 3, 1), net.conv.weight[..., 0, 0].T, net.conv.bias[:3]).permute(0, 3, 1, 2),
    lambda net, x: F.relu(x.flatten(2).transpose(1, 2) @ torch.arange(8.0).view(4, 2)),
    lambda net, x: x.mean((1, 2, 3), keepdim=True) * x,
    lambda net, x: x.flatten(2).transpose(1, 2).mean(1),
    lambda net, x: x.amax((1, 3)) + x.sum((1, 2)),
    lambda net, x: x + x.mean((2, 3), keepdim=True) * x,
    lambda net, x: x[:, :, :, :1] * x.mean((2, 3), keepdim=True).expand_as(x),
    lambda net, x: (m := x.mean((2, 3), keepdim=True)).expand_as(x) * m + m.expand_as(x) * m.expand_as(x),
    lambda net, x: F.max_pool2d(x, 6) - x,
    lambda net, x: (m := x.amax((2, 3), keepdim=True)) + x + (m - x[:, :, :3, :3]).sum((2, 3), keepdim=True),
])
def test_layers_in_other_words(function, tmp_path):
    check(Around(function), (3, 6, 6), tmp_path)


@pytest.mark.parametrize("function", [
    lambda net, x: F.adaptive_max_pool2d(x[:, :, :5, :5], 3),
    lambda net, x: F.max_pool2d(x, 3, 2, 1, dilation=2, ceil_mode=True),
])
def test_a_maximum_compares_no_more_elements_than_the_largest_window_has(function, tmp_path):
    (pool,) = [op for op in check(Around(function), (3, 6, 6), tmp_path).ops if op.kind == "max_pool"]
    assert pool.attrs["kernel"] == (3, 3)


@pytest.mark.parametrize("layer", [
    nn.Conv1d(4, 3, 3, padding="same", dilation=2),
    nn.Sequential(nn.ZeroPad1d(1), nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
                  nn.AdaptiveAvgPool1d(5)),
], ids=["Conv1d", "several"])
def test_layers_of_one_dimension(layer, tmp_path):
    net = Around(lambda net, x: x)
    net.layer, net.fc = layer, nn.LazyLinear(3)
    net.function = lambda net, x: net.layer(x.flatten(2))
    net.eval()(torch.zeros(2, 3, 6, 6))
    check(net, (3, 6, 6), tmp_path)


@pytest.mark.parametrize("layer", [
    nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"),
    nn.Conv2d(3, 4, (3, 4), padding="same", padding_mode="reflect"), Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]),
    Normalize([0.5], [0.2]), v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], inplace=True), nn.SyncBatchNorm(3),
    nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    nn.AlphaDropout(), nn.Threshold(0, 0),
], ids=["circular", "reflect", "Normalize", "one mean", "v2.Normalize", "SyncBatchNorm",
        "InstanceNorm", "dropout", "threshold"])
def test_layers_of_other_kinds(layer, tmp_path):
    net = nn.Sequential(layer, nn.Conv2d(layer.out_channels if isinstance(layer, nn.Conv2d) else 3, 2, 3), nn.Flatten(),
                        nn.LazyLinear(3)).eval()
    net(torch.zeros(2, 3, 6, 6))
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    check(net, (3, 6, 6), tmp_path)


class OptionA(nn.Module):
    """What a gate gives is read moved, by the shortcut, and as it is."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)

    def forward(self, x):
        x = F.relu(self.first(x))
        return F.relu(self.second(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).flatten(1)


def test_what_is_read_moved_and_as_it_is_is_computed_once(tmp_path):
    graph = check(OptionA().eval(), (3, 6, 6), tmp_path)
    assert [op.kind for op in graph.ops] == ["conv", "gate", "conv", "rearrange", "add", "gate", "flatten"]
    assert {op.name for op in graph.ops} >= {"first", "second"}


def test_moves_of_one_name_are_told_apart_and_equal_ones_are_one(tmp_path):
    net = Around(lambda net, x: x)
    net.pad = nn.ZeroPad2d(1)
    net.function = lambda net, x: (F.avg_pool2d(net.pad(x), 3, 1) + F.max_pool2d(F.pad(x, (2, 0, 2, 0)), 3, 1)
                                   + F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1))
    graph = check(net, (3, 6, 6), tmp_path)
    assert sum(op.kind == "rearrange" for op in graph.ops) == 2


@pytest.mark.parametrize("expand", [lambda m, x: m, lambda m, x: m.expand_as(x), lambda m, x: m.repeat(1, 1, 6, 6)])
def test_a_product_expands_a_number_per_channel_by_itself(expand, tmp_path):
    net = Around(lambda net, x: x * expand(x.mean((2, 3), keepdim=True), x))
    assert [op.kind for op in check(net, (3, 6, 6), tmp_path).ops] == ["conv", "avg_pool", "mul", "flatten", "linear"]


@pytest.mark.parametrize("function", [
    lambda net, x: torch.cat(tensors=[x, torch.zeros_like(x)], dim=1), lambda net, x: torch.cat(tensors=(x, x), dim=1),
    lambda net, x: F.interpolate(x, None, 2.0, "nearest"),
    lambda net, x: torch.cat([x.mean(axis=3).mean(axis=2), x.amax(axis=(2, 3)), torch.sum(x, axis=(2, 3))], 1),
    lambda net, x: x.mean(axis=1, keepdims=True) * torch.sum(x, axis=1, keepdims=True),
    lambda net, x: torch.concatenate([x, F.relu(x)], axis=1),
], ids=["cat with zeros", "cat", "interpolate", "reductions by axis", "channels by axis", "concatenate by axis"])
def test_arguments_may_be_given_by_name_or_place(function, tmp_path):
    check(Around(function), (3, 6, 6), tmp_path)


@pytest.mark.parametrize(("function", "message"), [
    (lambda net, x: F.interpolate(x, None, 2.0, "bilinear"), "interpolate"),
    (lambda net, x: torch.add(x, x.flip(1), alpha=0.5), r"alpha=0.5 cannot be exported: x \+ alpha \* y can"),
    (lambda net, x: torch.cat([x, torch.ones_like(x)], 1), "constants that are not zero"),
    (lambda net, x: F.max_pool1d(x.flatten(1), 2), r"max_pool1d: a pool of \[1, 144\] .* rows \[N, C, L\] can"),
    (lambda net, x: F.max_pool2d(x.flatten(2), 2), r"a pool of \[1, 4, 36\] to \[1, 2, 18\]"),
    (lambda net, x: F.adaptive_avg_pool1d(x.flatten(1), 2), r"a pool of \[1, 144\]"),
    (lambda net, x: x.max(3)[0], "several tensors.*amax"),
    (lambda net, x: torch.sigmoid(x), "sigmoid: sigmoid cannot .*; write it as nn.Sigmoid, .* GateConfig"),
    (lambda net, x: x.sigmoid(), "write it as nn.Sigmoid"),
    (lambda net, x: x.mean((2, 3), keepdim=True).squeeze().flatten(1), "fails on a batch of one image: Dimension out"),
])
def test_a_refusal_is_one_line_with_the_place_and_the_way_out(function, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        export_model(Around(function), torch.randn(2, 3, 6, 6), torch.zeros(2, dtype=torch.long), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("images", "labels", "message"), [
    (torch.zeros(2, 3, 2, 2).bfloat16(), torch.zeros(2).long(), r"invalid images \(torch.bfloat16, \[2, 3, 2, 2\]\)"),
    (torch.zeros(0, 3, 2, 2), torch.zeros(0).long(), "expected a tensor of one image or more"),
    (np.zeros((2, 3, 2, 2)), torch.zeros(2).long(), r"invalid images \(ndarray\)"),
    (torch.zeros(2, 3, 2, 2), [0, 1], r"invalid labels \(list\)"),
    (torch.zeros(2, 3, 2, 2), torch.zeros(3).long(), r"invalid labels \(torch.int64, \[3\]\).*each of 2 images"),
    (torch.zeros(2, 3, 2, 2), torch.tensor([0.9, 1.5]), r"invalid labels \(torch.float32, \[2\]\): .* whole numbers"),
])
def test_samples_of_another_kind_are_refused(images, labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(Ending(nn.Identity()).eval(), images, labels, tmp_path)


def test_a_network_of_numbers_that_are_not_finite_is_refused(tmp_path):
    net = Ending(nn.Identity()).eval()
    net.fc.bias.data[1] = torch.nan
    with pytest.raises(ValueError, match="not finite on the samples: look for NaN in .*, or train .*--range_width"):
        export_model(net, torch.randn(2, 3, 2, 2), torch.zeros(2).long(), tmp_path)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(nn.DataParallel(net), backend="eager")])
def test_wrappers_are_looked_through(wrap, tmp_path):
    assert [op.kind for op in check(wrap(Ending(nn.ReLU())).eval(), (3, 2, 2), tmp_path).ops] == ["flatten", "linear",
                                                                                                  "gate"]


def test_images_that_carry_a_gradient_are_samples(tmp_path):
    images = torch.randn(2, 3, 2, 2, requires_grad=True)
    assert export_model(Ending(nn.Identity()).eval(), images, torch.zeros(2).long(), tmp_path) == []


class Ending(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.fc, self.last = nn.Linear(12, 4), last

    def forward(self, x):
        return self.last(self.fc(x.flatten(1)))


@pytest.mark.parametrize("last", [nn.LogSoftmax(1), nn.Softmax(-1), nn.Softmax(), F.log_softmax,
                                  lambda y: torch.special.log_softmax(y, 1), lambda y: F.log_softmax(y, dim=1),
                                  lambda y: y.softmax(1)])
def test_a_softmax_at_the_end_is_left_out(last, tmp_path):
    model, images = Ending(last).eval(), torch.randn(5, 3, 2, 2)
    export_model(model, images, torch.zeros(5, dtype=torch.long), tmp_path)
    graph = load_graph(tmp_path)
    assert [op.kind for op in graph.ops] == ["flatten", "linear"] and "softmax" in graph.meta["left_out"]
    logits = logits_float(graph, load_weights(tmp_path, graph), images.numpy())
    np.testing.assert_allclose(logits, model.fc(images.flatten(1)).detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(load_samples(tmp_path, graph).logits, logits, atol=1e-6)


@pytest.mark.parametrize("last", [nn.Softmax(0), lambda y: y.softmax(1) * 2, lambda y: (y, y.softmax(1))])
def test_a_softmax_elsewhere_is_refused(last, tmp_path):
    with pytest.raises(ValueError, match="softmax|Softmax|one tensor"):
        export_model(Ending(last).eval(), torch.randn(2, 3, 2, 2), torch.zeros(2, dtype=torch.long), tmp_path)


class Unused(nn.Module):
    """An auxiliary head that evaluation computes and drops, after the logits."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(12, 4), nn.Linear(4, 2)

    def forward(self, x):
        y = self.fc(x.flatten(1))
        self.head(F.relu(y))
        return y


def test_what_the_logits_do_not_need_is_left_out(tmp_path):
    assert [op.kind for op in check(Unused().eval(), (3, 2, 2), tmp_path).ops] == ["flatten", "linear"]


def double_result(module, args, result):
    return result * 2


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 3, 1), nn.Identity(), nn.ReLU(True)])
def test_a_hook_that_changes_a_result_is_named(layer, tmp_path):
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).eval()
    seen = []
    layer.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    check(net, (3, 2, 2), tmp_path)
    assert seen
    layer.register_forward_hook(double_result)
    with pytest.raises(ValueError, match=f"^0: a hook that changes what {type(layer).__name__} .*double_result"):
        export_model(net, torch.randn(2, 3, 2, 2), torch.zeros(2, dtype=torch.long), tmp_path)


def test_other_transforms_are_refused(tmp_path):
    net = nn.Sequential(v2.RandomHorizontalFlip(1.0), nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ValueError, match="^0: RandomHorizontalFlip cannot be exported"):
        export_model(net, torch.randn(2, 3, 2, 2), torch.zeros(2, dtype=torch.long), tmp_path)


def test_an_error_names_the_module(tmp_path):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(2, 3, 6, 6))
    with pytest.raises(ValueError, match=r"^0\.1: GELU cannot be exported") as caught:
        export_model(model.eval(), torch.randn(2, 3, 6, 6), torch.zeros(2, dtype=torch.long), tmp_path)
    assert "\n" not in str(caught.value)
