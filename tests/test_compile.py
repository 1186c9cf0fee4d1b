"""A compiled step equals the plain one and is not compiled anew when masks move or an epoch ends."""

from functools import partial

import pytest
import torch
from conftest import autorep_config
from torch._dynamo.utils import counters

from autorep.config import BudgetConfig
from autorep.gates.gated_relu import iter_gates
from autorep.machine import compilation
from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder
from autorep.training.fit import fit
from autorep.training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def masks(monkeypatch):
    """The masks of the run that goes on, all in one tensor, after every step."""
    seen, train_step = [], Trainer._train_step

    def recording(self, *args):
        result = train_step(self, *args)
        seen.append(torch.cat([gate.mask.flatten() for _, gate in iter_gates(self.model)]))
        return result

    monkeypatch.setattr(Trainer, "_train_step", recording)
    return seen


def test_masks_and_losses_equal_the_plain_run_and_each_phase_compiles_once(baseline, tmp_path, monkeypatch, masks):
    budget = BudgetConfig(relu_budget=230, anneal_fraction=0.6)
    plain = autorep_config(tmp_path / "plain", baseline / "last.pth.tar", budget=budget)
    fit(plain)
    plain_masks = torch.stack(masks)
    masks.clear()
    # aot_eager traces forward and backward as the default does and spares the code generation.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(compilation, "_obstacle", lambda device: None)  # which compiles a graph of its own
    torch._dynamo.reset()
    counters.clear()
    compiled = autorep_config(tmp_path / "compiled", baseline / "last.pth.tar", budget=budget, compile=True)
    fit(compiled)
    assert counters["stats"]["unique_graphs"] == 2  # search, fine-tuning
    assert not counters["graph_break"]
    assert torch.equal(torch.stack(masks), plain_masks)
    assert len(plain_masks.unique(dim=0)) > 10  # of 27 steps of the search and 18 with frozen masks
    ours, theirs = (checkpoint.load(RunFolder.of(c).last)["model"] for c in (compiled, plain))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)
