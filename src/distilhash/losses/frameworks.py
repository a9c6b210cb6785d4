"""The registry of hashing frameworks: each sees the training set once, and gives the loss of a batch.

    @losses.register("mine")
    def mine(labels_NC, config):
        return lambda outputs_nK, labels_nC, indices_n: ...

A framework gets the labels of the training set, 0/1 and on the device of training, and the HashConfig: bits, seed and
its settings. A loss that is an nn.Module is trained with the hasher, and saved with the state of its run.

Shapes: N images of the training set, n images of a batch, C classes, K bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from distilhash.config import HashConfig
from distilhash.errors import unknown_name

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of outputs (n, K), labels (n, C) and positions (n,) in the set
Framework = Callable[[Tensor, HashConfig], Loss]
F = TypeVar("F", bound=Framework)

FRAMEWORKS: dict[str, Framework] = {}


def register(name: str) -> Callable[[F], F]:
    """Make a framework known by a name, which ``HashConfig.framework`` then takes."""

    def keep(framework: F) -> F:
        FRAMEWORKS[name] = framework
        return framework

    return keep


def create_loss(labels_NC: Tensor, config: HashConfig) -> Loss:
    """The loss of the framework that ``config`` names; what it draws at random follows the config's seed.

    Raises:
        DistilhashError: an unknown framework, or one that cannot take these labels and settings.
    """
    if config.framework not in FRAMEWORKS:
        raise unknown_name("hashing framework", config.framework, FRAMEWORKS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 3)
        return FRAMEWORKS[config.framework](labels_NC, config)
