"""Prose is executed: what the documents say is run, and compared with what is there."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from distilhash import cli

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/quickstart.md",
         *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]  # fmt: skip
DOCUMENTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}  # the quickstart makes what others use
TINY = ["--epochs", "1", "--batch-size", "16", "--teacher-size", "32"]
SHORT = {
    "distill": [*TINY, "--student-size", "32", "--student-stem", "small"],
    "hash": ["--epochs", "1", "--batch-size", "16"],
    "fit": TINY,
    "export": ["--calibration-images", "24", "--compared-images", "20", "--seconds", "0.01"],
    "profile": ["--seconds", "0.01", "--size", "32"],
}
ELSEWHERE = {"demo", "reproduce", "serve"}  # tests of their own run these, which take minutes or have no end
sys.path.insert(0, str(ROOT / "benchmarks"))


def blocks(text):
    return re.findall(r"^```(\w*).*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def lines(code):
    return [words for line in code.splitlines() if (words := shlex.split(line, comments=True))]


SHELL = [words for text in DOCUMENTS.values() for kind, code in blocks(text) if kind == "sh" for words in lines(code)]


@pytest.fixture(scope="module")
def place(cifar10, tmp_path_factory):
    """A folder in which the documents' names are there: PHOTOS, LABELLED and photo.jpg."""
    place = tmp_path_factory.mktemp("documents")
    images, labels = cifar10.images, np.asarray(cifar10.labels)
    (place / "PHOTOS").mkdir()
    for label in range(3):
        folder = place / "LABELLED" / cifar10.class_names[label]
        folder.mkdir(parents=True)
        for index in np.flatnonzero(labels == label)[:24]:
            Image.fromarray(images[index]).save(folder / f"{index}.png")
            Image.fromarray(images[index]).save(place / "PHOTOS" / f"{index}.png")
    Image.fromarray(images[0]).save(place / "photo.jpg")
    return place


def test_blocks_run(place, monkeypatch, capsys):
    """Every block in its order, in one folder and one process; a command that several documents show runs once."""
    monkeypatch.chdir(place)
    done = set()
    for name, text in DOCUMENTS.items():
        for kind, code in blocks(text):
            if kind == "python":
                exec(compile(code, name, "exec"), {})
                assert capsys.readouterr().out, code
            for words in lines(code) if kind == "sh" else ():
                if words[0] == "distilhash" and words[1] not in ELSEWHERE and tuple(words) not in done:
                    done.add(tuple(words))
                    assert cli.main([*words[1:], *SHORT.get(words[1], [])]) == 0, (words, capsys.readouterr().err)
    assert done


def test_blocks_are_known():
    """nginx's is set up by tests/test_proxy.py; text is what something printed."""
    kinds = {kind for text in DOCUMENTS.values() for kind, _ in blocks(text)}
    assert {"sh", "python", "nginx"} <= kinds <= {"sh", "python", "nginx", "text"}


def test_shell_lines_are_real():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for words in SHELL:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        elif words[0] == "pip":
            assert set(re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*)\]", words[-1])))) <= extras.keys(), words
        else:
            assert words[0] == "distilhash", words
            cli.parse(words[1], words[2:])  # raises where a flag does not exist


def test_every_command_is_shown():
    assert {words[1] for words in SHELL if words[0] == "distilhash"} == set(cli.COMMANDS)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path, place, tmp_path, monkeypatch):
    """With small settings in the place of their own, which are their first cell of code."""
    notebook = nbformat.read(path, as_version=4)
    settings = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    names = re.findall(r"\b([A-Z_]{3,})\b(?=.*=)", settings.source)
    small = {"PHOTOS": str(next((place / "LABELLED").iterdir())), "TEACHER_SIZE": 32, "BITS": 16, "BATCH_SIZE": 16,
             "IMAGES_OF_A_CLASS": 11}  # fmt: skip
    settings.source += "\n" + "\n".join(f"{name} = {small.get(name, 1)!r}" for name in names if name != "INDEX")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"), prepend=os.pathsep)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)


def test_readme_is_short():
    assert DOCUMENTS["README.md"].count("\n") <= 120


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_are_real(name):
    for target in re.findall(r"\]\(([^)#]+)\)", DOCUMENTS[name]):
        if "://" not in target:
            assert ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_are_made_from_results(name):
    from readme_tables import with_tables

    assert with_tables(DOCUMENTS[name]) == DOCUMENTS[name], "run python benchmarks/readme_tables.py"


def test_results_have_their_fields():
    rows = json.loads((ROOT / "results" / "demo.json").read_text(encoding="utf-8"))
    needed = {"arm", "backbone", "framework", "bits", "seed", "dataset", "protocol", "map_at_all", "parameters", "macs",
              "seconds"}  # fmt: skip
    assert rows
    assert all(needed <= row.keys() for row in rows)


def test_architecture_names_every_module():
    source = ROOT / "src" / "distilhash"
    modules = {str(path.relative_to(source)) for path in source.rglob("*.py") if not path.name.startswith("__")}
    named = set(re.findall(r"`((?:\w+/)?\w+\.py)`", DOCUMENTS["ARCHITECTURE.md"]))
    assert modules <= named
    for name in named - modules:
        assert (ROOT / name).exists() or (source / name).exists(), name


def test_example_runs(cifar10, tmp_path, monkeypatch, capsys):
    """The script's own commands, in its order; training is cut short, and no process of each command is started."""
    images, labels = cifar10.images, np.asarray(cifar10.labels)
    for label in range(3):
        folder = tmp_path / "photos" / cifar10.class_names[label]
        folder.mkdir(parents=True)
        for index in np.flatnonzero(labels == label)[:24]:
            Image.fromarray(images[index]).save(folder / f"{index}.png")
    noting = tmp_path / "bin" / "distilhash"
    noting.parent.mkdir()
    noting.write_text('#!/bin/sh\n(IFS="\t"; echo "$*") >> commands\n')
    noting.chmod(0o755)
    monkeypatch.setenv("PATH", str(noting.parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    settings = ["--epochs", "1", "--batch-size", "16", "--student-size", "32", "--student-stem", "small",
                "--teacher-size", "32"]  # fmt: skip
    subprocess.run(["sh", str(ROOT / "examples" / "pipeline.sh"), "photos", "runs", *settings], check=True)
    commands = [line.split("\t") for line in Path("commands").read_text().splitlines()]
    assert commands[0][-len(settings) :] == settings
    for words in commands:
        assert cli.main([*words, *(["--epochs", "1"] if words[0] == "hash" else [])]) == 0
    out, err = capsys.readouterr()
    assert "map_at_all" in out
    assert "left out" in err  # the queries, from distillation
