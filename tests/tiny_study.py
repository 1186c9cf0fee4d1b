"""A study on the digits that takes seconds."""

import time
from pathlib import Path

from autorep.results import read_rows
from autorep.sweep.study import load_study

ROOT = Path(__file__).parent.parent
TINY = """
study = "tiny"
[baseline]
arch = "resnet8"
dataset = "digits"
epochs = 1
[common]
mask_epochs = 1
w_mask_lr = 0.5
calibration_batches = 1
[grid]
seed = [0, 1]
ReLU_count = [1.0]
[[variant]]
name = "identity"
act_type = "ReLU_masked_relay"
distil = false
[[variant]]
name = "quadratic"
"""


def write(folder, text=TINY, **replaced):
    path = folder / "tiny.toml"
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def load(folder, text=TINY):
    return load_study(write(folder, text), {"out_dir": str(folder / "out"), "gpu": "cpu"})


def sorted_rows(table):
    return sorted(read_rows(table), key=lambda row: (row["variant"], row["seed"]))


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
