"""The peer of the encoding benchmarks: codes as the published evaluation makes them, in a process of its own.

A network in eager float32 and contiguous memory with a linear hash layer; images one by one through Pillow and
torchvision (Resize, CenterCrop, ToTensor, Normalize), 32 to a batch, without gradients. It imports nothing of
distilhash and has none of its environment.

    python benchmarks/peer_encoding.py FOLDER --network v1 --size 224     # one run for each line "go"; prints images/s
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms

from peer_training import MEAN, STD, student
from sidebyside import serve, timed

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=64, help="of one run, count")
    parser.add_argument("--network", choices=("resnet50", "v1"), default="resnet50")
    parser.add_argument("--size", type=int, default=224, help="side of the input, pixels")
    options = parser.parse_args()
    if options.network == "resnet50":
        network = models.resnet50(weights=None)
        network.fc = nn.Linear(2048, 64)
    else:
        network = nn.Sequential(student(options.size), nn.ReLU(), nn.LazyLinear(64))
    network.eval()
    transform = transforms.Compose([
        transforms.Resize(round(options.size * 8 / 7)), transforms.CenterCrop(options.size), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    files = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = (files * (options.images // len(files) + 1))[: options.images]

    def run() -> int:
        codes = []
        with torch.no_grad():
            for start in range(0, len(files), BATCH):
                batch = [transform(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]]
                codes.append(network(torch.stack(batch)).data.sign())
        return len(torch.cat(codes))

    serve(timed(run))


if __name__ == "__main__":
    main()
