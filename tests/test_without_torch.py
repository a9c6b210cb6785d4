"""Without PyTorch what needs none works, and every other command says what to install before it writes anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from distilhash import cli, config
from distilhash.losses import FRAMEWORKS
from distilhash.models import STUDENTS, TEACHERS
from distilhash.training.targets import TARGETS
from mistakes import everything

# Python imports sitecustomize at its start, also in the workers of the service.
MISSING = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.metadata
found = importlib.metadata.version
def version(name):
    if name in ("torch", "torchvision", "timm"):
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
"""
# One process for all: each is a word list in; code, stdout and stderr out.
PROGRAM = """
import contextlib, io, json, sys
from distilhash import cli
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
WORKS = ["list --json", "check photos --json", "search photos.index --id 1 --top 2 --json", "--help", "distill --help"]
REFUSED = [
    "demo --output new", "reproduce cifar10 --output new", "distill photos --output new", "hash photos --output new",
    "fit photos --output new", "encode hasher photos --output new", "profile v1", "export hasher photos --output new",
    "index photos --index new", "index photos --hasher hasher --index new", "code hasher photos/class0/00.png",
    "search photos.index photos/class0/00.png", "serve photos.index --port 0",
]  # fmt: skip


@pytest.fixture
def without_torch(here, tmp_path_factory):
    """Runs commands in a process without PyTorch."""
    assert cli.main(["index", "photos", "--hasher", "hasher", "--quiet"]) == 0
    missing = tmp_path_factory.mktemp("missing")
    (missing / "sitecustomize.py").write_text(MISSING)

    def run(lines: list[str], program: str = PROGRAM) -> list[list]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(missing), *sys.path])}
        words = json.dumps([line.split() for line in lines])
        done = subprocess.run(
            [sys.executable, "-c", program, words], env=environment, capture_output=True, text=True, check=True
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_what_needs_no_torch_works_and_the_rest_names_the_install(here, without_torch, capsys):
    before = everything(here)
    answers = without_torch([*WORKS, *REFUSED])
    assert [code for code, _, _ in answers] == [0] * len(WORKS) + [2] * len(REFUSED)
    for line, (_, out, err) in zip(REFUSED, answers[len(WORKS) :], strict=True):
        *_, said = err.splitlines()
        assert out == "" and "Traceback" not in err, line
        assert said.startswith("distilhash: ") and "pip install torch torchvision timm" in said, line
    assert everything(here) == before
    for line, (_, out, _) in zip(WORKS[:3], answers, strict=False):
        assert cli.main(line.split()) == 0
        assert json.loads(out) == json.loads(capsys.readouterr().out), line


def test_an_artefact_says_the_versions_that_there_are(without_torch):
    program = "import json; from distilhash.files import provenance; print(json.dumps([provenance()['versions']]))"
    ((versions,),) = without_torch([], program)
    assert versions.keys() == {"distilhash", "numpy"}


def test_list_names_what_the_modules_with_torch_hold():
    assert (list(config.TEACHERS), list(config.STUDENTS)) == (list(TEACHERS), list(STUDENTS))
    assert (list(config.LOSSES), list(config.FRAMEWORKS)) == (list(TARGETS), list(FRAMEWORKS))
