"""Conversion of models as people write, wrap and use them."""

import copy
import inspect
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from autorep.config import DapaConfig, GateConfig
from autorep.convert.sites import find_sites
from autorep.convert.swap import convert_relus_, revert_gates_
from autorep.dapa.calibrate import calibrate_
from autorep.gates.gated_relu import iter_gates
from autorep.models.registry import build_model
from autorep.search.masks import project_to_budget_
from autorep.search.relu_count import count_relus
from autorep.search.saliency import init_scores_

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """conv, an activation as `function(self, x)`, mean, fc."""

    def __init__(self, function, act=nn.ReLU):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3, padding=1), act(), nn.Linear(4, 10)
        self.function = function

    def forward(self, x):
        return self.fc(self.function(self, self.conv(x)).mean((2, 3)))


def calls_act(net, x):
    return net.act(x)


@pytest.mark.parametrize("function", [
    lambda net, x: net.act(input=x), lambda net, x: net.act(input=x) + net.act(input=x),
], ids=["swapped", "traced"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_keyword_calls(function, act):
    net = Net(function, act).eval()
    with torch.no_grad():
        before = net(IMAGES)
        convert_relus_(net, IMAGES, GateConfig(kept="relu"))
        assert act is nn.SiLU or torch.equal(net(IMAGES), before)
    labels = torch.zeros(2, dtype=torch.int64)
    net.compile(backend="eager")  # code that was compiled before does not hide the gates from what records them
    with torch.no_grad():
        net(IMAGES)
    calibrate_(net, [IMAGES], DapaConfig())
    init_scores_(net, [(IMAGES, labels)])
    assert all(gate.score.unique().numel() > 1 for _, gate in iter_gates(net))


@pytest.mark.parametrize("wrap", [torch.compile, lambda net: net.compile() or net], ids=["torch.compile", "compile()"])
def test_a_compiled_model_is_refused_with_the_way_out(wrap):
    with pytest.raises(ValueError, match=r"compiled by torch.compile.*convert the model first"):
        convert_relus_(wrap(Net(calls_act)), IMAGES)


@pytest.mark.parametrize("function", [calls_act, lambda net, x: net.act(net.act(x) - 1)], ids=["swapped", "traced"])
def test_hooks_of_every_kind_go_on_firing_and_their_handles_work(function):
    net, seen = Net(function).eval(), []

    def note(kind):
        return lambda *args: seen.append(kind)

    handles = [net.act.register_forward_hook(note("forward")), net.act.register_forward_pre_hook(note("pre")),
               net.act.register_full_backward_hook(note("backward")),
               net.act.register_full_backward_pre_hook(note("backward pre"))]

    def fired():
        seen.clear()
        net(IMAGES).sum().backward()
        return sorted(seen)

    before = fired()
    convert_relus_(net, IMAGES)
    assert fired() == before and len(before) >= 4
    for handle in handles[:2]:
        handle.remove()
    assert set(fired()) == {"backward", "backward pre"}
    revert_gates_(net)
    assert set(fired()) == {"backward", "backward pre"}


def test_gates_of_one_module_have_hooks_of_their_own():
    net = build_model("torchvision:wide_resnet50_2", image_size=32).eval()  # three calls of one ReLU, with other shapes
    convert_relus_(net, IMAGES[:, :, :8, :8].repeat(1, 1, 4, 4))
    gates, seen = dict(iter_gates(net)), []
    handles = [gate.register_forward_pre_hook(lambda gate, args, name=name: seen.append((name, args[0].shape[1:])))
               for name, gate in gates.items()]
    net(IMAGES.repeat(1, 1, 2, 2))
    assert dict(seen) == {name: gate.mask.shape for name, gate in gates.items()} and len(seen) == len(gates)
    for handle in handles:
        handle.remove()


def test_a_hook_on_a_module_that_is_traced_into_is_not_lost_in_silence():
    class Block(nn.Module):
        def forward(self, x):
            return F.relu(x)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.conv = Block(), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.block(self.conv(self.block(x)))

    net = Twice().eval()
    handle = net.block.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="Block in it has hooks"):
        convert_relus_(net, IMAGES)
    handle.remove()
    convert_relus_(net, IMAGES)
    handle = net.block.register_forward_hook(lambda *args: None)
    with pytest.warns(UserWarning, match="registered after the conversion on block in Twice do not fire.*iter_gates"):
        net(IMAGES)
    handle.remove()
    net(IMAGES)


def test_a_later_hook_on_a_shared_module_warns_and_one_on_its_gates_fires():
    net, seen = Net(lambda net, x: net.act(net.act(x) - 1)).eval(), []
    net.act.register_forward_hook(lambda *args: seen.append(args))
    convert_relus_(net, IMAGES)
    late = net.act.register_forward_hook(lambda *args: None)
    for model in (net, copy.deepcopy(net)):
        with pytest.warns(UserWarning, match="on act in Net do not fire"):
            model(IMAGES)
    late.remove()
    for _, gate in iter_gates(net):
        gate.register_forward_hook(lambda *args: seen.append(args))
    seen.clear()
    net(IMAGES)
    assert len(seen) == 4 and find_sites(net, IMAGES) == []
    partly = Net(lambda net, x: net.act(net.act(x) - 1)).eval()
    convert_relus_(partly, IMAGES, filter_fn=lambda module, name: name == "act_1")
    partly.act.register_forward_hook(lambda *args: seen.append(args))
    seen.clear()
    partly(IMAGES)
    assert len(seen) == 1


def test_what_was_set_aside_follows_type_and_device():
    net = Net(calls_act, nn.PReLU).eval()
    convert_relus_(net, IMAGES, GateConfig(kept="relu"))
    revert_gates_(net.double())
    assert net(IMAGES.double()).dtype == torch.float64
    half = Net(calls_act, nn.PReLU).half().eval()
    convert_relus_(half, IMAGES.half(), GateConfig(kept="relu"))
    assert revert_gates_(half).act.weight.dtype == torch.float16


@pytest.mark.parametrize("function", [
    lambda net, x: x.clamp(min=0), lambda net, x: torch.clamp(x, 0), lambda net, x: x.clip(0.0),
    lambda net, x: x.clamp_min(0), lambda net, x: x.clamp_min_(0), lambda net, x: torch.clamp_(x, min=0),
    lambda net, x: torch.maximum(x, torch.zeros_like(x)), lambda net, x: torch.maximum(torch.zeros(1), x),
    lambda net, x: x.max(torch.tensor(0.0)), lambda net, x: torch.fmax(x, x.new_zeros(())),
    lambda net, x: x.clamp(0, float("inf")), lambda net, x: F.threshold(x, 0, 0), lambda net, x: torch.max(x, 0 * x),
    lambda net, x: torch.max(torch.full_like(x, 0), x), lambda net, x: torch.maximum(x, torch.zeros(1).to(x)),
    lambda net, x: torch.ops.aten.relu(x), lambda net, x: torch.ops.aten.clamp_min.default(x, 0),
], ids=range(17))
def test_other_spellings_of_relu_are_gates(function):
    net = Net(function).eval()
    with torch.no_grad():
        before = net(IMAGES)
        assert count_relus(net, IMAGES).total == 4 * 16 * 16
        convert_relus_(net, IMAGES)
        assert torch.equal(net(IMAGES), before)
        project_to_budget_(net, 0)
        assert count_relus(net).kept == 0
        torch.testing.assert_close(net(IMAGES), net.fc(net.conv(IMAGES).mean((2, 3))))
        revert_gates_(net)
        assert torch.equal(net(IMAGES), before)


@pytest.mark.parametrize(("function", "name"), [
    (lambda net, x: x.clamp(0, 6), "clamp"), (lambda net, x: x.clamp(min=1e-6), "clamp"),
    (lambda net, x: x.clamp(max=0), "clamp"), (lambda net, x: torch.where(x > 0, x, 0.0), "gt"),
    (lambda net, x: x * (x > 0), "gt"), (lambda net, x: (x + x.abs()) / 2, "abs"),
    (lambda net, x: x.masked_fill(x < 0, 0), "lt"), (lambda net, x: -torch.minimum(-x, torch.zeros(1)), "minimum"),
    (lambda net, x: -torch.minimum(torch.zeros(1), -x), "minimum"),
    (lambda net, x: x * torch.greater(input=x, other=0), "greater"),
    (lambda net, x: x * ~x.less_equal(0), "less_equal"), (lambda net, x: (x + x.absolute()) / 2, "absolute"),
    (lambda net, x: x * (1 + x.sgn()), "sgn"), (lambda net, x: x * ~torch.signbit(x), "signbit"),
    (lambda net, x: F.softshrink(x), "softshrink"),
    (lambda net, x: x + x.max(0).values, None), (lambda net, x: x * (net.conv.weight > 0).any(), None),
], ids=range(17))
def test_what_is_no_relu_by_name_is_none_but_named_as_left_out(function, name):
    net = nn.Sequential(Net(lambda net, x: net.act(function(net, x)))).eval()
    report = convert_relus_(net, IMAGES)
    assert [site.name for site in report.sites] == ["0.act"]
    assert report.comparisons == (() if name is None else (f"0.{name}",))
    assert (f"compare elements: 0.{name}" in str(report)) == (name is not None)


@pytest.mark.parametrize(("rnn", "named"), [
    (nn.RNN(16, 16, nonlinearity="relu"), ("rnn.rnn_relu",)), (nn.RNN(16, 16), ()),
    (nn.RNNCell(16, 16, nonlinearity="relu"), ("rnn.rnn_relu_cell",)), (nn.LSTM(16, 16), ())], ids=str)
def test_activations_inside_a_fused_function_are_named_as_left_out(rnn, named):
    net = Net(lambda net, x: net.act(x) + net.rnn(x[:, 0, 0])[0].sum()).eval()
    net.rnn = rnn
    assert convert_relus_(net, IMAGES).comparisons == named


@torch.jit.script
def scripted(x):
    return torch.relu(x)


def test_activations_of_a_script_are_not_lost_in_silence():
    net = Net(lambda net, x: net.act(scripted(x) - 1)).eval()
    assert list(count_relus(net, IMAGES).layers) == ["relu", "act"]
    with pytest.raises(ValueError, match="or leave it out: filter_fn"):
        convert_relus_(net, IMAGES)
    convert_relus_(net, IMAGES, filter_fn=lambda module, name: name == "act")


def test_a_model_of_comparisons_alone_is_refused_by_their_names():
    net = nn.Sequential(Net(lambda net, x: torch.where(x > 0, x, 0.0))).eval()
    with pytest.raises(ValueError, match=r"compares elements at 0\.gt: write those that are activations as nn\.ReLU"):
        convert_relus_(net, IMAGES)


@pytest.mark.parametrize(("name", "num"), [("mobilenet_v3_small", 33), ("densenet121", 121)])
def test_the_zoo_finds_no_more_activations_than_before(name, num):
    assert len(count_relus(build_model(f"torchvision:{name}", 10, image_size=32)).layers) == num


def test_a_converted_model_is_traced_by_torch_fx():
    net = build_model("torchvision:resnet18", 10, image_size=32).eval()
    example = torch.randn(2, 3, 32, 32)
    convert_relus_(net, example[:1], GateConfig())
    for _, gate in iter_gates(net):
        gate.mask.copy_(torch.rand(gate.mask.shape) < 0.5)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(example), net(example), rtol=0, atol=0)
    features = create_feature_extractor(net, ["layer2"])(example)["layer2"]
    assert features.shape == (2, 128, 4, 4)
    torch.testing.assert_close(torch.export.export(net, (example,)).module()(example), net(example), rtol=0, atol=0)


@pytest.mark.parametrize(("net", "message"), [
    (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), "^0 is a lazy module without weights"),
    (lambda: Net(calls_act).to("meta"), "^conv is on the meta device"),
    (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), "compiled by torch.jit"),
    (lambda: torch.export.export(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (IMAGES,)).module(),
     "refuses evaluation mode .*before torch.export"),
], ids=["lazy", "meta", "scripted", "exported"])
def test_what_cannot_be_run_or_seen_through_is_refused_with_the_way_out(net, message):
    with pytest.raises(ValueError, match=message):
        convert_relus_(net(), IMAGES)


@pytest.mark.parametrize("example", [{"x": IMAGES}, IMAGES.numpy(), (2, 3, 16, 16), ()])
def test_an_example_of_another_type_is_refused(example):
    with pytest.raises(ValueError, match=r"invalid example_input of type .*expected a tensor, one batch"):
        convert_relus_(Net(calls_act), example)


def test_a_batch_with_labels_is_no_example():
    with pytest.raises(ValueError, match="example_input of 2 items.*too many positional.*give the images alone"):
        convert_relus_(Net(calls_act), [IMAGES, torch.zeros(2).long()])


def test_a_model_that_averages_its_gradients_is_converted_before(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(Net(calls_act))
        with pytest.raises(ValueError, match=r"DistributedDataParallel.*MODEL.module"):
            convert_relus_(wrapped, IMAGES)
        convert_relus_(wrapped.module, IMAGES)
    finally:
        torch.distributed.destroy_process_group()


def test_gates_that_are_made_in_inference_mode_train():
    net = Net(calls_act)
    with torch.inference_mode():
        convert_relus_(net, IMAGES)
    net(IMAGES).sum().backward()
    assert net.act.score.grad is not None


def test_a_copy_computes_with_its_own_parameters():
    net = Net(lambda net, x: F.prelu(x, net.slope)).eval()
    net.slope = nn.Parameter(torch.full((4,), 0.25))
    convert_relus_(net, IMAGES, GateConfig(kept="original"))
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.slope.fill_(0.75)
        assert torch.equal(copied(IMAGES), copied.fc(F.prelu(copied.conv(IMAGES), copied.slope).mean((2, 3))))
        assert torch.equal(net(IMAGES), net.fc(F.prelu(net.conv(IMAGES), net.slope).mean((2, 3))))


def test_the_fused_path_of_a_transformer_is_named_with_the_way_out():
    net = nn.Sequential(nn.Linear(3, 16), nn.TransformerEncoderLayer(16, 4, 32, activation=nn.ReLU(), batch_first=True))
    with pytest.raises(ValueError, match=r"^1: .* fused path .* LAYER.activation_relu_or_gelu = 0$"):
        convert_relus_(net.eval(), torch.randn(2, 5, 3), GateConfig())
    expected = net(example := torch.randn(2, 5, 3))
    net[1].activation_relu_or_gelu = 0
    assert [site.name for site in convert_relus_(net, example, GateConfig()).sites] == ["1.activation"]
    torch.testing.assert_close(net(example), expected)


class Block(nn.Module):
    """A functional ReLU, so that the forward is traced; `features` and `drop` are read in Python."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 10)
        self.features, self.drop, self.unread = False, 0.0, 1

    def forward(self, x, labels=None):
        y = F.dropout(F.relu(self.conv(x)), self.drop, self.training).mean((2, 3))
        return y if self.features else self.fc(y)


def emptied(net):
    convert_relus_(net, IMAGES, GateConfig(degree=1))
    project_to_budget_(net, 0)
    return net


def extracted(net):
    return create_feature_extractor(net, ["fc"])


@pytest.mark.parametrize("build", [Block, lambda: torch.fx.symbolic_trace(Block().eval()),
                                   lambda: extracted(Block().eval())], ids=["module", "fx", "extractor"])
@pytest.mark.parametrize("of", [
    copy.deepcopy, copy.copy, lambda net: torch.optim.swa_utils.AveragedModel(net).module,
    torch.fx.symbolic_trace, lambda net: net._replicate_for_data_parallel(), lambda net: net.train().eval(),
], ids=["deepcopy", "copy", "average", "fx", "replica", "modes"])
def test_whatever_goes_by_the_class_finds_the_gates(build, of):
    net = emptied(build().eval()).eval()
    outputs = [out["fc"] if isinstance(out, dict) else out for out in (net(IMAGES), of(net)(IMAGES))]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_a_copy_with_a_traced_forward_goes_back_alone():
    net = Block().eval()
    before = net(IMAGES)
    twin = copy.deepcopy(emptied(net))
    gated = twin(IMAGES)
    assert type(revert_gates_(net)) is Block and torch.equal(net(IMAGES), before)
    assert torch.equal(twin(IMAGES), gated) and torch.equal(revert_gates_(twin)(IMAGES), before)


def test_a_traced_forward_keeps_its_signature_and_refuses_what_it_was_not_traced_with():
    net = emptied(Block().eval())
    assert list(inspect.signature(net.forward).parameters) == ["x", "labels"]
    net.unread = 2
    net(IMAGES, labels=None)
    for name, value in (("features", True), ("drop", 0.5)):
        before = getattr(net, name)
        setattr(net, name, value)
        with pytest.raises(ValueError, match=f"Block.{name}={value}: the model was converted with {before}"):
            net(IMAGES)
        setattr(net, name, before)
    net(IMAGES)


def pads_to_even(net, x):
    height, width = x.shape[-2:]
    if pad := height % 2 or width % 2:
        x = F.pad(x, (0, pad, 0, pad))
    for i in range(x.shape[2] // 8):
        x = F.relu(x - i * torch.tensor(0.1))
    return x.view(*x.shape[:2], -1, x.size(3)) if len(x.shape) == 4 and x.dtype.is_floating_point else None


@pytest.mark.parametrize("side", [15, 16])
def test_decisions_on_shapes_are_taken_once_and_checked_later(side):
    net, images = Net(pads_to_even).eval(), IMAGES[..., :side, :side]
    with torch.no_grad():
        before = net(images)
        assert len(convert_relus_(net, images[:1]).sites) == 2  # another number of images is no other decision
        assert torch.equal(net(images), before) and torch.equal(torch.fx.symbolic_trace(net)(images), before)
        assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(images), before)
        with pytest.raises(ValueError, match=r"invalid \w+\(.*conv.*shape.*the model was converted for"):
            net(IMAGES[..., :7, :7])
        assert sum("_tensor_constant" in name for name in vars(net)) == 4  # two calls, two modes
        assert torch.equal(revert_gates_(net)(images), before) and not any("constant" in name for name in vars(net))


@pytest.mark.parametrize("decides", [
    lambda x: x.sum() > 0, lambda x: int(x.shape[0] * x.mean()) > 0, lambda x: x.requires_grad, lambda x: len(x) > 1])
def test_decisions_that_may_fall_otherwise_are_refused(decides):
    net = Net(lambda net, x: F.relu(x) if decides(x) else F.relu(x))
    with pytest.raises(ValueError, match="cannot be traced: TraceError: it takes a decision on .*conv"):
        convert_relus_(net, IMAGES)


class Rectified(nn.Module):
    def forward(self, weight):
        return F.relu(weight)


def test_what_is_computed_of_parameters_alone_is_no_activation():
    net = Net(lambda net, x: F.conv2d(net.act(x), F.relu(net.extra)) + F.relu(net.extra[:, 0]))
    net.extra = nn.Parameter(torch.randn(4, 4, 1, 1))
    nn.utils.parametrize.register_parametrization(net.conv, "weight", Rectified())
    assert count_relus(net.eval(), IMAGES).layers.keys() == {"act"}
    with torch.no_grad():
        before = net(IMAGES)
        convert_relus_(net, IMAGES)
        assert torch.equal(net(IMAGES), before) and [name for name, _ in iter_gates(net)] == ["act"]


class Three(nn.Module):
    """Three ReLU modules, with something between the first two that hides where its numbers come from."""

    def __init__(self, between):
        super().__init__()
        self.between, self.convs = between, nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.register_buffer("zero", torch.zeros(()))
        self.register_buffer("held", torch.zeros(2, 4, 16, 16))

    def forward(self, x):
        y = self.between(self, self.acts[0](self.convs[0](x)))
        return self.acts[2](self.convs[2](self.acts[1](self.convs[1](y)))).mean((2, 3))


def shifted(net, y):
    out = torch.zeros_like(y)
    out[:-1, :1] = y[1:, :1]
    out[:, 1:] = y[:, 1:]
    return out


def through_a_view(net, y):
    out = net.convs[1].weight[0, 0, 0, 0].expand(y.shape).clone()
    out[:, :2].copy_(y[:, :2])
    return out


@pytest.mark.parametrize("between", [
    shifted, through_a_view, lambda net, y: net.held.copy_(y), lambda net, y: torch.as_tensor(y.numpy()),
    lambda net, y: y.new_tensor(y.tolist()), lambda net, y: y.new_full(y.shape, y.mean().item()),
    lambda net, y: net.zero * y, lambda net, y: torch.randn(y.shape, generator=torch.Generator().manual_seed(0)),
], ids=["shift", "view", "buffer", "numpy", "list", "item", "fade-in", "noise"])
def test_what_is_only_hidden_from_the_scan_is_an_activation(between):
    assert list(count_relus(Three(between).eval(), IMAGES).layers) == ["acts.0", "acts.1", "acts.2"]


def test_classes_with_habits_of_their_own():
    seen = []

    class Registered(Block):
        def __init_subclass__(cls, kind, **options):
            seen.append(kind)

    class Locked(Registered, kind="locked"):
        def __init__(self):
            super().__init__()
            self.lock, self.scale, self.nan = threading.Lock(), 2.0, float("nan")

        def forward(self, x, labels=None):
            return super().forward(x) * self.scale if self.nan != self.nan else None

        def __getstate__(self):
            return {name: value for name, value in vars(self).items() if name != "lock"}

        def __setstate__(self, state):
            super().__setstate__(state)
            self.lock = threading.Lock()

    net = emptied(Locked().eval())
    net.scale = 2
    twin = copy.deepcopy(net)
    assert seen == ["locked"] and twin.lock is not net.lock and torch.equal(twin(IMAGES), net(IMAGES))
    net.w = nn.Parameter(torch.ones(2))
    nn.utils.parametrize.register_parametrization(net, "w", Rectified())
    assert revert_gates_(net)(IMAGES).shape == (2, 10) and not list(iter_gates(net))


def test_only_images_of_one_number_are_replaced_by_noise():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x, masks):
            assert type(masks) is list and bool((masks[0] == 1).all())
            return self.act(x * masks[0]).mean((2, 3))

    convert_relus_(Masked().eval(), (torch.zeros(2, 3, 8, 8), [torch.ones(2, 1, 8, 8)]))


def test_activations_that_are_zero_on_the_example_are_not_taken_for_zero():
    net = Net(lambda net, x: torch.maximum(x, 2 * x) + F.relu(x) + torch.max(x, 1, keepdim=True)[0])
    net.conv.bias = None
    assert count_relus(net.eval(), torch.zeros(2, 3, 16, 16)).total == 4 * 16 * 16


def test_an_example_of_zeros_verifies_as_much_as_another():
    net = Net(lambda net, x: F.relu(x * 2 if isinstance(x, torch.Tensor) else x)).eval()  # no tensor while traced
    net.conv.bias = None
    with pytest.raises(ValueError, match="does not reproduce the output"):
        convert_relus_(net, torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("kept", ["relu", "original"])
def test_parameters_of_what_was_set_aside_are_in_the_state_dict(kept):
    nets = [Net(calls_act, nn.PReLU).eval() for _ in range(2)]
    nets[0].act.weight.data.fill_(0.9)
    for net in nets:
        convert_relus_(net, IMAGES, GateConfig(kept=kept))
    nets[1].load_state_dict(nets[0].state_dict())
    assert torch.equal(nets[0](IMAGES), nets[1](IMAGES))
    older = {name: value for name, value in nets[0].state_dict().items() if "set_aside" not in name}
    nets[1].load_state_dict(older)
    assert torch.equal(*(revert_gates_(net)(IMAGES) for net in nets))


def test_what_was_set_aside_follows_the_mode():
    net = Net(calls_act, nn.RReLU).eval()
    convert_relus_(net, IMAGES, GateConfig(kept="original"))
    assert torch.equal(net(IMAGES), net(IMAGES))
    net.train()
    assert not torch.equal(net(IMAGES), net(IMAGES))


def test_polynomials_fit_an_activation_with_parameters_of_half_precision():
    net = Net(calls_act, nn.PReLU).half().eval()
    convert_relus_(net, IMAGES.half(), GateConfig(kept="relu", degree=1))
    calibrate_(net, [IMAGES.half()], DapaConfig(fit="gaussian"))
    assert 0.25 < net.act.coefficients[:, 1].min() <= net.act.coefficients[:, 1].max() < 1
