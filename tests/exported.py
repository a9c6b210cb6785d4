"""What the tests of exported hashers share: exporting takes seconds, so it is done once."""

import numpy as np
import pytest
import torch

import distilhash.deploy.export as exporting
from distilhash.checkpoint import save_model
from distilhash.config import ExportConfig, InputConfig
from distilhash.data.folders import FolderSource
from distilhash.models import create_hasher, create_student
from mistakes import picture


def hasher(size=32, stem="small"):
    """A student whose BatchNorm has seen something, so that folding has something to fold."""
    torch.manual_seed(0)
    pixels = InputConfig(size=size, crop_mode="pad")
    made = create_hasher(create_student("v1", size=size, stem=stem, input=pixels), num_bits=24)
    with torch.no_grad():
        for _ in range(5):
            made(torch.randn(8, 3, size, size))
    return made.eval()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A hasher, photos in class folders, the exported hasher, and what calibrated it; no test changes them."""
    root = tmp_path_factory.mktemp("built")
    rng = np.random.default_rng(0)
    for number in range(90):
        coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
        picture(root / "photos" / f"class{number % 3}" / f"{number:02d}.png", coarse.repeat(8, 0).repeat(9, 1))
    network = hasher()
    network.seen = FolderSource(root / "photos").digests[:40]
    description = {"kind": "hasher", "architecture": network.backbone.architecture, "bits": 24}
    save_model(root / "hasher" / "model", network, description)
    config = ExportConfig(calibration_images=24, compared_images=20, seconds=0.01)
    seen = []

    def recorded(content, images, folder, inner=exporting.to_int8):
        seen.append(images)
        return inner(content, images, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "to_int8", recorded)
        report = exporting.export_hasher(root / "hasher", root / "exported", root / "photos", config=config)
    return root, network, report, np.concatenate(seen)
