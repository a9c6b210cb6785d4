"""The peer of the encoding benchmarks: codes as the published evaluation makes them, in a process of its own.

ResNet50 in eager fp32 and contiguous memory with a linear head; images one by one through Pillow and torchvision
(Resize, CenterCrop, ToTensor, Normalize), 32 to a batch. It imports nothing of distilhash, whose settings of malloc and
OpenMP would help it. The published evaluation records gradients, which nothing there needs (--gradients); by default
they are off, in the peer's favour.

    python benchmarks/peer_encoding.py FOLDER --images 64      # one run for each line "go"; prints images a second
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms

from sidebyside import serve, timed

BATCH = 32
TRANSFORM = transforms.Compose([
    transforms.Resize(256),
    transforms.CenterCrop(224),
    transforms.ToTensor(),
    transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=64, help="of one run, count")
    parser.add_argument("--gradients", action="store_true", help="record them, as published")
    options = parser.parse_args()
    network = models.resnet50(weights=None)
    network.fc = nn.Linear(2048, 64)
    network.eval()
    files = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = (files * (options.images // len(files) + 1))[: options.images]

    def run() -> int:
        codes = []
        with torch.set_grad_enabled(options.gradients):
            for start in range(0, len(files), BATCH):
                batch = [TRANSFORM(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]]
                codes.append(network(torch.stack(batch)).data.sign())
        return len(torch.cat(codes))

    serve(timed(run))


if __name__ == "__main__":
    main()
