"""Data flows one way: a file imports only from files above it in this list."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    "config", "distributed", "device", "compilation",
    "data.arrays", "data.cache", "data.folders", "data.archives", "data.catalog", "data.survey", "data.datasets",
    "data.augment", "data.plan", "data.streaming", "data.loader",
    "models.layers", "models.resnet", "models.wide_resnet", "models.vgg", "models.registry",
    "gates.hysteresis", "gates.layout", "gates.polynomial", "gates.reference", "gates.native", "gates.kernels",
    "gates.gated_relu",
    "dapa.moments", "dapa.fit", "dapa.calibrate",
    "saliency", "activations", "untouched", "sites", "tracing", "convert",
    "budget", "objective", "optim", "update", "checkpoint", "phases", "runlog", "mpc",
    "private_costs", "evaluate", "trainer", "run", "results", "flags", "cli", "recipe_flags", "recipe", "jobs", "sweep",
    "report.methods", "report.costs", "report.rows", "report.groups", "report.published", "report.tables",
    "report.picture", "report.styles", "report.accuracy", "report.variants", "report.runs", "report.channels",
    "report.search_plots", "report.mask_plots", "report.activation_plots", "report.page", "report.sections",
    "report.__main__",
]
FILES = sorted((ROOT / "autorep").rglob("*.py"))


def level(module: str) -> int | None:
    module = module.removeprefix("autorep.")
    matches = [i for i, name in enumerate(ORDER) if module == name or module.startswith(name + ".")]
    return matches[-1] if matches else None


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in names if name.startswith("autorep.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upwards(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    own = level(module)
    if path.name == "__init__.py":
        assert not imported(path), "packages import nothing eagerly"
        return
    assert own is not None, f"{module} has no place in the order"
    for name in imported(path):
        above = level(name)
        within_mpc = above == own == ORDER.index("mpc")
        assert above is None or above < own or within_mpc, f"{module} imports {name}, which does not lie above it"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "mpc"], ids=lambda p: p.name)
def test_private_inference_needs_no_torch(path):
    roots = {name.split(".")[0] for node in ast.walk(ast.parse(path.read_text()))
             for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else
                          [node.module or ""] if isinstance(node, ast.ImportFrom) else [])}
    assert path.name in ("export.py", "trace.py", "converters.py") or not roots & {"torch", "torchvision"}
