"""Int8 weights rounded so that the outputs of each layer stay, instead of each weight.

GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023):
the weights of an output are rounded one after the other, and those that follow make up for the error, weighed by how
the layer's inputs go together on calibration images. What is left of the mean error goes into the bias (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019). The graph stays as it is, so it
runs as fast as before.

Shapes: N images, C channels, G groups, O outputs of a group, J weights of an output, P positions of a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVELS = 64  # of a weight to either side: 2 * 255 * 64 still fits into the 16 bits of processors without VNNI
DAMPING = 0.1  # of the mean variance of an input, added to all: few images do not tell every direction
CLIPPED = np.linspace(0.5, 1, 26)  # shares of the largest weight that may become the largest level
LEAST_SCALE = 1e-3  # of the largest in a layer, so that the bias of a channel without weights fits into 32 bits
BATCH = 8  # images

Floats = NDArray[np.float64]


class Rounded(NamedTuple):
    """Weights as whole numbers: ``levels * scale`` is near what they were."""

    levels: NDArray[np.int8]  # (G, O, J)
    scale: Floats  # (G, O)
    shift: Floats  # (G, O) that belongs to the bias


def round_weights(plain: bytes, int8: bytes, images_N3SS: NDArray[np.float32]) -> bytes:
    """The int8 model with the weights of its convolutions and linear layers rounded again.

    Args:
        plain: the float32 model.
        int8: what ONNX Runtime's static quantisation made of it, with a scale for each channel.
        images_N3SS: preprocessed calibration images.
    """
    import onnx
    from onnx import numpy_helper

    model, quantised = onnx.load_model_from_string(plain), onnx.load_model_from_string(int8)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = {node.input[1]: _Layer(node, arrays[node.input[1]].shape) for node in _layers(model, arrays)}
    moments = dict.fromkeys(layers, np.zeros(0))
    for inputs in _inputs_of(model, [layer.input for layer in layers.values()], images_N3SS):
        for weight, layer in layers.items():
            found_GJJ = layer.moments(inputs[layer.input])
            moments[weight] = moments[weight] + found_GJJ if moments[weight].size else found_GJJ

    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    dequantised = {node.output[0]: node for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    for node in quantised.graph.node:
        parts = [dequantised[name].input for name in node.input if name in dequantised]
        weight = parts[1][0].removesuffix("_quantized") if len(parts) == 3 else ""
        if weight not in layers:
            continue
        rounded = rounded_weights(layers[weight].grouped(arrays[weight]), moments[weight])
        bias = arrays[parts[2][0].removesuffix("_quantized")] + rounded.shift.ravel()
        bias_scale = rounded.scale.ravel() * numpy_helper.to_array(stored[parts[0][1]])
        new = (
            (parts[1][0], rounded.levels), (parts[1][1], rounded.scale.astype(np.float32)),
            (parts[2][0], np.rint(bias / bias_scale).astype(np.int32)), (parts[2][1], bias_scale.astype(np.float32)),
        )  # fmt: skip
        for name, array in new:
            stored[name].CopyFrom(numpy_helper.from_array(array.reshape(tuple(stored[name].dims)), name))
    content: bytes = quantised.SerializeToString(deterministic=True)
    return content


def rounded_weights(weights_GOJ: NDArray[np.floating[Any]], moments_GJJ: Floats) -> Rounded:
    """Round the weights of a layer.

    Args:
        weights_GOJ: the outputs of a group share its inputs.
        moments_GJJ: the sums of products of each two inputs, with a 1 as the last input: (G, J + 1, J + 1).
    """
    weights = np.array(weights_GOJ, np.float64)
    count_G11, sums_GJ1 = moments_GJJ[:, -1:, -1:], moments_GJJ[:, :-1, -1:]
    mean_GJ1 = sums_GJ1 / count_G11
    # Of the centred inputs: a shift of the mean is left to the bias.
    spread_GJJ = moments_GJJ[:, :-1, :-1] - mean_GJ1 @ sums_GJ1.transpose(0, 2, 1)
    variance_G1 = np.diagonal(spread_GJJ, axis1=1, axis2=2).mean(axis=1, keepdims=True)
    damping_G1J = (DAMPING * variance_G1 + 1e-9)[:, None]
    spread_GJJ = spread_GJJ + damping_G1J * np.eye(weights.shape[2])

    scale_GO1 = _scale(weights, spread_GJJ)
    # The upper Cholesky factor of the inverse: row j says how later weights make up for an error of weight j.
    lower_GJJ = np.linalg.cholesky(np.linalg.inv(spread_GJJ))
    factor_GJJ = lower_GJJ.transpose(0, 2, 1)
    levels = np.zeros_like(weights)
    for j in range(weights.shape[2]):
        levels[:, :, j] = _levels(weights[:, :, j : j + 1], scale_GO1)[:, :, 0]
        error_GO1 = weights[:, :, j : j + 1] - levels[:, :, j : j + 1] * scale_GO1
        weights[:, :, j + 1 :] -= error_GO1 / factor_GJJ[:, j : j + 1, j : j + 1] * factor_GJJ[:, j : j + 1, j + 1 :]
    shift_GO1 = (weights_GOJ - levels * scale_GO1) @ mean_GJ1
    return Rounded(levels.astype(np.int8), scale_GO1[:, :, 0], shift_GO1[:, :, 0])


def _scale(weights_GOJ: Floats, spread_GJJ: Floats) -> Floats:
    """The scale (G, O, 1) with the least error of the outputs, each weight rounded to the nearest level."""
    largest_GO1 = np.abs(weights_GOJ).max(axis=2, keepdims=True)
    largest_GO1 = np.maximum(largest_GO1, LEAST_SCALE * largest_GO1.max() or 1.0)
    best: Floats = largest_GO1 / LEVELS
    least = np.full(largest_GO1.shape, np.inf)
    for share in CLIPPED:
        scale = share * largest_GO1 / LEVELS
        change = _levels(weights_GOJ, scale) * scale - weights_GOJ
        error = ((change @ spread_GJJ) * change).sum(axis=2, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _levels(weights: Floats, scale: Floats) -> Floats:
    levels: Floats = np.clip(np.rint(weights / scale), -LEVELS, LEVELS)
    return levels


def _layers(model: Any, arrays: dict[str, NDArray[Any]]) -> list[Any]:
    """The nodes whose weights are rounded: convolutions and linear layers (O, J) with a bias."""
    nodes = [node for node in model.graph.node if len(node.input) == 3 and {*node.input[1:]} <= arrays.keys()]
    return [
        node for node in nodes if node.op_type == "Conv" or (node.op_type == "Gemm" and _attributes(node)["transB"])
    ]


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {"transB": 0} | {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _inputs_of(
    model: Any, names: list[str], images_N3SS: NDArray[np.float32]
) -> Iterator[dict[str, NDArray[np.float32]]]:  # fmt: skip
    """What these tensors of a model hold, batch after batch of images."""
    from onnx import ModelProto, ValueInfoProto

    from distilhash.deploy.runtime import session_of

    shown = ModelProto()
    shown.CopyFrom(model)
    given = {value.name for value in model.graph.input}
    wanted = sorted({*names} - given)
    del shown.graph.output[:]
    shown.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    session = session_of(shown.SerializeToString())
    for start in range(0, len(images_N3SS), BATCH):
        images = images_N3SS[start : start + BATCH]
        yield dict(zip(wanted, session.run(wanted, {"images": images}), strict=True)) | {"images": images}


class _Layer:
    """A convolution or a linear layer, as inputs and weights of groups."""

    def __init__(self, node: Any, shape: tuple[int, ...]) -> None:
        about = _attributes(node)
        self.input, self.kernel = node.input[0], shape[2:]
        self.groups = about.get("group", 1)
        self.strides, self.pads = about.get("strides", [1, 1]), about.get("pads", [0, 0, 0, 0])

    def grouped(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights (G, O, J)."""
        return weights.reshape(self.groups, len(weights) // self.groups, -1)

    def moments(self, inputs: NDArray[np.float32]) -> Floats:
        """The sums of products (G, J + 1, J + 1) of each two of a window's inputs, and of 1."""
        if self.kernel:
            top, left, bottom, right = self.pads
            padded = np.pad(inputs, ((0, 0), (0, 0), (top, bottom), (left, right)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, self.kernel, axis=(2, 3))
            windows = windows[:, :, :: self.strides[0], :: self.strides[1]]  # (N, C, H, W, kernel)
            columns = windows.transpose(1, 4, 5, 0, 2, 3).reshape(self.groups, -1, windows[:, 0, :, :, 0, 0].size)
        else:
            columns = inputs.T[None]
        columns_GJP = np.concatenate([columns, np.ones_like(columns[:, :1])], axis=1)
        products_GJJ: NDArray[np.float32] = columns_GJP @ columns_GJP.transpose(0, 2, 1)
        return products_GJJ.astype(np.float64)
