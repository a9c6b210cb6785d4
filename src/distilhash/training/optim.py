"""The ways to move weights here, and how their state is kept.

"muon": Muon on convolution kernels, AdamW on the rest, one cycle of the rate: in a given number of steps it gets a
student much further than AdamW alone. "adamw": AdamW, one cycle. "published": the constant rate of the published code.
The rate is a function of the step alone, and the state packs into named tensors, so that a run resumes exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from distilhash.errors import DistilhashError, unknown_name
from distilhash.training.muon import Muon

OPTIMIZERS = ("muon", "adamw", "published")
WARM_UP = 0.2  # share of the steps over which a one-cycle rate rises


class Optimizers:
    """One or two optimizers that step together under one schedule.

    ``published`` is the class that stands behind the name "published". Errors: DistilhashError for another name.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        name: str,
        steps: int,
        *,
        published: type[torch.optim.Optimizer],
        rate: float,
        muon_lr: float,
        weight_decay: float,
    ) -> None:
        self.modules, self.steps, self.constant = modules, steps, name == "published"
        parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        if name == "published":
            self.members: list[torch.optim.Optimizer] = [
                published(parameters, lr=rate, weight_decay=weight_decay)  # type: ignore[call-arg]
            ]
        elif name == "adamw":
            self.members = [_adamw(parameters, rate, weight_decay)]
        elif name == "muon":
            # The first convolution sees pixels, not features: Muon is for hidden layers.
            kernels = [p for p in parameters if p.ndim == 4 and p.shape[1] > 3]
            chosen = {id(kernel) for kernel in kernels}
            self.members = [_adamw([p for p in parameters if id(p) not in chosen], rate, weight_decay)]
            if kernels:
                self.members.append(Muon(kernels, lr=muon_lr, weight_decay=weight_decay))
        else:
            raise unknown_name("optimizer", name, OPTIMIZERS)
        self._peaks = [group["lr"] for member in self.members for group in member.param_groups]

    def step(self, loss: torch.Tensor, step: int) -> None:
        """Move the weights along the gradient of ``loss``, at the rate of this step (0 is the first)."""
        share = 1.0 if self.constant else one_cycle(step, self.steps)
        groups = [group for member in self.members for group in member.param_groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * share
        for member in self.members:
            member.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for member in self.members:
            member.step()

    def pack(self) -> dict[str, torch.Tensor]:
        """Weights, buffers and moments as one dict of named tensors."""
        tensors = {f"{name}.{k}": v for name, module in self.modules.items() for k, v in module.state_dict().items()}
        for number, member in enumerate(self.members):
            for index, moments in member.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in moments.items()}
        return tensors

    def unpack(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put a packed state back. Errors: DistilhashError where it does not fit these modules."""
        for name, module in self.modules.items():
            prefix = f"{name}."
            try:
                module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            except RuntimeError as error:
                raise DistilhashError(
                    "the saved training state is of another architecture", str(error).splitlines()[0], "use --overwrite"
                ) from error
        for number, member in enumerate(self.members):
            state = member.state_dict()
            state["state"] = {}
            parameters = [p for group in member.param_groups for p in group["params"]]
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{number}."):
                    _, _, index, moment = key.split(".", 3)
                    parameter = parameters[int(index)]
                    # Fused AdamW walks memory, so a moment needs the strides of its parameter.
                    same = value.shape == parameter.shape
                    state["state"].setdefault(int(index), {})[moment] = (
                        torch.empty_like(parameter).copy_(value) if same else value
                    )
            member.load_state_dict(state)


def one_cycle(step: int, steps: int) -> float:
    """Share of the peak rate at a step: a linear rise, then a cosine fall to zero."""
    rise = max(1.0, WARM_UP * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def _adamw(parameters: Iterable[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.AdamW:
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, fused=True)
