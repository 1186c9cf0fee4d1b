"""A compiled step equals the plain one and is not compiled anew when masks move or an epoch ends."""

from functools import partial

import torch
from conftest import autorep_config
from torch._dynamo.utils import counters

from autorep import checkpoint
from autorep.run import fit
from autorep.runlog import run_folder


def test_masks_and_losses_equal_the_plain_run_and_each_phase_compiles_once(baseline, tmp_path, monkeypatch):
    plain = autorep_config(tmp_path / "plain", baseline / "last.pth.tar")
    fit(plain)
    # aot_eager traces forward and backward as the default does and spares the code generation.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    compiled = autorep_config(tmp_path / "compiled", baseline / "last.pth.tar", compile=True)
    fit(compiled)
    assert counters["stats"]["unique_graphs"] == 2  # search, fine-tuning
    assert not counters["graph_break"]
    ours, theirs = (checkpoint.load(run_folder(c) / "last.pth.tar")["model"] for c in (compiled, plain))
    for name, value in theirs.items():
        if name.endswith("mask"):
            assert torch.equal(ours[name], value), name
        else:
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)
