"""Prose is executed: what the documents say is run, and compared with what is there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilhash import cli

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/guide.md", "docs/paper.md")
DOCUMENTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
sys.path.insert(0, str(ROOT / "benchmarks"))


def blocks(language):
    return [block for text in DOCUMENTS.values() for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


COMMANDS = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, capsys):
    exec(compile(code, "document", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_parse(words):
    assert words[0] == "distilhash"
    cli.parse(words[1], words[2:])  # raises where a flag does not exist


def test_every_command_is_shown():
    assert {words[1] for words in COMMANDS} == set(cli.COMMANDS)


def test_make_targets_of_the_documents_exist():
    targets = [target for text in DOCUMENTS.values() for target in re.findall(r"^    make (\w+)", text, re.MULTILINE)]
    assert {"demo", "test"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


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
