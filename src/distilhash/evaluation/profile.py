"""What a network costs: parameters, multiply-adds of one image, milliseconds and images a second.

Multiply-adds are those of convolutions and matrix products, attention included; one multiplication and one addition
count as one, which is the convention of the tables that students and teachers are compared in (ResNet50: 4.09 G at 224
pixels). Batch normalisation, activations and pooling are left out. Times are medians of whole batches, on the device
where the module's weights lie and with the threads that PyTorch has at that moment.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distilhash.errors import DistilhashError
from distilhash.models.student import Conv3x3


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The cost of one network."""

    name: str
    size: int  # side of the input, pixels
    parameters: int
    macs: int  # multiply-adds of one image
    latency_ms_batch1: float  # milliseconds for one image alone
    images_per_second: float  # in batches of batch_size
    batch_size: int
    threads: int  # PyTorch's, while it was timed


def count_parameters(module: nn.Module) -> int:
    """Weights and biases, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, size: int) -> int:
    """Multiply-adds of one image.

    The pass runs on a copy on the meta device: shapes only, no arithmetic, and the module itself is not touched. A
    layer that is called twice is counted twice.

    Args:
        module: takes (1, 3, size, size), else DistilhashError.
        size: side of the input, pixels.
    """
    _check_size(size)
    shapes_only = copy.deepcopy(module).to("meta").eval()
    for layer in shapes_only.modules():
        if isinstance(layer, Conv3x3):  # the tables count taps that meet only padding, which it leaves out
            layer.forward = functools.partial(nn.Conv2d.forward, layer)  # type: ignore[method-assign]
    counter = FlopCounterMode(display=False)  # two operations for each multiply-add
    try:
        with counter, torch.inference_mode():
            shapes_only(torch.zeros(1, 3, size, size, device="meta"))
    except RuntimeError as error:
        raise DistilhashError(
            "the network does not take images of this side", f"{size} pixels", "give the side it was made for"
        ) from error
    return int(counter.get_total_flops()) // 2


def latency(module: nn.Module, size: int, batch_size: int = 1, seconds: float = 1.0) -> float:
    """Median seconds of a batch in evaluation mode.

    Args:
        module: takes (batch_size, 3, size, size); a copy of it runs.
        size: side of the input, pixels.
        batch_size: images.
        seconds: how long to measure, at least.
    """
    _check_size(size)
    if batch_size < 1:
        raise DistilhashError("a batch holds at least one image", batch_size)
    if not 0 < seconds < math.inf:
        raise DistilhashError("the time to measure for must be above zero seconds", seconds)
    weight = next(module.parameters(), torch.empty(0))
    images = torch.zeros(batch_size, 3, size, size, device=weight.device, dtype=weight.dtype)
    images = images.contiguous(memory_format=torch.channels_last)  # as preprocessing hands them over
    # Imported here: it looks for a CUDA toolkit, and warns where it finds one without a GPU.
    from torch.utils.benchmark import Timer

    names = {"module": copy.deepcopy(module).eval(), "images": images}
    with torch.inference_mode():
        timer = Timer("module(images)", globals=names, num_threads=torch.get_num_threads())
        return float(timer.blocked_autorange(min_run_time=seconds).median)


def profile(
    module: nn.Module, size: int, name: str | None = None, batch_size: int = 32, seconds: float = 1.0
) -> Profile:
    """Parameters, multiply-adds and times of one module; ``name`` None: its own, or its backbone's."""
    names = [name, getattr(module, "name", None), getattr(getattr(module, "backbone", None), "name", None)]
    return Profile(
        name=next((known for known in names if isinstance(known, str)), type(module).__name__), size=size,
        parameters=count_parameters(module), macs=count_macs(module, size),
        latency_ms_batch1=1000 * latency(module, size, 1, seconds),
        images_per_second=batch_size / latency(module, size, batch_size, seconds),
        batch_size=batch_size, threads=torch.get_num_threads(),
    )  # fmt: skip


def _check_size(size: int) -> None:
    if size < 1:
        raise DistilhashError("the side of the input must be at least one pixel", size)
