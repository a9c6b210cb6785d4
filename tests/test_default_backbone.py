"""The int8 backbone of the default hasher and what is made of its features: each held to what defines it."""

import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from distilhash.data.transforms import Preprocess
from distilhash.deploy.runtime import INT8, session_of
from distilhash.itq import itq, principal_axes
from distilhash.models import create_teacher
from distilhash.photos.encoder import BACKBONE
from distilhash.training import targets

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("scripts", "benchmarks"))
from rerank import compress, decompress, similarities
from rounding import LEVELS, _Layer, rounded_weights


def moments_of(inputs_PJ):
    columns = np.hstack([inputs_PJ, np.ones((len(inputs_PJ), 1))])
    return (columns.T @ columns)[None]


def correlated(count, inputs, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count, inputs)) @ draw.normal(size=(inputs, inputs)) + 1


def test_rounding_is_near_the_best_of_all_roundings(monkeypatch):
    """Every choice of the two levels around each of eight weights is tried; nearest rounding is far behind."""
    monkeypatch.setattr("rounding.LEVELS", 63)
    monkeypatch.setattr("rounding.DAMPING", 1e-6)
    monkeypatch.setattr("rounding.CLIPPED", [4.0])  # far from the largest level
    ways = np.array(list(itertools.product((0, 1), repeat=8)))
    found, best, nearest = [], [], []
    for seed in range(20):
        inputs, weights = correlated(200, 8, seed), np.random.default_rng(seed + 100).normal(size=8)
        rounded = rounded_weights(weights[None, None], moments_of(inputs))
        exact, spread = weights / rounded.scale[0, 0], np.cov(inputs.T)
        tried = np.array([rounded.levels[0, 0], np.rint(exact), *np.floor(exact) + ways])
        errors = np.einsum("nj,jk,nk->n", tried - exact, spread, tried - exact)
        found, nearest, best = [*found, errors[0]], [*nearest, errors[1]], [*best, errors[2:].min()]
    assert np.sum(found) < 1.5 * np.sum(best)
    assert np.sum(nearest) > 1.5 * np.sum(found)


def test_the_bias_takes_the_mean_error():
    inputs, weights = correlated(300, 5), np.random.default_rng(1).normal(size=(1, 3, 5))
    rounded = rounded_weights(weights, moments_of(inputs))
    after = inputs @ (rounded.levels[0] * rounded.scale[0][:, None]).T + rounded.shift[0]
    np.testing.assert_allclose(after.mean(axis=0), (inputs @ weights[0].T).mean(axis=0), atol=1e-9)


@pytest.mark.parametrize("groups", [1, 4])
def test_moments_are_those_of_the_windows_that_a_convolution_sees(groups):
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 4, 7, 6)).astype(np.float32))
    about = {"group": groups, "strides": [2, 1], "pads": [0, 1, 1, 0], "kernel_shape": [3, 2]}
    layer = _Layer(onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], **about), (8, 4 // groups, 3, 2))
    padded = torch.nn.functional.pad(images, (1, 0, 0, 1))
    windows = torch.nn.functional.unfold(padded, (3, 2), stride=(2, 1)).transpose(0, 1).reshape(groups, -1, 2 * 3 * 6)
    expected = [moments_of(group.T.double().numpy())[0] for group in windows]
    np.testing.assert_allclose(layer.moments(images.numpy()), expected, rtol=1e-5, atol=1e-4)


def test_no_two_products_overflow_16_bits():
    assert 2 * 255 * LEVELS < 2**15
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(BACKBONE / INT8).graph.initializer
        if tensor.data_type == 3
    ]
    weights = [array for array in weights if array.ndim == 4]
    assert len(weights) == 49
    assert max(np.abs(array.astype(int)).max() for array in weights) <= LEVELS


def test_shipped_features_are_those_of_the_original(cifar10):
    teacher = create_teacher("pip/efficientnet_lite0")
    pixels = Preprocess(teacher.input)
    crops = pixels.read(cifar10, np.arange(8))
    with torch.inference_mode():
        original = teacher(pixels.tensor(crops)).numpy()
    session = session_of((BACKBONE / INT8).read_bytes())
    features = session.run(["outputs"], {"images": pixels.planes(crops)})[0]
    cosine = (features * original).sum(axis=1) / np.linalg.norm(features, axis=1) / np.linalg.norm(original, axis=1)
    assert cosine.mean() > 0.97


def test_rounding_twice_changes_nothing():
    """A model that holds finished levels and scales as floats is rounded to just these."""
    draw = np.random.default_rng(0)
    levels = draw.integers(-LEVELS, LEVELS + 1, (3, 4)).astype(np.float32)
    levels[:, 0] = LEVELS
    rounded = rounded_weights(0.25 * levels[None], moments_of(correlated(50, 4)))
    assert np.array_equal(rounded.levels[0], levels)
    np.testing.assert_allclose(rounded.scale, 0.25)
    np.testing.assert_allclose(rounded.shift, 0, atol=1e-12)


def test_features_keep_their_angles_in_four_bits():
    features = np.maximum(np.random.default_rng(0).gamma(0.5, size=(60, 1280)) - 0.3, 0).astype(np.float32)
    packed = compress(features)
    assert packed.shape == (60, 640)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(decompress(packed), axis=1), 1, rtol=1e-5)
    assert (decompress(packed) * unit).sum(axis=1).min() > 0.995
    np.testing.assert_allclose(similarities(features[0], packed), unit @ unit[0], atol=0.01)


def test_levels_of_four_bits_are_squares():
    features = np.array([[0, 1, 4, 9, 16, 225, 0.2]], np.float32)
    assert compress(features).tolist() == [[0x01, 0x23, 0x4F, 0x00]]
    expected = np.array([0, 1, 4, 9, 16, 225, 0, 0], np.float32)
    np.testing.assert_allclose(decompress(compress(features))[0], expected / np.linalg.norm(expected), rtol=1e-6)
    assert np.array_equal(compress(-features[:, :6]), np.zeros((1, 3), np.uint8))
    assert similarities(features[0], np.zeros((2, 4), np.uint8)).tolist() == [0, 0]


@pytest.mark.parametrize("count", [30, 300])
def test_axes_are_those_of_the_torch_path_with_the_sign_settled(count):
    z_ND = np.maximum(correlated(count, 40), 0)
    z_ND -= z_ND.mean(axis=0)
    found, expected = principal_axes(z_ND, 16), targets.principal_axes(torch.from_numpy(z_ND), 16).numpy()
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=0)), 1, atol=1e-5)
    assert np.array_equal(np.abs(found).max(axis=0), found.max(axis=0))


def test_itq_does_not_depend_on_the_sign_that_a_library_gives_an_axis(monkeypatch):
    features = np.maximum(correlated(200, 30), 0)
    plain, eigh = itq(features, 12), np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: (eigh(matrix)[0], -eigh(matrix)[1]))
    np.testing.assert_allclose(itq(features, 12).weight, plain.weight, atol=1e-9)
