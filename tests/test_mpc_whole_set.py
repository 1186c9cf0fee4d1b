"""Accuracy of a bundle over a whole test split, in the engine's arithmetic."""

import json
import re

import pytest
import torch
from torch import nn

from autorep.data.augment import Normaliser
from autorep.data.datasets import dataset_info, read_arrays
from autorep.mpc.__main__ import main
from autorep.mpc.export import whole_set
from autorep.mpc.export.to_bundle import export_model
from autorep.mpc.export.whole_set import evaluate_bundle
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.prediction import logits_fixed


@pytest.fixture(scope="module")
def digits():
    """A linear classifier of the digits, their test images as it takes them, and their labels."""
    info, splits = dataset_info("digits", None), read_arrays(dataset_info("digits", None), None)
    images = {name: Normaliser(info.mean, info.std)(torch.from_numpy(split.images)).contiguous()
              for name, split in splits.items()}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    model(images["test"][:2])
    optimizer, labels = torch.optim.Adam(model.parameters(), 0.01), torch.from_numpy(splits["train"].labels)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images["train"]), labels.long()).backward()
        optimizer.step()
    return model.eval(), images["test"], splits["test"].labels


@pytest.fixture(scope="module")
def bundle(digits, tmp_path_factory):
    model, images, labels = digits
    folder = tmp_path_factory.mktemp("bundle")
    export_model(model, images[:100], torch.from_numpy(labels[:100]), folder, meta={"dataset": "digits"})
    return folder


def test_both_accuracies_are_of_every_test_image(bundle, digits):
    model, images, labels = digits
    found = evaluate_bundle(bundle, data_path=None, fixed=FixedPoint(4, 4))
    with torch.no_grad():
        exact = model(images).argmax(1).numpy()
    assert found.num_images == len(labels)
    assert found.top1_float == pytest.approx(100 * (exact == labels).mean())
    assert 50 < found.top1 <= 100 and 50 < found.agreement < 100  # 4 bits change some


def test_the_fewest_bits_that_keep_the_class_are_found(bundle):
    found = evaluate_bundle(bundle, data_path=None)
    assert found.agreement >= 99.9 and found.fixed.fraction_bits < 16
    coarser = found.fixed.with_fraction_bits(found.fixed.fraction_bits - 1)
    if found.fixed.fraction_bits > 6:
        assert evaluate_bundle(bundle, data_path=None, fixed=coarser).agreement < 100


def test_a_format_that_cannot_do_is_left_early(bundle, monkeypatch):
    predicted = []

    def logits(program, weights, images, batch):
        predicted.append(len(images))
        return logits_fixed(program, weights, images, batch)

    monkeypatch.setattr(whole_set, "logits_fixed", logits)
    monkeypatch.setattr(whole_set, "_formats", lambda *of_bundle: iter([FixedPoint(4, 4), FixedPoint()]))
    found = evaluate_bundle(bundle, data_path=None)
    assert found.fixed == FixedPoint() and found.num_images < sum(predicted) < 2 * found.num_images


def test_the_command_prints_it(bundle, capsys):
    assert main(["evaluate", str(bundle), "--images", "40", "--fraction_bits", "12"]) == 0
    expected = "40 test images with 12 fraction bits, 16 of coefficients and exact truncation: top-1"
    assert expected in capsys.readouterr().out


def test_the_command_predicts_what_a_run_would_do_and_searches_where_it_is_asked(bundle, capsys):
    assert main(["evaluate", str(bundle), "--images", "40"]) == 0
    said, found = capsys.readouterr().out.splitlines()
    assert said.startswith("local truncation, with 12 fraction bits and 8 of coefficients, because it saves rounds and")
    assert found.startswith("40 test images with 12 fraction bits, 8 of coefficients and local truncation")
    for truncation in ("exact", "local"):
        assert main(["evaluate", str(bundle), "--images", "40", "--truncation", truncation]) == 0
        (found,) = capsys.readouterr().out.splitlines()
        bits = int(re.match(r"40 test images with (\d+) fraction bits, ", found)[1])
        assert 6 <= bits < 12 and f"and {truncation} truncation: top-1" in found


def test_a_format_that_changes_classes_is_warned_of(bundle, monkeypatch, capsys):
    monkeypatch.setattr("autorep.mpc.__main__.LEAST_AGREEMENT", 0.999)
    for bits, warned in (("4", True), ("16", False)):
        assert main(["evaluate", str(bundle), "--fraction_bits", bits, "--coefficient_bits", bits]) == 0
        said = capsys.readouterr().err
        assert ("warning: fewer than 99.9 % keep their class; try more --fraction_bits" in said) == warned


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d["meta"].pop("dataset"), "does not say which data set"),
    (lambda d: d["meta"].update(dataset="cifar9"), "cifar9"),
])
def test_a_bundle_without_its_set_is_refused(bundle, tmp_path, change, message, capsys):
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    document = json.loads((tmp_path / "graph.json").read_text())
    document.pop("sha256")  # as in a bundle of an older version
    change(document)
    (tmp_path / "graph.json").write_text(json.dumps(document))
    assert main(["evaluate", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_images_of_another_shape_are_refused(tmp_path, capsys):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval()
    export_model(model, torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.long), tmp_path, meta={"dataset": "digits"})
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "takes images [3, 4, 4], and those of digits are" in capsys.readouterr().err
