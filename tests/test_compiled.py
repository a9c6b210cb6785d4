"""The compiled loop counts what NumPy's does, and is used only once it is worth it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from distilhash.evaluation import compiled
from distilhash.evaluation.counting import Retrieval
from distilhash.evaluation.metrics import mean_average_precision


def drawn(seed, bits, classes, multi_label, queries=7, database=4999):
    draw = np.random.default_rng(seed)
    codes = [draw.choice([-1, 1], (count, bits)) for count in (queries, database)]
    if multi_label:
        labels = [draw.integers(0, 10, (count, classes)) == 0 for count in (queries, database)]
        return *codes, *(label.astype(np.uint8) for label in labels)
    return *codes, *(draw.integers(-1, classes, count) for count in (queries, database))


@pytest.mark.parametrize("bits", [1, 16, 63, 64, 65, 130, 300])
@pytest.mark.parametrize(("classes", "multi_label"), [(3, False), (1000, False), (21, True), (70, True)])
def test_counts_are_equal(monkeypatch, bits, classes, multi_label):
    arrays = drawn(bits, bits, classes, multi_label)
    found = []
    for loop in (lambda pairs: None, lambda pairs: compiled.compiled()):
        monkeypatch.setattr("distilhash.evaluation.counting.kernel", loop)
        monkeypatch.setattr("distilhash.evaluation.counting.BLOCK", 4)
        found.append([np.array(counts) for counts in Retrieval.checked(*arrays, None).counts()])
    plain, fast = found
    assert len(plain) == len(fast) == 2
    assert all(np.array_equal(a, b) for a, b in zip(plain, fast, strict=True))
    assert all(counts[1].sum() > 0 for counts in plain)


def test_a_process_compiles_when_it_has_counted_enough(monkeypatch):
    monkeypatch.setattr(compiled, "_counted", [])
    monkeypatch.setattr(compiled, "WORTH", 2.5 * 7 * 4999)
    monkeypatch.setattr(compiled, "compiled", lambda: calls.append(1))
    calls = []
    for expected in (0, 0, 1):
        mean_average_precision(*drawn(0, 8, 3, False))
        assert len(calls) == expected


def test_where_numba_cannot_be_loaded_numpy_counts(monkeypatch):
    monkeypatch.setattr(compiled, "WORTH", 0)
    monkeypatch.setattr(compiled, "compiled", compiled.compiled.__wrapped__)
    assert compiled.kernel(1) is not None
    monkeypatch.setitem(sys.modules, "numba", None)
    assert compiled.kernel(1) is None
