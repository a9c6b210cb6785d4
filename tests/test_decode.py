"""decode_image against NumPy transforms, colour formulas, and files that were made to be refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilhash.data import decode
from distilhash.data.decode import MAX_PIXELS, UnreadableImage

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def decode_image(file: Path | bytes, name: str, least_side: int | None = None) -> np.ndarray:
    image = decode.decode_image(file, name, least_side)
    assert image.mode == "RGB" and not image.info
    return np.asarray(image)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
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


def test_draft_keeps_the_shorter_side_long_enough() -> None:
    gradient = np.linspace(0, 255, 1600).astype(np.uint8)
    wide = np.broadcast_to(gradient[None, :, None], (1200, 1600, 3))
    data = encoded(Image.fromarray(wide), "JPEG")
    assert decode_image(data, "x").shape == (1200, 1600, 3)
    small = decode_image(data, "x", least_side=256)
    assert small.shape == (300, 400, 3)
    assert np.abs(small[0, :, 0].astype(int) - gradient.reshape(400, 4).mean(1)).max() <= 3
    assert decode_image(data, "x", least_side=700).shape == (1200, 1600, 3)
    assert decode_image(encoded(Image.fromarray(PIXELS), "PNG"), "x", least_side=1).shape == PIXELS.shape


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
        "float.tiff": encoded(Image.fromarray(np.zeros((3, 3), np.float32)), "TIFF"),
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


def test_a_large_image_of_any_format_comes_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (66, 50, 3), np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG")
    assert np.array_equal(decode_image(data, "x", least_side=8), pixels)
    monkeypatch.setattr(decode, "LARGE_PIXELS", 1_000)
    monkeypatch.setattr(decode, "BAND_PIXELS", 16 * 50)
    assert np.array_equal(decode_image(data, "x"), pixels)
    assert decode_image(data, "x", least_side=8).shape == (17, 13, 3)
    expected = pixels.astype(float).reshape(33, 2, 25, 2, 3).mean((1, 3))
    assert np.abs(decode_image(data, "x", least_side=20) - expected).max() <= 0.5
