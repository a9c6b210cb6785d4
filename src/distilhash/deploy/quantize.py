"""From a hasher to an ONNX file, in float32 and in int8.

The exported network is the hasher's own function in operators that other runtimes run well: BatchNorm is folded, and a
3x3 convolution on a map of 1 or 2 pixels (``models.student``) becomes the smaller convolution or the one matrix that
it amounts to at this input size, so that the file holds finished weights instead of slices.

Int8: weights with a scale for each channel, activations with one for each tensor (QuantizeLinear and DequantizeLinear
around the operators), ranges from the least and the largest value on calibration images. Weights take 7 of the 8 bits:
processors without VNNI add two products in 16 bits, where 8 would overflow.

Shapes: N images, S pixels, C channels in, O channels out, K bits.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from distilhash.models.fold import folded
from distilhash.models.hasher import HasherNetwork
from distilhash.models.student import Conv3x3

BATCH = 32  # calibration images that run at once


def to_onnx(hasher: HasherNetwork) -> bytes:
    """The bytes of an ONNX file: "images" float32 (N, 3, S, S) to "outputs" (N, K), N free; equal for equal hashers."""
    network = ExportNetwork(hasher).eval()
    example = torch.zeros(2, 3, hasher.input.size, hasher.input.size)
    with _quiet():
        program = torch.onnx.export(
            network, (example,), dynamo=True, verbose=False, external_data=False, input_names=["images"],
            output_names=["outputs"], dynamic_shapes=({0: torch.export.Dim("N")},),
        )  # fmt: skip
    assert program is not None
    return _bytes_of(program.model_proto)


def to_int8(content: bytes, images_N3SS: NDArray[np.float32], folder: str | Path) -> bytes:
    """The int8 version of what to_onnx returned.

    Args:
        content: that.
        images_N3SS: preprocessed images on which the ranges of activations are taken.
        folder: an existing directory for temporary files.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    batches = ({"images": images_N3SS[start : start + BATCH]} for start in range(0, len(images_N3SS), BATCH))
    reader = SimpleNamespace(get_next=lambda: next(batches, None))
    plain, target = Path(folder, "plain.onnx"), Path(folder, "int8.onnx")
    plain.write_bytes(content)
    before = tempfile.tempdir
    try:
        tempfile.tempdir = str(folder)  # a process that is killed shall leave nothing in the system's folder
        with _quiet():
            quantize_static(
                plain, target, reader, quant_format=QuantFormat.QDQ, per_channel=True,
                reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
    finally:
        tempfile.tempdir = before
    return _bytes_of(onnx.load_model(target, load_external_data=False))


class ExportNetwork(nn.Module):
    """The hasher in eval mode, for inference only."""

    def __init__(self, hasher: HasherNetwork) -> None:
        super().__init__()
        self.backbone = folded(hasher.backbone)
        self.head = hasher.head
        _finish_small_maps(self.backbone, hasher.input.size)

    def forward(self, images_N3SS: Tensor) -> Tensor:
        """Outputs (N, K) of preprocessed images."""
        outputs_NK: Tensor = self.head(F.relu(self.backbone(images_N3SS)))
        return outputs_NK


def _bytes_of(model: Any) -> bytes:
    """The model without where and how each node was made: paths of this machine, which also differ from run to run."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.doc_string = ""
    model.producer_name, model.producer_version = "distilhash", ""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print and warn about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


class _MatrixOn2x2(nn.Module):
    """A 3x3 convolution of padding 1 on 2x2 pixels: every pair of pixels is joined by exactly one tap."""

    def __init__(self, conv: Conv3x3) -> None:
        super().__init__()
        self.channels_out = conv.out_channels
        self.matrix = nn.Linear(4 * conv.in_channels, 4 * conv.out_channels, bias=conv.bias is not None)
        taps = [conv.weight.detach()[:, :, 1 - i : 3 - i, 1 - j : 3 - j] for i in (0, 1) for j in (0, 1)]
        weights = {"weight": torch.stack(taps, 1).reshape(4 * conv.out_channels, -1)}
        if conv.bias is not None:
            weights["bias"] = conv.bias.detach().repeat_interleave(4)
        self.matrix.load_state_dict(weights)

    def forward(self, x_NC22: Tensor) -> Tensor:
        """The map (N, O, 2, 2)."""
        flat: Tensor = self.matrix(x_NC22.flatten(1))
        return flat.reshape(-1, self.channels_out, 2, 2)


def _smaller(conv: Conv3x3, weight: Tensor) -> nn.Conv2d:
    """A convolution without padding whose window is the whole map."""
    small = nn.Conv2d(conv.in_channels, conv.out_channels, weight.shape[2], bias=conv.bias is not None)
    small.load_state_dict(conv.state_dict() | {"weight": weight})
    return small


def _finish_small_maps(backbone: nn.Module, size: int) -> None:
    """Replace each Conv3x3 that meets a map of 1x1 or 2x2 pixels at this input size."""
    sides: dict[str, tuple[int, ...]] = {}

    def note(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sides[name] = tuple(inputs[0].shape[2:])

    convolutions = {name: module for name, module in backbone.named_modules() if isinstance(module, Conv3x3)}
    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in convolutions.items()]
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    for name, conv in convolutions.items():
        weight = conv.weight.detach()
        if sides.get(name) == (1, 1):
            replacement: nn.Module = _smaller(conv, weight[:, :, 1:2, 1:2])
        elif sides.get(name) == (2, 2) and conv.stride == (2, 2):
            replacement = _smaller(conv, weight[:, :, 1:, 1:])
        elif sides.get(name) == (2, 2):
            replacement = _MatrixOn2x2(conv)
        else:
            continue
        parent, _, own = name.rpartition(".")
        setattr(backbone.get_submodule(parent), own, replacement)
