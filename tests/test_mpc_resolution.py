"""Whether the number format keeps the predicted class, by the ring interpreter and its fast matrix product."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from mpc_nets import EVERYTHING, RESIDUAL, make_net
from torch import nn

from autorep.mpc.bundle.files import load_graph, load_samples, load_weights
from autorep.mpc.export.to_bundle import export_model
from autorep.mpc.ring.agreement import check_resolution, count_agreeing
from autorep.mpc.ring.automatic import automatic_format, with_local_agreement
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.matmul import ring_matmul
from autorep.mpc.ring.prediction import logits_fixed, run_fixed


@pytest.mark.parametrize("size", [1, 2**20, 2**33, 2**62, 2**63 - 1])
@pytest.mark.parametrize("inner", [1, 16, 577, 4608])
def test_ring_products_are_those_of_integers_with_wrap_around(size, inner):
    rng = np.random.default_rng(inner)
    a, b = (rng.integers(-size, size, shape, endpoint=True) for shape in ((5, inner), (inner, 3)))
    a[0, 0], b[0, 0] = -size - 1, size
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(ring_matmul(a, b), a @ b)


def test_batches_do_not_change_a_bit():
    graph, weights, samples = make_net(EVERYTHING)
    program = lower(graph, FixedPoint())
    together = run_fixed(program, weights, samples.images)[graph.output_name]
    np.testing.assert_array_equal(logits_fixed(program, weights, samples.images, batch=2), together)


def images_of(num):
    return torch.rand(num, 3, 1, 1) * torch.rand(num, 3, 10, 10)


class Faint(nn.Module):
    """A first layer with small values, scaled up again by a batch norm behind the pool."""

    def __init__(self, scale):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, bias=False)
        self.norm, self.fc = nn.BatchNorm1d(8, eps=1e-30), nn.Linear(8, 6, bias=False)
        with torch.no_grad():
            self.first.weight *= scale
            self.first.bias *= scale
            for _ in range(100):
                self(images_of(32))
        self.eval()

    def forward(self, x):
        return self.fc(self.norm(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3))))


def export(scale, tmp_path, fixed=None):
    torch.manual_seed(0)
    images = images_of(100)
    problems = export_model(Faint(scale), images, torch.zeros(100, dtype=torch.long), tmp_path, fixed=fixed)
    graph = load_graph(tmp_path)
    return problems, (graph, load_weights(tmp_path, graph), load_samples(tmp_path, graph))


def test_a_format_that_keeps_the_class_is_accepted(tmp_path):
    problems, bundle = export(1, tmp_path)
    assert problems == [] and count_agreeing(*bundle, FixedPoint()) >= 99


def test_a_format_that_is_too_coarse_is_named_with_the_fewest_bits_that_do(tmp_path):
    (problem,), bundle = export(3e-3, tmp_path)
    assert problem.agreeing == count_agreeing(*bundle, FixedPoint()) < 99
    found = re.search(r"on (\d+) of 100 images.*--fraction_bits (\d+) --coefficient_bits (\d+) on (\d+)", str(problem))
    agreeing, bits, coefficient_bits, then = map(int, found.groups())
    assert agreeing == problem.agreeing
    finer = FixedPoint(bits, coefficient_bits)
    assert then == count_agreeing(*bundle, finer) >= 99
    assert check_resolution(*bundle, finer) == []
    assert count_agreeing(*bundle, FixedPoint(coefficient_bits=coefficient_bits).with_fraction_bits(bits - 1)) < 99


def test_the_format_asked_for_is_the_one_that_is_checked(tmp_path):
    problems, _ = export(1, tmp_path, FixedPoint(5, 5))
    assert "with 5 fraction bits" in str(problems[-1])


def test_where_no_format_does_the_faint_layer_is_named(tmp_path):
    problems, _ = export(1e-7, tmp_path)
    assert problems[-1].instead is None
    assert re.search(r"no format keeps it; the smallest values are those of \w+, at most \S+e-", str(problems[-1]))


def test_what_local_truncation_keeps_is_noted_if_it_is_rarely_wrong(tmp_path):
    _, bundle = export(1, tmp_path)
    kept = count_agreeing(*bundle, FixedPoint.of("local"))
    assert kept < 99 and automatic_format(bundle[0], "spu-semi2k") == (
        FixedPoint(), f"local would keep the class of {kept}.0 % of the samples, fewer than 99 %")
    wide = replace(bundle[0], ranges=dict.fromkeys(bundle[0].ranges, (0.0, 1e7)), meta={})
    assert with_local_agreement(wide, *bundle[1:]).meta == {}


def test_nothing_is_noted_about_few_samples_which_may_all_keep_their_class():
    graph, weights, samples = make_net(RESIDUAL, num_images=100)
    assert "local_agreement" in with_local_agreement(graph, weights, samples).meta
    few = replace(samples, **{name: getattr(samples, name)[:99] for name in ("images", "labels", "logits")})
    assert "local_agreement" not in with_local_agreement(graph, weights, few).meta
