"""Prose is executed: what the README and ARCHITECTURE say is run, and compared with what is there."""

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
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "benchmarks"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines() if line.strip()])
def test_commands_parse(line):
    words = shlex.split(line, comments=True)
    assert words[0] == "distilhash"
    options = cli._parser().parse_args(words[1:])
    assert options.verb == words[1]


def test_every_verb_is_shown():
    shown = {shlex.split(line)[1] for block in blocks("sh") for line in block.splitlines() if line.strip()}
    assert shown | {"demo"} == set(cli.VERBS)


def test_make_targets_of_the_readme_exist():
    targets = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_tree_and_links_are_real():
    (tree,) = blocks("text")
    for line in tree.splitlines()[1:]:
        assert (ROOT / "src" / "distilhash" / line.split()[0]).exists(), line
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_table_is_made_from_results():
    from readme_tables import with_tables

    assert with_tables(README) == README, "run python benchmarks/readme_tables.py"


def test_results_have_their_fields():
    rows = json.loads((ROOT / "results" / "demo.json").read_text(encoding="utf-8"))
    needed = {"arm", "backbone", "framework", "bits", "seed", "dataset", "protocol", "map_at_all", "parameters", "macs",
              "seconds"}  # fmt: skip
    assert rows
    assert all(needed <= row.keys() for row in rows)


def test_architecture_names_every_module():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "distilhash"
    for path in source.rglob("*.py"):
        if not path.name.startswith("__"):
            assert f"`{path.name}`" in text, path.relative_to(source)
    for name in re.findall(r"`(\w+\.py)`", text):
        assert list(source.rglob(name)), name


def test_example_runs(cifar10, tmp_path):
    images, labels = cifar10.images, np.asarray(cifar10.labels)
    for label in range(3):
        folder = tmp_path / "photos" / cifar10.class_names[label]
        folder.mkdir(parents=True)
        for index in np.flatnonzero(labels == label)[:40]:
            Image.fromarray(images[index]).save(folder / f"{index}.png")
    command = ["sh", str(ROOT / "examples" / "pipeline.sh"), "photos", "runs", "--epochs", "1", "--batch-size", "32",
               "--student-size", "32", "--student-stem", "small", "--teacher-size", "64"]  # fmt: skip
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "map_at_all" in done.stdout
    assert "left out" in done.stderr  # the queries, from distillation
