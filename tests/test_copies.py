"""The command duplicates: pairs and groups against plain double loops, and every output of the command."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilhash import cli
from distilhash.codes import hamming
from distilhash.data.decode import UnreadableImage, image_size
from distilhash.photos.catalogue import Photo
from distilhash.photos.copies import star_groups
from distilhash.retrieval import backends
from plain_service import make_index


def tangled(count: int, num_bytes: int, seed: int) -> np.ndarray:
    """Codes around a few centres, with ties, equal codes and chains."""
    draw = np.random.default_rng(seed)
    centres = draw.integers(0, 256, (count // 6, num_bytes), np.uint8)
    flips = np.packbits(draw.random((count, 8 * num_bytes)) < 0.04, axis=1)
    return centres[draw.integers(0, len(centres), count)] ^ flips


@pytest.mark.parametrize(("num_bytes", "radius"), [(8, 0), (8, 3), (8, 64), (3, 2), (32, 9)])
def test_who_has_a_near_code_is_known_exactly_across_blocks(num_bytes, radius, monkeypatch):
    monkeypatch.setattr(backends, "_BLOCK", 50)
    monkeypatch.setattr(backends, "_QUERIES", 7)
    codes = tangled(230, num_bytes, radius)
    apart = hamming(codes, codes)
    expected = [any(apart[i, j] <= radius for j in range(230) if j != i) for i in range(230)]
    assert backends.have_near(codes, radius).tolist() == expected
    assert radius == 64 or 0 < sum(expected) < 230
    assert backends.have_near(codes[:1], radius).tolist() == [False]


@pytest.mark.parametrize("radius", [0, 2, 4, 7])
def test_groups_are_stars_around_the_best_copies(radius):
    draw = np.random.default_rng(radius)
    codes = tangled(150, 8, 5)
    photos = [Photo(i, f"/p/{i:03d}.jpg", int(draw.integers(1, 4)), 0, b"", None) for i in range(150)]
    sizes = [(int(draw.integers(0, 4)), 3) for _ in photos]
    left = sorted(range(150), key=lambda i: (-3 * sizes[i][0], -photos[i].size, i))
    expected = {}
    while left:
        best = left[0]
        near = [
            i for i in left if sum(bin(a ^ b).count("1") for a, b in zip(codes[best], codes[i], strict=True)) <= radius
        ]
        left = [i for i in left if i not in near]
        if len(near) > 1:
            expected[best] = set(near)
    groups = star_groups(photos, sizes, codes, radius)
    assert {group[0].photo.id: {copy.photo.id for copy in group} for group in groups} == expected and expected
    for group in groups:
        away = hamming(codes[[group[0].photo.id]], codes[[copy.photo.id for copy in group]])[0].tolist()
        assert [copy.distance for copy in group] == away == sorted(away)
    spare = [sum(copy.photo.size for copy in group[1:]) for group in groups]
    assert spare == sorted(spare, reverse=True)


def test_the_size_of_a_file_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    for orientation in (1, 3, 6, 8):
        exif[0x0112] = orientation
        Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
        assert image_size(tmp_path / "a.jpg") == ((40, 30) if orientation < 5 else (30, 40))
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    for name in ("bad.jpg", "none.jpg"):
        with pytest.raises(UnreadableImage):
            image_size(tmp_path / name)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Two pictures with copies, one without, and an index of them without a hasher."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for seed, names in enumerate((["a <i>&.png", "b.png", "c.png"], ["d.png", "e.png", "gone.png"], ["alone.png"])):
        coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8))
        for place, name in enumerate(names):
            side = (64, 128, 96)[place]
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(f"photos/{name}")
    ids = make_index(Path("photos.index"), tmp_path / "photos")
    Path("photos/gone.png").unlink()
    return ids


def shown(capsys, *words: str) -> str:
    assert cli.main(["duplicates", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_command_lists_writes_and_deletes_nothing(library, capsys):
    before = sorted(Path("photos").iterdir())
    found = json.loads(shown(capsys, "--json", "--csv", "d.csv", "--html", "d.html"))
    assert (found["photos"], found["missing"], found["radius"], found["bits"]) == (7, 1, 2, 64)
    groups = [[(Path(copy["path"]).name, copy["width"], copy["height"]) for copy in group] for group in found["groups"]]
    assert sorted(map(sorted, groups)) == [
        [("a <i>&.png", 64, 64), ("b.png", 128, 128), ("c.png", 96, 96)], [("d.png", 64, 64), ("e.png", 128, 128)],
    ]  # fmt: skip
    assert {group[0][0] for group in groups} == {"b.png", "e.png"}
    assert found["groups"][0][0]["id"] == library[groups[0][0][0]]
    with Path("d.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [copy["path"] for group in found["groups"] for copy in group]
    assert [row["best"] for row in rows].count("1") == 2 and {row["group"] for row in rows} == {"1", "2"}
    page = Path("d.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 5 and "<i>" not in page and "a &lt;i&gt;&amp;.png" in page
    assert not re.search(r"(src|href)=\"https?:", page)
    out = shown(capsys)
    assert out.count("best ") >= 2 and out.rstrip().endswith("Nothing was deleted.")
    assert all(copy["path"] in out for group in found["groups"] for copy in group)
    assert sorted(Path("photos").iterdir()) == before
    assert json.loads(shown(capsys, "photos.index", "--radius", "64", "--json"))["groups"][0][-1]["distance"] > 2


def test_a_folder_is_encoded_for_once(here, capsys):
    (here / "own").mkdir()
    for name, side in (("small.png", 32), ("large.png", 64)):
        Image.fromarray(np.full((4, 4, 3), 200, np.uint8)).resize((side, side)).save(here / "own" / name)
    found = json.loads(shown(capsys, "own", "--hasher", "hasher", "--json"))
    assert [[Path(copy["path"]).name for copy in group] for group in found["groups"]] == [["large.png", "small.png"]]
    assert sorted(path.name for path in here.iterdir()) == ["hasher", "own", "photos", "student"]


def test_mistakes_are_refused_before_anything_is_written(library, capsys):
    for words, fact in (
        (["none.index"], "none.index"), (["--csv", "photos/b.png"], "photos/b.png"), (["--radius", "65"], "65"),
        (["--html", "d.csv"], "d.csv"), (["--hasher", "hasher", "--html", "d.html"], "photos.index"),
    ):  # fmt: skip
        assert cli.main(["duplicates", *words]) == 2
        assert fact in capsys.readouterr().err
    assert not Path("d.csv").exists() and not Path("d.html").exists()
