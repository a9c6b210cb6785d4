"""The arithmetic that networks run in: float32, or bfloat16 where the device multiplies it itself and it is faster.

bfloat16 has the range of float32 and 8 of its 24 bits. Under it only convolutions and matrix products take rounded
operands (torch.autocast); weights, statistics, losses and optimizers stay in float32. "auto" times a few passes of both
and keeps the faster one: whether bfloat16 pays depends on the processor and on the shapes, and where it is emulated it
costs a factor. The device is that of the process (``device``). What was chosen is written down, so that a resumed run
goes on in it.

Shapes: N images of a batch, S side in pixels.
"""

from __future__ import annotations

import copy
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from distilhash.device import current, on, sent, synchronise
from distilhash.errors import DistilhashError
from distilhash.files import read_json, write_json

PRECISIONS = ("auto", "float32", "bfloat16")
GAIN = 1.2  # a smaller one is not worth the lost digits, and may be noise
PASSES = 3  # that are timed of each kind, after one that is not


def arithmetic(precision: str) -> AbstractContextManager[object]:
    """What forward passes run in; results may come out in bfloat16, so a loss is taken of ``outputs.float()``."""
    return torch.autocast(current().type, torch.bfloat16, enabled=precision == "bfloat16")


def settled(wanted: str, file: Path, network: nn.Module, shape_N3SS: tuple[int, int, int, int]) -> str:
    """What is wanted, or for "auto" what ``file`` names; where there is none yet, the faster one is found and written.

    ``network`` is timed in its mode (training or not) and left as it is. Errors: DistilhashError for a damaged file.
    """
    if wanted != "auto":
        return wanted
    if not file.exists():
        write_json(file, {"precision": fastest(network, shape_N3SS)})
    held = read_json(file, "choice of a precision")
    if not isinstance(held, dict) or held.get("precision") not in PRECISIONS[1:]:
        raise DistilhashError("this file does not name a precision", file, "start anew with --overwrite")
    return str(held["precision"])


def fastest(network: nn.Module, shape_N3SS: tuple[int, int, int, int]) -> str:
    """In which precision passes over such a batch take less time; float32, untimed, where nothing else is native."""
    if not native_bfloat16():
        return "float32"
    network = on(network, current())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images_N3SS = sent(torch.randn(shape_N3SS).contiguous(memory_format=torch.channels_last), current())
        seconds = {name: _seconds(network, images_N3SS, name) for name in ("float32", "bfloat16")}
    return "bfloat16" if seconds["float32"] > GAIN * seconds["bfloat16"] else "float32"


def usable(precision: str) -> str:
    """The precision itself, or float32 where the device would have to emulate it."""
    return precision if precision == "bfloat16" and native_bfloat16() else "float32"


def native_bfloat16() -> bool:
    """Whether the device may multiply bfloat16 itself."""
    if current().type != "cpu":
        return current().type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # PyTorch without oneDNN
        return False


def _seconds(network: nn.Module, images_N3SS: Tensor, precision: str) -> float:
    """The shortest of a few passes: forward, and backward where the network trains."""
    trial = copy.deepcopy(network)  # statistics and gradients of the real one stay as they are
    trains = trial.training and any(parameter.requires_grad for parameter in trial.parameters())
    seconds = []
    for _ in range(1 + PASSES):
        began = time.perf_counter()
        with arithmetic(precision), torch.inference_mode(not trains):
            outputs = trial(images_N3SS)
        if trains:
            outputs.float().square().mean().backward()
        synchronise(images_N3SS.device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
