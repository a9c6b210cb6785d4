"""What every backbone carries, and how weights from outside are loaded: as plain tensors that are checked.

A backbone maps images (N, 3, S, S) to features (N, D) and knows how it is fed and how it is built again.

Shapes: N images, S pixels, D features.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor, nn

from distilhash.config import InputConfig
from distilhash.errors import DistilhashError
from distilhash.files import readable_file

SHOWN = 3  # tensors that an error names of each kind


class Backbone(nn.Module):
    """A network from images (N, 3, S, S) to features (N, D); subclasses set these attributes."""

    feature_dim: int  # D
    input: InputConfig  # S and the rest of the preprocessing
    name: str  # the name it was created by
    architecture: dict[str, Any]  # JSON data from which rebuild_backbone makes the same network, without its weights
    pretrained: bool = False  # whether its weights were trained before, here or by others
    seen: NDArray[np.uint8] | None = None  # digests (M, 16) of the images that it was trained on, where they are known
    origin: dict[str, Any] = {}  # noqa: RUF012 (what a distilled student's checkpoint says of its teacher)
    in_order: bool = False  # whether every BatchNorm is known to follow the convolution that is declared before it


def fingerprint_of(module: nn.Module) -> str:
    """Sixteen hex digits over the names, types, shapes and bytes of all tensors, whatever their device and strides."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().reshape(-1)  # row by row, also where it lies in channels-last order
        digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor that holds NaN or an infinity; empty where none does."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all().item()), "")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name of a .safetensors or torch.save file, also where "state_dict" or "model" nests them.

    Raises:
        DistilhashError: there is no such file, or it holds anything but tensors; no pickled object is loaded.
    """
    path = readable_file(path, "there is no such file of weights", "give a .safetensors, .pth or .pt file")
    refusal = DistilhashError(
        "this is not a file of plain tensors, and nothing else is loaded, pickled objects least of all", path,
        "save the state dict: torch.save(model.state_dict(), ...) or safetensors.torch.save_file(...)",
    )  # fmt: skip
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load(path.read_bytes())  # load_file opens no path that is not UTF-8
        else:
            with warnings.catch_warnings(action="ignore"):  # torch's doubts about a file: we load it or we say why not
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        raise refusal from error
    for nested in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(nested), dict):
            loaded = loaded[nested]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise refusal
    return dict(loaded)


def load_checked(module: nn.Module, state: Mapping[str, Tensor], what: str, *, assign: bool = False) -> None:
    """Load a state into a module that has the same names and shapes.

    Args:
        what: the module's name in an error.
        assign: adopt the tensors instead of copying them, as a module on the meta device needs.

    Raises:
        DistilhashError: tensors are missing, unexpected or of another shape; the first few are named.
    """
    own = module.state_dict()
    wrong = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} where {tuple(tensor.shape)} belongs"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    complaints = [
        f"{len(names)} {kind}, {'such as ' if len(names) > SHOWN else ''}{', '.join(names[:SHOWN])}"
        for kind, names in wrong.items()
        if names
    ]
    if complaints:
        raise DistilhashError(f"these weights are not those of {what}", "; ".join(complaints))
    # An adopted tensor would bring its own type and strides along: half precision, or TensorFlow's order of a kernel.
    fitting = {name: state[name].to(tensor.dtype).contiguous() for name, tensor in own.items()}
    spoilt = not_finite(fitting)
    if spoilt:
        raise DistilhashError(f"the weights given for {what} are not finite", f"tensor {spoilt}", "give other weights")
    module.load_state_dict(fitting, assign=assign)
