"""Encoding in threads, folded, in batches: the codes of the plain path, in order."""

import numpy as np
import pytest
import torch
from PIL import Image

from distilhash.codes import pack, unpack
from distilhash.data.decode import UnreadableImage
from distilhash.data.folders import FolderSource
from distilhash.data.prefetch import prefetch
from distilhash.data.sources import ArraySource
from distilhash.data.transforms import Preprocess
from distilhash.inference import encode, encode_features, outputs
from distilhash.models import create_hasher, create_student

RNG = np.random.default_rng(0)


def hasher(size, stem):
    """A student whose BatchNorm has seen something, so that folding has something to fold."""
    torch.manual_seed(0)
    made = create_hasher(create_student("v1", size=size, stem=stem), num_bits=64)
    with torch.no_grad():
        for _ in range(5):
            made(torch.randn(8, 3, size, size))
    return made.eval()


def photos(folder, count):
    """JPEG files of many sizes, some so large that they are decoded at a part of their size."""
    for number in range(count):
        width, height = (int(side) for side in RNG.integers(70, 400, 2))
        coarse = RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:03}.jpg")
    return FolderSource(folder)


def plain_outputs(images, indices, network):
    """One image at a time through the network as it was trained."""
    pixels = Preprocess(network.input)
    with torch.no_grad():
        found = [network(pixels(images.read([index]))) for index in indices]
    return torch.cat(found).numpy()


@pytest.mark.parametrize(("size", "stem", "count"), [(224, "published", 8), (64, "small", 30)])
def test_codes_are_those_of_the_plain_path(tmp_path, size, stem, count):
    images, network = photos(tmp_path, count), hasher(size, stem)
    indices = RNG.permutation(count)[: count - 3]
    expected = plain_outputs(images, indices, network)
    found = np.concatenate(list(outputs(images, indices, network)))
    # Sums in another order; an output that is nearly zero may change its sign.
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    table = encode(images, indices, network)
    assert np.mean(unpack(table.packed, 64) == np.where(expected > 0, 1, -1)) >= 0.999
    assert np.array_equal(table.packed, pack(found)), "no output depends on which thread made it"
    assert table.names == [images.names[i] for i in indices]


def test_batches_keep_the_order_of_the_indices():
    pictures = RNG.integers(0, 256, (900, 32, 32, 3), dtype=np.uint8)
    images, network = ArraySource(pictures, labels=np.arange(900) % 7), hasher(32, "small")
    indices = RNG.permutation(900)
    table = encode(images, indices, network)
    some = encode(images, indices[450:470], network)
    assert np.array_equal(table.packed[450:470], some.packed)
    assert table.labels.tolist() == (indices % 7).tolist()


def test_features_that_are_known_give_the_same_codes():
    images, network = ArraySource(RNG.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)), hasher(32, "small")
    with torch.no_grad():
        features = network.backbone(Preprocess(network.input)(images.images)).numpy()
    found = encode_features(features, images, np.arange(30), network)
    assert np.mean(found.packed == encode(images, np.arange(30), network).packed) > 0.99


def test_an_error_of_a_thread_arrives(tmp_path):
    images, network = photos(tmp_path, 9), hasher(32, "small")
    (tmp_path / images.names[5]).write_bytes(b"not a JPEG")
    with pytest.raises(UnreadableImage, match=r"005\.jpg"):
        encode(images, np.arange(9), network)


def test_reading_ahead_keeps_order_errors_and_threads():
    before = torch.get_num_threads()
    assert list(prefetch(lambda key: (key, torch.get_num_threads()), range(50), threads=4)) == [
        (key, 1) for key in range(50)
    ]
    made = []

    def load(key):
        made.append(key)
        return 1 // (7 - key)

    results = prefetch(load, range(1000), ahead=2)
    assert [next(results) for _ in range(7)] == [1 // (7 - key) for key in range(7)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(made) < 20, "nothing is made after the error"
    assert torch.get_num_threads() == before
