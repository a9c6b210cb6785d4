"""What a network costs: parameters, multiply-adds of one image, milliseconds and images a second.

Multiply-adds are those of convolutions and linear layers, one multiplication and one addition counted as one, which is
the convention of the tables that students and teachers are compared in (ResNet50: 4.09 G at 224 pixels). Batch
normalisation, activations and pooling are left out. Times are medians of whole batches, on the device where the
module's weights lie and with the threads that PyTorch has at that moment.

Shapes: N images a batch, S side in pixels.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from distilhash.errors import DistilhashError

WARM_UP_BATCHES = 2  # the first batches pay for allocation and for the choice of a kernel
LEAST_BATCHES = 3  # a median of fewer is not one


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long one batch takes."""

    batch_size: int  # images
    median_ms: float  # milliseconds a batch
    images_per_second: float  # batch_size over the median
    batches: int  # how many were timed


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
    """Weights and biases, shared ones once; buffers (running means) are not parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, size: int) -> int:
    """Multiply-adds of convolutions and linear layers for one (1, 3, S, S) image.

    The pass runs on a copy on the meta device: shapes only, no arithmetic, and the module itself is not touched. A
    layer that is called twice is counted twice.
    """
    _check_size(size)
    shapes_only = copy.deepcopy(module).to("meta").eval()
    macs = 0

    def add(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Linear):
            macs += output.numel() * layer.in_features
        elif isinstance(layer, _ConvNd):
            # Every output element of a convolution reads in_channels / groups windows; transposed, every input element
            # writes out_channels / groups of them.
            transposed = isinstance(layer, _ConvTransposeNd)
            elements, channels = (inputs[0], layer.out_channels) if transposed else (output, layer.in_channels)
            macs += elements.numel() * channels // layer.groups * math.prod(layer.kernel_size)

    for layer in shapes_only.modules():
        if isinstance(layer, nn.Linear | _ConvNd):
            layer.register_forward_hook(add)
    try:
        with torch.inference_mode():
            shapes_only(torch.zeros(1, 3, size, size, device="meta"))
    except RuntimeError as error:
        raise DistilhashError(
            "the network does not take images of this side", f"{size} pixels", "give the side it was made for"
        ) from error
    return macs


def latency(module: nn.Module, size: int, batch_size: int = 1, seconds: float = 1.0) -> Latency:
    """Median time of a batch over about this many seconds; to compare modules, see ``latencies``."""
    return latencies([module], [size], batch_size, seconds)[0]


def latencies(
    modules: Sequence[nn.Module], sizes: Sequence[int], batch_size: int = 1, seconds: float = 1.0
) -> list[Latency]:
    """Times of several modules, batch by batch in turn, so that a slow minute of the machine falls on all alike.

    ``seconds`` is for each module. The modules run in evaluation mode and come back in the mode they were in.
    """
    for size in sizes:
        _check_size(size)
    if batch_size < 1:
        raise DistilhashError("a batch holds at least one image", batch_size)
    if not 0 < seconds < math.inf:
        raise DistilhashError("the time to measure for must be above zero seconds", seconds)
    if len(modules) != len(sizes):
        raise DistilhashError("each module needs its input size", f"{len(modules)} modules and {len(sizes)} sizes")
    runs = [_batch(module, size, batch_size) for module, size in zip(modules, sizes, strict=True)]
    times: list[list[float]] = [[] for _ in runs]
    with _evaluating(modules), torch.inference_mode():
        for run in runs:
            for _ in range(WARM_UP_BATCHES):
                run()
        # A module that has had its seconds drops out; the others go on in turn.
        while waiting := [i for i, taken in enumerate(times) if len(taken) < LEAST_BATCHES or sum(taken) < seconds]:
            for i in waiting:
                start = time.perf_counter()
                runs[i]()
                times[i].append(time.perf_counter() - start)
    medians = [statistics.median(taken) for taken in times]
    return [
        Latency(
            batch_size=batch_size,
            median_ms=1000 * median,
            images_per_second=batch_size / median,
            batches=len(taken),
        )
        for median, taken in zip(medians, times, strict=True)
    ]


def profile(
    module: nn.Module, size: int, name: str | None = None, batch_size: int = 32, seconds: float = 1.0
) -> Profile:
    """Parameters, multiply-adds and times of one module; unless one is given, the name is its own or its backbone's."""
    names = [name, getattr(module, "name", None), getattr(getattr(module, "backbone", None), "name", None)]
    return Profile(
        name=next((known for known in names if isinstance(known, str)), type(module).__name__),
        size=size,
        parameters=count_parameters(module),
        macs=count_macs(module, size),
        latency_ms_batch1=latency(module, size, 1, seconds).median_ms,
        images_per_second=latency(module, size, batch_size, seconds).images_per_second,
        batch_size=batch_size,
        threads=torch.get_num_threads(),
    )


def _check_size(size: int) -> None:
    if size < 1:
        raise DistilhashError("the side of the input must be at least one pixel", size)


def _batch(module: nn.Module, size: int, batch_size: int) -> Callable[[], None]:
    """A function that runs one batch to its end, on the module's device and in its precision."""
    weight = next(module.parameters(), torch.empty(0))
    images = torch.zeros(batch_size, 3, size, size, device=weight.device, dtype=weight.dtype)
    images = images.contiguous(memory_format=torch.channels_last)  # as preprocessing hands them over

    def run() -> None:
        module(images)
        if weight.is_cuda:
            torch.cuda.synchronize(weight.device)  # a kernel that was launched is not yet one that has run

    return run


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode again afterwards."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
