"""Feature distillation without labels: the student regresses the teacher's features.

Reddy, Dubey, Sanodiya, Karn, "Context Unaware Knowledge Distillation for Image Retrieval" (arXiv 2207.09070), whose code at
commit d9a60ee takes the plain mean squared error of raw features. The same function serves features that the caller
standardised (z-scored with the statistics of the training images): the target changes, the loss does not.

Shapes: N images, D features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distilhash.errors import DistilhashError


def distillation_mse(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean squared error over all N*D elements (arXiv 2207.09070, section 3.1).

    Args:
        student_ND: the student's features; half precision is summed in float32.
        teacher_ND: the teacher's features of the same images; a frozen teacher's carry no gradient.

    Returns:
        A scalar tensor.

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
