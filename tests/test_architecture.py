"""The walls of the house: which package may import which, no circles, and what stays free of PyTorch."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "distilhash"

# A package or module may import those before it in this order, and itself; those of one row do not import each other.
LAYERS = [
    {"errors", "progress"},
    {"files"},
    {"config"},
    {"device"},
    {"data", "models", "losses", "codes", "itq"},
    {"checkpoint", "inference", "evaluation"},
    {"deploy", "retrieval"},
    {"training", "hasher"},
    {"photos"},
    {"experiments", "server"},
    {"api"},
    {"cli", "__init__"},
    {"__main__"},
]
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

NO_TORCH = [
    "distilhash", "distilhash.api", "distilhash.cli", "distilhash.codes", "distilhash.config", "distilhash.data",
    "distilhash.deploy.runtime", "distilhash.device", "distilhash.errors", "distilhash.evaluation", "distilhash.hasher",
    "distilhash.evaluation.metrics", "distilhash.itq", "distilhash.photos.search", "distilhash.photos.update",
    "distilhash.retrieval", "distilhash.server.app",
]  # fmt: skip


def _name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


FILES = {_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def _package(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def _imported(body: list[ast.stmt], deep: bool) -> set[str]:
    """Modules of distilhash that these statements import; ``deep``: also those inside functions."""
    found = set()
    nodes = (node for statement in body for node in (ast.walk(statement) if deep else [statement]))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "import by full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    inside = {name.removeprefix("distilhash.") for name in found if name.startswith("distilhash.")}
    return {name for name in inside if name in FILES or _package(name) in FILES}


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    own = _package(name)
    assert own in RANK, f"{own} is new: say in LAYERS what it may import"
    imported = {_package(other) for other in _imported(ast.parse(FILES[name].read_text()).body, deep=True)}
    wrong = {other for other in imported - {own} if RANK[other] >= RANK[own]}
    assert not wrong, f"{name} may not import {sorted(wrong)}"


def test_no_import_circle():
    graph = {
        name: {other for other in _imported(ast.parse(path.read_text()).body, deep=False) if other in FILES} - {name}
        for name, path in FILES.items()
    }
    # A package's own __init__ gathers names from its modules, which therefore do not count as importing it.
    graph = {name: {other for other in found if not name.startswith(f"{other}.")} for name, found in graph.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_light_modules_do_not_import_torch():
    """In one process: the first that imports it is named."""
    code = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(module)\n"
        "    found = {'torch', 'timm', 'matplotlib', 'jinja2'} & {*sys.modules}\n"
        "    if found: sys.exit(f'{module} imports {found}')"
    )
    done = subprocess.run([sys.executable, "-c", code, *NO_TORCH], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
