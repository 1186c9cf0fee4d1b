"""The losses of the first steps of a baseline and of a search, as they were when the file was written."""

import json
from pathlib import Path

import pytest
from conftest import autorep_config, baseline_config, rows

from autorep.training.fit import fit

GOLDEN = Path(__file__).parent / "golden_losses.json"


def losses(config):
    """Loss of each of the first 20 steps."""
    fit(config)
    return [row["loss"] for row in rows(config) if "loss" in row][:20]


@pytest.mark.parametrize("kind", ["baseline", "search"])
def test_the_first_losses_are_those_on_file(kind, baseline, tmp_path):
    """Within rounding: other processors sum in another order, and steps amplify that."""
    config = (baseline_config(tmp_path, print_freq=1) if kind == "baseline" else
              autorep_config(tmp_path, baseline / "last.pth.tar", print_freq=1, epochs=0))
    assert losses(config) == pytest.approx(json.loads(GOLDEN.read_text())[kind], rel=1e-2)
