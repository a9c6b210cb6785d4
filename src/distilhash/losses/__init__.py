"""Losses as pure functions of arrays: distillation here, each hashing framework in a module of its own.

Shapes: N images, D features.
"""

import torch.nn.functional as F
from torch import Tensor

from distilhash.errors import DistilhashError
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
from distilhash.losses.frameworks import FRAMEWORKS, create_loss, register

__all__ = [
    "CENTRES", "FRAMEWORKS", "bernoulli_centres", "create_loss", "csq_loss", "dch_loss", "distillation_mse",
    "hadamard_centres", "hash_centres", "multi_label_centres", "register", "spread_hadamard_centres",
]  # fmt: skip


def distillation_mse(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean squared error over all N*D elements (arXiv 2207.09070, section 3.1); half precision is summed in float32.

    Features may be raw, as in the published code (satoru2001/CUKDFIR at d9a60ee), or standardised by the caller.

    Raises:
        DistilhashError: the two differ in shape, or are empty.
    """
    if student_ND.ndim != 2 or student_ND.shape != teacher_ND.shape or student_ND.numel() == 0:
        raise DistilhashError(
            "distillation needs features (N, D) of one shape from student and teacher",
            f"student {tuple(student_ND.shape)} and teacher {tuple(teacher_ND.shape)}",
            "project the student's features to the teacher's feature_dim with a linear layer",
        )
    if student_ND.element_size() < 4:
        student_ND = student_ND.float()
    return F.mse_loss(student_ND, teacher_ND.to(student_ND.dtype))
