"""CIFAR-10 itself, every way to it, and everything that can go wrong on them."""

from __future__ import annotations

import errno
import io
import shutil
import tarfile
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from distilhash.data import ArraySource, cifar10, cifar10_split, load_cifar10
from distilhash.errors import DistilhashError

# The mean of the 50,000 training images in [0, 1], as published again and again.
PUBLISHED_MEAN = (0.49139968, 0.48215841, 0.44653091)


@pytest.fixture(scope="module")
def real() -> ArraySource:
    return load_cifar10()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A cache folder that does not outlive its test: 180 MB each."""
    yield tmp_path / "cache"
    shutil.rmtree(tmp_path)


@pytest.fixture(autouse=True)
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError(OSError(errno.ENETUNREACH, "Network is unreachable"))

    monkeypatch.delenv("DISTILHASH_CIFAR10", raising=False)
    monkeypatch.setattr("distilhash.data.cifar10.urllib.request.urlopen", refuse)


@pytest.fixture(scope="module")
def archive(real: ArraySource, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The publisher's archive, made of the arrays, with what must not be read beside it."""
    folder = tmp_path_factory.mktemp("publisher")
    assert real.labels is not None
    with tarfile.open(folder / cifar10.ARCHIVE, "w:gz", compresslevel=0) as tar:
        add(tar, "cifar-10-batches-bin/batches.meta.txt", b"airplane")
        add(tar, "../data_batch_1.bin", b"outside")
        link = tarfile.TarInfo("cifar-10-batches-bin/link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for i in (5, 3, 4, 0, 1, 2):
            part = slice(10_000 * i, 10_000 * (i + 1))
            channels = real.images[part].transpose(0, 3, 1, 2).reshape(10_000, 3072)
            records = np.concatenate([real.labels[part, None].astype(np.uint8), channels], axis=1)
            add(tar, f"cifar-10-batches-bin/{cifar10.BATCHES[i]}.bin", records.tobytes())
    yield folder / cifar10.ARCHIVE
    shutil.rmtree(folder)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "cifar10").iterdir())


def test_the_images_are_cifar10(real: ArraySource) -> None:
    assert real.images.shape == (60_000, 32, 32, 3) and real.images.dtype == np.uint8
    assert isinstance(real.images, np.memmap) and not real.images.flags.writeable
    mean = real.images[:50_000].mean((0, 1, 2)) / 255
    assert np.abs(mean - PUBLISHED_MEAN).max() < 1e-8
    assert real.labels is not None
    assert real.labels[:6].tolist() == [6, 9, 9, 4, 1, 1] and real.labels[50_000:50_004].tolist() == [3, 8, 8, 0]
    assert np.bincount(real.labels[:50_000]).tolist() == [5000] * 10
    assert real.class_names[6] == "frog" and real.names[42] == "cifar10/00042" and len(set(real.names)) == 60_000
    # Fixture: the first pixels of the first image, a frog.
    assert real.images[0, 0, :2].tolist() == [[59, 62, 63], [43, 46, 45]]
    assert cifar10_split(real.labels).query.size == 1000


@pytest.mark.parametrize("way", ["file", "folder", "url", "publisher"])
def test_the_archive_gives_the_same_arrays(
    real: ArraySource, archive: Path, folder: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float]] = []

    def urlopen(url: str, timeout: float) -> IO[bytes]:
        asked.append((url, timeout))
        return archive.open("rb")

    if way in ("url", "publisher"):
        monkeypatch.setattr("distilhash.data.cifar10.urllib.request.urlopen", urlopen)
    if way != "publisher":
        origin = {"file": str(archive), "folder": str(archive.parent), "url": "https://mirror.test/c.tar.gz"}[way]
        monkeypatch.setenv("DISTILHASH_CIFAR10", origin)
    assert load_cifar10(folder).fingerprint == real.fingerprint
    urls = {"url": "https://mirror.test/c.tar.gz", "publisher": cifar10.URL}
    assert asked == ([(urls[way], 10.0)] if way in urls else [])
    assert files(folder) == ["images.npy", "labels.npy", "source.json"]
    monkeypatch.setenv("DISTILHASH_CIFAR10", "/nowhere")
    assert load_cifar10(folder).fingerprint == real.fingerprint, "the second call finds the first one's files"


def test_a_folder_of_arrays_is_used_where_it_is(
    real: ArraySource, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(real.images, np.memmap) and real.images.filename
    there = Path(real.images.filename).parent
    monkeypatch.setenv("DISTILHASH_CIFAR10", str(there))
    source = load_cifar10(folder)
    assert source.fingerprint == real.fingerprint and Path(source.images.filename).parent == there
    assert not folder.exists()


def test_an_error_names_the_ways_out(folder: Path) -> None:
    with pytest.raises(DistilhashError) as caught:
        load_cifar10(folder)
    for part in (cifar10.URL, "Network is unreachable", "DISTILHASH_CIFAR10", str(folder)):
        assert part in str(caught.value)
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["cut", "noise", "lacks", "other"])
def test_a_wrong_archive_is_refused(
    archive: Path, folder: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.tar.gz"
    monkeypatch.setenv("DISTILHASH_CIFAR10", str(wrong))
    if damage == "cut":
        wrong.write_bytes(archive.read_bytes()[:40_000_000])
    elif damage == "noise":
        wrong.write_bytes(b"no archive")
    else:
        with tarfile.open(wrong, "w:gz", compresslevel=0) as tar:
            for batch in cifar10.BATCHES[damage == "lacks" :]:
                add(tar, f"cifar-10-batches-bin/{batch}.bin", bytes(10_000 * 3073))
    with pytest.raises(DistilhashError, match="lacks .*data_batch_1" if damage == "lacks" else "wrong.tar.gz"):
        load_cifar10(folder)
    assert not folder.exists()


def damaged(folder: Path, real: ArraySource) -> dict[str, tuple[str, object]]:
    assert real.labels is not None
    swapped = real.labels.copy()
    swapped[[100, 101]] = (swapped[100] + 1) % 10, swapped[101]
    return {
        "cut": ("images.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, "),
        "empty": ("images.npy", b""),
        "header": ("images.npy", b"\x93NUMPY\x01\x00v\x00" + b"{'descr': (".ljust(117) + b"\n"),
        "pickle": ("images.npy", b"\x80\x04cos\nsystem\n"),
        "shape": ("images.npy", np.zeros((60_000, 32, 3), np.uint8)),
        "type": ("images.npy", np.zeros((10, 32, 32, 3), np.float32)),
        "labels": ("labels.npy", swapped),
        "missing": ("labels.npy", None),
    }


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "pickle", "shape", "type", "labels", "missing"])
def test_a_damaged_cache_is_fetched_anew(
    real: ArraySource, folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = folder / "cifar10"
    place.mkdir(parents=True)
    assert isinstance(real.images, np.memmap) and real.images.filename
    for name in ("images.npy", "labels.npy", "source.json"):
        (place / name).symlink_to(Path(real.images.filename).parent / name)
    assert load_cifar10(folder).fingerprint == real.fingerprint
    name, content = damaged(folder, real)[damage]
    (place / name).unlink()
    if isinstance(content, bytes):
        (place / name).write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(place / name, content)
    with pytest.raises(DistilhashError, match="Network is unreachable"):
        load_cifar10(folder)
    assert str(place) in caplog.text


def test_arrays_put_there_by_hand_are_taken(real: ArraySource, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder / "cifar10"
    place.mkdir(parents=True)
    assert isinstance(real.images, np.memmap) and real.images.filename
    for name in ("images.npy", "labels.npy"):
        (place / name).symlink_to(Path(real.images.filename).parent / name)
    monkeypatch.setenv("DISTILHASH_CACHE", str(folder))
    assert load_cifar10().fingerprint == real.fingerprint


@pytest.fixture
def at_hand(real: ArraySource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that always works."""
    arrays = (np.array(real.images), real.labels)
    monkeypatch.setattr("distilhash.data.cifar10._fetched", lambda _: arrays)


def test_a_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch, at_hand: None) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("distilhash.files.os.fsync", full)
    with pytest.raises(DistilhashError, match="No space left"):
        load_cifar10(folder)
    assert files(folder) == []


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, at_hand: None) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DistilhashError, match=str(tmp_path)):
        load_cifar10(tmp_path / "file")


def test_one_flipped_bit_is_noticed_and_mended(
    real: ArraySource, folder: Path, at_hand: None, caplog: pytest.LogCaptureFixture
) -> None:
    load_cifar10(folder)
    with (folder / "cifar10/images.npy").open("r+b") as file:
        file.seek(100_000_000)
        byte = file.read(1)[0]
        file.seek(100_000_000)
        file.write(bytes([byte ^ 1]))
    assert load_cifar10(folder).fingerprint == real.fingerprint
    assert len(caplog.records) == 1 and str(folder) in caplog.text


def test_two_at_once_both_get_it(real: ArraySource, folder: Path, at_hand: None) -> None:
    prints: list[str] = []
    threads = [threading.Thread(target=lambda: prints.append(load_cifar10(folder).fingerprint)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert prints == [real.fingerprint] * 2
    assert files(folder) == ["images.npy", "labels.npy", "source.json"]
