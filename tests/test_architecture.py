"""The walls of the house: who may import whom, and that light rooms stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "distilhash"

# A room may import the rooms listed for it; the rooms in a set do not import each other.
ALLOWED = {
    "errors": set(),
    "artefact": {"errors"},
    "config": {"errors"},
    "runtime": set(),
    "device": {"errors"},
    "presets": {"errors", "config"},
    "codes": {"errors", "artefact"},
    "losses": {"errors"},
    "data": {"errors", "artefact", "config", "runtime"},
    "models": {"errors", "artefact", "config", "runtime"},
    "evaluation": {"errors", "artefact", "codes"},
    "checkpoint": {"errors", "artefact", "config", "models"},
    "precision": {"errors", "artefact", "device"},
    "training": {
        "errors", "artefact", "config", "data", "models", "losses", "checkpoint", "device", "precision", "runtime",
    },
    "encoding": {"errors", "artefact", "config", "data", "models", "codes", "checkpoint", "device", "precision"},
    "exported": {"errors", "artefact", "config", "data", "codes"},
    "exporting": {
        "errors", "artefact", "config", "data", "models", "codes", "checkpoint", "encoding", "evaluation", "exported",
    },
    "stages": {
        "errors", "artefact", "config", "data", "models", "losses", "codes", "checkpoint", "training", "encoding",
        "evaluation", "presets", "runtime", "exported", "device", "precision",
    },
    "arms": {
        "artefact", "config", "presets", "data", "models", "codes", "checkpoint", "training", "encoding", "stages",
    },
    "comparison": {
        "artefact", "config", "presets", "data", "models", "codes", "training", "evaluation", "stages", "arms",
    },
    "reproduction": {
        "errors", "artefact", "config", "presets", "data", "models", "codes", "checkpoint", "training", "evaluation",
        "arms",
    },
    "fitting": {
        "errors", "artefact", "config", "presets", "data", "models", "losses", "checkpoint", "training", "encoding",
        "stages", "device",
    },
    "search": {
        "errors", "artefact", "config", "codes", "data", "models", "checkpoint", "training", "encoding", "runtime",
        "exported",
    },
    "cli": {
        "errors", "config", "presets", "stages", "comparison", "reproduction", "evaluation", "search", "exporting",
        "exported", "fitting", "device",
    },
    "__init__": {"stages", "errors", "search"},
    "__main__": {"cli"},
}  # fmt: skip

NO_TORCH = ["distilhash", "distilhash.errors", "distilhash.config", "distilhash.codes", "distilhash.evaluation.metrics",
            "distilhash.evaluation", "distilhash.cli", "distilhash.search", "distilhash.search.index",
            "distilhash.search.store", "distilhash.search.verbs", "distilhash.search.serving",
            "distilhash.search.service", "distilhash.search.decoder", "distilhash.search.workers",
            "distilhash.search.encoder", "distilhash.search.coder", "distilhash.search.frozen",
            "distilhash.data", "distilhash.exported", "distilhash.device"]  # fmt: skip


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: import by full name"
            names = [node.module if node.module != "distilhash" else f"distilhash.{a.name}" for a in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("distilhash.")}
    return rooms


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    room = _room(path)
    assert room in ALLOWED, f"{room} is a new room: say in this test what it may import"
    forbidden = _imports(path) - ALLOWED[room] - {room}
    assert not forbidden, f"{path.name} may not import {sorted(forbidden)}"


def test_every_room_in_the_plan_exists():
    assert set(ALLOWED) == {_room(path) for path in FILES}


@pytest.mark.parametrize("module", NO_TORCH)
def test_light_rooms_do_not_import_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_short_or_say_why(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300 or "This file is long because" in text
