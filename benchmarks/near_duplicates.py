"""Near-duplicates: how many edited copies of photos are found at an index's own radius, beside pHash and dHash.

    python benchmarks/near_duplicates.py --photos FOLDER

Each photo is copied nine times, as COPIES says, and stored as JPEG of quality 90. A pair of a photo and a copy is found
where their codes differ in at most the radius, and right where the copy is of that photo. Recall is the share of right
pairs that are found, precision the share of found pairs that are right, over all photos and all copies.

    index   the default hasher (int8 EfficientNet-Lite0 with ITQ), fitted to the photos, at the radius that
            `distilhash index` measures
    pHash, dHash   of the package imagehash, 64 bits, at their customary radius of 10, and at the radius that the same
            measurement gives them

The radius is measured with other edits than these copies (`distilhash.photos.duplicates.EDITS`).
"""

import argparse
import contextlib
import hashlib
import io
import json
import tempfile
import time
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from distilhash.codes import hamming
from distilhash.data.folders import walk
from distilhash.deploy.runtime import INT8
from distilhash.hasher import Hasher
from distilhash.itq import itq
from distilhash.photos.catalogue import PhotoStore
from distilhash.photos.duplicates import measure
from distilhash.photos.encoder import BACKBONE, PhotoFiles
from distilhash.photos.update import update
from sidebyside import machine

BITS = (64, 128, 256)
CUSTOMARY = 10  # bits of 64
QUALITY = 90
BLOCK = 64  # images


def scaled(image, factor):
    sides = [max(1, round(side * factor)) for side in image.size]
    return image.resize(sides, Image.Resampling.LANCZOS)


def recompressed(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def cropped(image):
    left, top = round(0.05 * image.width), round(0.05 * image.height)
    return image.crop((left, top, image.width - left, image.height - top))


def watermarked(image):
    copy = image.copy()
    font = ImageFont.load_default(size=max(12, image.height // 8))
    place = (0.2 * image.width, 0.45 * image.height)
    ImageDraw.Draw(copy, "RGBA").text(place, "SAMPLE", fill=(255, 255, 255, 140), font=font)
    return copy


COPIES = {
    "half the size": lambda image: scaled(image, 1 / 2),
    "a third of the size": lambda image: scaled(image, 1 / 3),
    "JPEG of quality 30": recompressed,
    "5% cropped from each side": cropped,
    "rotated by 2 degrees": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "1.3 times as bright": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "watermarked": watermarked,
}


class Features:
    """Features of the default network, of length 1, each picture once whatever the number of code lengths."""

    def __init__(self):
        self.network = Hasher.open(BACKBONE / INT8)
        self.known = {}

    def __call__(self, files):
        images = files.read(np.arange(len(files)))
        keys = [hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest() for image in images]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            found_ND = np.concatenate([*self.network.outputs(files, np.array(new))])
            for i, row in zip(new, found_ND, strict=True):
                self.known[keys[i]] = row / np.linalg.norm(row)
        return np.stack([self.known[key] for key in keys])


def in_blocks(of, paths):
    """What a function gives for all paths, block by block, as not all images fit into memory."""
    return np.concatenate([of(paths[start : start + BLOCK]) for start in range(0, len(paths), BLOCK)])


def codes_of(encoder, paths):
    return in_blocks(encoder.encode, paths)


def methods(features, originals):
    """A name, an encoder, and a radius for each; None: the one that is measured."""
    fitted_ND = in_blocks(lambda paths: features(PhotoFiles(paths)), originals)
    for bits in BITS:
        found = itq(fitted_ND, bits)

        def encode(files, indices, found=found):
            yield features(files) @ found.weight.T + found.bias

        yield f"index, {bits} bits", Hasher("itq", bits, f"itq {bits}", encode), None
    for name, of in {"pHash": imagehash.phash, "dHash": imagehash.dhash}.items():

        def encode(files, indices, of=of):
            yield np.array([of(image).hash.ravel() for image in files.read(indices)]) * np.float32(2) - 1

        for radius in (CUSTOMARY, None):
            yield name, Hasher(name, 64, name, encode), radius


def rates(away_NN, radius):
    """Recall and precision of pairs (photo, copy); the copies of a photo are on the diagonal of each block."""
    found = away_NN <= radius
    right = int(sum(np.trace(block) for block in found))
    return {"recall": right / (found.shape[0] * found.shape[1]), "precision": float(right / max(1, found.sum()))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("results/near_duplicates.json"))
    options = parser.parse_args()
    originals = sorted(file.path for file in walk([str(options.photos.absolute())], False).files)
    features, rows = Features(), []
    with tempfile.TemporaryDirectory() as place:
        copies = {name: [] for name in COPIES}
        for i, path in enumerate(originals):
            image = PhotoFiles([path]).read([0])[0]
            for k, (name, edit) in enumerate(COPIES.items()):
                copies[name].append(f"{place}/{i:05d}-{k}.jpg")
                edit(image).save(copies[name][i], "JPEG", quality=QUALITY)
        for number, (name, encoder, radius) in enumerate(methods(features, originals)):
            began = time.monotonic()
            with contextlib.closing(PhotoStore(Path(place) / f"{number}.index")) as store:
                update(store, [options.photos], encoder)
                near = measure(store, encoder)
            measuring = time.monotonic() - began
            codes_NP = codes_of(encoder, originals)
            away = {}
            for edit, paths in copies.items():
                away[edit] = hamming(codes_NP, codes_of(encoder, paths))
            bits = near.bits if radius is None else radius
            row = {
                "method": name, "bits": encoder.num_bits, "radius": bits, "measured": radius is None,
                "estimated_recall": near.recall if radius is None else None,
                "estimated_precision": near.precision if radius is None else None,
                **rates(np.stack(list(away.values())), bits),
                "copies": {edit: rates(block[None], bits) for edit, block in away.items()},
                "nearest_wrong": nearest_wrong(hamming(codes_NP, codes_NP), originals),
                "photos": len(originals), "seed": 0, "machine": machine(),
            }  # fmt: skip
            rows.append(row)
            print({key: value for key, value in row.items() if key != "copies"}, f"{measuring:.0f} s", flush=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def nearest_wrong(away_NN, originals, shown=5):
    """The nearest pairs of photos, which count as wrong: by name, with their distance."""
    rows, columns = np.triu_indices(len(originals), 1)
    nearest = np.argsort(away_NN[rows, columns], kind="stable")[:shown]
    return [
        [Path(originals[rows[i]]).name, Path(originals[columns[i]]).name, int(away_NN[rows[i], columns[i]])]
        for i in nearest
    ]


if __name__ == "__main__":
    main()
