"""What every test shares: one thread (results to the byte, and no fight for the cores) and real CIFAR-10."""

import gc
import os

import pytest
import torch

from distilhash.data.cifar10 import load_cifar10
from exported import built  # noqa: F401 (a fixture of the tests of exported hashers)
from installed import environment, installed  # noqa: F401 (fixtures: the package without PyTorch)
from mistakes import here, made  # noqa: F401 (fixtures of the tests of the user's mistakes)

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(scope="session")
def cifar10():
    """The real 60,000 images, fetched into the ordinary cache where they are not there yet."""
    return load_cifar10()


def pytest_collection_finish():
    """Take the half a million objects of the imported libraries out of every later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable():
    """Where tests run in several processes, reports cross as UTF-8, which some names in captured output are not."""
    return _utf8((yield))


def _utf8(data):
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode()
    if isinstance(data, dict):
        return {key: _utf8(value) for key, value in data.items()}
    return type(data)(map(_utf8, data)) if isinstance(data, (list, tuple)) else data
