"""Muon: momentum whose update of each convolution kernel is made (nearly) orthonormal.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): the momentum of a weight matrix is
replaced by the nearest semi-orthogonal matrix, found by five Newton-Schulz steps. A kernel (out, in, h, w) is the
matrix (out, in*h*w). PyTorch's own Muon takes matrices only, and iterates on the wide matrix; here the iteration runs
on the small Gram matrix, which every step of it is a polynomial of:

    X_k = Q_k X_0,   A_k = X_k X_k^T,   Q_{k+1} = p(A_k) Q_k,   A_{k+1} = p(A_k)^2 A_k,   p(A) = a I + b A + c A^2

and kernels of one shape go through it in one batch: two and a half times fewer multiplications for a 128 x 1152 kernel.
X_0 is the momentum over its norm; A_0 and Q are divided instead, which spares a pass over the kernels. The columns of a
matrix are taken in the order in which channels-last memory has them: the nearest semi-orthogonal matrix follows. Each
core takes kernels of its own, since on products this small cores that share one wait more than they compute.

Legend: G kernels of one shape, R x S their shape as matrices with R <= S.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from distilhash.runtime import on_each_core

# The quintic of the paper: steep at zero, and within 0.7 to 1.2 after five steps for singular values above 0.01.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


def orthonormalise(matrices_GRS: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, singular values within about 0.7 to 1.2 (Newton-Schulz, five steps)."""
    wide = matrices_GRS.shape[1] <= matrices_GRS.shape[2]
    x_GRS = matrices_GRS if wide else matrices_GRS.mT
    gram_GRR = x_GRS @ x_GRS.mT
    norm_G = gram_GRR.diagonal(dim1=1, dim2=2).sum(dim=1).sqrt() + 1e-7
    gram_GRR = gram_GRR / norm_G.square()[:, None, None]
    q_GRR: Tensor | None = None
    for step in range(STEPS):
        p_GRR = torch.baddbmm(B * gram_GRR, gram_GRR, gram_GRR, alpha=C)
        p_GRR.diagonal(dim1=1, dim2=2).add_(A)
        q_GRR = p_GRR / norm_G[:, None, None] if q_GRR is None else p_GRR @ q_GRR
        if step < STEPS - 1:
            gram_GRR = p_GRR @ gram_GRR @ p_GRR
    assert q_GRR is not None
    y_GRS: Tensor = q_GRR @ x_GRS
    return y_GRS if wide else y_GRS.mT


class Muon(torch.optim.Optimizer):
    """Muon over convolution kernels, with Nesterov momentum and decoupled weight decay.

    ``lr`` is the root-mean-square singular value of one update of a square kernel.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every kernel that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parts = _parts([kernel for kernel in group["params"] if kernel.grad is not None])
            move = functools.partial(self._move, group=group)
            on_each_core(move, parts)

    @torch.no_grad()  # said here again: another thread has a mode of its own
    def _move(self, kernels: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Move kernels of one shape."""
        rows, columns = kernels[0].shape[0], kernels[0][0].numel()
        updates_GRS = kernels[0].new_empty(len(kernels), rows, columns)
        for kernel, update_RS in zip(kernels, updates_GRS, strict=True):
            assert kernel.grad is not None
            state = self.state[kernel]
            if not state:
                state["momentum"] = torch.zeros_like(kernel)
            momentum = state["momentum"].lerp_(kernel.grad, 1 - group["momentum"])
            torch.lerp(_matrix(kernel.grad), _matrix(momentum), group["momentum"], out=update_RS)
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        for kernel, moved_RS in zip(kernels, orthonormalise(updates_GRS), strict=True):
            kernel.mul_(1 - group["lr"] * group["weight_decay"])
            in_order = kernel.permute(0, 2, 3, 1)
            in_order.add_(moved_RS.view_as(in_order), alpha=-rate)


def _matrix(kernel: Tensor) -> Tensor:
    """A kernel (out, in, h, w) as the matrix (out, h*w*in), which in channels-last memory it is already."""
    return kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1)


def _parts(kernels: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The kernels, those of one shape together, and dealt out to the cores where these compute; the most work first."""
    by_shape: dict[torch.Size, list[nn.Parameter]] = {}
    for kernel in kernels:
        by_shape.setdefault(kernel.shape, []).append(kernel)
    groups = sorted(by_shape.values(), key=lambda group: -sum(kernel.numel() for kernel in group))
    hands = torch.get_num_threads() if kernels and kernels[0].device.type == "cpu" else 1
    return [group[hand::hands] for group in groups for hand in range(min(hands, len(group)))]
