"""The house: rooms import from rooms above them only, none has a circle, torch and the engine stay in their rooms."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A file at the top of the package is a room of its own. The same order as in docs/architecture.md.
ROOMS = ["option", "limits", "config", "act_types", "machine", "data", "models", "gates", "convert", "dapa", "runs",
         "mpc", "search", "training", "evaluate", "results", "report", "cli", "sweep"]
MPC_ROOMS = ["engines", "tables", "bundle", "ring", "cost", "parties", "export", "__main__"]
FILES = sorted((ROOT / "autorep").rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Everything that a file imports, as dotted names; a name imported from a module counts as that module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {name if (name := f"{node.module}.{alias.name}") in MODULES else node.module
                      for alias in node.names}
    return names


def room_of(module: str, package: str) -> str:
    return module.removeprefix(f"{package}.").split(".")[0]


def of(package: str) -> list[str]:
    return [module for module in MODULES if module.startswith(f"{package}.")]


@pytest.mark.parametrize(("package", "rooms"), [("autorep", ROOMS), ("autorep.mpc", MPC_ROOMS)])
def test_imports_point_upwards(package, rooms):
    assert {room_of(module, package) for module in of(package)} == set(rooms)
    for module in of(package):
        for name in imported(MODULES[module]) & set(of(package)):
            own, other = (rooms.index(room_of(each, package)) for each in (module, name))
            assert other <= own, f"{module} imports {name}, whose room is below it"


def test_no_circle():
    with_imports = {module: imported(path) & set(MODULES) for module, path in MODULES.items()}
    try:
        TopologicalSorter(with_imports).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def test_packages_import_nothing():
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            assert not {name for name in imported(path) if name.startswith("autorep")}, module


def test_torch_and_the_engine_stay_in_their_rooms():
    for module in of("autorep.mpc"):
        roots, room = {name.split(".")[0] for name in imported(MODULES[module])}, room_of(module, "autorep.mpc")
        assert room == "export" or not roots & {"torch", "torchvision"}, f"{module}: torch belongs to mpc/export"
        assert room == "parties" or not roots & {"spu", "jax"}, f"{module}: the engine belongs to mpc/parties"
