"""What every test shares: one thread (results to the byte, and no fight for the cores) and real CIFAR-10."""

import pytest
import torch

from distilhash.data.cifar10 import load_cifar10
from mistakes import here, made  # noqa: F401 (fixtures of the tests of the user's mistakes)

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cifar10():
    """The real 60,000 images, fetched into the ordinary cache where they are not there yet."""
    return load_cifar10()
