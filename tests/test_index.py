"""Index against a plain loop over all codes: random codes with many ties and duplicates, in memory and in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from distilhash.codes import pack
from distilhash.errors import DistilhashError
from distilhash.retrieval import Index, backends


def drawn(draw, count: int, bits: int, tied: bool = True):
    """-1/+1 codes; tied: of few different values, so that nearly every distance is one of several codes'."""
    if not tied:
        return draw.choice([-1, 1], (count, bits))
    few = draw.choice([-1, 1], (max(1, count // 6), bits))
    codes = few[draw.integers(len(few), size=count)]
    codes[draw.random(codes.shape) < 0.05] *= -1
    return codes


def plain_search(held: dict[int, np.ndarray], queries, top: int):
    """Ids and distances, one code and one query after the other."""
    ids, distances = np.full((len(queries), top), -1), np.full((len(queries), top), -1)
    for row, query in enumerate(queries):
        ranked = sorted((int((code != query).sum()), number) for number, code in held.items())[:top]
        for column, (distance, number) in enumerate(ranked):
            ids[row, column], distances[row, column] = number, distance
    return ids, distances


def plain_radius(held, queries, radius: int):
    answers = []
    for query in queries:
        ranked = sorted((int((code != query).sum()), number) for number, code in held.items())
        answers.append([(number, distance) for distance, number in ranked if distance <= radius])
    return answers


def same(index: Index, held: dict[int, np.ndarray], queries) -> None:
    for top in (1, 7, 1000):
        ids, distances = index.search(queries, top)
        assert (ids.dtype, distances.dtype) == (np.int64, np.int32)
        expected = plain_search(held, queries, top)
        assert np.array_equal(ids, expected[0]) and np.array_equal(distances, expected[1])
    for radius in (0, 3, queries.shape[1] // 2):
        found = [list(zip(ids.tolist(), away.tolist(), strict=True)) for ids, away in index.radius(queries, radius)]
        assert found == plain_radius(held, queries, radius)
    assert len(index) == len(held)
    assert index.ids.tolist() == sorted(held)


@pytest.fixture(params=["faiss", "numpy"])
def either(request, monkeypatch):
    """FAISS, and what takes its place."""
    if request.param == "numpy":
        monkeypatch.setattr(backends, "keeps_order", lambda: False)
    else:
        monkeypatch.setattr(backends, "_FEW", 0)
        assert backends.keeps_order()
    return request.param


@pytest.mark.parametrize("bits", [1, 12, 64, 100, 300])
@pytest.mark.parametrize("place", ["memory", "file"])
def test_random_changes_leave_what_a_plain_loop_finds(bits, place, either, tmp_path):
    draw = np.random.default_rng(bits)
    path = ":memory:" if place == "memory" else tmp_path / "index"
    pool, held = list(draw.permutation(400) * 3), dict[int, np.ndarray]()
    queries = drawn(draw, 5, bits)
    index = Index.open(path)
    for step in range(6):
        new = np.array([pool.pop() for _ in range(draw.integers(1, 60))])
        codes = drawn(draw, len(new), bits)
        index.add(new, codes if step % 2 else pack(codes) if index.num_bits else codes)
        held |= dict(zip(new.tolist(), codes, strict=True))
        gone = draw.choice(sorted(held), draw.integers(0, len(held) // 2 + 1), replace=False)
        index.remove(gone)
        pool += gone.tolist()  # and may come back with another code
        for number in gone.tolist():
            del held[number]
        if place == "file" and step == 3:
            index.close()
            index = Index.open(path)
        same(index, held, np.concatenate([queries, codes[:2]]))
    assert index.num_bits == bits
    assert np.array_equal(index.codes_of(sorted(held)), pack(np.stack([held[number] for number in sorted(held)])))
    index.close()


def test_ties_at_the_last_place_go_to_the_lowest_ids_among_very_many(either):
    """More than one block of FAISS's scan, every code one of four."""
    draw = np.random.default_rng(0)
    four = np.array([[0] * 8, [1] * 8, [3] * 8, [255] * 8], np.uint8)
    which = draw.integers(1, 4, 150_000)
    which[[149_999, 70_000]] = 0
    with Index.open(":memory:", num_bits=64) as index:
        index.add(np.arange(150_000), four[which])
        ids, distances = index.search(four[:1], 12)
    ones = np.flatnonzero(which == 1)[:10]
    assert ids[0].tolist() == [70_000, 149_999, *ones]
    assert distances[0].tolist() == [0, 0] + [8] * 10


def test_an_empty_index_answers_with_nothing(either, tmp_path):
    for path in (":memory:", tmp_path / "none"):
        with Index.open(path, num_bits=10) as index:
            ids, distances = index.search(np.ones((2, 10)), top=3)
            assert (ids == -1).all() and (distances == -1).all() and ids.shape == (2, 3)
            assert [len(found[0]) for found in index.radius(np.ones((2, 10)), 10)] == [0, 0]
            assert len(index) == 0
            index.add([], np.empty((0, 10)))
            assert index.search(np.empty((0, 10)), top=3)[0].shape == (0, 3)
    with Index.open(":memory:") as index:
        index.add([4], np.ones((1, 5)))
        index.remove([4])
        assert index.search(np.ones((1, 5)))[0].tolist() == [[-1] * 10]
        index.add([4], -np.ones((1, 5)))
        assert index.search(np.ones((1, 5)), 1)[1].tolist() == [[5]]


def test_opening_a_file_alone_makes_none(tmp_path):
    with Index.open(tmp_path / "index", num_bits=8) as index:
        assert len(index) == 0
    assert list(tmp_path.iterdir()) == []
    with Index.open(tmp_path / "index", num_bits=8) as index:
        index.add([1], np.ones((1, 8)))
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


ONE = np.ones((1, 12))
REFUSED = {  # what is done wrong: the call, and a fact in the error
    "id in the index": (lambda index: index.add([8, 3], np.ones((2, 12))), "3"),
    "id twice": (lambda index: index.add([8, 9, 8], np.ones((3, 12))), "8"),
    "more ids than codes": (lambda index: index.add([8, 9], ONE), "2 ids, 1 codes"),
    "negative id": (lambda index: index.add([-1], ONE), "-1"),
    "fractional id": (lambda index: index.add([1.5], ONE), "float64"),
    "codes of 13 bits": (lambda index: index.add([8], np.ones((1, 13))), "13"),
    "codes of zeros": (lambda index: index.add([8], np.zeros((1, 12))), "0.0"),
    "bits beyond 12": (lambda index: index.add([8], np.full((1, 2), 255, np.uint8)), "12"),
    "packed codes of 3 bytes": (lambda index: index.add([8], np.zeros((1, 3), np.uint8)), "3 bytes"),
    "removal of an unknown id": (lambda index: index.remove([3, 7]), "7"),
    "one-dimensional queries": (lambda index: index.search(np.ones(12)), "queries"),
    "top 0": (lambda index: index.search(ONE, top=0), "0"),
    "negative radius": (lambda index: index.radius(ONE, -1), "-1"),
    "code of an unknown id": (lambda index: index.codes_of([70]), "70"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_changes_nothing(mistake, tmp_path):
    call, fact = REFUSED[mistake]
    for path in (":memory:", tmp_path / "index"):
        with Index.open(path) as index:
            index.add([3, 5], np.array([[1] * 12, [-1] * 12]))
            with pytest.raises(DistilhashError) as caught:
                call(index)
            assert fact in str(caught.value)
            assert index.ids.tolist() == [3, 5]
            assert index.search(ONE, 2)[1].tolist() == [[0, 12]]
    with Index.open(tmp_path / "index") as index:
        assert index.ids.tolist() == [3, 5]


def test_what_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(DistilhashError, match=r"hnsw.*auto, exact, ivf"):
        Index.open(":memory:", engine="hnsw")
    with pytest.raises(DistilhashError, match="0"):
        Index.open(":memory:", num_bits=0)
    with Index.open(":memory:") as index, pytest.raises(DistilhashError, match="num_bits="):
        index.add([1], np.zeros((1, 2), np.uint8))
    with Index.open(tmp_path / "index") as index:
        index.add([1], ONE)
    with pytest.raises(DistilhashError, match=r"12 bits.*16"):
        Index.open(tmp_path / "index", num_bits=16)


def test_only_codes_whose_distances_fit_16_bits_are_taken(tmp_path):
    with Index.open(tmp_path / "index") as index:
        with pytest.raises(DistilhashError, match="65536"):
            index.add([1], np.ones((1, 65_536)))
        index.add([1], np.ones((1, 65_535)))
    with pytest.raises(DistilhashError, match="65536"):
        Index.open(tmp_path / "other", num_bits=65_536)
    with Index.open(tmp_path / "index") as index:
        assert index.search(-np.ones((1, 65_535)), 1)[1].tolist() == [[65_535]]


def test_a_closed_index_takes_no_codes_that_would_be_lost(tmp_path):
    index = Index.open(tmp_path / "index")
    index.add([1, 2], np.ones((2, 12)))
    index.close()
    for change in (lambda: index.add([3], ONE), lambda: index.remove([1])):
        with pytest.raises(DistilhashError, match="closed"):
            change()


def test_another_process_is_seen_and_kept_from_writing(tmp_path):
    path = tmp_path / "index"
    script = (
        "import sys, numpy as np; from distilhash.retrieval import Index\n"
        "with Index.open(sys.argv[1]) as index:\n"
        "    index.add([int(sys.argv[2])], np.ones((1, 12)))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def other(number: int) -> str:
        command = [sys.executable, "-c", script, str(path), str(number)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stderr

    with Index.open(path) as reader:
        assert len(reader) == 0
        assert other(5) == ""
        assert reader.ids.tolist() == [5]
        assert other(2) == ""
        assert reader.search(ONE, 3)[0].tolist() == [[2, 5, -1]]
        reader.add([3], ONE)  # and so becomes the writer
        assert "DistilhashError" in other(9)
        assert reader.ids.tolist() == [2, 3, 5]
    script += "    import os; os._exit(0)\n"  # its lock file stays behind, and means nothing
    assert other(9) == "" and other(10) == ""
    assert Path(f"{path}.lock").exists()
    with Index.open(path) as index:
        index.add([11], ONE)
        assert index.ids.tolist() == [2, 3, 5, 9, 10, 11]


def test_many_small_blocks_become_large_ones(tmp_path):
    draw = np.random.default_rng(0)
    codes = drawn(draw, 1100, 16)
    with Index.open(tmp_path / "index") as index:
        index.add([1100], codes[:1])
        index._store._database.execute("PRAGMA synchronous = OFF")  # a thousand commits, and the machine stays up
        for number in range(1100):
            index.add([number], codes[number : number + 1])
        before = index._store.rows("SELECT count(*) FROM log")
        index.remove([0])
        assert before == [(1101,)] and index._store.rows("SELECT count(*) FROM log") == [(1,)]
    with Index.open(tmp_path / "index") as index:
        assert np.array_equal(index.codes_of(np.arange(1, 1101)), pack(np.concatenate([codes[1:], codes[:1]])))


def test_threads_search_while_another_adds():
    draw = np.random.default_rng(0)
    codes = drawn(draw, 4000, 32, tied=False)
    wrong: list[object] = []
    with Index.open(":memory:") as index:
        index.add([0], codes[:1])

        def look() -> None:
            for _ in range(200):
                ids, distances = index.search(codes[:1], 3)
                if ids[0, 0] != 0 or distances[0, 0] != 0:
                    wrong.append(ids)

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        for start in range(1, 4000, 50):
            index.add(np.arange(start, min(start + 50, 4000)), codes[start : start + 50])
        for thread in threads:
            thread.join()
    assert not wrong


class TestIvf:
    """The approximate engine."""

    def test_every_list_probed_is_exact_search(self, monkeypatch):
        monkeypatch.setattr(backends, "LISTS_PER_MILLION", 10_000)
        draw = np.random.default_rng(0)
        codes, held = drawn(draw, 1500, 24), dict[int, np.ndarray]()
        with Index.open(":memory:", engine="ivf") as index:
            index.add(np.arange(0, 2000, 2), codes[:1000])
            held |= dict(zip(range(0, 2000, 2), codes[:1000], strict=True))
            for change in range(3):
                ids, distances = index.search(codes[:6], 9)  # here it has 10 lists, and all are probed
                expected = plain_search(held, codes[:6], 9)
                assert np.array_equal(distances, expected[1])
                assert [len(set(row)) for row in ids.tolist()] == [9] * 6
                for row, code, away in zip(ids.tolist(), codes, distances.tolist(), strict=False):
                    assert [int((held[number] != code).sum()) for number in row] == away
                if change == 0:  # in between and behind
                    index.add(np.arange(1, 1001, 2), codes[1000:])
                    held |= dict(zip(range(1, 1001, 2), codes[1000:], strict=True))
                else:
                    index.remove(np.arange(0, 200, 2) + 200 * change)
                    for number in range(0, 200, 2):
                        del held[number + 200 * change]

    def test_few_probes_find_most(self, monkeypatch):
        monkeypatch.setattr(backends, "LISTS_PER_MILLION", 10_000)
        monkeypatch.setattr(backends, "MIN_NPROBE", 8)
        monkeypatch.setattr(backends, "MIN_RECALL", 0.8)
        codes = drawn(np.random.default_rng(0), 8000, 64)
        with Index.open(":memory:", engine="ivf") as index, Index.open(":memory:") as exact:
            for each in (index, exact):
                each.add(np.arange(8000), codes)
            found, all_found = index.search(codes[:50], 5)[1], exact.search(codes[:50], 5)[1]
        assert (found[:, 0] == 0).all()
        assert 0.8 < (found == all_found).mean() <= 1

    def test_so_many_lists_are_probed_that_a_sample_finds_its_nearest(self, monkeypatch):
        monkeypatch.setattr(backends, "LISTS_PER_MILLION", 10_000)
        monkeypatch.setattr(backends, "MIN_NPROBE", 1)
        draw = np.random.default_rng(0)
        clustered = draw.choice([-1, 1], (40, 64))[draw.integers(40, size=6000)]  # copies of forty codes
        scattered = draw.choice([-1, 1], (6000, 64))
        probed = {}
        for name, codes in (("clustered", clustered), ("scattered", scattered)):
            monkeypatch.setattr(backends, "EXACT_UP_TO", 100)
            with Index.open(":memory:") as index, Index.open(":memory:", engine="exact") as exact:
                for each in (index, exact):
                    each.add(np.arange(6000), codes)
                found, expected = index.search(codes[:200])[1], exact.search(codes[:200])[1]
                probed[name] = index._ivf.nprobe
                assert index._ivf.faster_than_exact == (name == "clustered")
            assert np.mean(found <= expected[:, -1:]) >= 0.999
        assert probed["clustered"] <= 2
        assert probed["scattered"] > 30

    def test_the_file_of_lists_is_used_only_for_its_own_codes(self, tmp_path, monkeypatch):
        path, saved = tmp_path / "index", tmp_path / "index.ivf"
        codes = drawn(np.random.default_rng(0), 300, 16)
        trained: list[int] = []
        train = backends.Ivf.train

        def counted(ids_B, codes_BP):
            trained.append(len(codes_BP))
            return train(ids_B, codes_BP)

        monkeypatch.setattr(backends.Ivf, "train", counted)

        def opened() -> list[int]:
            trained.clear()
            with Index.open(path, engine="ivf") as index:
                index.search(codes[:2])
            return list(trained)

        with Index.open(path) as index:
            index.add(np.arange(300), codes)
        assert opened() == [300]
        assert opened() == []
        with Index.open(path, engine="ivf") as index:
            index.search(codes[:2])
            index.remove([5])  # the lists follow, and are saved on closing
        assert opened() == []
        with Index.open(path) as index:  # behind their back
            index.add([5], codes[:1])
        assert opened() == [300]
        sound = saved.read_bytes()
        float8 = json.dumps({"centroids": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
        float8 = len(float8).to_bytes(8, "little") + float8 + b"x"
        for damaged in (b"", float8, sound[:-1], sound[:-4] + b"\xff\xff\xff\x7f", b"x" * len(sound)):
            saved.write_bytes(damaged)
            assert opened() == [300]
            assert Path(saved).read_bytes() == sound

    def test_many_codes_go_into_lists_by_themselves(self, monkeypatch):
        monkeypatch.setattr(backends, "EXACT_UP_TO", 100)
        monkeypatch.setattr(backends, "MAX_PROBED_SHARE", 1)
        codes = drawn(np.random.default_rng(0), 120, 16)
        with Index.open(":memory:") as index:
            index.add(np.arange(100), codes[:100])
            index.search(codes[:1])
            assert index._ivf is None
            index.add(np.arange(100, 120), codes[100:])
            assert index.search(codes[:1], 1)[1].tolist() == [[0]]
            assert index._ivf is not None
