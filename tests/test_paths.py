"""A path is given as a string or as a Path, wherever a public function, method or config takes one."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import typing
from pathlib import Path

import numpy as np
import pytest

import distilhash
from distilhash.config import ReproduceConfig, TeacherConfig, as_dict
from distilhash.photos.catalogue import PhotoStore
from distilhash.retrieval import Index
from distilhash.training.run import RunDirectory

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(distilhash.__path__, "distilhash.") if "__main__" not in module.name
)
GIVEN_BY_US = {"distilhash.cli", "distilhash.server.app"}  # their paths come from tyro and from the index


def public(module) -> dict[str, object]:
    """Every function and method of a module that others may call."""
    found = {}
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(value):
            found[name] = value
        elif inspect.isclass(value) and not issubclass(value, tuple):
            methods = inspect.getmembers(value, lambda member: inspect.isfunction(member) or inspect.ismethod(member))
            found |= {f"{name}.{own}": m for own, m in methods if own == "__init__" or not own.startswith("_")}
    return found


@pytest.mark.parametrize("name", MODULES)
def test_no_public_function_insists_on_a_path(name):
    if name in GIVEN_BY_US:
        return
    module = importlib.import_module(name)
    for own, function in public(module).items():
        if not getattr(function, "__module__", "").startswith("distilhash"):
            continue
        scope = vars(importlib.import_module(function.__module__)) | {"Any": typing.Any}
        for parameter, text in inspect.get_annotations(inspect.unwrap(function)).items():
            kinds = set(re.findall(r"[\w.]+", str(text)))
            if parameter != "return" and "Path" in kinds:
                assert "str" in kinds, f"{name}.{own}({parameter}: {text})"
        assert scope


def test_a_config_takes_a_path_and_keeps_plain_data():
    assert TeacherConfig(weights=Path("w.pth")) == TeacherConfig(weights="w.pth")
    assert as_dict(ReproduceConfig(images=Path("a"))) == as_dict(ReproduceConfig(images="a"))


def test_strings_do_what_paths_do(tmp_path):
    with Index.open(os.fspath(tmp_path / "index")) as index:
        index.add([1], np.ones((1, 8)))
    store = PhotoStore(os.fspath(tmp_path / "index"))
    assert store.photos() == []
    store.close()
    run = RunDirectory(os.fspath(tmp_path / "run"), {})
    assert RunDirectory.metrics_in(os.fspath(run.path)) == []
