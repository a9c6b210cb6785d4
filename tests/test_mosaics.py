"""Mosaics: drawn as described, written once, and a multi-label set that hashing learns from list files."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from distilhash import api
from distilhash.checkpoint import load_hasher
from distilhash.codes import CodeTable, pack
from distilhash.config import HashConfig, StudentConfig
from distilhash.data import ArraySource, ListSource, list_split, open_images
from distilhash.errors import DistilhashError
from distilhash.evaluation import mean_average_precision, relevant_share
from distilhash.evaluation.metrics import evaluate_tables
from distilhash.inference import encode
from distilhash.losses import hash_centres
from distilhash.models import new_hasher, new_student
from tiny import tiny_images

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import mosaics
from mosaics import write_mosaics

COUNTS = {"train": 30, "query": 20, "database": 70}


def numbered(count: int = 240, classes: int = 5, side: int = 4) -> ArraySource:
    """Images of one colour each, which is the image's own number."""
    numbers = np.arange(count)
    colours = np.stack([numbers // 256, numbers % 256, 255 - numbers % 256], axis=1).astype(np.uint8)
    return ArraySource(np.tile(colours[:, None, None], (1, side, side, 1)), numbers % classes)


def under(source: ListSource) -> np.ndarray:
    """(M, 4) the numbers of the images under each mosaic, read off the pixels."""
    pixels = np.stack(source.read(np.arange(len(source))))[:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(np.int64)
    return pixels[..., 0] * 256 + pixels[..., 1]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_mosaic_has_the_classes_of_its_four_images(tmp_path):
    source = open_images(write_mosaics(tmp_path / "m", numbered(), **COUNTS))
    assert isinstance(source, ListSource)
    assert {name: len(part) for name, part in source.lists.items()} == {"train": 30, "database": 70, "test": 20}
    tiles_M4 = under(source)
    for row, tiles in zip(source.labels, tiles_M4, strict=True):
        assert set(np.flatnonzero(row)) == {tile % 5 for tile in tiles}
    assert source.read([0])[0].size == (8, 8)
    assert set(source.lists["train"]) <= set(source.lists["database"])
    query, others = (set(tiles_M4[source.lists[name]].ravel()) for name in ("test", "database"))
    assert not query & others
    assert len(query) > 15 and len(others) > 100  # of the 40 and 200 that there are


def test_the_seed_decides_and_the_classes_repeat_as_asked(tmp_path):
    first = everything(write_mosaics(tmp_path / "a", numbered(), **COUNTS))
    assert everything(write_mosaics(tmp_path / "b", numbered(), **COUNTS)) == first
    assert everything(write_mosaics(tmp_path / "c", numbered(), **COUNTS, seed=1)) != first
    classes_M4 = mosaics._drawn(numbered(), 1, 2000, 0, 0.5)[1:] % 5
    same = (classes_M4[:, 1:] == classes_M4[:, :1]).mean(axis=0)
    assert np.abs(same - (0.5 + 0.5 / 5)).max() < 0.04  # as drawn, or by chance
    assert np.abs(np.bincount(classes_M4[:, 0]) / 2000 - 0.2).max() < 0.04
    assert (mosaics._drawn(numbered(), 1, 50, 0, 1.0) % 5).std(axis=1).max() == 0


def test_an_interrupted_set_is_finished_and_ends_in_the_same_bytes(tmp_path, monkeypatch):
    whole = everything(write_mosaics(tmp_path / "whole", numbered(), **COUNTS))
    monkeypatch.setattr(mosaics, "BLOCK", 16)
    stopped, images = tmp_path / "stopped", numbered()
    write_block, blocks = mosaics._write_block, iter(range(2))

    def interrupted(*arguments):
        next(blocks)
        write_block(*arguments)

    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(mosaics, "_write_block", interrupted)
        write_mosaics(stopped, images, **COUNTS)
    written = sorted((stopped / "images").glob("*.png"))
    assert written and not (stopped / "train.txt").exists()
    assert json.loads((stopped / "mosaics.json").read_text())["finished"] is False
    written[0].write_bytes(b"")  # as a power cut leaves it
    kept = written[1].stat().st_mtime_ns
    write_mosaics(stopped, images, **COUNTS)
    assert everything(stopped) == whole
    assert written[1].stat().st_mtime_ns == kept
    images.read = None
    write_mosaics(stopped, images, **COUNTS)  # finished: nothing is read again


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train": 71}, "a database with the training images in it; got query 20, train 71, database 70"),
        ({"query": 0}, "need a query"),
        ({"repeat": 1.5}, "repeat is a probability; got 1.5"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(tmp_path, change, sentence):
    with pytest.raises(DistilhashError, match=sentence):
        write_mosaics(tmp_path / "m", numbered(), **{**COUNTS, **change})
    assert not (tmp_path / "m").exists()


def test_other_images_and_other_folders_are_refused(tmp_path):
    pixels = numbered().images
    for images, sentence in (
        (ArraySource(pixels), "one label each; got images without"),
        (ArraySource(pixels, np.ones((240, 3), np.uint8)), "one label each; got more"),
        (ArraySource(pixels[:3], [0, 0, 1]), "every class needs two images"),
    ):
        with pytest.raises(DistilhashError, match=sentence):
            write_mosaics(tmp_path / "m", images, **COUNTS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DistilhashError, match="a folder of their own"):
        write_mosaics(tmp_path / "mine", numbered(), **COUNTS)
    write_mosaics(tmp_path / "m", numbered(), **COUNTS)
    with pytest.raises(DistilhashError, match="holds other mosaics"):
        write_mosaics(tmp_path / "m", numbered(), **COUNTS, seed=1)


@pytest.mark.parametrize(("framework", "bits"), [("csq", 48), ("dch", 16)])
def test_hashing_learns_mosaics_from_list_files(tmp_path, framework, bits):
    """Both frameworks, and 48 bits of CSQ, for which there are no Hadamard centres: far above the untrained hasher."""
    folder = write_mosaics(tmp_path / "m", tiny_images(240, 6), train=144, query=40, database=160, repeat=0.8)
    config = HashConfig(framework=framework, bits=bits, epochs=4, batch_size=32, precision="float32")
    student = StudentConfig(size=32, stem="small")
    api.hash(folder, tmp_path / "run", "v1", config=config, student=student)
    source = open_images(folder)
    split = list_split(source.lists, len(source))

    def measured(hasher):
        tables = (encode(source, part, hasher) for part in (split.query, split.database))
        return evaluate_tables(*tables, at=100)

    untrained = measured(new_hasher(new_student(student, config.seed), config))
    trained = measured(load_hasher(tmp_path / "run")[0])
    assert trained["map_at_100"] > untrained["map_at_100"] + 0.2
    assert trained["map_at_all"] > untrained["map_at_all"] + 0.15
    assert untrained["map_at_all"] > trained["relevant_share"] == untrained["relevant_share"]


@pytest.mark.parametrize("classes", [10, 21])
def test_centres_of_48_bits_are_far_apart_and_balanced(classes):
    for seed in range(3):
        centres_CK = hash_centres(classes, 48, seed)
        distances = (48 - centres_CK @ centres_CK.T)[np.triu_indices(classes, 1)] / 2
        assert distances.min() >= 20 and distances.mean() >= 24  # K/2 is 24
        assert (centres_CK > 0).sum(axis=1).min() >= 12 and (centres_CK > 0).sum(axis=1).max() <= 36
        assert abs(centres_CK.mean()) < 0.1
        assert (np.abs(centres_CK.sum(axis=0)) < classes).all()  # no bit is the same for every class


def tables(queries: int, database: int, bits: int, classes: int, seed: int) -> tuple[CodeTable, CodeTable]:
    rng = np.random.default_rng(seed)
    return tuple(
        CodeTable(
            packed=pack(rng.choice([-1, 1], (count, bits))), num_bits=bits, names=[f"{part}{i}" for i in range(count)],
            labels=(rng.random((count, classes)) < 0.4).astype(np.uint8),
        )
        for part, count in (("q", queries), ("d", database))
    )  # fmt: skip


def naive_average_precision(distances, relevant, at):
    order = sorted(range(len(distances)), key=lambda i: distances[i])[:at]
    hits, total = 0, 0.0
    for rank, i in enumerate(order, start=1):
        if relevant[i]:
            hits += 1
            total += hits / rank
    return total / hits if hits else 0.0


def test_map_of_several_labels_is_that_of_a_naive_loop_over_every_order():
    query, database = tables(5, 6, 3, 4, seed=1)
    bits = [np.unpackbits(table.packed, axis=1) for table in (query, database)]
    scores = []
    for q, code in enumerate(bits[0]):
        distances = [int((code != other).sum()) for other in bits[1]]
        relevant = [bool((query.labels[q] & row).any()) for row in database.labels]
        for order in itertools.permutations(range(6)):
            scores.append(naive_average_precision([distances[i] for i in order], [relevant[i] for i in order], 4))
    assert evaluate_tables(query, database, at=4)["map_at_4"] == pytest.approx(np.mean(scores), abs=1e-12)


def test_the_relevant_share_is_what_a_random_ranking_scores():
    query, database = tables(40, 2000, 8, 10, seed=2)
    pairs = [(a & b).any() for a in query.labels for b in database.labels]
    share = relevant_share(query.labels, database.labels)
    assert share == pytest.approx(np.mean(pairs), abs=1e-12)
    blank = [np.zeros((count, 1), np.uint8) for count in (40, 2000)]  # every image at the same distance
    random = mean_average_precision(*blank, query.labels, database.labels, at=500, num_bits=1)
    assert share < random < share + 0.01
    assert relevant_share([0, 1], [0, 0, 1, 2]) == pytest.approx((2 / 4 + 1 / 4) / 2)
    with pytest.raises(DistilhashError, match="one row a code"):
        relevant_share(3, [1, 2])


def test_codes_of_one_bit_are_evaluated():
    query, database = tables(3, 8, 1, 3, seed=3)
    metrics = evaluate_tables(query, database)
    assert (
        metrics["precision_at_radius_2"] == metrics["curve"]["precision"][1] == pytest.approx(metrics["relevant_share"])
    )
