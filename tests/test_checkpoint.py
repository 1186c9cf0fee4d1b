"""Checkpoints: atomic, strict, weights-only."""

import argparse
import pickle

import numpy as np
import pytest
import torch

from autorep.config import GateConfig
from autorep.convert.swap import convert_relus_
from autorep.models.registry import build_model
from autorep.runs import checkpoint


def gated_payload():
    model = build_model("resnet8", in_channels=1, image_size=8)
    config = GateConfig(degree=1, kept="relu")
    model = convert_relus_(model, torch.zeros(1, 1, 8, 8), config).model
    torch.nn.init.normal_(model.fc.weight)
    for gate in model.modules():
        if hasattr(gate, "mask"):
            gate.mask.bernoulli_(0.3)
    return model, {**checkpoint.describe_model("resnet8", 10, 1, 8, None, config), "model": model.state_dict(),
                   "config": ""}


def test_round_trip_rebuilds_the_model_and_leaves_the_rng_alone(tmp_path):
    model, payload = gated_payload()
    checkpoint.save(tmp_path / "a" / "last.pth.tar", payload)
    torch.manual_seed(5)
    rebuilt = checkpoint.build_from(checkpoint.load(tmp_path / "a" / "last.pth.tar"))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rebuilt.eval()(x), model.eval()(x))


def test_the_random_state_comes_back():
    cpu = torch.device("cpu")
    saved = checkpoint.rng_state(cpu)
    drawn = torch.rand(3)
    checkpoint.set_rng_state(saved, cpu)
    assert torch.equal(drawn, torch.rand(3))


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "last.pth.tar"
    payload = gated_payload()[1]
    checkpoint.save(path, {**payload, "step": 1})

    def fail(payload, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {**payload, "step": 2})
    assert checkpoint.load(path)["step"] == 1 and [p.name for p in tmp_path.iterdir()] == ["last.pth.tar"]


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pth.tar"
    torch.save({"version": 1, "model_args": {}, "bad": Evil()}, path)
    with pytest.raises(ValueError, match="evil.pth.tar cannot be read"):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load(path)
    assert "code ran" not in capsys.readouterr().out


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "none.pth.tar")
    path = tmp_path / "last.pth.tar"
    checkpoint.save(path, gated_payload()[1])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load(path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not an autorep checkpoint"):
        checkpoint.load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        checkpoint.load(path)
    payload = gated_payload()[1]
    del payload["model"]["fc.bias"]
    checkpoint.save(path, payload)
    with pytest.raises(ValueError, match="not complete, .*fc.bias"):
        checkpoint.build_from(checkpoint.load(path))
    torch.save({**payload, "version": 7}, path)
    with pytest.raises(ValueError, match="version 7"):
        checkpoint.load(path)


def test_pretrained_weights_come_from_ours_or_a_plain_state_dict(tmp_path):
    source = build_model("resnet8", in_channels=1, image_size=8)
    plain, parallel = tmp_path / "plain.pth", tmp_path / "parallel.pth"
    torch.save(source.state_dict(), plain)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, parallel)
    for path in (plain, parallel):
        model = build_model("resnet8", in_channels=1, image_size=8)
        checkpoint.load_pretrained_(model, path)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in source.state_dict().items())


@pytest.mark.parametrize("wrap", [
    lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    lambda state: {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    lambda state: {"net": {f"module.{k}": v for k, v in state.items()}, "acc": 92.1, "epoch": 199},
    lambda state: {"epoch": 3, "weights": {"ema": {f"model.backbone.{k}": v for k, v in state.items()}}},
    lambda state: {k.replace("stages.", "stages._orig_mod."): v for k, v in state.items()},
    lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    lambda state: {"n_averaged": torch.tensor(5), **{f"module.module.{k}": v for k, v in state.items()}},
    lambda state: {"state_dict": {f"net.{k}": v for k, v in state.items()} | {"criterion.weight": torch.ones(10)}},
    lambda state: [{k.replace("stages.", "stages.module."): v for k, v in state.items()}, {"epoch": 3}],
    lambda state: {**state, "epoch": 3, "_extra_state": None},
    lambda state: {k: v.double() for k, v in state.items()},
], ids=["compiled", "parallel and compiled", "net", "nested", "a compiled part", "old batch norms", "AveragedModel",
        "beside a loss", "list", "beside numbers", "double"])
def test_weights_of_other_programs_load(tmp_path, wrap):
    source = build_model("resnet8", in_channels=1, image_size=8)
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    model = build_model("resnet8", in_channels=1, image_size=8)
    checkpoint.load_pretrained_(model, tmp_path / "weights.pth")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in source.state_dict().items())


def test_of_several_networks_the_first_is_used_and_said(tmp_path):
    source = build_model("resnet8", in_channels=1, image_size=8).state_dict()
    path = tmp_path / "weights.pth"
    torch.save({"student": source, "teacher": {k: v + 1 for k, v in source.items()}, "fc": {"fc.bias": torch.ones(10)}},
               path)
    model = build_model("resnet8", in_channels=1, image_size=8)
    with pytest.warns(UserWarning, match="several networks: 'student' is used, not 'teacher'; save"):
        checkpoint.load_pretrained_(model, path)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in source.items())


@pytest.mark.parametrize(("damage", "message"), [
    (lambda whole: b"<!DOCTYPE html><html>", "begins with b'<!DOCTYPE html><', unlike any file of torch.save"),
    (lambda whole: b"", "it is empty"), (lambda whole: whole[:-2000], "its end is missing; copy or download it again"),
], ids=["page", "empty", "cut"])
def test_what_came_in_place_of_weights_is_said(tmp_path, damage, message):
    model = build_model("resnet8", in_channels=1, image_size=8)
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        checkpoint.load_pretrained_(model, path)


@pytest.mark.parametrize("protocol", [4, 5])
def test_another_pickle_protocol_is_said(tmp_path, protocol):
    torch.save({"fc.bias": torch.ones(10)}, tmp_path / "weights.pth", pickle_protocol=protocol)
    with pytest.warns(UserWarning, match="protocol"), pytest.raises(ValueError, match="again without pickle_protocol"):
        checkpoint.load_pretrained_(build_model("resnet8", in_channels=1, image_size=8), tmp_path / "weights.pth")


def in_itself(state):
    whole = {"net": state}
    whole["self"] = whole
    return whole


def many_times(state):
    for _ in range(40):
        state = [state, state]
    return state


@pytest.mark.parametrize("wrap", [in_itself, many_times])
def test_what_a_file_holds_is_looked_at_once(tmp_path, wrap):
    source = build_model("resnet8", in_channels=1, image_size=8)
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    model = build_model("resnet8", in_channels=1, image_size=8)
    checkpoint.load_pretrained_(model, tmp_path / "weights.pth")
    assert torch.equal(model.fc.weight, source.fc.weight)


def test_the_object_in_the_way_is_named(tmp_path):
    state = build_model("resnet8", in_channels=1, image_size=8).state_dict()
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds a argparse.Namespace beside tensors"):
        checkpoint.load_pretrained_(build_model("resnet8", in_channels=1, image_size=8), tmp_path / "weights.pth")


@pytest.mark.parametrize(("wrap", "message"), [
    (lambda state: {f"{who}.{k}": v for who in ("student", "teacher") for k, v in state.items()},
     r"weights.pth holds several networks with these names, those of student., teacher."),
    (lambda state: {f"{who}.{k}": v for who in ("student", "teacher") for k, v in state.items() if "num_" not in k},
     r"weights.pth holds several networks with these names, those of student., teacher."),
    (lambda state: state | {"bn1.bias": torch.full((16,), torch.nan)}, r"not finite, in bn1.bias: its training"),
    (lambda state: state | {"fc.weight": state["fc.weight"].to_sparse()}, "other shape or type .'fc.weight'"),
    (lambda state: {k: v.to("meta") for k, v in state.items()}, "other shape or type .'bn1.bias'"),
    (lambda state: {k: v.to(torch.int8) for k, v in state.items()}, "other shape or type .'bn1.bias'"),
    (lambda state: {f"net.{k}": v for k, v in state.items()} | {"net.more": torch.ones(1)}, "unexpected .'more'"),
    (lambda state: {f"net.{k}": v for k, v in state.items() if k != "bn1.bias"},
     r"missing .'bn1.bias'., unexpected \[\]"),
    (lambda state: {"optimizer": {"state": {0: torch.ones(3)}}}, "holds no state dict"),
], ids=["two", "two without counters", "not finite", "sparse", "without content", "integers", "more", "less", "none"])
def test_weights_that_would_be_wrong_are_refused(tmp_path, wrap, message):
    model = build_model("resnet8", in_channels=1, image_size=8)
    torch.save(wrap(model.state_dict()), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        checkpoint.load_pretrained_(model, tmp_path / "weights.pth")


def test_a_flipped_byte_is_never_loaded(tmp_path):
    path, payload = tmp_path / "last.pth.tar", gated_payload()[1]
    checkpoint.save(path, payload)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(whole), 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1:])
        try:
            loaded = checkpoint.load(path)
        except ValueError:
            continue
        model = loaded.pop("model")  # the byte was padding, or a date
        assert loaded == {"version": 1, **{k: v for k, v in payload.items() if k != "model"}}
        assert all(torch.equal(v, model[k]) for k, v in payload["model"].items())


def test_weights_that_do_not_fit_change_nothing_and_say_why(tmp_path):
    gated, payload = gated_payload()
    checkpoint.save(tmp_path / "gated.pth.tar", payload)
    model = build_model("resnet8", in_channels=1, image_size=8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="give it as `checkpoint_path`"):
        checkpoint.load_pretrained_(model, tmp_path / "gated.pth.tar")
    torch.save(build_model("resnet8", num_classes=7, in_channels=1, image_size=8).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(ValueError, match="check `model.arch` and `data.dataset`.*fc.bias"):
        checkpoint.load_pretrained_(model, tmp_path / "seven.pth")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("num_saved", "gpu", "chosen"), [(1, 0, 0), (1, 3, 0), (4, 3, 3), (4, 0, 0), (2, 3, 0)])
def test_a_gpu_takes_its_own_state_or_the_only_one(monkeypatch, num_saved, gpu, chosen):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: taken.append((state, device)))
    saved = {**checkpoint.rng_state(torch.device("cpu")), "cuda": list(range(num_saved))}
    checkpoint.set_rng_state(saved, torch.device("cuda", gpu))
    assert taken == [(chosen, torch.device("cuda", gpu))]
