"""Where networks run: the processor, or one GPU. One choice for the whole process, read by every stage that computes.

It is no setting of a run: a run may go on elsewhere than where it began, and what it ran on last is written beside its
precision. Only on the processor does it then end in the same bytes: a GPU adds in an order of its own.

PyTorch is imported where a device is asked for, as the command line only hands the name of one over.
"""

from __future__ import annotations

import copy
import os
import re
from typing import TYPE_CHECKING, TypeVar

from distilhash.errors import DistilhashError, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    M = TypeVar("M", bound=nn.Module)

VARIABLE = "DISTILHASH_DEVICE"
DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
LARGER = 8  # times the batch of a processor, whose caches it must fit; on a GPU a small one leaves most units idle

_wanted: dict[str, str | None] = {"device": None}


def choose(name: str | None) -> None:
    """Let this process compute there; None leaves it to the environment, and that to "auto": a GPU where there is one.

    The name is looked at where the device is first needed.
    """
    _wanted["device"] = name


def current() -> torch.device:
    """The device of this process. Errors: DistilhashError for an unknown name, and where PyTorch does not see the device."""
    import torch

    name = _wanted["device"] or os.environ.get(VARIABLE) or "auto"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise unknown_name("device", name, DEVICES)
    device = torch.device(name)
    seen = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= seen:
        many = f"{seen} of that kind" if seen else "none of that kind"
        raise DistilhashError(
            "PyTorch does not see this device here", f"{name} where there are {many}", 'choose "auto"'
        )
    if device.type == "cuda":
        # By default cuDNN rounds the operands of float32 convolutions to 10 bits; float32 is what was asked for.
        # The older of two settings: with the newer one, torch.export refuses what convolutions and RNNs do differently.
        torch.backends.cudnn.allow_tf32 = False
    return device


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device, in its own order of memory; a GPU fetches it while the caller goes on."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def on(module: M, device: torch.device) -> M:
    """The module where it lives on that device already, else a copy there: the caller's own stays where it is."""
    here = next(module.parameters(), None)
    if here is None or here.device.type == device.type:
        return module
    return copy.deepcopy(module).to(device)


def synchronise(device: torch.device) -> None:
    """Wait for what was launched: only then has it run, and can be timed."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def larger(device: torch.device) -> int:
    """How many times as many images a batch of inference holds as on a processor."""
    return 1 if device.type == "cpu" else LARGER
