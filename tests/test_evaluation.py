"""Evaluation of code tables against naive loops: no query finds itself, and a class is its name."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import distilhash
from distilhash import cli
from distilhash.codes import CodeTable, pack
from distilhash.errors import DistilhashError
from distilhash.evaluation.metrics import RANKS, evaluate_tables

NAMES = ("bee", "cat", "dog")


def table(contents, seed=0, bits=3, labels=None, class_names=NAMES, digests=True, names=None) -> CodeTable:
    """Codes of images that are numbers: equal numbers, equal content, equal code."""
    contents = np.asarray(contents)
    codes = np.random.default_rng(seed).choice([-1, 1], (100, bits))[contents]
    return CodeTable(
        pack(codes), bits, names or [f"{i}.jpg" for i in range(len(contents))],
        labels=contents % len(NAMES) if labels is None else np.asarray(labels),
        digests=np.repeat(contents.astype(np.uint8)[:, None], 16, axis=1) if digests else None,
        class_names=class_names,
    )  # fmt: skip


def average_precision(relevant, at):
    hits = [rank for rank, good in enumerate(relevant[:at], start=1) if good]
    return sum(i / rank for i, rank in enumerate(hits, start=1)) / len(hits) if hits else 0.0


def naive(query_contents, database_contents, query, database, relevant, at):
    """The metrics by loops over every order of the images that are not the query."""
    distances = [[int(np.bitwise_count(q ^ d).sum()) for d in database.packed] for q in query.packed]
    expected, stable, pairs, without, precision_2, first = [], [], [], 0, [], []
    for q, content in enumerate(query_contents):
        others = [d for d, other in enumerate(database_contents) if other != content]
        pairs += [relevant(q, d) for d in others]
        without += not any(relevant(q, d) for d in others)
        orders = [
            [relevant(q, d) for d in sorted(order, key=lambda d, q=q: distances[q][d])]
            for order in itertools.permutations(others)
        ]
        expected.append(np.mean([average_precision(order, at) for order in orders]))
        stable.append(average_precision(orders[0], at))
        first.append(np.mean([order[0] for order in orders]))
        ball = [relevant(q, d) for d in others if distances[q][d] <= 2]
        precision_2.append(np.mean(ball) if ball else 0)
    return {
        f"map_at_{at}": np.mean(expected), f"stable_map_at_{at}": np.mean(stable), "relevant_share": np.mean(pairs),
        "queries_without_relevant": without, "precision_at_radius_2": np.mean(precision_2), "first": np.mean(first),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "database", "inside"),
    [
        ([1, 2, 3, 4, 6, 7], [1, 2, 3, 4, 6, 7], 6),
        ([1, 4, 7, 4, 2, 5], [1, 4, 7, 4, 2, 5], 6),  # a picture that is there twice finds neither of both
        ([1, 2, 3], [6, 5, 4, 3, 2, 1], 3),  # queries that are a part of what is searched
        ([1, 2, 8], [1, 3, 4, 5, 6, 7], 1),
        ([0, 10, 11], [12, 13, 14, 15, 4, 5], 0),
        ([1, 3, 6], [3, 6, 4, 7, 9], 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("at", [3, 1000])
def test_no_query_finds_itself(query, database, inside, at):
    tables = table(query), table(database)
    found = evaluate_tables(*tables, at=at)
    expected = naive(query, database, *tables, lambda q, d: query[q] % 3 == database[d] % 3, at)
    first = expected.pop("first")
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found["curve"]["precision_at_n"][0] == pytest.approx(first, abs=1e-12)
    assert (found["leave_one_out"], found["queries_in_database"]) == (inside == len(query), inside)


def test_leave_one_out_of_many_images_is_a_loop_over_the_others():
    """Long enough for the counting of pairs of distances, and for every rank of the curve."""
    rng = np.random.default_rng(5)
    contents = np.concatenate([np.arange(900), rng.integers(0, 900, 100)])  # some are there twice
    labels = rng.integers(0, 3, 900)[contents]
    codes = np.random.default_rng(1).choice([-1, 1], (900, 5))[contents]
    digests = np.zeros((1000, 16), np.uint8)
    digests[:, 12:] = contents.astype(np.uint32).view(np.uint8).reshape(-1, 4)
    whole = CodeTable(pack(codes), 5, [str(i) for i in range(1000)], labels, digests=digests, class_names=NAMES)
    found = evaluate_tables(whole, whole, at=50)
    single = []
    for q in range(0, 1000, 50):
        kept = np.flatnonzero(contents != contents[q])
        rest = CodeTable(
            whole.packed[kept], 5, [str(i) for i in kept], labels[kept], digests=digests[kept], class_names=NAMES
        )
        asked = CodeTable(whole.packed[[q]], 5, ["q"], labels[[q]], digests=digests[[q]] ^ 255, class_names=NAMES)
        one = CodeTable(whole.packed[[q]], 5, ["q"], labels[[q]], digests=digests[[q]], class_names=NAMES)
        inside, outside = evaluate_tables(one, whole, at=50), evaluate_tables(asked, rest, at=50)
        for name in ("map_at_all", "map_at_50", "stable_map_at_all", "precision_at_radius_2", "relevant_share"):
            assert inside[name] == pytest.approx(outside[name], abs=1e-12), name
        assert inside["curve"] == {name: pytest.approx(line) for name, line in outside["curve"].items()}
        single.append(outside["map_at_all"])
    assert found["map_at_all"] == pytest.approx(np.mean(single), abs=0.05)
    assert found["curve"]["n"] == [rank for rank in RANKS if rank <= 998]


def test_equal_names_are_not_equal_images():
    """Two cameras both call their first picture IMG_0001."""
    found = evaluate_tables(table([1, 2, 3]), table([4, 5, 6, 7]))
    assert (found["queries_in_database"], found["leave_one_out"]) == (0, False)


def test_a_query_alone_in_the_database_is_refused():
    with pytest.raises(DistilhashError, match="1 images"):
        evaluate_tables(table([4]), table([4]))


def test_tables_without_digests_are_told_apart_by_names_or_refused():
    bare = [table(contents, digests=False) for contents in ([1, 2, 3, 4], [5, 6, 7, 8])]
    with pytest.raises(DistilhashError, match=r"4 names .* 0\.jpg"):
        evaluate_tables(*bare)
    with pytest.raises(DistilhashError, match="4 names"):
        evaluate_tables(table([1, 2, 3, 4]), bare[1])
    other = table([5, 6, 7, 8], digests=False, names=list("abcd"))
    assert evaluate_tables(bare[0], other)["queries_in_database"] == 0
    alone = evaluate_tables(bare[0], bare[0])
    assert alone == evaluate_tables(*[table([1, 2, 3, 4])] * 2)
    assert alone["leave_one_out"]


@pytest.mark.parametrize("several", [(), (0,), (1,), (0, 1)], ids=str)
def test_classes_are_matched_by_name(several):
    """The query's classes are cat and dog, the database's bee, cat, dog and elk: the numbers differ."""
    rng = np.random.default_rng(2)
    classes = [("cat", "dog"), ("bee", "cat", "dog", "elk")]
    held = [[{"cat"}, {"dog"}, {"dog"}], [{"bee"}, {"cat"}, {"dog"}, {"elk"}, {"dog"}, {"cat"}]]
    for side in several:
        held[side][1] = held[side][1] | {"cat"}
    tables = []
    for side, (names, sets) in enumerate(zip(classes, held, strict=True)):
        labels = np.array([[name in chosen for name in names] for chosen in sets], np.uint8)
        labels = labels if side in several else labels.argmax(axis=1)
        codes, file_names = rng.choice([-1, 1], (len(sets), 3)), [f"{side}{i}" for i in range(len(sets))]
        tables.append(CodeTable(pack(codes), 3, file_names, labels, class_names=names))
    found = evaluate_tables(*tables, at=100)
    expected = naive([-1, -2, -3], range(6), *tables, lambda q, d: bool(held[0][q] & held[1][d]), 100)
    del expected["first"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert (found["only_in_query"], found["only_in_database"]) == ([], ["bee", "elk"])


def test_classes_that_do_not_match_are_told_or_refused():
    found = evaluate_tables(table([0, 1, 2]), table([3, 4, 5], class_names=("bee", "cats", "dogs")))
    assert (found["only_in_query"], found["only_in_database"]) == (["cat", "dog"], ["cats", "dogs"])
    assert found["queries_without_relevant"] == 2
    with pytest.raises(DistilhashError, match="bee, cat, dog and bees, cats, dogs"):
        evaluate_tables(table([0, 1, 2]), table([3, 4, 5], class_names=("bees", "cats", "dogs")))
    with pytest.raises(DistilhashError, match="class in common; got bee and cat"):  # names alone are no images
        evaluate_tables(table([0, 3]), table([1, 4]))
    with pytest.raises(DistilhashError, match="got database"):
        evaluate_tables(table([0, 1, 2]), table([3, 4, 5], class_names=()))
    numbers = evaluate_tables(table([0, 1, 2], class_names=()), table([3, 4, 5], class_names=()))
    assert numbers["queries_without_relevant"] == 0
    for names in (("bee", "cat"), ("bee", "bee", "cat")):
        with pytest.raises(DistilhashError, match="class"):
            table([0, 1, 2], class_names=names)


def test_a_table_keeps_digests_and_class_names_and_older_files_have_none(tmp_path):
    made = table([1, 2, 3])
    made.save(tmp_path / "codes")
    read = CodeTable.load(tmp_path / "codes")
    assert np.array_equal(read.digests, made.digests) and tuple(read.class_names) == NAMES
    with safetensors.safe_open(tmp_path / "codes", framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in set(file.keys()) - {"digests"}}
        header = json.loads(file.metadata()["distilhash"])
    for names in ('["a"', '"abc"', "[1, 2, 3]", '["bee"]'):
        held = {"distilhash": json.dumps(header | {"class_names": names})}
        (tmp_path / "damaged").write_bytes(safetensors.numpy.save(tensors, held))
        with pytest.raises(DistilhashError, match="not a code table"):
            CodeTable.load(tmp_path / "damaged")
    del header["class_names"]
    (tmp_path / "old").write_bytes(safetensors.numpy.save(tensors, {"distilhash": json.dumps(header)}))
    old = CodeTable.load(tmp_path / "old")
    assert old.digests is None and not len(old.class_names)
    assert evaluate_tables(old, old)["map_at_all"] == evaluate_tables(made, made)["map_at_all"]
    for wrong in (np.zeros((3, 8), np.uint8), np.zeros((2, 16), np.uint8), np.zeros((3, 16), np.int8)):
        with pytest.raises(DistilhashError, match="digest"):
            CodeTable(made.packed, 3, made.names, digests=wrong)


@pytest.fixture
def two_folders(here):
    """A folder of queries and a gallery of one's own: equal names, other classes, and one picture in both."""
    rng = np.random.default_rng(3)
    for folder, classes in (("queries", ("cat", "dog")), ("gallery", ("ant", "cat", "dog"))):
        for name in classes:
            (here / folder / name).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(here / folder / name / f"{number}.png")
    shutil.copy(here / "queries/dog/0.png", here / "gallery/dog/copy.png")
    return here


def test_folders_of_ones_own_are_evaluated(two_folders, capsys):
    for folder in ("queries", "gallery"):
        assert cli.main(["encode", "hasher", folder, "--output", f"{folder}.codes"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "queries.codes", "gallery.codes", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert {name: found[name] for name in ("queries", "database", "queries_in_database", "leave_one_out")} == {
        "queries": 6, "database": 10, "queries_in_database": 1, "leave_one_out": False
    }  # fmt: skip
    assert found["only_in_database"] == ["ant"] and "ant" in err
    # Of each of five queries of a class with m images in the gallery, one of which may be itself.
    assert found["relevant_share"] == pytest.approx((3 * 3 + 2 * 4 + 3) / (5 * 10 + 9))
    assert cli.main(["evaluate", "gallery.codes", "gallery.codes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shutil.rmtree("queries/cat")  # queries of one class
    assert cli.main(["encode", "hasher", "queries", "--output", "one.codes"]) == 0
    assert cli.main(["evaluate", "one.codes", "gallery.codes"]) == 0
    out = capsys.readouterr().out
    facts = dict(line.split(None, 1) for line in out[out.index("queries") :].splitlines())
    assert (facts["only_in_query"], facts["only_in_database"]) == ("none", "ant, cat")
    assert float(facts["relevant_share"]) == pytest.approx((4 + 4 + 3) / 29, abs=1e-4)
    assert found["leave_one_out"] and found["queries_in_database"] == 10
    assert found["relevant_share"] == pytest.approx((3 * 2 + 3 * 2 + 4 * 3) / 90)


@pytest.mark.parametrize("several", [False, True])
def test_every_class_and_query_is_told(tmp_path, several):
    queries, database = np.arange(0, 9), np.arange(3, 40)
    both = [np.eye(3, dtype=np.uint8)[numbers % 3] for numbers in (queries, database)]
    for labels in both:
        labels[::2, 0] = 1
    tables = [
        table(numbers, bits=5, labels=labels if several else None)
        for numbers, labels in zip((queries, database), both, strict=True)
    ]
    for name, saved in zip("qd", tables, strict=True):
        saved.save(tmp_path / name)
    found = distilhash.evaluate(tmp_path / "q", tmp_path / "d")
    alone = []  # each query as a table of its own
    for i in queries:
        one = table([i], bits=5, labels=both[0][i : i + 1] if several else None)
        alone.append(evaluate_tables(one, tables[1])["map_at_all"])
    assert found.average_precision == pytest.approx(alone)
    of = {name: [i for i in queries if (both[0][i, c] if several else i % 3 == c)] for c, name in enumerate(NAMES)}
    assert found.per_class == pytest.approx({name: np.mean([alone[i] for i in of[name]]) for name in NAMES})
    assert found.worst(3) == sorted(((f"{i}.jpg", alone[i]) for i in queries), key=lambda row: row[1])[:3]
    assert found["map_at_all"] == pytest.approx(np.mean(alone)) and json.loads(json.dumps(found)) == found
    (line,) = found.plot().axes[0].lines
    assert line.get_xdata().tolist() == found.curve["recall"] and len(found.curve["recall"]) == 6
    assert line.get_ydata().tolist() == found.curve["precision"]
