"""Images to codes, end to end: files are opened, read, decoded, resized, put through the network, and packed.

python benchmarks/bench.py encode_224 encode_64 encode_v1_224 encode_v1_64 cost_encode --photos FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distilhash.data.cifar10 import load_cifar10
from distilhash.data.folders import FolderSource
from distilhash.data.sources import ArraySource
from distilhash.device import fastest_precision
from distilhash.inference import BATCH_PIXELS, encode
from distilhash.models import HasherNetwork, create_hasher, create_student
from distilhash.models.fold import folded
from scaling import cost
from sidebyside import Process, Work, compare, timed

BITS = 64
OUR_PHOTOS = 640  # of one run of ours, count; fewer photographs are encoded several times
PEER_PHOTOS = 64  # of one run of the peer, count
SIZES = (1_000, 2_500, 5_000, 7_500, 10_000)
PEERS = {
    "resnet50": "ResNet50 at 224, eager float32, contiguous, Pillow and torchvision image by image, batch 32",
    "v1": "the same network, eager float32, contiguous, Pillow and torchvision image by image, batch 32",
}


def encode_224(photos: Path) -> None:
    """Student v1 at 224 pixels against ResNet50."""
    compare_with_peer("encode_224", photos, 9, new_hasher(224, "published"), "resnet50")


def encode_64(photos: Path) -> None:
    """Student v1 at 64 pixels against ResNet50 at 224."""
    compare_with_peer("encode_64", photos, 45, new_hasher(64, "small"), "resnet50")


def encode_v1_224(photos: Path) -> None:
    """Student v1 at 224 pixels on both sides."""
    compare_with_peer("encode_v1_224", photos, 1, new_hasher(224, "published"), "v1")


def encode_v1_64(photos: Path) -> None:
    """Student v1 at 64 pixels on both sides."""
    compare_with_peer("encode_v1_64", photos, 1, new_hasher(64, "small"), "v1")


def cost_encode(photos: Path) -> None:
    """Encoding CIFAR-10 at its own 32 pixels, 1,000 to 10,000 images."""
    hasher = new_hasher(32, "small")
    cifar10 = load_cifar10()

    def prepare(count: int) -> Callable[[], object]:
        part = ArraySource(cifar10.read(np.arange(count)), fingerprint="part")
        return lambda: encode(part, np.arange(count), hasher)

    settings: dict[str, object] = {"images": "CIFAR-10", "network": "v1 at 32 pixels, stem small", "bits": BITS}
    cost("cost_encode", "images", SIZES, prepare, settings)


WORKS = {work.__name__: work for work in (encode_224, encode_64, encode_v1_224, encode_v1_64, cost_encode)}


def compare_with_peer(name: str, photos: Path, least: float, hasher: HasherNetwork, peer: str) -> None:
    """One row: this hasher's encode() against the peer, on the same photographs."""
    source, indices = open_photos(photos)
    work = Work(work=name, peer=PEERS[peer], unit="images/s", least=least, settings=described(source, indices, hasher))
    size = 224 if peer == "resnet50" else hasher.input.size
    script = str(Path(__file__).with_name("peer_encoding.py"))
    process = Process(script, str(photos), "--images", str(PEER_PHOTOS), "--network", peer, "--size", str(size))
    try:
        compare(work, process, timed(lambda: len(encode(source, indices, hasher))))
    finally:
        process.close()


def new_hasher(size: int, stem: str) -> HasherNetwork:
    """Student v1 with fresh weights, which take as long as any others."""
    torch.manual_seed(0)
    hasher = create_hasher(create_student("v1", size=size, stem=stem), num_bits=BITS).eval()
    # As training would have found it.
    hasher.precision = fastest_precision(folded(hasher.backbone), (max(1, BATCH_PIXELS // size**2), 3, size, size))
    return hasher


def open_photos(folder: Path) -> tuple[FolderSource, np.ndarray]:
    """The photographs and the indices of one run."""
    source = FolderSource(folder)
    return source, np.arange(OUR_PHOTOS) % len(source)


def described(source: FolderSource, indices: np.ndarray, hasher: HasherNetwork) -> dict[str, object]:
    """What the ratio depends on."""
    sizes = []
    for path in source.paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    width, height = (int(side) for side in np.median(sizes, axis=0))
    return {
        "images": f"{len(source)} JPEG files, median {width} x {height} pixels",
        "network": f"v1 at {hasher.input.size} pixels, {BITS} bits, {hasher.precision}",
        "threads": torch.get_num_threads(),
    }


def generate_photos(folder: Path, count: int = 160) -> Path:
    """JPEG files of usual size and weight, for want of photographs: smooth noise at every scale. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        width, height = (500, 375) if number % 4 else (375, 500)
        pixels = np.full((height, width, 3), 128.0)
        for cells, strength in ((4, 50), (16, 30), (64, 16), (192, 9)):
            noise = draw.normal(0, strength, (cells * height // width + 1, cells, 3))
            channels = [Image.fromarray(noise[..., c].astype(np.float32)).resize((width, height)) for c in range(3)]
            pixels += np.stack([np.asarray(channel) for channel in channels], axis=2)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=92)
    return folder
