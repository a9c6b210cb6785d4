"""What the tests of the user's mistakes share: images, a student and a hasher on disk, and how a command is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilhash import cli
from distilhash.checkpoint import save_model
from distilhash.models import create_hasher, create_student

CLASSES, EACH = 3, 24
SMALL = ("--student-size", "32", "--student-stem", "small")
ONCE = ("--epochs", "1", "--batch-size", "16", "--precision", "float32", "--quiet")  # "auto" may choose anew
DISTILL = ("--output", "run", "--teacher-size", "32", *SMALL, *ONCE)
HASH = ("--output", "run", "--bits", "16", *SMALL, *ONCE)
COMMANDS = {
    "demo": ("demo", "--output", "run", "--quiet"),
    "distill": ("distill", "photos", *DISTILL),
    "hash": ("hash", "photos", *HASH),
    "fit": ("fit", "photos", "--output", "run", "--quiet"),
    "hash cifar10": ("hash", "cifar10", *HASH),
    "encode": ("encode", "hasher", "photos"),
    "profile": ("profile", "--size", "32", "v1"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images in class folders, and a student and a hasher that no test changes."""
    root = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for c in range(CLASSES):
        for number in range(EACH):
            picture(root / "photos" / f"class{c}" / f"{number:02d}.png", rng.integers(0, 256, (32, 32, 3), np.uint8))
    student = create_student("v1", size=32, stem="small")
    about = {"architecture": student.architecture, "bits": 16}
    save_model(root / "student" / "model", student, about | {"kind": "student"})
    save_model(root / "hasher" / "model", create_hasher(student, 16), about | {"kind": "hasher"})
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """An empty working directory, where "photos", "student" and "hasher" lead to what was made."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "student", "hasher"):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def everything(folder: Path) -> dict[str, str]:
    """Each file and folder with a hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"
        for path in sorted(folder.rglob("*"))
    }


def refused(capsys, *words: object) -> str:
    """The sentence that the command ends with, once it is sure that it ended as it should and changed nothing."""
    before = everything(Path.cwd())
    capsys.readouterr()
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("distilhash: ") and err.endswith(".\n") and err.count("\n") == 1, err
    assert everything(Path.cwd()) == before
    return err.removeprefix("distilhash: ").removesuffix("\n")
