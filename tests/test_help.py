"""What --help promises: every setting with its unit and default, and the same verbs in Python as in the shell."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest

import distilhash
from distilhash import cli
from distilhash.config import (
    DemoConfig,
    DistillConfig,
    ExportConfig,
    FitConfig,
    HashConfig,
    ReproduceConfig,
    StudentConfig,
    TeacherConfig,
)

SETTINGS = {
    "demo": [("", DemoConfig)],
    "distill": [("teacher-", TeacherConfig), ("student-", StudentConfig), ("", DistillConfig)],
    "hash": [("teacher-", TeacherConfig), ("student-", StudentConfig), ("", HashConfig)],
    "export": [("", ExportConfig)],
    "reproduce": [("", ReproduceConfig)],
    "fit": [("teacher-", TeacherConfig), ("", FitConfig)],
}
FLAGS = {  # those that are no setting of a stage, and what their help must say
    "demo": {"--output DIR": "default: runs/demo"},
    "distill": {"--output DIR": "default: runs/distill", "--split-seed INT": "default: 0", "--all-images": "queries",
                "--protocol NAME": "default: cifar10", "--features DIR": "left out: in the run"},
    "hash": {"--output DIR": "default: runs/hash", "--backbone NAME|DIR": "default: v1", "--split FILE": "left out"},
    "encode": {"--part NAME": "default: all", "--output FILE": "default: codes.safetensors",
               "--device NAME": "left out: DISTILHASH_DEVICE or auto",
               "--threads INT": "left out: one for each core", "--int8": "exported"},
    "export": {"--output DIR": "default: exported", "--split FILE": "left out", "--overwrite": "replace"},
    "fit": {"--output DIR": "default: runs/fit", "--device NAME": "cuda:N",
            "--student-size INT": "(default: 64)",
            "--student-stem STR": "(default: small)"},
    "evaluate": {"--at K": "count", "--output FILE": "JSON"},
    "profile": {"--bits INT": "bits (default: 64)", "--size INT": "pixels; left out",
                "--seconds FLOAT": "seconds (default: 1.0)"},
    "reproduce": {"TABLE": "nuswide", "--output DIR": "default: runs/reproduce"},
    "check": {"IMAGES": "list files", "--quiet": "stderr"},
    "list": {"--json": "JSON"},
    "index": {"--quiet": "stderr", "--index FILE": "default: photos.index", "--rebuild": "hasher",
              "--hasher DIR": "left out: the index's own", "--int8": "exported"},
    "search": {"--id N": "repeated", "--top INT": "left out: 10", "--radius INT": "bits; left out",
               "--group-duplicates [INT]": "bits", "--hasher DIR": "left out: where it was", "--int8": "left out: as"},
    "serve": {"--port INT": "default: 8765", "--host ADDRESS": "default: 127.0.0.1", "--token TEXT": "left out",
              "--host-name NAME": "repeated", "--hasher DIR": "left out: where it was", "--int8": "left out: as"},
    "code": {"--json": "JSON", "--int8": "exported"},
}  # fmt: skip


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_shows_every_setting_with_its_unit_and_default(verb, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: distilhash {verb}")
    for flag, said in FLAGS[verb].items():
        assert flag in text
        assert said in text.split(flag, 1)[1].split(" --", 1)[0], flag
    skipped = {("hash", "teacher-", "name"), ("hash", "student-", "name")}  # --backbone names both
    for prefix, config in SETTINGS.get(verb, []):
        for field in dataclasses.fields(config):
            if (verb, prefix, field.name) in skipped:
                continue
            flag = f"--{prefix}{field.name.replace('_', '-')} "
            assert flag in text
            default = f" (default: {field.default})" if field.default not in (None, False) else ""
            assert default in text, flag
    assert not re.search(r"default: [^()]*\) \(default", text)  # told twice


def test_help_needs_no_network_library():
    code = "import sys, distilhash.cli as c; c._parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_python_and_the_shell_have_the_same_verbs():
    for verb in set(cli.VERBS) - {"list"}:
        assert callable(getattr(distilhash, verb))
        assert verb in dir(distilhash)
