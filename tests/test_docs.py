"""What the pages show works: the Python example runs, and the files that they name are there."""

import re
from pathlib import Path

import pytest
import torch

from autorep import GateConfig, build_model, convert_relus_, count_relus

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
         *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "scripts|tests|docs|results|studies|benchmarks|autorep|dataset_download"


def test_the_python_example_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert count_relus(names["model"], names["batches"][0][0]).kept == names["total"]  # reverted: all are there again
    model = build_model("torchvision:resnet18", num_classes=10)
    convert_relus_(model, names["batches"][0][0], GateConfig(degree=2))
    model.load_state_dict(torch.load("searched.pth", weights_only=True))
    assert 0 < count_relus(model).kept <= names["budget"].relu_budget


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    text = page.read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]+\.\w+)`", text)
    missing = [name for name in links if not (page.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{page.name} names files that are not there: {missing}"
