"""The optimizers, their one schedule, and how their state is kept.

"muon": Muon on convolution kernels, AdamW on the rest, one cycle of the rate: in a given number of steps it gets a
student much further than AdamW alone. "adamw": AdamW, one cycle. "published": the constant rate of the published code.
The rate is a function of the step alone, and the state packs into named tensors, so that a run resumes exactly.

Legend: G kernels of one shape, R x S their shape as matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from distilhash.config import DistillConfig, HashConfig
from distilhash.errors import DistilhashError
from distilhash.models.backbone import not_finite

WARM_UP = 0.2  # share of the steps over which a one-cycle rate rises
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Muon's quintic p(x) = a x + b x^3 + c x^5, applied STEPS times
STEPS = 5


def orthonormalize(matrices_GRS: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, but for singular values within about 0.7 to 1.2 instead of 1.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), iterate X <- aX + (bA + cA^2) X
    with A = X X^T. Every step is a polynomial of the first A, so here the small Gram matrices are iterated and X is
    multiplied once, which for a 128 x 1152 kernel takes 2.5 times fewer multiplications.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrices_GRS.shape[1] <= matrices_GRS.shape[2]
    x_GRS = matrices_GRS if wide else matrices_GRS.mT
    x_GRS = x_GRS / x_GRS.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    gram_GRR = x_GRS @ x_GRS.mT
    product_GRR = torch.eye(gram_GRR.shape[1], dtype=gram_GRR.dtype, device=gram_GRR.device).expand_as(gram_GRR)
    for _ in range(STEPS):
        p_GRR = torch.baddbmm(b * gram_GRR, gram_GRR, gram_GRR, alpha=c)
        p_GRR.diagonal(dim1=1, dim2=2).add_(a)
        product_GRR = p_GRR @ product_GRR
        gram_GRR = p_GRR @ gram_GRR @ p_GRR
    y_GRS: Tensor = product_GRR @ x_GRS
    return y_GRS if wide else y_GRS.mT


class Muon(torch.optim.Optimizer):
    """Muon on convolution kernels (out, in, h, w) as matrices (out, h*w*in), with Nesterov momentum.

    The update is that of ``timm.optim.Muon(nesterov=True, ns_coefficients="original", adjust_lr_fn="original")``. That
    one computes in bfloat16 and kernel by kernel: where a CPU has no bfloat16, a step of v1 at 32 pixels takes four
    times as long with it. Here kernels of one shape are iterated together, in float32. ``lr`` is the
    root-mean-square singular value of one update of a square kernel; weight decay is decoupled.
    """

    def __init__(
        self, kernels: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every kernel that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for kernel in group["params"]:
                if kernel.grad is not None:
                    by_shape.setdefault(kernel.shape, []).append(kernel)
            for kernels in by_shape.values():
                updates_GRS = torch.stack([_matrix(self._update(kernel, group["momentum"])) for kernel in kernels])
                rows, columns = updates_GRS.shape[1:]
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for kernel, moved_RS in zip(kernels, orthonormalize(updates_GRS), strict=True):
                    kernel.mul_(1 - group["lr"] * group["weight_decay"])
                    in_memory = kernel.permute(0, 2, 3, 1)
                    in_memory.add_(moved_RS.view_as(in_memory), alpha=-rate)

    def _update(self, kernel: nn.Parameter, momentum: float) -> Tensor:
        assert kernel.grad is not None
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
        state["momentum"].lerp_(kernel.grad, 1 - momentum)
        return kernel.grad.lerp(state["momentum"], momentum)


def _matrix(kernel: Tensor) -> Tensor:
    """(out, in, h, w) as (out, h*w*in), which in channels-last memory it is already."""
    return kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1)


class Optimizers:
    """One or two optimizers that step together under one schedule.

    Args:
        modules: what is trained, by the names under which its tensors are packed.
        config: optimizer, learning rates and weight decay; ``muon_lr`` is given.
        steps: of the whole run.
        stage, precision: what is trained, and what the passes run in, for log and errors.
        published: the class behind the name "published".
    """

    def __init__(
        self, modules: dict[str, nn.Module], config: DistillConfig | HashConfig, steps: int, stage: str,
        precision: str, published: type[torch.optim.Optimizer],
    ) -> None:  # fmt: skip
        self.modules, self.steps, self.constant = modules, steps, config.optimizer == "published"
        self.stage, self._precision = stage, precision
        self.losses_2 = torch.zeros(2, dtype=torch.float64)  # sum and number of the losses of this epoch
        parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        rate, decay = config.learning_rate, config.weight_decay
        if self.constant:
            self.members = [published(parameters, lr=rate, weight_decay=decay)]  # type: ignore[call-arg]
        else:
            # The first convolution sees pixels, not features: Muon is for hidden layers.
            muon = config.optimizer == "muon"
            kernels = [p for p in parameters if muon and p.ndim == 4 and p.shape[1] > 3]
            chosen = {id(kernel) for kernel in kernels}
            others = [p for p in parameters if id(p) not in chosen]
            groups = [
                {"params": [p for p in others if p.ndim > 1], "weight_decay": decay},
                {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
            ]
            self.members = [torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, fused=True)]
            if kernels:
                assert config.muon_lr is not None
                self.members.append(Muon(kernels, lr=config.muon_lr, weight_decay=decay))
        self._peaks = [group["lr"] for member in self.members for group in member.param_groups]

    def step(self, loss: Tensor, step: int) -> float:
        """Move the weights along the gradient of ``loss``, at the rate of this step (0 is the first).

        Returns the loss, which on a GPU is waited for, so it is read once, and last; DistilhashError where it is not
        finite.
        """
        share = 1.0 if self.constant else one_cycle(step, self.steps)
        groups = [group for member in self.members for group in member.param_groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * share
        for member in self.members:
            member.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for member in self.members:
            member.step()
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged("the loss", step + 1)
        self.losses_2 += torch.tensor([value, 1])
        return value

    def check(self, step: int) -> None:
        """Raise DistilhashError where a weight or a moment is not finite after so many steps."""
        name = not_finite(self.pack())
        if name:
            raise self._diverged(name, step)

    def _diverged(self, what: str, step: int) -> DistilhashError:
        rates = ", ".join(f"{peak:g}" for peak in dict.fromkeys(self._peaks))
        got = f"step {step:,} of {self.steps:,}, at learning rates up to {rates}, in {self._precision}"
        other = "" if self._precision == "float32" else " or take --precision float32"
        fix = f"lower the learning rate{other}, and begin anew with --overwrite or elsewhere"
        return DistilhashError(f"{self.stage} was stopped, as {what} is not finite", got, fix)

    def pack(self) -> dict[str, Tensor]:
        """Weights, buffers and moments as one dict of named tensors."""
        tensors = {f"{name}.{k}": v for name, module in self.modules.items() for k, v in module.state_dict().items()}
        for number, member in enumerate(self.members):
            for index, moments in member.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in moments.items()}
        return tensors

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        """Put a packed state back; DistilhashError where it is of other modules."""
        for name, module in self.modules.items():
            prefix = f"{name}."
            try:
                module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            except RuntimeError as error:
                raise DistilhashError(
                    "the saved training state is of another architecture",
                    str(error).splitlines()[0],
                    "resume with the version that saved it, or start anew in another --output",
                ) from error
        for number, member in enumerate(self.members):
            moments: dict[int, dict[str, Tensor]] = {}
            parameters = [p for group in member.param_groups for p in group["params"]]
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{number}."):
                    index, _, moment = key.removeprefix(f"optimizer.{number}.").partition(".")
                    like = parameters[int(index)]
                    # Fused AdamW walks memory, so a moment needs the strides of its parameter.
                    kept = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
                    moments.setdefault(int(index), {})[moment] = kept
            member.load_state_dict(member.state_dict() | {"state": moments})


def one_cycle(step: int, steps: int) -> float:
    """Share of the peak rate at a step: a linear rise, then a cosine fall to zero."""
    rise = max(1.0, WARM_UP * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))
