"""fit, from photos to a hasher that loads like any other; and an index that was given no hasher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import distilhash
from distilhash import cli
from distilhash.checkpoint import load_hasher
from distilhash.config import FitConfig, StudentConfig
from distilhash.data.order import SPLITS, shuffled
from distilhash.data.sources import GivenSource
from distilhash.data.transforms import Preprocess
from distilhash.deploy.runtime import INT8, ExportedConfig
from distilhash.inference import encode
from distilhash.itq import itq
from distilhash.models import Student, Teacher, create_teacher
from distilhash.photos.encoder import BACKBONE
from distilhash.retrieval import Index
from distilhash.training import distill as distillation
from distilhash.training import fit as fitting
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory
from mistakes import picture, refused
from test_labelfree import Unlabelled
from test_resume import Interrupted, content
from tiny import tiny_hasher, tiny_images

BITS = 16
FIT = ("--bits", BITS, "--epochs", 1, "--views", 1, "--batch-size", 16, "--clusters", 4, "--hash-epochs", 1,
       "--precision", "float32", "--teacher-size", 32, "--student-size", 32, "--student-stem", "small")  # fmt: skip
SMALL = StudentConfig(size=32, stem="small")
CONFIG = FitConfig(bits=BITS, epochs=1, views=1, batch_size=32, clusters=4, hash_epochs=1, precision="float32",
                   checkpoint_seconds=0)  # fmt: skip


def answer(capsys, *words: object):
    capsys.readouterr()
    assert cli.main([*map(str, words), "--json"]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_fit_distils_and_hashes(here, capsys):
    words = ("fit", "photos", "--output", "run", *FIT, "--backbone", "student")
    found, err = answer(capsys, *words)
    assert (found["backbone"], found["method"]) == ("a distilled v1", "itq")
    assert (found["photos"], found["bits"], found["hasher"]) == (72, BITS, "run/model")
    assert found["validation_photos"] == 14
    for name, path in (("student", "run/hash-itq"), ("teacher", "run/hash-teacher")):
        row = found[name]
        assert 0 <= row["overlap_at_10"] <= 1 and 1 <= row["distinct_codes"] <= 14
        (profiled,), _ = answer(capsys, "profile", path, "--seconds", 0.001)
        assert (row["parameters"], row["macs"]) == (profiled["parameters"], profiled["macs"])
    assert f"{found['teacher']['overlap_at_10']:.0%}" in found["verdict"]
    assert "too few" not in err
    hasher, about = load_hasher("run")
    assert isinstance(hasher.backbone, Student)
    assert (about["label_free"], about["labelled_images"], about["teacher"]) == ("itq", 0, "pip/efficientnet_lite0")
    (row,) = distilhash.code("run", ["photos/class0/00.png"])
    assert len(row["code"]) == BITS // 4
    before = content(Path("run"))
    assert answer(capsys, *words, "--resume")[0] == found
    assert content(Path("run")) == before
    assert cli.main([*map(str, words), "--resume", "--quiet"]) == 0
    assert found["verdict"] in capsys.readouterr().out
    assert refused(capsys, "fit", "photos", "--output", "run", *FIT, "--quiet").startswith(
        "the run directory exists; got run; "
    )


def test_few_photos_are_hashed_with_the_teacher(here, capsys):
    found, err = answer(capsys, "fit", "photos", "--output", "run", *FIT, "--method", "pseudo")
    assert "72 different photos are too few" in err and "72 different photos are too few" in found["verdict"]
    assert (found["backbone"], found["method"]) == ("the frozen pip/efficientnet_lite0", "itq")
    assert "student" not in found
    assert isinstance(load_hasher("run")[0].backbone, Teacher)


@pytest.mark.parametrize("method", ["itq", "pseudo"])
def test_no_label_is_read_and_a_stopped_fit_ends_in_the_same_bytes(tmp_path, monkeypatch, method):
    monkeypatch.setattr(fitting, "EDITED", 3)
    images, config = Unlabelled(tiny_images(64)), FitConfig(**{**vars(CONFIG), "method": method, "backbone": "student"})
    plan, teacher = fitting.fit_plan(config, 64, SMALL), create_teacher("pip/efficientnet_lite0", size=32)

    def work(place: Path):
        run = RunDirectory(place, {"stage": "fit"}, resume=True)
        return fitting.fit_images(images, teacher, plan, config, run)

    def stopped(*_: object, **__: object) -> None:
        raise Interrupted

    hasher, about = work(tmp_path / "whole")
    assert about["label_free"] == method
    if method == "pseudo":
        assert about["clusters"] <= 4 and about["labelled_images"] == 0
    # Before the student is written, before it is hashed, and before what it was hashed to is written.
    hashed = {"itq": [(fitting, "head_inputs")], "pseudo": [(fitting, "pseudo_classes"), (hashing, "save_model")]}
    for owner, name in [(distillation, "save_model"), *hashed[method], (fitting, "verdict"), (fitting, "save_model")]:
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(owner, name, stopped)
            work(tmp_path / "run")
        assert not (tmp_path / "run" / "model" / "model.safetensors").exists()
    work(tmp_path / "run")
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    codes = encode(tiny_images(64), np.arange(64), hasher).packed
    assert len(np.unique(codes, axis=0)) > 1


def test_a_hasher_is_measured_as_a_naive_loop_would(monkeypatch):
    monkeypatch.setattr(fitting, "EDITED", 7)
    images, validation, hasher = tiny_images(), np.arange(5, 40), tiny_hasher(128).eval()
    near = np.stack([np.random.default_rng(i).permutation([j for j in range(35) if j != i])[:10] for i in range(35)])
    found = fitting.measure(hasher, images, validation, near)

    def codes(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return hasher(Preprocess(hasher.input)(pixels)).numpy() > 0

    pixels = images.images[validation]
    plain = codes(pixels)
    overlap, nearest = [], []
    for i in range(35):
        distance = {j: int((plain[i] != plain[j]).sum()) for j in range(35) if j != i}
        tenth = sorted(distance.values())[9]
        nearest.append(min(distance.values()))
        within = [j for j in distance if distance[j] < tenth]
        tied = [j for j in distance if distance[j] == tenth]
        chance = (10 - len(within)) / len(tied)  # of a tied one to be among the ten
        overlap.append((len(set(near[i]) & set(within)) + chance * len(set(near[i]) & set(tied))) / 10)
    brighter = np.minimum(np.floor(pixels[:7] * 1.2), 255).astype(np.uint8)
    moved = [(codes(edited) != plain[:7]).sum(axis=1).mean() for edited in (brighter, pixels[:7, :, ::-1])]
    assert found["overlap_at_10"] == pytest.approx(np.mean(overlap))
    assert [found["brighter_bits"], found["mirrored_bits"], found["nearest_bits"]] == pytest.approx(
        [*moved, np.mean(nearest)]
    )
    assert found["moved"] == pytest.approx(np.mean(moved) / np.mean(nearest))
    assert found["distinct_codes"] == len({tuple(row) for row in plain})
    torch.nn.init.zeros_(hasher.head.weight)  # all photos get one code
    found = fitting.measure(hasher, images, validation, near)
    assert found["moved"] is None and found["distinct_codes"] == 1
    assert found["overlap_at_10"] == pytest.approx(10 / 34)


@pytest.mark.parametrize(
    ("student", "teacher", "wanted", "used"),
    [
        ((0.081, 1.4), (0.447, 0.2), "auto", "teacher"),  # photos as they are
        ((0.46, 0.2), (0.447, 0.2), "auto", "student"),
        ((0.41, 0.2), (0.447, 0.2), "auto", "student"),  # nearly as good, and much smaller
        ((0.39, 0.2), (0.447, 0.2), "auto", "teacher"),
        ((0.46, 0.7), (0.447, 0.2), "auto", "teacher"),  # edited copies are taken for other photos
        ((0.46, 0.7), (0.447, 0.8), "auto", "student"),
        ((0.46, None), (0.447, 0.8), "auto", "teacher"),  # one code for all
        ((0.081, 1.4), (0.447, 0.2), "student", "student"),
    ],
)
def test_the_better_hasher_is_used(student, teacher, wanted, used):
    def row(overlap, moved):
        return {"overlap_at_10": overlap, "moved": moved, "parameters": 3_000_000, "macs": 40_000_000}

    better, sentence = fitting.verdict(row(*student), row(*teacher), wanted)
    assert better == used
    for overlap, _ in (student, teacher):
        assert f"{overlap:.0%}" in sentence
    assert "3.0 M parameters and 40 M" in sentence


def test_a_teacher_may_be_wanted_and_the_student_too(here, capsys):
    found, _ = answer(capsys, "fit", "photos", "--output", "run", *FIT, "--backbone", "teacher")
    assert found["backbone"] == "the frozen pip/efficientnet_lite0" and "student" not in found
    assert not Path("run/distill").exists()


def test_one_photo_over_and_over_is_refused(here, capsys, monkeypatch):
    for number in range(60):
        picture(here / "same" / f"{number}.png", np.full((40, 40, 3), 90, np.uint8))
    assert "60 of one photo" in refused(capsys, "fit", "same", "--quiet")
    assert "60 copies" in refused(capsys, "distill", "same", "--batch-size", 16, "--quiet")
    picture(here / "same" / "61.png", np.full((41, 40, 3), 90, np.uint8))  # another file with nothing else in it
    for number, backbone in enumerate(("teacher", "student")):
        words = ["fit", "same", "--output", f"run{number}", *map(str, FIT), "--backbone", backbone, "--quiet"]
        assert cli.main(words) == 2
        assert "no difference between the photos" in capsys.readouterr().err
    assert "1 of one photo" in refused(capsys, "fit", one(here), "--quiet")


def test_two_photos_many_times_over_are_hashed_without_nonsense(here, capsys):
    for number in range(60):
        pixels = np.random.default_rng(number % 2).integers(0, 256, (40, 40, 3), np.uint8)
        picture(here / "two" / f"{number}.png", pixels)
    for backbone in ("auto", "student"):
        found, _ = answer(capsys, "fit", "two", "--output", f"run-{backbone}", *FIT, "--backbone", backbone)
        assert len({row["code"] for row in distilhash.code(f"run-{backbone}/model", ["two/0.png", "two/1.png"])}) == 2
    assert found["student"]["distinct_codes"] <= 2 and found["student"]["moved"] is None


def one(folder: Path) -> Path:
    picture(folder / "one" / "0.png", np.full((40, 40, 3), 9, np.uint8))
    return folder / "one"


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
def unmeasured(monkeypatch):
    """Near-duplicates, whose edited copies take time, are tried elsewhere."""
    monkeypatch.setattr("distilhash.photos.duplicates.FEWEST", 1000)


def default_config() -> ExportedConfig:
    return ExportedConfig.load("photos.index.hasher")


def test_an_index_without_a_hasher_makes_one_beside_it(here, capsys, caplog, unmeasured):
    caplog.set_level("INFO", "distilhash")
    found, _ = answer(capsys, "index", "photos")
    assert found["codes"] == 72
    assert f"fitted to 72 of 72 photos, and kept in {here}/photos.index.hasher" in caplog.text
    assert (default_config().bits, default_config().source["unlabelled_images"]) == (256, 72)
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
    assert default_config().source["unlabelled_images"] == 73  # but for the broken one
    assert (found["added"], found["codes"]) == (73, 73)
    before, _ = answer(capsys, "search", "photos.index", "more/one.png", "--top", 3)
    (here / "elsewhere").mkdir()
    for name in ("photos.index", "photos.index.hasher"):
        (here / name).rename(here / "elsewhere" / name)
    assert answer(capsys, "search", "elsewhere/photos.index", "more/one.png", "--top", 3)[0] == before


def test_a_default_hasher_of_few_photos_is_fitted_again_when_asked(here, capsys, caplog, unmeasured, monkeypatch):
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
    old = default_config()
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
    assert default_config().source["unlabelled_images"] == 77 and default_config().hasher != old.hasher
    assert answer(capsys, "search", "photos.index", "few/0.png", "--top", 1)[0][0]["hits"][0]["distance"] == 0
    assert {path.name for path in here.iterdir() if "index" in path.name} == {"photos.index", "photos.index.hasher"}


def test_an_index_keeps_the_hasher_that_it_was_made_with(here, capsys):
    answer(capsys, "index", "photos", "--hasher", "hasher")
    for again in ((), ("--rebuild",)):
        assert answer(capsys, "index", "photos", *again)[0]["unchanged"] == 72
    (here / "hasher").unlink()
    assert refused(capsys, "index", "photos").startswith(f"the hasher of the index is gone; got {here}/hasher; say wh")


def test_the_default_hasher_has_as_many_bits_as_are_asked_for(here, capsys, unmeasured):
    shutil.copytree(here / "photos" / "class0", here / "few")
    answer(capsys, "index", "few", "--bits", 128)
    assert default_config().bits == 128
    with Index.open("photos.index") as index:
        assert index.num_bits == 128
    assert "32 instead of 128" in refused(capsys, "index", "few", "--bits", 32)
    answer(capsys, "index", "--rebuild")
    assert default_config().bits == 128
    answer(capsys, "index", "--rebuild", "--bits", 32)
    with Index.open("photos.index") as index:
        assert index.num_bits == default_config().bits == 32
    assert "--bits" in refused(capsys, "index", "few", "--hasher", "hasher", "--bits", 32)


def test_the_default_hasher_is_itq_on_the_features_of_the_shipped_backbone(here, capsys, unmeasured):
    answer(capsys, "index", "photos")
    files = sorted(map(str, Path("photos").rglob("*.png")))
    features = distilhash.Hasher.open(BACKBONE / INT8).outputs(GivenSource(files), np.arange(len(files)))
    features_ND = np.concatenate([*features])
    features_ND /= np.linalg.norm(features_ND, axis=1, keepdims=True)
    fitted = itq(features_ND[shuffled(np.arange(len(files)), 0, SPLITS)], 256)
    expected = np.packbits(features_ND @ fitted.weight.T + fitted.bias > 0, axis=1)
    found = distilhash.Hasher.from_pretrained("photos.index.hasher").encode(files)
    assert np.bitwise_count(found ^ expected).mean() < 0.01  # float32 beside float64


def test_nothing_to_fit_to_is_said(here, capsys, unmeasured):
    (here / "empty").mkdir()
    assert refused(capsys, "index", "empty").startswith("there are no photos to fit a hasher to; got ")
    assert refused(capsys, "index", "nowhere").startswith("there is no such folder; got ")
