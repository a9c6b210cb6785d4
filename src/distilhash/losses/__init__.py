"""Losses as pure functions of arrays: distillation, Deep Cauchy Hashing, Central Similarity Quantization."""

from distilhash.losses.csq import (
    CENTRES,
    bernoulli_centres,
    csq_loss,
    hadamard_centres,
    hash_centres,
    multi_label_centres,
    spread_hadamard_centres,
)
from distilhash.losses.dch import dch_loss
from distilhash.losses.distillation import distillation_mse

__all__ = [
    "CENTRES",
    "bernoulli_centres",
    "csq_loss",
    "dch_loss",
    "distillation_mse",
    "hadamard_centres",
    "hash_centres",
    "multi_label_centres",
    "spread_hadamard_centres",
]
