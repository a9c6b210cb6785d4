"""The peer of the training benchmarks: the published loops, written anew from their description.

    python benchmarks/peer_training.py distill|hash|teacher IMAGES --batches 1

What satoru2001/CUKDFIR (at d9a60ee) does: eager PyTorch in float32 and contiguous memory; every image is opened by
Pillow and goes one by one through Resize(256), a random flip, RandomCrop(224), ToTensor and Normalize, in the training
process; batches of 64. Distillation runs the frozen ResNet50 beside the student in every step, with the mean squared
error of raw features and Adam; hashing fine-tunes the student with RMSprop. "teacher" is an eager evaluation loop of
EfficientNet-Lite0 over the same images. Weights are random: speed does not depend on them.

Nothing of distilhash is imported: neither its settings of threads and memory, nor its layers. Rates go to stdout, one
for each line on stdin. IMAGES: a folder of JPEG files, or an .npy file of uint8 (N, H, W, 3).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models.resnet import BasicBlock

from sidebyside import serve, timed

BATCH, BITS, CLASSES = 64, 64, 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAINING = transforms.Compose([
    transforms.Resize(256), transforms.RandomHorizontalFlip(), transforms.RandomCrop(224), transforms.ToTensor(),
    transforms.Normalize(MEAN, STD),
])  # fmt: skip
EVALUATION = transforms.Compose(
    [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
)


class Images(Dataset):
    """One image at a time, as Pillow gives it."""

    def __init__(self, where: Path, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform
        self.arrays = np.load(where, mmap_mode="r") if where.suffix == ".npy" else None
        self.files = [] if self.arrays is not None else sorted(where.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files) if self.arrays is None else len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.arrays is not None:
            image = Image.fromarray(self.arrays[index])
        else:
            image = Image.open(self.files[index]).convert("RGB")
        return self.transform(image), index % CLASSES


def student(size: int = 224) -> nn.Module:
    """The published student v1 (3,305,920 weights, 2048 features at 224 pixels), with a 3x3 stem below 224 pixels."""
    stages, channels = [], 64
    for width, blocks, stride in zip((64, 64, 128, 128, 128), (2, 3, 5, 3, 2), (1, 2, 2, 2, 2), strict=True):
        for number in range(blocks):
            step = stride if number == 0 else 1
            shortcut = None
            if step != 1 or channels != width:
                shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, step, bias=False), nn.BatchNorm2d(width))
            stages.append(BasicBlock(channels, width, step, shortcut))
            channels = width
    kernel = 7 if size == 224 else 3
    stem = [
        nn.Conv2d(3, 64, kernel, 2, kernel // 2, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    return nn.Sequential(*stem, *stages, nn.Flatten())


def distill(batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], int]:
    """One step: teacher and student see the batch, the student follows."""
    teacher, pupil = torchvision.models.resnet50(weights=None), student()
    teacher.fc = nn.Identity()
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.Adam(pupil.parameters(), lr=1e-4)

    def step() -> int:
        images, _ = next(batches)
        with torch.no_grad():
            features = teacher(images)
        loss = F.mse_loss(pupil(images), features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return len(images)

    return step


def hashing(batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], int]:
    """One step of CSQ: the student with a hash layer, drawn to its class's centre."""
    network = nn.Sequential(student(), nn.ReLU(), nn.Linear(2048, BITS))
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-5, weight_decay=1e-5)
    centres = torch.randint(0, 2, (CLASSES, BITS)) * 2.0 - 1

    def step() -> int:
        images, labels = next(batches)
        outputs = network(images).tanh()
        central = F.binary_cross_entropy((outputs + 1) / 2, (centres[labels] + 1) / 2)
        loss = central + 1e-4 * (outputs.abs() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return len(images)

    return step


def teacher_pass(batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], int]:
    """One batch through the frozen teacher."""
    import timm

    teacher = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()

    def step() -> int:
        images, _ = next(batches)
        with torch.no_grad():
            teacher(images).numpy()
        return len(images)

    return step


WORKS = {"distill": distill, "hash": hashing, "teacher": teacher_pass}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("images", type=Path)
    parser.add_argument("--batches", type=int, default=1, help="of one run, count")
    options = parser.parse_args()
    torch.manual_seed(0)
    images = Images(options.images, EVALUATION if options.work == "teacher" else TRAINING)
    loader = DataLoader(images, BATCH, shuffle=options.work != "teacher", drop_last=True)
    step = WORKS[options.work](itertools.chain.from_iterable(itertools.repeat(loader)))
    serve(timed(lambda: sum(step() for _ in range(options.batches))))


if __name__ == "__main__":
    main()
