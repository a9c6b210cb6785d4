"""Retrieval metrics against full enumeration, plain loops, exact fractions and the published code's numbers."""

import itertools
import json
import math
import tracemalloc
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from distilhash.codes import CodeTable, hamming, pack
from distilhash.errors import DistilhashError
from distilhash.evaluation import (
    average_precision,
    mean_average_precision,
    precision_at,
    precision_recall,
    relevant_share,
)
from distilhash.evaluation import counts as counting
from distilhash.evaluation.metrics import RANKS, evaluate_tables
from distilhash.evaluation.ties import _hypergeometric, _sums, expected_average_precision

PARITY = json.loads((Path(__file__).parent / "data" / "metrics_parity.json").read_text())["metrics"]
DENOMINATORS = ("found", "relevant")


def naive_ap(relevance, at, denominator):
    """The definition, rank by rank."""
    total, found = 0.0, 0
    for rank, is_relevant in enumerate(relevance[:at], start=1):
        if is_relevant:
            found += 1
            total += found / rank
    possible = sum(relevance) if at is None else min(at, sum(relevance))
    divisor = found if denominator == "found" else possible
    return total / divisor if found else 0.0


def shared(query_labels, database_labels):
    """(Q, B) relevance, pair by pair."""
    if query_labels.ndim == 1:
        return np.array([[q == d for d in database_labels] for q in query_labels])
    return np.array([[any(a and b for a, b in zip(q, d, strict=True)) for d in database_labels] for q in query_labels])


def all_orders(distances, relevance):
    """Every ranking that sorts by distance, as a sequence of relevance, with how many orders of ties give it."""
    groups = [relevance[distances == distance].tolist() for distance in np.unique(distances)]
    return Counter(
        tuple(itertools.chain(*parts)) for parts in itertools.product(*(itertools.permutations(g) for g in groups))
    )


def case(seed, queries=3, database=6, bits=2, multi_label=False):
    """A small problem full of ties; the last query is relevant to nothing."""
    rng = np.random.default_rng(seed)
    codes = [rng.choice([-1, 1], (count, bits)) for count in (queries, database)]
    if multi_label:
        labels = [rng.integers(0, 2, (count, 3)) for count in (queries, database)]
        labels[0][-1] = 0
    else:
        labels = [rng.integers(0, 2, count) for count in (queries, database)]
        labels[0][-1] = 7
    return (*codes, *labels)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_expected_ap_is_the_mean_over_all_orders_of_ties(bits, multi_label):
    cuts_inside_a_group = 0
    for seed in range(15):
        arrays = case(seed, bits=bits, multi_label=multi_label)
        distances, relevance = hamming(*arrays[:2]), shared(*arrays[2:])
        for at, denominator in itertools.product([None, 1, 2, 3, 4, 5, 6, 7], DENOMINATORS):
            expected = []
            for distance_B, relevance_B in zip(distances, relevance, strict=True):
                orders = all_orders(distance_B, relevance_B)
                total = math.fsum(count * naive_ap(order, at, denominator) for order, count in orders.items())
                expected.append(total / orders.total())
                ranked = np.sort(distance_B)
                cuts_inside_a_group += at is not None and at < 6 and ranked[at - 1] == ranked[at]
            scores = average_precision(*arrays, at=at, denominator=denominator)
            np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-12)
            assert scores[-1] == 0  # no relevant image at all
            mean = mean_average_precision(*arrays, at, "expected", denominator=denominator)
            assert mean == pytest.approx(np.mean(expected), abs=1e-12)
    assert cuts_inside_a_group > 100


def drawn_in_turn(items_T, relevant_T, depth, denominator):
    """Expected AP by walking down the ranking: the probability of each number found, and the sum of precisions there.

    Draws without replacement inside each tie group; no closed form, so an oracle at sizes beyond enumeration.
    """
    probability, total = {0: Fraction(1)}, {0: Fraction(0)}
    rank = 0
    for items, relevant in zip(items_T.tolist(), relevant_T.tolist(), strict=True):
        before = rank
        # How many were found before this group stays in the state: it says how many relevant ones the group has left.
        states = {(found, found): (p, total[found]) for found, p in probability.items()}
        for drawn in range(min(items, depth - before)):
            rank += 1
            following: dict[tuple[int, int], tuple[Fraction, Fraction]] = {}
            for (found, origin), (p, t) in states.items():
                chance = Fraction(relevant - (found - origin), items - drawn)
                for step, weight in ((1, chance), (0, 1 - chance)):
                    if weight:
                        gain = step * Fraction(found + 1, rank)
                        old_p, old_t = following.get((found + step, origin), (Fraction(0), Fraction(0)))
                        following[found + step, origin] = (old_p + weight * p, old_t + weight * (t + gain * p))
            states = following
        probability, total = {}, {}
        for (found, _), (p, t) in states.items():
            probability[found] = probability.get(found, Fraction(0)) + p
            total[found] = total.get(found, Fraction(0)) + t
        if rank == depth:
            break
    possible = min(depth, int(relevant_T.sum()))
    return float(sum(t / (found if denominator == "found" else possible) for found, t in total.items() if found))


@pytest.mark.parametrize(
    ("items", "relevant"),
    [([60, 1, 0, 90], [7, 1, 0, 20]), ([5, 140], [0, 3]), ([30, 40, 50], [30, 0, 49]), ([3, 0, 100], [2, 0, 99])],
)
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_expected_ap_of_larger_groups_is_exact(items, relevant, denominator):
    items_T, relevant_T = np.array(items), np.array(relevant)
    for depth in (1, 4, 5, 33, 61, 70, 100):
        ours = expected_average_precision(items_T[None], relevant_T[None], depth, denominator)
        assert ours[0] == pytest.approx(drawn_in_turn(items_T, relevant_T, depth, denominator), rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("items", "relevant", "drawn"),
    [(10, 4, 5), (54000, 5400, 3000), (54000, 27000, 27000), (54000, 53999, 10), (7, 7, 3)],
)
def test_hypergeometric_probabilities(items, relevant, drawn):
    h, probability = _hypergeometric(items, relevant, drawn)
    assert (h[0], h[-1]) == (max(0, drawn + relevant - items), min(drawn, relevant))
    whole = math.comb(items, drawn)
    near = np.argsort(-probability)[:20]
    for k, p in zip(h[near].tolist(), probability[near], strict=True):
        exact = Fraction(math.comb(relevant, k) * math.comb(items - relevant, drawn - k), whole)
        assert p == pytest.approx(float(exact), rel=1e-11)
    assert probability @ h == pytest.approx(drawn * relevant / items, rel=1e-12)


def test_sums_of_a_group_keep_their_digits_deep_in_a_large_database():
    before = np.array([0, 0, 0, 3, 63, 64, 65, 1000, 54_000, 10_000_000])
    taken = np.array([1, 64, 65, 200, 2, 1, 3, 2, 2, 2])
    first, rise = _sums(before, taken)
    for n0, m, s, t in zip(before.tolist(), taken.tolist(), first, rise, strict=True):
        assert s == pytest.approx(math.fsum(1 / (n0 + i) for i in range(1, m + 1)), rel=2e-15)
        assert t == pytest.approx(math.fsum((i - 1) / (n0 + i) for i in range(1, m + 1)), rel=1e-7, abs=1e-15)


def test_expected_ap_of_a_pair_at_the_end_of_a_large_database():
    items_T, relevant_T = np.array([1_000_000, 2]), np.array([0, 2])
    exact = (Fraction(1, 1_000_001) + Fraction(2, 1_000_002)) / 2
    assert expected_average_precision(items_T[None], relevant_T[None], 1_000_002)[0] == pytest.approx(
        float(exact), rel=1e-9
    )


@pytest.mark.parametrize("bits", [1, 8, 16, 63, 64, 65, 130, 300])
@pytest.mark.parametrize("multi_label", [False, True])
def test_stable_ap_is_the_plain_loop_over_a_stable_sort(bits, multi_label):
    arrays = case(bits, queries=6, database=80, bits=bits, multi_label=multi_label)
    distances, relevance = hamming(*arrays[:2]), shared(*arrays[2:])
    packed = (pack(arrays[0]), pack(arrays[1]), *arrays[2:])
    for at, denominator in itertools.product([None, 1, 7, 40, 80, 1000], DENOMINATORS):
        expected = [
            naive_ap(r[np.argsort(d, kind="stable")].tolist(), at, denominator)
            for d, r in zip(distances, relevance, strict=True)
        ]
        options = {"at": at, "ties": "stable", "denominator": denominator}
        np.testing.assert_allclose(average_precision(*arrays, **options), expected, rtol=4e-16 * 80, atol=0)
        np.testing.assert_array_equal(
            average_precision(*packed, **options, num_bits=bits), average_precision(*arrays, **options)
        )
        expected_ties = {**options, "ties": "expected"}
        np.testing.assert_array_equal(
            average_precision(*packed, **expected_ties, num_bits=bits), average_precision(*arrays, **expected_ties)
        )


def test_one_hot_labels_are_the_same_question_as_classes():
    query, database, query_labels, database_labels = case(5, queries=8, database=50, bits=6)
    one_hot = np.eye(8, dtype=np.float32)
    for ties in ("expected", "stable"):
        np.testing.assert_array_equal(
            average_precision(query, database, one_hot[query_labels], one_hot[database_labels], 20, ties),
            average_precision(query, database, query_labels, database_labels, 20, ties),
        )


def test_more_than_64_classes_do_not_run_together():
    rng = np.random.default_rng(0)
    labels = [(rng.random((count, 150)) < 0.01).astype(np.uint8) for count in (20, 60)]
    codes = [rng.choice([-1, 1], (count, 9)) for count in (20, 60)]
    relevance = shared(*labels)
    expected = [
        naive_ap(r[np.argsort(d, kind="stable")].tolist(), None, "found")
        for d, r in zip(hamming(*codes), relevance, strict=True)
    ]
    assert 0 < relevance.mean() < 1
    np.testing.assert_allclose(average_precision(*codes, *labels, ties="stable"), expected, rtol=1e-13)


def test_a_collapsed_hasher_scores_the_prior_of_its_classes_whatever_the_order():
    """All N codes equal, R relevant: E[AP] = (H_N + (R - 1) / (N - 1) (N - H_N)) / N, about the prior R / N."""
    rng = np.random.default_rng(0)
    N = 300
    database_labels = np.repeat([0, 1, 2], [30, 90, 180])
    harmonic = sum(Fraction(1, i) for i in range(1, N + 1))
    codes = np.ones((N, 16), np.int8)
    for label, R in ((0, 30), (1, 90), (2, 180)):
        exact = float((harmonic + Fraction(R - 1, N - 1) * (N - harmonic)) / N)
        assert abs(exact - R / N) < (math.log(N) + 1) / N
        scores = [
            mean_average_precision(codes[:1], codes, [label], database_labels[order])
            for order in (np.arange(N), np.arange(N)[::-1], rng.permutation(N))
        ]
        assert scores[0] == pytest.approx(exact, rel=1e-13)
        assert scores[0] == scores[1] == scores[2]
    by_order = [
        mean_average_precision(codes[:1], codes, [0], labels, ties="stable")
        for labels in (database_labels, database_labels[::-1])
    ]
    assert by_order[0] == 1.0  # what an unlucky order of the database makes of no information at all
    assert by_order[1] < 0.06


def test_expected_metrics_do_not_see_the_order_of_the_database():
    query, database, query_labels, database_labels = case(11, queries=9, database=70, bits=5)
    order = np.random.default_rng(1).permutation(70)
    shuffled = (query, database[order], query_labels, database_labels[order])
    given = (query, database, query_labels, database_labels)
    for at in (None, 10):
        np.testing.assert_array_equal(average_precision(*given, at=at), average_precision(*shuffled, at=at))
    np.testing.assert_array_equal(precision_at(*given, [3, 20]).precision, precision_at(*shuffled, [3, 20]).precision)
    assert mean_average_precision(*given, ties="stable") != mean_average_precision(*shuffled, ties="stable")


@pytest.mark.parametrize("published", PARITY)
def test_the_published_numbers(published):
    """In these ten problems no two of the 40 database images tie, so every order of ties is the published one.

    mAP agrees to 1e-12 under both rules; precision and recall at N were published as float32, and agree to the bit.
    """
    arrays = (
        np.array([published["query"]]),
        np.array(published["database"]),
        np.array(published["query_label"]),
        np.array(published["database_labels"]),
    )
    assert len(np.unique(hamming(*arrays[:2]))) == 40
    ranks = [int(rank) for rank in published["precision_at"]]
    for ties in ("expected", "stable"):
        score = mean_average_precision(*arrays, at=published["topk"], ties=ties)
        assert score == pytest.approx(published["map_at_topk"], abs=1e-12)
        curve = precision_at(*arrays, ranks, ties=ties)
        assert np.float32(curve.precision).tolist() == list(published["precision_at"].values())
        assert np.float32(curve.recall).tolist() == list(published["recall_at"].values())


@pytest.mark.parametrize("multi_label", [False, True])
def test_precision_and_recall_by_radius_are_the_plain_loop(multi_label):
    arrays = case(2, queries=7, database=40, bits=9, multi_label=multi_label)
    distances, relevance = hamming(*arrays[:2]), shared(*arrays[2:])
    curve = precision_recall(*arrays)
    assert curve.radius.tolist() == list(range(10))
    empty_balls = 0
    for radius in range(10):
        precisions, recalls = [], []
        for d, r in zip(distances, relevance, strict=True):
            inside = d <= radius
            empty_balls += not inside.any()
            precisions.append(r[inside].mean() if inside.any() else 0)
            recalls.append(r[inside].sum() / r.sum() if r.any() else 0)
        assert curve.precision[radius] == pytest.approx(np.mean(precisions), abs=1e-14)
        assert curve.recall[radius] == pytest.approx(np.mean(recalls), abs=1e-14)
    assert empty_balls > 3
    packed = (pack(arrays[0]), pack(arrays[1]), *arrays[2:])
    np.testing.assert_array_equal(precision_recall(*packed, num_bits=9).precision, curve.precision)


@pytest.mark.parametrize("bits", [1, 3])
def test_precision_and_recall_at_a_rank(bits):
    arrays = case(4, bits=bits)
    distances, relevance = hamming(*arrays[:2]), shared(*arrays[2:])
    ranks = np.arange(1, 7)
    stable, expected = precision_at(*arrays, ranks, ties="stable"), precision_at(*arrays, ranks)
    for rank in ranks:
        in_order = [r[np.argsort(d, kind="stable")][:rank].sum() for d, r in zip(distances, relevance, strict=True)]
        at_random = []
        for d, r in zip(distances, relevance, strict=True):
            orders = all_orders(d, r)
            at_random.append(sum(count * sum(order[:rank]) for order, count in orders.items()) / orders.total())
        for curve, hits in ((stable, in_order), (expected, at_random)):
            recalls = [h / r.sum() if r.any() else 0 for h, r in zip(hits, relevance, strict=True)]
            assert curve.rank[rank - 1] == rank
            assert curve.precision[rank - 1] == pytest.approx(np.mean(hits) / rank, abs=1e-14)
            assert curve.recall[rank - 1] == pytest.approx(np.mean(recalls), abs=1e-14)


def test_blocks_of_queries_are_one_answer_and_memory_does_not_grow_with_their_number(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 5000)
    codes = rng.integers(0, 256, (5000, 2), np.uint8)
    arguments = (codes[:1500], codes, labels[:1500], labels)
    whole = average_precision(*arguments, at=700, num_bits=16)
    monkeypatch.setattr(counting, "BLOCK", 64)
    tracemalloc.start()
    np.testing.assert_array_equal(average_precision(*arguments, at=700, num_bits=16), whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000  # all distances at once would be 7,500,000 bytes
    assert len(whole) == 1500


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(("bits", "database"), [(1, 6), (16, 2000), (70, 300)])
def test_the_metrics_of_one_scan_are_those_of_each_function(bits, database, multi_label, monkeypatch):
    monkeypatch.setattr(counting, "BLOCK", 3)
    codes = case(bits, queries=8, database=database, bits=bits, multi_label=multi_label)
    query, images = (
        CodeTable(pack(rows), bits, [f"{side}{i}" for i in range(len(rows))], labels.astype(np.uint8))
        for side, rows, labels in zip("qd", codes[:2], codes[2:], strict=True)
    )
    found = evaluate_tables(query, images, at=5)
    expected = {
        "relevant_share": relevant_share(*codes[2:]),
        "precision_at_radius_2": precision_recall(*codes).precision[min(2, bits)],
        "map_at_all": mean_average_precision(*codes),
        "map_at_5": mean_average_precision(*codes, at=5),
        "stable_map_at_all": mean_average_precision(*codes, ties="stable"),
        "stable_map_at_5": mean_average_precision(*codes, at=5, ties="stable"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert (found["queries"], found["database"], found["bits"]) == (8, database, bits)
    ranks = [rank for rank in RANKS if rank <= database]
    assert found["curve"]["n"] == ranks
    assert found["curve"]["precision_at_n"] == pytest.approx(precision_at(*codes, ranks).precision, rel=1e-12)
    by_radius = precision_recall(*codes)
    assert found["curve"]["precision"] == pytest.approx(by_radius.precision, rel=1e-12)
    assert found["curve"]["recall"] == pytest.approx(by_radius.recall, rel=1e-12)


CODES, LABELS = np.array([[1, -1], [1, 1], [-1, 1]]), np.array([0, 1, 0])
MULTI = np.array([[1, 0], [0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_codes": CODES[0]}, r"query_codes must be .* got shape \(2,\)"),
        ({"query_codes": CODES[:, :1]}, "same number of bits; got 2 in database_codes, 1 elsewhere"),
        ({"database_codes": CODES * 2}, r"database_codes must hold -1 and \+1 only; got 2"),
        ({"query_codes": np.sign(CODES - 1)}, r"query_codes must hold -1 and \+1 only; got 0 .*np.where"),
        ({"query_codes": pack(CODES), "database_codes": pack(CODES)}, "packed codes .* pass num_bits="),
        ({"query_codes": pack(CODES), "num_bits": 9}, "9 bits take 2 bytes"),
        ({"query_codes": CODES[:0]}, "there are no query codes"),
        ({"database_codes": CODES[:0]}, "there are no database codes"),
        ({"query_labels": LABELS[:2]}, r"query_labels must have one row a code; got shape \(2,\) for 3 codes"),
        ({"database_labels": [0] * 4}, r"database_labels must have one row a code; got shape \(4,\) for 3 codes"),
        ({"database_labels": 1}, r"database_labels must have one row a code; got shape \(\)"),
        ({"query_labels": MULTI}, r"the same for queries and database; got int64 \(3, 2\) and int64 \(3,\)"),
        ({"query_labels": LABELS / 2}, r"labels must be \(N,\) integer classes"),
        ({"query_labels": MULTI, "database_labels": MULTI * 3}, r"or \(N, C\) of 0/1"),
        ({"query_labels": MULTI, "database_labels": MULTI[:, :1]}, "the same classes; got 2 and 1 columns"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_every_metric(changes, message):
    arguments = {
        "query_codes": CODES,
        "database_codes": CODES,
        "query_labels": LABELS,
        "database_labels": LABELS,
        **changes,
    }
    for metric in (average_precision, mean_average_precision, precision_recall):
        with pytest.raises(DistilhashError, match=message):
            metric(**arguments)
    with pytest.raises(DistilhashError, match=message):
        precision_at(**arguments, ranks=[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ties": "random"}, "unknown ties; got 'random'; choose one of: expected, stable"),
        ({"denominator": "all"}, "unknown denominator; got 'all'; choose one of: found, relevant"),
        ({"at": 0}, "at least 1; got 0; leave it out for all ranks"),
        ({"at": -1}, "at least 1; got -1"),
        ({"at": 2.5}, "at least 1; got 2.5"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(DistilhashError, match=message):
        mean_average_precision(CODES, CODES, LABELS, LABELS, **options)


def test_ranks_outside_the_problem_are_refused():
    arrays = (CODES, CODES, LABELS, LABELS)
    for ranks, message in (
        ([0, 1], "between 1 and the size of the database; got 0 to 1 of 3"),
        ([4], "got 4 to 4 of 3"),
        ([1.5], r"ranks must be a list of integers; got float64 \(1,\)"),
        ([], "ranks must be a list of integers"),
        (3, r"ranks must be a list of integers; got int64 \(\)"),
    ):
        with pytest.raises(DistilhashError, match=message):
            precision_at(*arrays, ranks)
    with pytest.raises(DistilhashError, match="unknown ties; got 'best'"):
        precision_at(*arrays, [1], ties="best")


@pytest.mark.parametrize("makers", [("a", "b"), (["a"], ["b"]), ({}, "b")])
def test_tables_of_different_hashers_are_refused(makers):
    tables = [
        CodeTable(np.zeros((1, 1), np.uint8), 8, [str(i)], np.zeros(1, np.int64), {"hasher": maker})
        for i, maker in enumerate(makers)
    ]
    with pytest.raises(DistilhashError, match="different hashers"):
        evaluate_tables(*tables)
