"""Preprocessing against loops over pixels, and the promises that training, encoding and serving rest on."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from distilhash.config import InputConfig
from distilhash.data.transforms import CROP_MODES, INTERPOLATIONS, MAX_ASPECT, Preprocess, Views, augmented, make_views
from distilhash.errors import DistilhashError

RNG = np.random.default_rng(0)
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)


def smooth(count: int, side: int) -> NDArray[np.uint8]:
    coarse = torch.from_numpy(RNG.random((count, 3, 6, 6)))
    fine = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True).clamp(0, 1)
    return (fine * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def levels(batch: torch.Tensor) -> NDArray[np.int64]:
    """(n, S, S, 3) pixel levels of an identity-normalised result."""
    return (batch * 255).round().long().permute(0, 2, 3, 1).numpy()


def view(down: float, right: float, flip: bool = False) -> Views:
    return Views(np.array([flip]), np.array([[down, right]]))


def loop_normalised(image: NDArray[np.uint8], config: InputConfig) -> NDArray[np.float64]:
    out = np.zeros((3, *image.shape[:2]))
    for c, y, x in itertools.product(range(3), range(image.shape[0]), range(image.shape[1])):
        out[c, y, x] = (image[y, x, c] / 255 - config.mean[c]) / config.std[c]
    return out


def loop_resized(image: NDArray[np.uint8], height: int, width: int, cubic: bool) -> NDArray[np.float64]:
    """The antialiased filter by its definition: along the rows, to whole levels, then along the columns."""

    def kernel(t: float) -> float:
        t = abs(t)
        if not cubic:
            return max(0.0, 1 - t)
        a = -0.5
        if t < 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    def axis(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
        length = len(values)
        scale = length / size
        out = []
        for i in range(size):
            weights = np.array([kernel((j + 0.5 - (i + 0.5) * scale) / max(scale, 1)) for j in range(length)])
            out.append(np.tensordot(weights / weights.sum(), values, axes=1))
        return np.stack(out)

    rows = axis(image.transpose(1, 0, 2).astype(np.float64), width).transpose(1, 0, 2).round().clip(0, 255)
    return axis(rows, height).round().clip(0, 255)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("height", "width"), [(9, 12), (40, 30), (16, 16)])
def test_the_unchanged_view_is_resized_framed_and_normalised(interpolation: str, height: int, width: int) -> None:
    image = noise(height, width)
    config = InputConfig(size=14, interpolation=interpolation, margin=0.125)
    side = 16  # round(14 / 0.875)
    high, wide = round(side * max(1, height / width)), round(side * max(1, width / height))
    resized = loop_resized(image, high, wide, interpolation == "bicubic")
    top, left = int((high - 14) / 2 + 0.5), int((wide - 14) / 2 + 0.5)
    expected = loop_normalised(resized[top : top + 14, left : left + 14], config)
    got = Preprocess(config)([image])
    assert got.shape == (1, 3, 14, 14) and got.dtype == torch.float32
    tolerance = 1.01 / 255 / min(config.std)  # one level: the kernel's weights are integers
    assert np.abs(got[0].numpy() - expected).max() < tolerance


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("sides", [(37, 53), (20, 20), (90, 31), (16, 120), (240, 320)])
def test_a_window_is_a_part_of_the_image_resized_whole(interpolation: str, sides: tuple[int, int]) -> None:
    config = InputConfig(size=16, interpolation=interpolation, margin=0.2)
    run = Preprocess(config)
    high, wide = (round(20 * side / min(sides)) for side in sides)  # 16 / (1 - 0.2)
    for image in (noise(*sides), smooth(1, 320)[0, : sides[0], : sides[1]]):
        whole = np.asarray(Image.fromarray(image).resize((wide, high), INTERPOLATIONS[interpolation])).astype(int)
        for down, right in [(0, 0), (1, 1), (0.5, 0.5), (0.3, 0.8)]:
            top, left = (int(np.floor(f * (side - 16) + 0.5)) for f, side in ((down, high), (right, wide)))
            got = run.crop([Image.fromarray(image)], view(down, right))[0].astype(int)
            apart = np.abs(got - whole[top : top + 16, left : left + 16])
            # Halves are rounded either way twice, once along the rows and once along the columns.
            assert apart.max() <= 2 and (apart > 0).mean() < 0.25 and (apart > 1).mean() < 0.01


MANY_WAYS = """
import hashlib, sys
import numpy as np
from PIL import Image
from distilhash.config import InputConfig
from distilhash.data.transforms import CROP_MODES, INTERPOLATIONS, Preprocess, make_views
digest = hashlib.sha256()
rng = np.random.default_rng(0)
images = [rng.integers(0, 256, (*sides, 3), dtype=np.uint8) for sides in ((40, 31), (24, 24), (9, 70), (300, 200))]
for crop_mode in CROP_MODES:
    for interpolation in INTERPOLATIONS:
        run = Preprocess(InputConfig(size=24, crop_mode=crop_mode, interpolation=interpolation))
        for views in (None, make_views(np.arange(4), 0, 0)):
            digest.update(run.planes(run.crop([Image.fromarray(image) for image in images], views)).tobytes())
"""


def test_a_process_without_torch_computes_the_same_bits() -> None:
    here: dict[str, object] = {}
    exec(MANY_WAYS, here)  # PyTorch is loaded here, and not in the other process
    code = MANY_WAYS + "\nassert 'torch' not in sys.modules\nprint(digest.hexdigest())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == here["digest"].hexdigest()  # type: ignore[attr-defined]


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_planes_are_the_tensor(crop_mode: str) -> None:
    pixels = Preprocess(InputConfig(size=24, crop_mode=crop_mode))
    images = [noise(*sides) for sides in ((40, 31), (24, 24), (9, 70))]
    planes = pixels.planes(pixels.crop(images))
    assert planes.flags.c_contiguous
    assert torch.equal(torch.from_numpy(planes), pixels(images))
    assert torch.equal(pixels([Image.fromarray(image) for image in images]), pixels(images))
    assert pixels.planes(pixels.crop([])).shape == (0, 3, 24, 24)


def test_normalisation_is_exact_where_nothing_is_resized() -> None:
    images = noise(4, 12, 12)
    config = InputConfig(size=12, crop_mode="pad")
    got = Preprocess(config)(images)
    for i in range(4):
        assert np.abs(got[i].numpy() - loop_normalised(images[i], config)).max() < 1e-6
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_crop_windows_lie_where_the_view_says() -> None:
    images = noise(30, 16, 21)  # the shorter side is already round(14 / 0.875), so nothing is resized
    views = make_views(np.arange(30), 0, 0)
    views.offset[:4] = [[0, 0], [1, 1], [0, 1], [0.5, 0.5]]
    got = levels(Preprocess(InputConfig(size=14, **IDENTITY))(images, views))
    for i in range(30):
        top, left = (int(np.floor(f * s + 0.5)) for f, s in zip(views.offset[i], (2, 7), strict=True))
        for y, x in itertools.product(range(14), range(14)):
            from_x = 13 - x if views.flip[i] else x
            assert got[i, y, x].tolist() == images[i, top + y, left + from_x].tolist()


def test_pad_windows_are_shifts_by_reflection() -> None:
    images = noise(30, 9, 9)
    views = make_views(np.arange(30), 1, 0)
    views.offset[:3] = [[0, 0], [1, 1], [0.5, 0.5]]
    got = levels(Preprocess(InputConfig(size=9, crop_mode="pad", margin=0.25, **IDENTITY))(images, views))

    def reflected(i: int) -> int:
        return -i if i < 0 else 16 - i if i > 8 else i

    for i in range(30):
        down, right = (int(np.floor(f * 4 + 0.5)) - 2 for f in views.offset[i])
        for y, x in itertools.product(range(9), range(9)):
            from_x = 8 - x if views.flip[i] else x
            assert got[i, y, x].tolist() == images[i, reflected(y + down), reflected(from_x + right)].tolist()


def test_pad_takes_the_square_in_the_middle() -> None:
    image = noise(10, 17)
    got = levels(Preprocess(InputConfig(size=10, crop_mode="pad", **IDENTITY))([image]))
    assert np.array_equal(got[0], image[:, 3:13])
    tall = noise(17, 10)
    assert np.array_equal(levels(Preprocess(InputConfig(size=10, crop_mode="pad", **IDENTITY))([tall]))[0], tall[3:13])


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_the_middle_is_the_view_that_is_not_given(crop_mode: str) -> None:
    images = noise(3, 20, 26)
    run = Preprocess(InputConfig(size=14, crop_mode=crop_mode))
    middle = Views(np.zeros(3, bool), np.full((3, 2), 0.5))
    assert torch.equal(run(images), run(images, middle))
    mirrored = Views(np.ones(3, bool), np.full((3, 2), 0.5))
    assert torch.equal(run(images, mirrored), run(images).flip(3))
    assert not torch.equal(run(images, mirrored), run(images))


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_an_image_does_not_see_its_batch(crop_mode: str, interpolation: str) -> None:
    run = Preprocess(InputConfig(size=20, crop_mode=crop_mode, interpolation=interpolation))
    for shape in [(20, 20), (23, 23), (8, 8), (31, 47), (64, 40), (1, 1), (1, 5), (5, 1), (2, 3)]:
        images = noise(9, *shape)
        views = make_views(np.arange(9), 0, 3)
        batch, plain = run(images, views), run(images)
        for i in range(9):
            here = np.array([i])
            assert torch.equal(run(images[i : i + 1], views[here])[0], batch[i])
            assert torch.equal(run([images[i]])[0], plain[i])
        some = np.array([7, 2, 2, 5])
        assert torch.equal(run(images[some], views[some]), batch[torch.from_numpy(some)])
        assert torch.equal(run(images[:, :, ::-1][:, :, ::-1]), plain), "strides of the input do not matter"


def test_a_list_of_many_sizes_is_each_image_alone() -> None:
    shapes = [(20, 30), (15, 15), (20, 30), (64, 9), (15, 15), (9, 64)]
    images = [noise(*shape) for shape in shapes]
    views = make_views(np.array([4, 8, 15, 16, 23, 42]), 2, 9)
    run = Preprocess(InputConfig(size=16))
    got = run(images, views)
    assert got.is_contiguous(memory_format=torch.channels_last)
    for i, image in enumerate(images):
        assert torch.equal(got[i], run(image[None], views[np.array([i])])[0])


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_teacher_and_student_see_the_same_part(crop_mode: str) -> None:
    images = smooth(12, 48)
    views = make_views(np.arange(12), 0, 5)
    large = Preprocess(InputConfig(size=128, crop_mode=crop_mode, margin=0.25, **IDENTITY))(images, views)
    small = Preprocess(InputConfig(size=32, crop_mode=crop_mode, margin=0.25, **IDENTITY))(images, views)
    down = F.interpolate(large, size=(32, 32), mode="bilinear", antialias=True)
    other = Preprocess(InputConfig(size=32, crop_mode=crop_mode, margin=0.25, **IDENTITY))(
        images, Views(views.flip, 1 - views.offset)
    )
    same, wrong = (down - small).abs().mean((1, 2, 3)), (down - other).abs().mean((1, 2, 3))
    assert same.max() < 0.05  # half a pixel of the small one
    far = np.abs(views.offset - 0.5).max(1) > 0.15
    assert far.sum() >= 8 and (same[far] < 0.5 * wrong[far]).all()


def test_views_are_functions_of_image_view_and_seed() -> None:
    ids = np.array([3, 1, 4, 1, 59_999])
    views = make_views(ids, 2, 7)
    alone = [make_views(np.array([i]), 2, 7) for i in ids]
    assert np.array_equal(views.offset, np.concatenate([one.offset for one in alone]))
    assert np.array_equal(views.flip, np.concatenate([one.flip for one in alone]))
    many = [make_views(np.arange(4000), v, s) for v, s in itertools.product(range(3), range(3))]
    assert len({v.offset.tobytes() for v in many}) == len({v.flip.tobytes() for v in many}) == 9
    for v in many:
        assert v.offset.min() >= 0 and v.offset.max() < 1
        assert abs(v.flip.mean() - 0.5) < 0.04
        assert np.abs(np.histogram(v.offset[:, 0], 8, (0, 1))[0] / 500 - 1).max() < 0.2
        together = np.corrcoef(np.column_stack([v.offset, v.flip]).T)
        assert np.abs(together - np.eye(3)).max() < 0.06


def test_a_line_of_pixels_does_not_fill_the_memory() -> None:
    run = Preprocess(InputConfig(size=16, crop_mode="crop", **IDENTITY))
    line = noise(1, 30_000)
    start = 15_000 - MAX_ASPECT // 2
    assert torch.equal(run([line]), run([line[:, start : start + MAX_ASPECT]]))
    for shape in ((30_000, 1), (1, 30_000), (2, 9000)):
        assert run([noise(*shape)], view(1.0, 1.0)).shape == (1, 3, 16, 16)


def test_read_only_and_memory_mapped_arrays_are_welcome(recwarn: pytest.WarningsRecorder) -> None:
    images = noise(2, 10, 10)
    expected = Preprocess(InputConfig(size=16))(images)
    images.flags.writeable = False
    assert torch.equal(Preprocess(InputConfig(size=16))(images), expected)
    assert len(recwarn) == 0


def test_no_images_give_no_images() -> None:
    run = Preprocess(InputConfig(size=16))
    assert run([]).shape == run(noise(0, 8, 8)).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_mode": "stretch"},
        {"interpolation": "nearest"},
        {"size": 0},
        {"margin": 0.5},
        {"margin": -0.1},
        {"margin": float("nan")},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (0.0, 0.0)},
    ],
)
def test_configs_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(DistilhashError):
        Preprocess(InputConfig(**settings))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        [np.zeros((8, 8), np.uint8)],
        [np.zeros((2, 8, 8, 3), np.uint8)],
        [np.zeros((0, 8, 3), np.uint8)],
    ],
)
def test_images_of_another_kind(images: object) -> None:
    with pytest.raises(DistilhashError, match="uint8"):
        Preprocess(InputConfig(size=8))(images)  # type: ignore[arg-type]


def test_views_of_another_kind() -> None:
    run, images = Preprocess(InputConfig(size=8)), noise(1, 8, 8)
    with pytest.raises(DistilhashError, match="one view"):
        run(noise(2, 8, 8), view(0, 0))
    with pytest.raises(DistilhashError, match="one view"):
        run(images, Views(np.zeros(1, np.int64), np.zeros((1, 2))))  # type: ignore[arg-type]
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(DistilhashError, match="fraction"):
            run(images, view(0.5, wrong))


def test_augmented_crops_are_mirrored_brighter_darker_and_of_other_contrast():
    count, side = 400, 8
    flat = np.full((count, side, side, 3), 80, np.uint8)
    light = np.log(augmented(flat, np.arange(count), 0, 0)[:, 0, 0, 0] / 80) / np.log(1.6)  # contrast changes no grey
    assert -1.01 < light.min() < -0.9 and 0.9 < light.max() < 1.01 and abs(light.mean()) < 0.1
    steps = np.tile(np.repeat([70, 90], side // 2).astype(np.uint8)[None, :, None], (count, side, 1, 3))
    left, right = (augmented(steps, np.arange(count), 0, 0)[:, 0, column, 0].astype(float) for column in (0, -1))
    assert 0.4 < (left > right).mean() < 0.6
    contrast = np.abs(left - right) / (left + right) * 8  # of 1 before
    assert 0.55 < contrast.min() < 0.7 and 1.45 < contrast.max() < 1.75
    assert abs(np.corrcoef(np.log(contrast), light)[0, 1]) < 0.15
    assert np.array_equal(flat, np.full_like(flat, 80)), "the crops that were given are changed"


def test_an_augmented_crop_depends_on_image_epoch_and_seed_alone():
    crops = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3)).astype(np.uint8)
    ids = np.array([3, 1, 4, 15, 9, 2])
    found = augmented(crops, ids, 2, 7)
    for i in range(6):
        assert np.array_equal(augmented(crops[i : i + 1], ids[i : i + 1], 2, 7)[0], found[i])
    for other in ((3, 7), (2, 8)):
        assert not np.array_equal(augmented(crops, ids, *other), found)
