"""Where networks run, and in which precision.

The device is one choice for the whole process and no setting of a run: a run may go on elsewhere than where it began.
Only on the CPU does it then end in the same bytes: a GPU adds in an order of its own.

The precision is float32, or bfloat16 where the device multiplies it itself (torch.autocast: weights, statistics, losses
and optimizers stay in float32). "auto" times a few passes of both, as whether bfloat16 pays depends on processor and
shapes. PyTorch is imported where a device is asked for, as the command line only hands over its name.

Shapes: N images of a batch, S side in pixels.
"""

from __future__ import annotations

import copy
import os
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from distilhash.config import Precision
from distilhash.errors import DistilhashError, unknown_name
from distilhash.files import read_json, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    M = TypeVar("M", bound=nn.Module)

VARIABLE = "DISTILHASH_DEVICE"
DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
GPU_BATCH = 8  # times the batch of a CPU, whose caches it must fit; on a GPU a small one leaves most units idle

PRECISIONS = get_args(Precision)
GAIN = 1.2  # a smaller one is not worth the lost digits, and may be noise
PASSES = 3  # that are timed of each kind, after one that is not

_wanted: dict[str, str | None] = {"device": None}


def choose(name: str | None) -> None:
    """Choose the device of this process, one of DEVICES; it is looked for where it is first needed.

    None leaves it to the environment variable DISTILHASH_DEVICE, and that to "auto": a GPU where there is one.
    """
    _wanted["device"] = name


def current() -> torch.device:
    """The device of this process, with its number where there may be several, as tensors name it.

    Raises:
        DistilhashError: the name is unknown, or PyTorch does not see the device.
    """
    import torch

    name = _wanted["device"] or os.environ.get(VARIABLE) or "auto"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?", name):
        raise unknown_name("device", name, DEVICES)
    device = torch.device(name)
    seen = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= seen:
        raise DistilhashError("PyTorch does not see this device", f"{name}, {seen} of that kind", 'choose "auto"')
    if device.type == "cuda":
        if name == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        # By default cuDNN rounds the operands of float32 convolutions to 10 bits; float32 is what was asked for.
        # The older of two settings: with the newer one, torch.export refuses what convolutions and RNNs do differently.
        torch.backends.cudnn.allow_tf32 = False
    return torch.device("mps", 0) if device.type == "mps" else device


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device, in its own order of memory; a GPU fetches it while the caller goes on."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):  # else the first GPU gives some of its memory, too
            tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def on(module: M, device: torch.device) -> M:
    """The module where it lives on that device already, else a copy there: the caller's own stays where it is."""
    here = next(module.parameters(), None)
    if here is None or here.device == device:
        return module
    return copy.deepcopy(module).to(device)


def synchronize(device: torch.device) -> None:
    """Wait for what was launched: only then has it run, and can be timed."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def batch_factor(device: torch.device) -> int:
    """How many times as many images a batch of inference holds as on a CPU."""
    return 1 if device.type == "cpu" else GPU_BATCH


def arithmetic(precision: str) -> AbstractContextManager[object]:
    """What forward passes run in; results may come out in bfloat16, so a loss is taken of ``outputs.float()``."""
    import torch

    return torch.autocast(current().type, torch.bfloat16, enabled=precision == "bfloat16")


def settled_precision(wanted: str, file: str | Path, network: nn.Module, shape_N3SS: tuple[int, int, int, int]) -> str:
    """The precision of a run; what "auto" chose is kept in a file, so that a resumed run goes on in it.

    The network is timed in its mode (training or not) on a batch of that shape, and left as it is.
    """
    if wanted != "auto":
        return wanted
    if not Path(file).exists():
        write_json(file, {"precision": fastest_precision(network, shape_N3SS)})
    held = read_json(file, "choice of a precision")
    if not isinstance(held, dict) or held.get("precision") not in PRECISIONS[1:]:
        fix = "bring back a copy, or start anew in another --output"
        raise DistilhashError("this file does not name a precision", file, fix)
    return str(held["precision"])


def fastest_precision(network: nn.Module, shape_N3SS: tuple[int, int, int, int]) -> str:
    """In which precision passes over such a batch take less time; float32, untimed, where nothing else is native."""
    import torch

    if not native_bfloat16():
        return "float32"
    network = on(network, current())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images_N3SS = sent(torch.randn(shape_N3SS).contiguous(memory_format=torch.channels_last), current())
        seconds = {name: _seconds(network, images_N3SS, name) for name in ("float32", "bfloat16")}
    return "bfloat16" if seconds["float32"] > GAIN * seconds["bfloat16"] else "float32"


def usable_precision(precision: str) -> str:
    """The precision itself, or float32 where the device would have to emulate it."""
    return precision if precision == "bfloat16" and native_bfloat16() else "float32"


def native_bfloat16() -> bool:
    """Whether the device may multiply bfloat16 itself."""
    import torch

    device = current()
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is of the current one
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # PyTorch without oneDNN
        return False


def _seconds(network: nn.Module, images_N3SS: Tensor, precision: str) -> float:
    """The shortest of a few passes: forward, and backward where the network trains."""
    import torch

    trial = copy.deepcopy(network)  # statistics and gradients of the real one stay as they are
    trains = trial.training and any(parameter.requires_grad for parameter in trial.parameters())
    seconds = []
    for _ in range(1 + PASSES):
        began = time.perf_counter()
        with arithmetic(precision), torch.inference_mode(not trains):
            outputs = trial(images_N3SS)
        if trains:
            outputs.float().square().mean().backward()
        synchronize(images_N3SS.device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
