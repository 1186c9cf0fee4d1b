"""What the pages show works: the Python example runs, commands are accepted, links and named files exist."""

import argparse
import importlib
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from autorep import GateConfig, build_model, convert_relus_, count_relus
from autorep.cli.flags import FLAGS
from autorep.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "results/README.md")),
         *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("autorep", "benchmarks", "dataset_download", "docs", "results", "scripts", "studies", "tests")
WRITTEN_LATER = {"results/published_scale.csv"}  # scripts/reproduce writes it
FLAGS_OF_TOOLS = {"--help", "--logdir", "--nproc_per_node"}


def pages(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))(test)


def bash_commands(page: Path) -> list[list[str]]:
    """The commands of a page's bash blocks as words, without comments and settings of variables."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [[word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z]+=", word)] for line in lines]
    return [command for command in commands if command]


def inline_code(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"`([^`]+)`", text)


COMMANDS = [pytest.param(words, id=f"{page.name}: {' '.join(words)[:60]}") for page in PAGES
            for words in bash_commands(page)]


# ---- Python


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


# ---- commands


class Parsed(Exception):
    """The arguments of a command were accepted."""


@pytest.fixture
def parse(monkeypatch):
    """Let a command of the package parse its arguments, and stop there."""
    original = argparse.ArgumentParser.parse_args

    def stop(parser, argv=None, namespace=None):
        original(parser, argv, namespace)
        raise Parsed

    def run(module, argv):
        package = find_spec(module).submodule_search_locations
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed):
            importlib.import_module(f"{module}.__main__" if package else module).main(argv)
        monkeypatch.undo()

    return run


@pytest.fixture
def dry_run(monkeypatch, tmp_path, capsys):
    """The run folder that a training command would write, in a folder that holds neither data nor checkpoints."""
    def run(command):
        script, *flags = command
        monkeypatch.chdir(tmp_path)
        main({"train_baseline.py": "baseline", "train_autorep.py": "autorep"}[script], [*flags, "--dry_run"])
        out, err = capsys.readouterr()
        assert "has no effect" not in err
        return Path(out.split("run folder: ")[1].splitlines()[0])

    return run


def training_command(words: list[str]) -> list[str]:
    """Script and flags of a command that trains, whatever starts it; empty for other commands."""
    starts = [i for i, word in enumerate(words) if word in ("train_baseline.py", "train_autorep.py")]
    return words[starts[0]:] if starts else []


@pytest.mark.parametrize("words", COMMANDS)
def test_documented_commands_are_accepted(words, parse, dry_run):
    training = training_command(words)
    if training:
        dry_run(training)
    if words[0] in ("bash", "sbatch"):
        subprocess.run(["bash", "-n", ROOT / words[1]], check=True)
    elif words[0] in ("python", ".venv/bin/python") and words[1] == "-m":
        if words[2] != "ruff":
            parse(words[2], words[3:])
    elif words[0] == "pip":
        extras = re.findall(r"\.\[(\w+)\]", " ".join(words))
        assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)
    else:
        assert training or words[0] == "tensorboard", f"this test does not know how to check {words}"


@pages
def test_commands_name_the_run_folders_of_the_commands_before_them(page, dry_run):
    folders = []
    for words in bash_commands(page):
        named = [Path(word) for word in words if word.startswith("train_cifar")]
        assert all(path.parent in folders for path in named), f"{named} is none of {folders}"
        if training_command(words):
            folders.append(dry_run(training_command(words)))


@pages
def test_flags_in_the_text_exist(page):
    source = "".join(path.read_text() for folder in ("autorep", "benchmarks", "scripts")
                     for path in (ROOT / folder).rglob("*.py"))
    known = {name for flag in FLAGS.values() for name in flag.names} | set(re.findall(r'"(--[\w-]+)"', source))
    named = {flag for code in inline_code(page) for flag in re.findall(r"(?<![\w-])--\w[\w-]*", code)}
    assert named <= known | FLAGS_OF_TOOLS


# ---- links and files


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            path = page.parent / name if name else page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target


@pages
def test_files_that_a_page_names_are_there(page):
    files = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    files += [path.name for path in ROOT.iterdir()]
    named = {name for code in inline_code(page)
             for name in re.findall(r"(?<![\w./*-])[\w./-]*\w\.(?:py|sh|md|toml|csv|cpp)\b", code)
             if not Path(name).stem.isupper()}  # a placeholder, such as STUDY.csv
    missing = [name for name in named - WRITTEN_LATER
               if not any(f"/{file}".endswith(f"/{name}") for file in files)]
    assert not missing, f"{page.name} names files that are not there: {missing}"


def test_every_figure_is_shown_and_small():
    shown = {target for page in PAGES for target in re.findall(r"figures/([\w.]+)\)", page.read_text())}
    assert shown == {path.name for path in (ROOT / "docs" / "figures").iterdir()}
    assert all(path.stat().st_size < 120_000 for path in (ROOT / "docs" / "figures").iterdir())
