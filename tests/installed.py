"""`pip install distilhash` as its users have it: this version's wheel in an environment of its own, without PyTorch."""

import hashlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "src")


@pytest.fixture
def installed(environment, monkeypatch):
    """The Python of that environment, which shall find no other distilhash."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return environment


@pytest.fixture(scope="session")
def environment(request, tmp_path_factory):
    """It is kept for later sessions; other dependencies make a new one."""
    place, copy = Path(request.config.cache.mkdir("installed")), tmp_path_factory.mktemp("sources")
    python = place / "venv" / "bin" / "python"
    for path in (ROOT / name for name in SOURCES):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy / path.name)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    project = tomllib.loads((copy / "pyproject.toml").read_text())["project"]
    keys = {
        "requirements": _digest(sys.version.encode(), repr(project["dependencies"]).encode()),
        "wheel": _digest(*(part for path in files for part in (bytes(path.relative_to(copy)), path.read_bytes()))),
    }

    def outdated(key: str) -> bool:
        return not (place / key).exists() or (place / key).read_text() != keys[key]

    def pip(*words: object) -> None:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *map(str, words)], check=True)

    with FileLock(place / "lock"):
        if outdated("requirements"):
            shutil.rmtree(python.parents[1], ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
            pip("setuptools>=77")
        if outdated("requirements") or outdated("wheel"):
            pip("--no-build-isolation", copy)  # builds a wheel; asks the network for nothing that is there
            for key, digest in keys.items():
                (place / key).write_text(digest)
    return python


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
