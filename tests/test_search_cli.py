"""index, search and code as their user meets them: a real hasher, a folder of pictures, both streams."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import distilhash
from distilhash import cli
from distilhash.checkpoint import load_hasher, save_model
from distilhash.codes import hamming, pack
from distilhash.data.folders import FolderSource
from distilhash.hasher import Hasher
from distilhash.inference import encode
from distilhash.models import create_hasher, create_student
from folders import PlainEncoder
from mistakes import picture, refused

PHOTOS = 72  # what `made` holds


def run(capsys, *words: object) -> tuple[str, str]:
    """Both streams of a command that must succeed."""
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
    streams = capsys.readouterr()
    return streams.out, streams.err


def answer(capsys, *words: object):
    return json.loads(run(capsys, *words, "--json")[0])


@pytest.fixture
def indexed(here, capsys):
    """A working directory with photos.index of photos/."""
    run(capsys, "index", "photos", "--hasher", "hasher")
    return here


@pytest.fixture(scope="module")
def table(made):
    """Codes of the same photos by the stage that makes code tables: what every command is held to."""
    source = FolderSource(made / "photos")
    return encode(source, np.arange(len(source)), load_hasher(made / "hasher")[0])


def test_index_says_what_it_did(here, capsys, caplog):
    caplog.set_level("INFO", "distilhash")
    out, _ = run(capsys, "index", "photos", "--hasher", "hasher", "--index", "my.index")
    assert [line.split()[1] for line in out.splitlines()[:3]] == ["my.index", "72", "72"]
    assert any("72/72 photos" in message for message in caplog.messages)
    Path("more").mkdir()
    Path("more/broken.jpg").write_bytes(b"nothing")
    out, err = run(capsys, "index", "photos", "more", "--hasher", "hasher", "--index", "my.index", "--quiet")
    assert {("unchanged", "72"), ("failed", "1")} <= {tuple(line.split()) for line in out.splitlines()}
    assert f"1 cannot be read: {here}/more/broken.jpg (not an image of a known format)\n" in err
    done = answer(capsys, "index", "more", "--hasher", "hasher", "--index", "my.index")
    bad = [str(here / "more" / "broken.jpg"), "not an image of a known format"]
    assert (done["failed"], done["failures"], done["codes"]) == (1, [bad], 72)
    done = answer(capsys, "index", "--index", "my.index")  # all its folders, with its hasher
    assert (done["failed"], done["failures"], done["unchanged"]) == (1, [bad], 72)
    assert sorted(path.name for path in here.iterdir()) == ["hasher", "more", "my.index", "photos", "student"]


def test_info_tells_what_an_index_holds(indexed, capsys):
    for name in ("a.png", "b.png"):
        picture(Path("more", name), np.full((8, 8, 3), 9, np.uint8))
    Path("more/broken.jpg").write_bytes(b"nothing")
    near = answer(capsys, "index", "more")["near_duplicates"]
    Path("more/a.png").unlink()
    assert answer(capsys, "info", "photos.index") == {
        "index": "photos.index", "bytes": Path("photos.index").stat().st_size, "photos": PHOTOS + 2, "failures": 1,
        "missing": 1, "folders": [str(indexed / "more"), str(indexed / "photos")], "bits": 16,
        "hasher": str(indexed / "hasher"), "near_duplicates": near,
    }  # fmt: skip
    out, _ = run(capsys, "info", "photos.index")
    assert {("photos", "74"), ("missing", "1")} <= {tuple(line.split()) for line in out.splitlines()}
    assert out.splitlines()[-1].startswith(f"near-duplicates differ in at most {near['bits']} of 16 bits")
    refused(capsys, "info", "other.index")


def test_search_finds_what_the_code_table_says(indexed, table, capsys):
    names = {str(indexed / "photos" / name): row for row, name in enumerate(table.names)}
    distances = hamming(table.packed, table.packed)
    image = "photos/class1/05.png"
    own = names[str(indexed / image)]
    (found,) = answer(capsys, "search", "photos.index", image, "--top", 15)
    assert found["query"] == image
    assert len(found["hits"]) == 15
    ids = {hit["path"]: hit["id"] for hit in answer(capsys, "search", "photos.index", image, "--top", 99)[0]["hits"]}
    others = sorted((int(distances[own, row]), ids[path], path) for path, row in names.items() if row != own)
    assert [(hit["distance"], hit["id"], hit["path"]) for hit in found["hits"]] == others[:15]
    radius = others[9][0]
    (near,) = answer(capsys, "search", "photos.index", image, "--radius", radius)
    assert [hit["path"] for hit in near["hits"]] == [path for distance, _, path in others if distance <= radius]
    (few,) = answer(capsys, "search", "photos.index", image, "--radius", radius, "--top", 2)
    assert [hit["path"] for hit in few["hits"]] == [path for _, _, path in others[:2]]
    (mine,) = set(range(1, PHOTOS + 1)) - set(ids.values())
    (by_id,) = answer(capsys, "search", "photos.index", "--id", mine, "--top", 15)
    assert by_id == {"query": str(mine), "hits": found["hits"]}


def test_search_of_several_in_plain_text(indexed, capsys):
    picture(indexed / "outside.png", np.full((32, 32, 3), 9, np.uint8))
    out, err = run(capsys, "search", "photos.index", "outside.png", "--id", 3, "--id", 4, "--top", 2)
    lines = out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["outside.png: 2 hits", "3: 2 hits", "4: 2 hits"]
    assert all(line.split()[2].startswith(str(indexed / "photos")) for line in lines if line.startswith(" "))
    assert err == ""


def test_a_copy_elsewhere_is_a_hit_and_the_photo_itself_is_not(indexed, capsys):
    shutil.copy("photos/class0/00.png", "copy.png")
    (first,) = answer(capsys, "search", "photos.index", "copy.png", "--top", 1)
    assert first["hits"][0]["distance"] == 0
    Path("link.png").symlink_to("photos/class0/00.png")
    (second,) = answer(capsys, "search", "photos.index", "link.png", "--radius", 0)
    assert str(indexed / "photos/class0/00.png") not in [hit["path"] for hit in second["hits"]]


def test_near_duplicates_are_grouped_on_request(here, capsys, monkeypatch):
    monkeypatch.setattr(Hasher, "open", lambda *_, **__: PlainEncoder())  # whose codes differ
    draw = np.random.default_rng(0)
    for name in "ab":
        pixels = draw.integers(0, 256, (32, 32, 3), np.uint8)
        for copy in range(3):
            picture(here / "own" / f"{name}{copy}.png", pixels)
    run(capsys, "index", "own", "--hasher", "hasher")

    def hits(*words: object):
        (found,) = answer(capsys, "search", "photos.index", "own/a0.png", "--hasher", "hasher", *words)
        return [
            [Path(hit["path"]).name, hit["distance"] == 0, [Path(double["path"]).name for double in hit["duplicates"]]]
            for hit in found["hits"]
        ]

    flat = [[name, name.startswith("a"), []] for name in ("a1.png", "a2.png", "b0.png", "b1.png", "b2.png")]
    assert hits() == flat
    assert hits("--top", 2) == flat[:2]
    grouped = [["a1.png", True, ["a2.png"]], ["b0.png", False, ["b1.png", "b2.png"]]]
    assert hits("--group-duplicates", 0) == hits("--group-duplicates", 0, "--top", 2) == grouped
    assert hits("--group-duplicates", 20) == [["a1.png", True, ["a2.png", "b0.png", "b1.png", "b2.png"]]]
    out, _ = run(capsys, "search", "photos.index", "own/a0.png", "--hasher", "hasher", "--group-duplicates", 2)
    assert f"    like it: {here}/own/a2.png" in out


def test_code_is_the_row_of_the_table(here, table, capsys):
    images = [f"photos/{name}" for name in table.names[:3]]
    found = answer(capsys, "code", "hasher", *images)
    assert found == [
        {"image": image, "code": row.tobytes().hex()} for image, row in zip(images, table.packed, strict=False)
    ]
    assert run(capsys, "code", "hasher", images[0])[0] == f"{found[0]['code']}  {images[0]}\n"
    with torch.inference_mode():
        assert len(found[0]["code"]) == 2 * pack(np.ones((1, 16))).shape[1]


def test_names_that_are_not_utf8_are_printed_escaped(here, capsys):
    draw = np.random.default_rng(1)
    strange = os.fsdecode(b"\xff.png")
    for name in ("own/a.png", f"own/{strange}"):
        picture(here / name, draw.integers(0, 256, (32, 32, 3), np.uint8))
    run(capsys, "index", "own", "--hasher", "hasher")
    assert "own/\\xff.png" in run(capsys, "search", "photos.index", "own/a.png")[0]
    assert answer(capsys, "search", "photos.index", "own/a.png")[0]["hits"][0]["path"] == str(here / "own" / strange)


def test_mistakes_are_one_sentence(indexed, capsys):
    other = create_student("v1", size=32, stem="small")
    about = {"architecture": other.architecture, "bits": 16, "kind": "hasher"}
    save_model(indexed / "other" / "model", create_hasher(other, 16), about)
    Path("text.png").write_text("text")
    for words, said in {
        ("search", "none.index", "--id", 1): "there is no such index; got none.index; make it with: distilhash index",
        ("search", "text.png", "--id", 1): "the index is damaged; got text.png",
        ("search", "photos.index"): "nothing to search for; name an image",
        ("search", "photos.index", "--id", 99): "an id is not in the index; got 99",
        ("search", "photos.index", "--id", 1, "--top", 0): "top must be at least 1; got 0",
        ("search", "photos.index", "text.png"): "an image cannot be read; got text.png: not an image of a known",
        (
            "search",
            "photos.index",
            "text.png",
            "--hasher",
            "other",
        ): "the index was made with another hasher; got other",
        ("search", "photos.index", "text.png", "--hasher", "student"): "this checkpoint is not a hasher",
        ("index", "photos", "--hasher", "other"): "the index was made with another hasher; got ",
        ("index", "nowhere", "--hasher", "hasher"): "there is no such folder; got ",
        ("index", "photos", "--hasher", "nowhere"): "no checkpoint here; got nowhere",
        (
            "index",
            "photos",
            "--hasher",
            "hasher",
            "--index",
            "text.png",
        ): "the index is damaged; got text.png",
        ("index", "--index", "new.index"): "there is no folder to index; got new.index",
        ("index", "--forget", "nowhere"): "the index has no such folder; got ",
        ("index", "~nobody/photos", "--hasher", "hasher"): "there is no such folder; got ",
        ("index", "long" * 100, "--hasher", "hasher"): "there is no such folder; got ",
        ("search", "long" * 100, "--id", 1): "there is no such index; got longlong",
        ("code", "hasher", "gone.png"): "an image cannot be read; got gone.png: No such file or directory",
    }.items():
        assert refused(capsys, *words).startswith(said), words
    assert "--rebuild" in refused(capsys, "index", "photos", "--hasher", "other")
    run(capsys, "index", "photos", "--hasher", "other", "--rebuild")
    assert "name that one with --hasher" in refused(capsys, "search", "photos.index", "text.png", "--hasher", "hasher")
    shutil.rmtree("other")
    assert refused(capsys, "search", "photos.index", "text.png").startswith("the hasher of the index is gone")
    assert len(answer(capsys, "search", "photos.index", "--id", 1)[0]["hits"]) == 10  # needs no hasher
    with sqlite3.connect("photos.index") as database:
        database.execute(f"UPDATE meta SET value = '/{'long' * 100}' WHERE key = 'encoder_path'")
    database.close()
    assert refused(capsys, "search", "photos.index", "text.png").startswith("the hasher of the index is gone; got /lon")


def test_what_is_missing_is_told_pruned_and_forgotten(here, capsys):
    for name in ("one", "two"):
        shutil.copytree(here / "photos" / "class0", here / name)
    run(capsys, "index", "one", "two", "--hasher", "hasher")
    (here / "one" / "00.png").unlink()
    out, err = run(capsys, "index")
    assert ["missing", "1"] in [line.split() for line in out.splitlines()]
    assert str(here / "one" / "00.png") in err and "--prune" in err
    assert answer(capsys, "index")["missing"] == [str(here / "one" / "00.png")]
    done = answer(capsys, "index", "--prune")
    assert (done["deleted"], done["missing"], done["codes"]) == (1, [], 47)
    shutil.rmtree(here / "two")
    (here / "hasher").unlink()
    done = answer(capsys, "index", "--forget", "two")  # needs no hasher
    assert (done["deleted"], done["codes"]) == (24, 23)


def test_a_photo_that_is_missing_comes_last_and_is_marked(here, capsys):
    shutil.copytree(here / "photos" / "class0", here / "own")
    for copy in range(3):
        shutil.copy(here / "own" / "00.png", here / "own" / f"z{copy}.png")
    query = shutil.copy(here / "own" / "00.png", here / "query.png")
    run(capsys, "index", "own", "--hasher", "hasher")
    for name in ("00.png", "z0.png"):
        (here / "own" / name).unlink()

    def hits(*words: object):
        (found,) = answer(capsys, "search", "photos.index", query, *words)
        return [
            (Path(hit["path"]).name, hit["distance"], hit["missing"], len(hit["duplicates"])) for hit in found["hits"]
        ]

    everything = hits("--top", 99)
    assert [missing for *_, missing, _ in everything] == 25 * [False] + 2 * [True]
    assert everything[-2:] == [("00.png", 0, True, 0), ("z0.png", 0, True, 0)]
    assert hits("--top", 2) == everything[:2]  # though those that are missing are as near and were there first
    assert hits("--radius", 0)[-2:] == everything[-2:]
    (group,) = hits("--group-duplicates", 0, "--top", 1)
    assert group[:3] == everything[0][:3] and group[3] >= 3
    lines = run(capsys, "search", "photos.index", query, "--top", 99)[0].splitlines()
    assert [line.endswith("00.png  (missing)") for line in lines].index(True) == 26
    run(capsys, "index", "--prune")
    assert len(hits("--top", 99)) == 25


@pytest.mark.parametrize("together", [True, False])
def test_a_hasher_that_was_moved_with_the_index_is_found_by_its_content(here, capsys, together):
    shutil.copytree(here / "hasher", here / "home" / "runs" / "fit")
    shutil.copytree(here / "photos" / "class0", here / "home" / "photos")
    run(capsys, "index", "home/photos", "--hasher", "home/runs/fit", "--index", "home/photos.index")
    image = here / "photos" / "class1" / "00.png"
    expected = answer(capsys, "search", "home/photos.index", image)[0]["hits"]
    if together:
        (here / "home").rename(here / "moved")
    else:
        (here / "moved").mkdir()
        for path in ("photos.index", "photos", "runs/fit"):
            (here / "home" / path).rename(here / "moved" / Path(path).name)
        other = create_student("v1", size=32, stem="small")  # where it was there is another one now
        about = {"architecture": other.architecture, "bits": 16, "kind": "hasher"}
        save_model(here / "home" / "runs" / "fit" / "model", create_hasher(other, 16), about)
    found = answer(capsys, "search", "moved/photos.index", image)[0]["hits"]
    assert [(hit["id"], hit["distance"]) for hit in found] == [(hit["id"], hit["distance"]) for hit in expected]
    done = answer(capsys, "index", "moved/photos", "--index", "moved/photos.index")
    assert (done["renamed"], done["codes"], done["missing"]) == (24, 24, [])


def test_an_interrupt_says_that_the_work_is_kept(here, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distilhash.photos.search.update", interrupted)
    assert cli.main(["index", "photos", "--hasher", "hasher"]) == 130
    said = capsys.readouterr().err
    assert said == "distilhash: interrupted; the same command goes on from the last photos that were kept.\n"


def test_the_verbs_as_functions(indexed, table):
    assert callable(distilhash.search)
    (found,) = distilhash.search("photos.index", ids=[1], top=3)
    assert [set(hit) for hit in found["hits"]] == [{"id", "path", "distance", "missing", "duplicates"}] * 3
    done = distilhash.index(["photos"], "photos.index", "hasher")
    assert (done["unchanged"], done["codes"]) == (PHOTOS, PHOTOS)
    (row,) = distilhash.code("hasher", [indexed / "photos" / table.names[0]])
    assert row["code"] == table.packed[0].tobytes().hex()


def test_search_by_id_needs_no_network_library(indexed):
    code = "import sys, distilhash; distilhash.search('photos.index', ids=[1]); sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
