"""A GPU of PyTorch's fake tensors, for machines without one.

What it can find: a tensor, weight or moment left on another device than the one that was named, also on the other one
of two GPUs; a batch that is not moved; a read of the numbers of a tensor that is still on the GPU. What it cannot:
anything that depends on numbers (they are not there), on time or memory, or on CUDA itself, such as a kernel that does
not exist, which GPU a driver takes as its current one, or whether pinned memory is worth it.
"""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from distilhash import device
from distilhash import inference as encoding
from distilhash.data.transforms import Preprocess
from distilhash.device import choose
from distilhash.training import distill, teacher_features
from distilhash.training import hash as hashing
from distilhash.training.optim import Optimizers
from distilhash.training.run import RunDirectory

GPU = torch.device("cuda:0")


def moved(module: nn.Module, *device: torch.device, memory_format=torch.preserve_format) -> nn.Module:
    """What nn.Module.to does, for fake tensors, too, which cannot be swapped in place."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                order = memory_format if tensor is not None and tensor.ndim == 4 else torch.preserve_format
                if isinstance(tensor, nn.Parameter):
                    made = tensor.detach().to(*device, memory_format=order)
                    tensors[name] = nn.Parameter(made, tensor.requires_grad)
                elif tensor is not None:
                    tensors[name] = tensor.to(*device, memory_format=order)
    return module


def copied(module: nn.Module) -> nn.Module:
    """What copy.deepcopy does, but that tensors are shared; ``moved`` then replaces them in the copy alone."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]})


class Gpu:
    """A GPU of fake tensors: they have shapes and devices, and refuse to meet a tensor of another device.

    What would need numbers is stood in for: reading one, gradients (all zero), the files that are written.
    """

    def __init__(self, monkeypatch) -> None:
        self.losses: list[torch.device] = []
        self.states: list[dict[str, torch.Tensor]] = []
        self.saved: list[tuple[nn.Module, dict]] = []
        self.optimizers: list[Optimizers] = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
        choose("cuda:0")
        monkeypatch.setattr(nn.Module, "to", moved)
        monkeypatch.setattr(device, "copy", SimpleNamespace(deepcopy=copied))
        for name in ("item", "numpy", "pin_memory", "backward"):
            monkeypatch.setattr(torch.Tensor, name, getattr(self, name)())
        for module in (distill, hashing):
            monkeypatch.setattr(module, "prefetch", lambda load, keys, **options: map(load, keys))
            monkeypatch.setattr(module, "save_model", lambda path, *saved: self.saved.append(saved))
            monkeypatch.setattr(module, "Optimizers", self.noted)
        for module in (encoding, teacher_features):
            monkeypatch.setattr(module, "through", lambda load, work, keys, shared: map(work, map(load, keys)))
            monkeypatch.setattr(module, "folded", lambda backbone, **options: backbone)
        real = Preprocess.__call__
        monkeypatch.setattr(Preprocess, "__call__", lambda *arguments: pixels_of(real, *arguments))
        monkeypatch.setattr(RunDirectory, "save_state", lambda run, tensors, step: self.states.append(tensors))

    def noted(self, *arguments, **options) -> Optimizers:
        self.optimizers.append(Optimizers(*arguments, **options))
        return self.optimizers[-1]

    @staticmethod
    def item():
        return lambda tensor: 0.5

    @staticmethod
    def numpy():
        def numpy(tensor):
            assert tensor.device.type == "cpu"
            return np.zeros(tuple(tensor.shape), np.uint8 if tensor.dtype == torch.uint8 else np.float32)

        return numpy

    @staticmethod
    def pin_memory():
        return lambda tensor: tensor

    def backward(self):
        def backward(loss):
            self.losses.append(loss.device)
            for member in self.optimizers[-1].members:
                for group in member.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = torch.zeros_like(parameter)

        return backward

    def check(self, steps: int) -> None:
        """Every loss, weight and moment is on the GPU."""
        assert self.losses == [GPU] * steps
        assert len(self.states) == steps
        fused = any(member.defaults.get("fused") for member in self.optimizers[-1].members)
        for state in self.states:
            left = {name for name, value in state.items() if value.device != GPU} - {"losses"}
            assert all(name.endswith(".step") and not fused for name in left), left  # PyTorch keeps counts itself
        (module, description), *_ = self.saved
        assert description["device"] == "cuda:0"
        trained = module.head if getattr(module, "freeze_backbone", False) else module
        assert all(tensor.device == GPU for tensor in trained.state_dict().values())


def pixels_of(function, *arguments) -> torch.Tensor:
    """A fake tensor like the real one that this function makes of NumPy's memory."""
    with unset_fake_temporarily():
        real = function(*arguments)
    return torch.empty_strided(real.shape, real.stride())
