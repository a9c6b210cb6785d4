"""From a hasher to an ONNX file, in float32 and in int8.

Int8: weights with a scale for each channel, activations with one for each tensor (QuantizeLinear and DequantizeLinear
around the operators), ranges from the least and the largest value on calibration images. Weights take 7 of the 8 bits:
processors without VNNI add two products in 16 bits, where 8 would overflow.

Shapes: N images, S pixels, K bits.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distilhash.deploy.network import ExportNetwork
from distilhash.models.hasher import Hasher

BATCH = 32  # calibration images that run at once


def to_onnx(hasher: Hasher) -> bytes:
    """An ONNX file of the hasher: "images" float32 (N, 3, S, S) to "outputs" (N, K), N free."""
    network = ExportNetwork(hasher).eval()
    example = torch.zeros(2, 3, hasher.input.size, hasher.input.size)
    with _quiet():
        program = torch.onnx.export(
            network, (example,), dynamo=True, verbose=False, external_data=False, input_names=["images"],
            output_names=["outputs"], dynamic_shapes=({0: torch.export.Dim("N")},),
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    _forget_origin(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def to_int8(content: bytes, images_N3SS: NDArray[np.float32], folder: Path) -> bytes:
    """The int8 version of such a file, its ranges taken on these preprocessed images; ``folder`` is for work."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    plain, target = folder / "plain.onnx", folder / "int8.onnx"
    plain.write_bytes(content)
    before = tempfile.tempdir
    try:
        tempfile.tempdir = str(folder)  # a process that is killed shall leave nothing in the system's folder
        with _quiet():
            quantize_static(
                plain, target, _Reader(images_N3SS), quant_format=QuantFormat.QDQ, per_channel=True,
                reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
    finally:
        tempfile.tempdir = before
    model = onnx.load_model(target, load_external_data=False)
    _forget_origin(model)
    found: bytes = model.SerializeToString(deterministic=True)
    return found


class _Reader:
    """Calibration images in batches, as onnxruntime.quantization asks for them."""

    def __init__(self, images_N3SS: NDArray[np.float32]) -> None:
        self._batches = iter([images_N3SS[start : start + BATCH] for start in range(0, len(images_N3SS), BATCH)])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch by the input's name; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def _forget_origin(model: Any) -> None:
    """Take out where and how each node was made: paths of this machine, which also differ from run to run."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.doc_string = ""
    model.producer_name, model.producer_version = "distilhash", ""


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
