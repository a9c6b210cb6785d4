"""index, search, code and serve with an exported hasher: no torch, the hasher's codes, int8 remembered."""

from __future__ import annotations

import json
import shutil
import subprocess

import httpx
import numpy as np
import pytest

from distilhash import cli
from distilhash.data.folders import FolderSource
from distilhash.deploy.runtime import FLOAT, INT8
from distilhash.hasher import Hasher
from distilhash.photos.catalogue import PhotoStore
from distilhash.photos.encoder import encode_photos
from mistakes import picture, refused
from plain_service import started

COUNT, BITS = 24, 24
SERVE = """
import sys
from distilhash import cli
sys.exit(cli.main(["serve", *sys.argv[1:]]))
"""


@pytest.fixture
def place(built, tmp_path, monkeypatch):
    """A working directory with photos/ in class folders, where hasher/ and exported/ lead to what was built."""
    monkeypatch.chdir(tmp_path)
    for name in ("hasher", "exported"):
        (tmp_path / name).symlink_to(built[0] / name)
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (5, 5, 3), np.uint8).repeat(8, 0).repeat(9, 1)
        picture(tmp_path / "photos" / f"class{number % 2}" / f"{number:02d}.png", pixels)
    return tmp_path


@pytest.fixture
def without_torch(installed):
    """Runs a command that must succeed in an environment without PyTorch, and gives its JSON."""

    def run(*words: object):
        program = [installed, "-m", "distilhash", *map(str, words), "--json"]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def codes_in(index) -> dict[str, bytes]:
    store = PhotoStore(index)
    try:
        paths = {photo.id: photo.path for photo in store.photos()}
        ids, packed = store.codes()
    finally:
        store.close()
    return {paths[identity]: row.tobytes() for identity, row in zip(ids.tolist(), packed, strict=True)}


@pytest.mark.parametrize("flags", [(), ("--int8",)])
def test_index_search_and_code_need_no_torch(place, flags, without_torch):
    table = Hasher.open("exported", int8=bool(flags)).table(FolderSource(place / "photos"))
    expected = {str(place / "photos" / n): row.tobytes() for n, row in zip(table.names, table.packed, strict=True)}
    assert len(set(expected.values())) > COUNT // 2
    done = without_torch("index", "photos", "--hasher", "exported", *flags)
    assert (done["added"], done["failed"]) == (COUNT, 0)
    assert codes_in(place / "photos.index") == expected
    # The index alone says which model it was: no flag from here on.
    image = f"photos/{table.names[0]}"
    shutil.copy(image, "copy.png")
    (found,) = without_torch("search", "photos.index", "copy.png", "--top", 1)
    assert found["hits"][0]["distance"] == 0
    picture(place / "photos2" / "new.png", np.full((32, 32, 3), 7, np.uint8))
    done = without_torch("index", "photos", "photos2")
    assert (done["added"], done["unchanged"]) == (1, COUNT)
    rows = without_torch("code", "exported", image, "photos2/new.png", *flags)
    held = codes_in(place / "photos.index")
    assert [row["code"] for row in rows] == [held[str(place / row["image"])].hex() for row in rows]


def test_an_unreadable_photo_is_a_failure_and_the_others_keep_their_codes(place):
    (place / "bad.png").write_bytes(b"no picture")
    paths = [str(place / "bad.png"), *(str(path) for path in sorted((place / "photos").rglob("*.png"))[:3])]
    encoder = Hasher.open("exported")
    found = encode_photos(encoder, paths)
    assert found.failures == {0: "not an image of a known format"}
    assert np.array_equal(found.packed[1:], encoder.encode(paths[1:]))
    assert encoder.encode([]).shape == (0, BITS // 8)


def test_one_model_refuses_the_codes_of_another(place, capsys):
    opened = [Hasher.open("exported"), Hasher.open("exported", int8=True), Hasher.open("hasher")]
    assert len({encoder.fingerprint for encoder in opened}) == 3
    assert [encoder.path for encoder in opened[:2]] == [str(place / "exported" / name) for name in (FLOAT, INT8)]
    said = "the index was made with another hasher; got "
    for index, flags, others in (
        ("fp32.index", (), (("exported", "--int8"), ("hasher",))),
        ("int8.index", ("--int8",), (("exported",), ("hasher",))),
    ):
        assert cli.main(["index", "photos", "--hasher", "exported", *flags, "--index", index, "--quiet"]) == 0
        for hasher, *more in others:
            for words in (("index", "photos", "--index", index), ("search", index, "photos/class0/00.png")):
                sentence = refused(capsys, *words, "--hasher", hasher, *more)
                assert sentence.startswith(said), sentence
        assert (
            cli.main(["search", index, "photos/class0/00.png", "--hasher", f"exported/{INT8 if flags else FLOAT}"]) == 0
        )
    assert refused(capsys, "search", "fp32.index", "photos/class0/00.png", "--int8").startswith(said)


def test_another_calibration_is_another_int8_model(place):
    (place / "again").mkdir()
    config = json.loads((place / "exported" / "config.json").read_text())
    config["files"][INT8] = config["files"][FLOAT]
    (place / "again" / "config.json").write_text(json.dumps(config))
    shutil.copy(place / "exported" / FLOAT, place / "again" / INT8)
    assert Hasher.open("again", int8=True).fingerprint != Hasher.open("exported", int8=True).fingerprint


def test_mistakes_are_one_sentence(place, capsys):
    said = "int8 is for an exported hasher; got "
    assert refused(capsys, "index", "photos", "--hasher", "hasher", "--int8").startswith(f"{said}hasher")
    assert refused(capsys, "index", "photos", "--int8").startswith(f"{said}none; name it with --hasher")
    assert refused(capsys, "code", "hasher", "photos/class0/00.png", "--int8").startswith(f"{said}hasher")
    shutil.copytree("exported", "half", ignore=shutil.ignore_patterns(INT8))
    for hasher in (("half", "--int8"), (f"half/{INT8}",)):
        assert refused(capsys, "index", "photos", "--hasher", *hasher).startswith("the exported hasher lacks a model")
    shutil.copytree("exported", "moved")
    assert cli.main(["index", "photos", "--hasher", "moved", "--int8", "--quiet"]) == 0
    shutil.rmtree("moved")
    search = ("search", "photos.index", "photos/class0/00.png")
    assert refused(capsys, *search).startswith("the hasher of the index is gone")
    assert cli.main([*search, "--hasher", "exported", "--int8"]) == 0


def test_an_upload_finds_what_search_finds_without_torch(place, installed, without_torch):
    without_torch("index", "photos", "--hasher", "exported", "--int8")
    image = place / "photos" / "class1" / "05.png"
    (expected,) = without_torch("search", "photos.index", image, "--top", 9)
    with started(place / "photos.index", run=SERVE, python=installed) as (address, _):
        assert httpx.get(f"{address}/api/status", timeout=60).json()["hasher"] == f"exported/{INT8}"
        answer = httpx.post(f"{address}/api/search?top=100", content=image.read_bytes(), timeout=60).json()
    hits = [(hit["id"], hit["distance"]) for hit in answer["hits"] if hit["path"] != "photos/class1/05.png"]
    assert [hit["distance"] for hit in answer["hits"] if hit["path"] == "photos/class1/05.png"] == [0]
    assert hits[:9] == [(hit["id"], hit["distance"]) for hit in expected["hits"]]
