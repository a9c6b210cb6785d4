"""Without PyTorch what needs none works, and every other command says what to install before it writes anything."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from distilhash import cli, config
from distilhash.errors import TRAIN
from distilhash.losses import FRAMEWORKS
from distilhash.models import STUDENTS, TEACHERS
from distilhash.training.targets import TARGETS
from mistakes import everything

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
    "index photos --hasher hasher --index new", "code hasher photos/class0/00.png",
    "search photos.index photos/class0/00.png", "serve photos.index --port 0",
]  # fmt: skip


@pytest.fixture
def without_torch(here, installed):
    """Runs commands in a process without PyTorch."""
    assert cli.main(["index", "photos", "--hasher", "hasher", "--quiet"]) == 0

    def run(lines: list[str], program: str = PROGRAM) -> list[list]:
        words = json.dumps([line.split() for line in lines])
        done = subprocess.run([installed, "-c", program, words], capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_the_package_is_small_and_brings_nothing_that_only_training_needs(installed):
    program = f"import importlib.util as u; print([n for n in ('distilhash', *{TRAIN}) if u.find_spec(n)])"
    script = str(Path(__file__).parents[1] / "benchmarks" / "installed_size.py")
    found, size = (subprocess.check_output([installed, *words], text=True) for words in (["-c", program], [script]))
    assert found == "['distilhash']\n"
    megabytes = float(size.splitlines()[-1].split()[0])
    assert 100 < megabytes <= 450


def test_what_needs_no_torch_works_and_the_rest_names_the_install(here, without_torch, capsys):
    before = everything(here)
    answers = without_torch([*WORKS, *REFUSED])
    assert [code for code, _, _ in answers] == [0] * len(WORKS) + [2] * len(REFUSED)
    for line, (_, out, err) in zip(REFUSED, answers[len(WORKS) :], strict=True):
        *_, said = err.splitlines()
        assert out == "" and "Traceback" not in err, line
        assert said.startswith("distilhash: ") and "pip install 'distilhash[train]'" in said, line
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
