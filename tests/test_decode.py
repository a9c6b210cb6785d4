"""decode_image against NumPy transforms, colour formulas, and files that were made to be refused."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilhash.config import InputConfig
from distilhash.data import decode
from distilhash.data.decode import MAX_PIXELS, UnreadableImage
from distilhash.data.transforms import Preprocess

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def decode_image(file: Path | bytes, name: str, shown_side: int | None = None) -> np.ndarray:
    image = decode.decode_image(file, name, shown_side)
    assert image.mode == "RGB" and not image.info
    return np.asarray(image)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM"])
def test_lossless_formats_give_back_the_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode_image(encoded(Image.fromarray(PIXELS), kind, **options), "x"), PIXELS)


def test_jpeg_is_close_and_is_rgb(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.array([200, 100, 30], np.uint8), (32, 48, 3))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    pixels = decode_image(tmp_path / "a.jpg", "a.jpg")
    assert pixels.dtype == np.uint8 and pixels.shape == (32, 48, 3)
    assert np.abs(pixels.astype(int) - smooth).max() <= 4


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_rotation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), kind, exif=exif)
    assert np.array_equal(decode_image(data, "x"), UPRIGHT[orientation](PIXELS))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_spoil_a_sound_image() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01zz"):
        data = encoded(Image.fromarray(PIXELS), "PNG", exif=exif)
        assert np.array_equal(decode_image(data, "x"), PIXELS)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (5, 7, 1), dtype=np.uint8)
    if mode == "RGBA":
        colour, image = PIXELS, Image.fromarray(np.concatenate([PIXELS, alpha], axis=2))
        data = encoded(image, "PNG")
    elif mode == "LA":
        colour = np.repeat(PIXELS[..., :1], 3, axis=2)
        data = encoded(Image.fromarray(np.concatenate([PIXELS[..., :1], alpha], axis=2), "LA"), "PNG")
    else:  # a palette whose entries have an opacity each
        indices = (np.arange(35, dtype=np.uint8) % 4).reshape(5, 7)
        palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
        opacity = np.array([0, 60, 255, 128], np.uint8)
        image = Image.fromarray(indices, "P")
        image.putpalette(palette.tobytes())
        data = encoded(image, "PNG", transparency=opacity.tobytes())
        colour, alpha = palette[indices], opacity[indices][..., None]
    share = alpha / 255
    expected = colour * share + 255 * (1 - share)
    assert np.abs(decode_image(data, "x") - expected).max() <= 1


def test_a_colour_key_is_transparent() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [200, 0, 0]]], np.uint8))
    pixels = decode_image(encoded(image, "PNG", transparency=(1, 2, 3)), "x")
    assert pixels.tolist() == [[[255, 255, 255], [200, 0, 0]]]


def test_other_modes_become_rgb() -> None:
    grey = PIXELS[..., 0]
    assert np.array_equal(decode_image(encoded(Image.fromarray(grey), "PNG"), "x"), np.repeat(grey[..., None], 3, 2))
    bits = Image.fromarray(grey > 127)
    assert np.array_equal(decode_image(encoded(bits, "PNG"), "x")[..., 1], np.where(grey > 127, 255, 0))
    palette = Image.fromarray(PIXELS).quantize(64)
    assert np.array_equal(decode_image(encoded(palette, "GIF"), "x"), np.asarray(palette.convert("RGB")))
    cmyk = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    assert np.abs(decode_image(encoded(cmyk, "TIFF"), "x").astype(int) - [255, 0, 0]).max() <= 1
    assert np.abs(decode_image(encoded(cmyk, "JPEG"), "x").astype(int) - [255, 0, 0]).max() <= 4


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        pixels = decode_image(encoded(Image.fromarray(grey), kind), "x")
        assert pixels[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]  # round(value / 257)
        assert pixels.shape == (1, 7, 3)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(decode_image(data, "x"), np.broadcast_to([255, 0, 0], (4, 6, 3)))


def test_photos_of_phones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corner = np.broadcast_to(np.array([200, 100, 30], np.uint8), (64, 48, 3)).copy()
    corner[:32, :24] = 10, 20, 200
    exif = Image.Exif()
    exif[0x0112] = 6  # in this format the file's own transformation counts, and this tag does not
    (tmp_path / "a.heic").write_bytes(encoded(Image.fromarray(corner), "HEIF", quality=95, exif=exif))
    pixels = decode_image(tmp_path / "a.heic", "a.heic")
    assert pixels.shape == corner.shape
    inside = np.abs(pixels.astype(int) - corner)[[8, 8, 56, 56], [8, 40, 8, 40]]
    assert inside.max() <= 6
    monkeypatch.setattr(decode, "FORMATS", [known for known in decode.FORMATS if known != "HEIF"])
    for file in (tmp_path / "a.heic", (tmp_path / "a.heic").read_bytes()):
        with pytest.raises(UnreadableImage, match=r"HEIC needs another package: pip install 'distilhash\[heic\]'"):
            decode_image(file, "a.heic")
    with pytest.raises(UnreadableImage, match="not an image of a known format"):
        decode_image(b"\0\0\0\x18ftypmp42", "film.heic")


def test_what_is_shown_keeps_the_shorter_side_long_enough() -> None:
    gradient = np.linspace(0, 255, 1600).astype(np.uint8)
    wide = np.broadcast_to(gradient[None, :, None], (1200, 1600, 3))
    data = encoded(Image.fromarray(wide), "JPEG")
    assert decode_image(data, "x").shape == (1200, 1600, 3)
    small = decode_image(data, "x", shown_side=256)
    assert small.shape == (300, 400, 3)
    assert np.abs(small[0, :, 0].astype(int) - gradient.reshape(400, 4).mean(1)).max() <= 3
    assert decode_image(data, "x", shown_side=700).shape == (1200, 1600, 3)
    assert decode_image(encoded(Image.fromarray(PIXELS), "PNG"), "x", shown_side=1).shape == PIXELS.shape


def png_of_size(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, data, b"IEND")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 12_000, 60_000])
def test_a_huge_image_is_refused_from_its_header(side: int) -> None:
    with pytest.raises(UnreadableImage, match="pixels"):
        decode_image(png_of_size(side, side), "bomb.png")


def test_what_is_no_image_says_so(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    cases = {
        "empty.png": b"",
        "text.jpg": b"hello",
        "cut.png": encoded(noise, "PNG")[:-200],
        "cut.jpg": encoded(noise, "JPEG")[:-200],
        "other.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImage) as caught:
            decode_image(tmp_path / name, name)
        assert caught.value.name == name and caught.value.reason
        assert name in str(caught.value)
    with pytest.raises(UnreadableImage, match="No such file"):
        decode_image(tmp_path / "gone.png", "gone.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "HEIF"])
def test_damaged_bytes_end_in_pixels_or_in_unreadable(kind: str) -> None:
    rng = np.random.default_rng(2)
    exif = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"} if kind in ("PNG", "JPEG", "WEBP") else {}
    sound = np.frombuffer(encoded(Image.fromarray(PIXELS), kind, **exif), np.uint8)
    refused = 0
    for _ in range(150):
        data = sound.copy()
        where = rng.integers(0, min(len(data), 200), rng.integers(1, 6))
        data[where] = rng.integers(0, 256, len(where))
        try:
            pixels = decode_image(data.tobytes(), "x")
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        except UnreadableImage:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "I;16", "CMYK"])
def test_bands_are_the_whole_image(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 37, 3), np.uint8))
    if kind == "I;16":
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (70, 37), np.uint16))
    elif kind == "RGBA":
        picture.putalpha(picture.getchannel(0))
    else:
        picture = picture.convert(kind)
    data = encoded(picture, "TIFF" if kind == "CMYK" else "PNG")
    whole = decode_image(data, "x")
    monkeypatch.setattr(decode, "BAND_PIXELS", 16 * 37)
    assert np.array_equal(decode_image(data, "x"), whole)


def test_a_large_image_is_the_mean_of_blocks_whatever_its_format(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (67, 51, 3), np.uint8)
    upright = Image.fromarray(pixels)
    assert np.array_equal(decode_image(encoded(upright, "PNG"), "x"), pixels)
    monkeypatch.setattr(decode, "LARGE_PIXELS", 1_000)
    monkeypatch.setattr(decode, "BAND_PIXELS", 16 * 50)
    expected = pixels[:66, :50].astype(float).reshape(33, 2, 25, 2, 3).mean((1, 3))
    got = decode_image(encoded(upright, "PNG"), "x")
    assert np.abs(got - expected).max() <= 0.5
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # what undoes an orientation
    for orientation, undone in back.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright.transpose(decode._UPRIGHT[undone])
        assert np.array_equal(decode_image(encoded(stored, "PNG", exif=exif), "x"), got), orientation
    assert np.array_equal(np.asarray(decode.upright_rgb(upright)), got)
    line = Image.fromarray(np.arange(3_000, dtype=np.int64).astype(np.uint8)[None])
    assert decode_image(encoded(line, "PNG"), "x").shape == (1, 750, 3)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([0, 100, 4095], np.uint16), [0, 6, 255]),  # 12 bits
        (np.array([0, 6553, 3000], np.uint16), [0, 102, 47]),  # a tenth of 16 bits: 14
        (np.array([30_000, 33_000, 36_000], np.uint16), [0, 128, 255]),  # a tenth in the middle
        (np.array([7, 7, 7], np.uint16), [7, 7, 7]),
        (np.array([9_000, 9_000, 9_000], np.uint16), [140, 140, 140]),
        (np.array([0, 40_000, 30_000], np.uint16), [0, 156, 117]),  # as it was made
        (np.array([-1000, 0, 1000], np.int32), [0, 128, 255]),
        (np.array([0, 2**23, 2**24 - 1], np.int32), [0, 128, 255]),
        (np.array([0.0, 0.5, 1.0], np.float32), [0, 128, 255]),
        (np.array([0.0, 0.5, np.nan], np.float32), [0, 128, 0]),
        (np.array([3000.0, 3004, 3008, np.nan, -np.inf], np.float32), [0, 128, 255, 0, 0]),
        (np.array([0.0, 100, 200], np.float32), [0, 100, 200]),
        (np.array([0.0, 10, 1.01], np.float32), [0, 255, 26]),
        (np.array([np.nan, np.nan, np.inf], np.float32), [0, 0, 0]),
    ],
)
def test_the_range_of_more_than_eight_bits(pixels: np.ndarray, expected: list[int]) -> None:
    image = Image.fromarray(pixels[None])
    assert decode_image(encoded(image, "TIFF"), "x")[0, :, 0].tolist() == expected
    if image.mode == "I;16":
        assert decode_image(encoded(image, "PNG"), "x")[0, :, 0].tolist() == expected


@pytest.mark.parametrize("dead", [0, 65_535])
def test_a_sensors_few_dead_pixels_do_not_darken_the_others(dead: int) -> None:
    pixels = np.linspace(2_000, 3_900, 300 * 200).astype(np.uint16).reshape(200, 300)  # of 12 bits
    clean, spotted = pixels.copy(), pixels.copy()
    spotted.flat[[7, 30_000, 59_000]] = dead
    shown = [np.asarray(decode_image(encoded(Image.fromarray(each), "PNG"), "x")) for each in (clean, spotted)]
    differs = (abs(shown[0].astype(int) - shown[1]) > 1).any(axis=2)
    assert differs.sum() <= 3


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImage, match="regular"):
        decode.decode_image(tmp_path / "pipe.png", "pipe.png")


def tiff(pixels: np.ndarray, order: str = "<", photometric: int = 2) -> bytes:
    """An uncompressed TIFF of unsigned numbers."""
    height, width, colours = pixels.shape
    body = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    bits = pixels.dtype.itemsize * 8
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, 8), (277, 3, 1, colours), (278, 4, 1, height), (279, 4, 1, len(body)),
    ]  # fmt: skip
    head = 8 + len(body)
    if colours > 1:
        entries[2] = (258, 3, colours, head + 2 + 12 * len(entries) + 4)
    table = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        table += struct.pack(order + ("HHIHxx" if short else "HHII"), tag, kind, count, value)
    table += struct.pack(order + "I", 0) + struct.pack(order + f"{colours}H", *[bits] * colours)
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", head) + body + table


def png(pixels: np.ndarray, colour: int, depth: int) -> bytes:
    """A PNG of these numbers."""
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def test_colours_of_sixteen_bits_keep_their_picture() -> None:
    rng = np.random.default_rng(0)
    for highest in (65535, 4095):
        colours = rng.integers(0, highest + 1, (9, 11, 3), np.uint16)
        colours[0, 0] = 0, highest, 0
        opacity = np.full((9, 11, 1), 65535, np.uint16)
        expected = colours / highest * 255
        grey = np.repeat(colours[..., 1:2], 3, 2)
        files = {
            "RGB": (png(colours, 2, 16), expected),
            "RGBA": (png(np.concatenate([colours, opacity], 2), 6, 16), expected),
            "LA": (png(np.concatenate([grey[..., :1], opacity], 2), 4, 16), grey / highest * 255),
            "little": (tiff(colours), expected),
            "big": (tiff(colours, ">"), expected),
        }
        for name, (data, wanted) in files.items():
            assert np.abs(decode_image(data, name) - wanted).max() <= 1, (name, highest)


def test_numbers_of_tiff_that_pillow_reads_as_others() -> None:
    wide = np.array([[[0], [2**31], [2**32 - 1]]], np.uint32)
    assert decode_image(tiff(wide, photometric=1), "x")[0, :, 0].tolist() == [0, 128, 255]
    white_is_zero = np.array([[[0], [32768], [65535]]], np.uint16)
    assert decode_image(tiff(white_is_zero, photometric=0), "x")[0, :, 0].tolist() == [255, 127, 0]


def shape_of(colour: tuple[int, ...], number: int) -> np.ndarray:
    """A disc or a bar of a colour on transparency, RGBA."""
    y, x = np.mgrid[:40, :60]
    inside = (y - 20) ** 2 + (x - 15 - 10 * number) ** 2 < 100 if number < 3 else abs(x - 4 * number) < 6
    return np.concatenate(
        [np.broadcast_to(np.array(colour, np.uint8), (40, 60, 3)), 255 * inside[..., None]], 2
    ).astype(np.uint8)


def test_white_shapes_on_transparency_stay_apart() -> None:
    for colour in ((255, 255, 255), (240, 244, 250)):
        shapes = [shape_of(colour, number) for number in range(5)]
        for shape in shapes:
            seen = decode_image(encoded(Image.fromarray(shape), "PNG"), "x")
            assert np.array_equal(seen, shape[..., :3] * (shape[..., 3:] > 0))  # on black
    grey = shapes[0][..., [0, 3]]
    assert decode_image(encoded(Image.fromarray(grey, "LA"), "PNG"), "x").min() == 0
    with_dot = shape_of((255, 255, 255), 0)
    with_dot[18:22, 13:17, :3] = 255, 0, 0
    assert decode_image(encoded(Image.fromarray(with_dot), "WEBP", lossless=True), "x").min() == 0
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.paste(0, (0, 0, 3, 4))
    assert decode_image(encoded(palette, "GIF", transparency=0), "x")[0, :, 0].tolist() == [0, 0, 0, 255, 255, 255]


def test_other_shapes_are_laid_over_white() -> None:
    for colour in ((0, 0, 0), (200, 30, 30), (120, 120, 120), (255, 220, 0)):
        shape = shape_of(colour, 1)
        expected = np.where(shape[..., 3:] > 0, shape[..., :3], 255)
        assert np.array_equal(decode_image(encoded(Image.fromarray(shape), "PNG"), "x"), expected)
    nothing = np.zeros((4, 4, 4), np.uint8)
    assert decode_image(encoded(Image.fromarray(nothing), "PNG"), "x").min() == 255
    opaque = np.full((4, 4, 4), 255, np.uint8)
    assert decode_image(encoded(Image.fromarray(opaque), "PNG"), "x").min() == 255


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_one_file_gives_the_same_bits_in_every_thread(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 4), np.uint8))
    data = encoded(noise.convert("RGB") if kind == "JPEG" else noise, kind)
    with ThreadPoolExecutor(8) as pool:
        found = {image.tobytes() for image in pool.map(lambda _: decode_image(data, "x"), range(32))}
    assert len(found) == 1


def test_a_picture_has_the_same_bits_as_file_array_and_image() -> None:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))
    for size, crop_mode in ((64, "crop"), (64, "pad"), (128, "crop")):
        pixels = Preprocess(InputConfig(size=size, crop_mode=crop_mode))
        exif = Image.Exif()
        exif[0x0112] = 6
        photo = encoded(coarse.resize((400, 301), Image.Resampling.BICUBIC), "JPEG", quality=90, exif=exif)
        decoded = decode.decode_image(photo, "x")
        lossless = decode.decode_image(encoded(decoded, "PNG"), "x")
        opened = Image.open(io.BytesIO(photo))
        ways = [decoded, lossless, opened, np.asarray(decoded), decoded.convert("RGBA")]
        inputs = [pixels.crop([way]).tobytes() for way in ways]
        assert len({*inputs, pixels.crop(np.asarray(decoded)[None]).tobytes()}) == 1
        assert opened.getexif()[0x0112] == 6, "what the caller has is not changed"


def jpeg_header(width: int, height: int, progressive: bool = False, components: int = 3, scanned: int = 3) -> bytes:
    """A JPEG up to its first scan."""
    parts = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    frame = struct.pack(
        ">BBHBHHB", 0xFF, 0xC2 if progressive else 0xC0, 8 + 3 * components, 8, height, width, components
    )
    scan = b"".join(bytes([number + 1, 0]) for number in range(scanned))
    start = struct.pack(">BBHB", 0xFF, 0xDA, 6 + 2 * scanned, scanned)
    return b"\xff\xd8" + frame + parts + start + scan + b"\0\x3f\0" + bytes(99)


def test_a_jpeg_beyond_the_limit_is_decoded_smaller() -> None:
    gradient = Image.fromarray(np.linspace(0, 255, 11_000).astype(np.uint8)[None]).resize((11_000, 6_000))
    data = encoded(gradient, "JPEG", quality=70)
    seen = decode_image(data, "x")
    assert seen.shape == (1_500, 2_750, 3)
    assert np.abs(seen[0, :, 0] - np.linspace(0, 255, 2_750)).max() <= 3
    assert decode_image(data, "x", shown_side=320).shape == (750, 1_375, 3)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (jpeg_header(65_000, 65_000), "65000 x 65000 is more than"),
        (jpeg_header(20_000, 20_000, progressive=True), "20000 x 20000"),
        (jpeg_header(20_000, 20_000, scanned=1), "20000 x 20000"),  # in several scans, though not progressive
        (jpeg_header(20_000, 20_000, components=4, scanned=1), "20000 x 20000"),
    ],
)
def test_a_jpeg_that_takes_too_much_memory_is_refused_from_its_header(data: bytes, told: str) -> None:
    with pytest.raises(UnreadableImage, match=told):
        decode_image(data, "x")


def test_memory_is_shared_by_all_threads() -> None:
    room, taken, most = decode._Room(10), [0], [0]
    lock = threading.Lock()

    def work(size: int) -> None:
        with room.take(size):
            with lock:
                taken[0] += size
                most[0] = max(most[0], taken[0])
            time.sleep(0.002)
            with lock:
                taken[0] -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 10, 4, 7, 1, 10, 5, 5] * 3))
    assert 7 <= most[0] <= 10 and taken == [0]
