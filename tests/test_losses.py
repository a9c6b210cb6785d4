"""The losses against the published code's numbers, against loops over the formulas, and at their edges."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distilhash.errors import DistilhashError
from distilhash.losses import (
    bernoulli_centres,
    csq_loss,
    dch_loss,
    distillation_mse,
    hadamard_centres,
    hash_centres,
    multi_label_centres,
    spread_hadamard_centres,
)

PUBLISHED = json.loads((Path(__file__).parent / "data" / "losses.json").read_text())["losses"]
IDS = [f"{case['loss']}-{case['bits']}" for case in PUBLISHED]


def published_loss(case: dict[str, Any], outputs_NK: torch.Tensor) -> torch.Tensor:
    labels_NC = np.array(case["labels"])
    if case["loss"] == "dch":
        return dch_loss(outputs_NK, labels_NC, case["gamma"], case["quantization_weight"])
    centres_CK = hadamard_centres(case["classes"], case["bits"])
    np.testing.assert_array_equal(centres_CK, case["centres"])
    if case["multi_label"]:
        centres_NK = multi_label_centres(labels_NC, centres_CK, tie_break_K=np.array(case["tie_break_centre_01"]))
    else:
        centres_NK = centres_CK[labels_NC.argmax(axis=1)]
    return csq_loss(outputs_NK, centres_NK, case["quantization_weight"])


@pytest.mark.parametrize("case", PUBLISHED, ids=IDS)
def test_published_value_and_gradient(case):
    outputs_NK = torch.tensor(case["u"], requires_grad=True)
    loss = published_loss(case, outputs_NK)
    loss.backward()
    assert loss.item() == pytest.approx(case["value"], abs=1e-6)
    np.testing.assert_allclose(outputs_NK.grad.numpy(), case["grad"], atol=1e-6)


@pytest.mark.parametrize("case", PUBLISHED, ids=IDS)
def test_half_precision_is_computed_in_float32(case):
    outputs_NK = torch.tensor(case["u"]).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = published_loss(case, outputs_NK)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(published_loss(case, outputs_NK.float()).item(), abs=1e-6)


def naive_dch(u, y, gamma, quantization_weight):
    """Eq. 2 and 6 to 9, pair by pair, in Python floats."""
    n, bits = len(u), len(u[0])

    def distance(a, b):
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        cosine = dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))
        return bits / 2 * (1 - min(cosine, 0.99))

    similar = [[any(p and q for p, q in zip(y[i], y[j], strict=True)) for j in range(n)] for i in range(n)]
    counts = {kind: sum(row.count(kind) for row in similar) for kind in (True, False)}
    total = 0.0
    for i, j in itertools.product(range(n), range(n)):
        d = distance(u[i], u[j])
        probability = gamma / (gamma + d)
        likelihood = probability if similar[i][j] else 1 - probability
        total -= n * n / counts[similar[i][j]] * math.log(likelihood)
    quantization = sum(-math.log(gamma / (gamma + distance([abs(p) for p in row], [1.0] * bits))) for row in u)
    return total / n**2 + quantization_weight * quantization / n


@pytest.mark.parametrize("labels", ["some", "all_similar", "none"])
def test_dch_is_its_formula(labels):
    rng = np.random.default_rng(3)
    u_NK = rng.normal(size=(7, 12))
    y_NC = {
        "some": rng.integers(0, 2, size=(7, 4)),
        "all_similar": np.ones((7, 4), dtype=np.int64),
        "none": np.zeros((7, 4), dtype=np.int64),  # no image is similar to any, not even to itself
    }[labels]
    loss = dch_loss(torch.from_numpy(u_NK), torch.from_numpy(y_NC), gamma=5.0, quantization_weight=0.3)
    assert loss.item() == pytest.approx(naive_dch(u_NK.tolist(), y_NC.tolist(), 5.0, 0.3), rel=1e-12)


def test_dch_survives_zero_and_equal_outputs():
    outputs_NK = torch.zeros(4, 8)
    outputs_NK[2:] = 3.0
    outputs_NK.requires_grad_()
    dch_loss(outputs_NK, torch.eye(4)).backward()
    assert torch.isfinite(outputs_NK.grad).all()


def test_csq_is_its_formula():
    rng = np.random.default_rng(4)
    u_NK, centres_NK = rng.normal(size=(5, 6)), rng.choice([-1.0, 1.0], size=(5, 6))
    total = 0.0
    for u, c in zip(u_NK.ravel(), centres_NK.ravel(), strict=True):
        h = (math.tanh(u) + 1) / 2
        total -= math.log(h if c > 0 else 1 - h)
        total += 0.2 * (abs(math.tanh(u)) - 1) ** 2
    loss = csq_loss(torch.from_numpy(u_NK), torch.from_numpy(centres_NK), quantization_weight=0.2)
    assert loss.item() == pytest.approx(total / 30, rel=1e-12)


def test_csq_keeps_the_gradient_of_a_saturated_wrong_bit():
    outputs_NK = torch.full((1, 4), 60.0, requires_grad=True)  # tanh is exactly 1 in float32
    loss = csq_loss(outputs_NK, -torch.ones(1, 4))
    loss.backward()
    assert loss.item() == pytest.approx(120.0)
    np.testing.assert_allclose(outputs_NK.grad.numpy(), 0.5)


def test_distillation_mse_is_its_formula():
    rng = np.random.default_rng(5)
    student_ND, teacher_ND = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    expected = sum((student_ND[n, d] - teacher_ND[n, d]) ** 2 for n in range(3) for d in range(4)) / 12
    student = torch.tensor(student_ND, requires_grad=True)
    loss = distillation_mse(student, torch.from_numpy(teacher_ND))
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), 2 * (student_ND - teacher_ND) / 12, rtol=1e-12)
    assert distillation_mse(torch.ones(2, 3).bfloat16(), torch.zeros(2, 3)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: distillation_mse(torch.ones(2, 3), torch.ones(2, 4)), ["(2, 3)", "(2, 4)"]),
        (lambda: distillation_mse(torch.ones(2, 3, 1), torch.ones(2, 3, 1)), ["(2, 3, 1)"]),
        (lambda: dch_loss(torch.ones(2, 3), torch.ones(3, 4)), ["(2, 3)", "(3, 4)"]),
        (lambda: dch_loss(torch.ones(2, 3), torch.ones(2)), ["(2,)", "one_hot"]),
        (lambda: dch_loss(torch.ones(0, 3), torch.ones(0, 4)), ["(0, 3)"]),
        (lambda: dch_loss(torch.ones(2, 3), torch.ones(2, 4), gamma=0.0), ["gamma 0.0"]),
        (lambda: csq_loss(torch.ones(2, 3), torch.ones(4, 3)), ["(2, 3)", "(4, 3)", "centres_CK[classes]"]),
        (lambda: multi_label_centres(np.ones((2, 3)), np.ones((4, 8))), ["(2, 3)", "(4, 8)"]),
        (lambda: multi_label_centres(np.ones((2, 3)), np.ones((3, 8)), tie_break_K=np.ones(4)), ["8 bits", "(4,)"]),
        (lambda: hadamard_centres(10, 48), ["10 classes and 48 bits", "32 or 64 bits", "bernoulli"]),
        (lambda: hadamard_centres(200, 64), ["200 classes and 64 bits", "128 bits"]),
        (lambda: hash_centres(10, 48, kind="spread"), ["10 classes and 48 bits"]),
        (lambda: hash_centres(10, 64, kind="random"), ["'random'", "auto", "bernoulli", "hadamard", "spread"]),
        (lambda: hash_centres(0, 64), ["0 classes"]),
        (lambda: bernoulli_centres(9, 3), ["9 classes and 3 bits", "more bits"]),
    ],
)
def test_a_mistake_is_named(call, words):
    with pytest.raises(DistilhashError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def distances(centres_CK: np.ndarray) -> np.ndarray:
    """Hamming distance of every two centres, counted bit by bit."""
    return np.array([int((a != b).sum()) for a, b in itertools.combinations(centres_CK, 2)])


def test_hadamard_centres_are_sylvesters_rows():
    H_KK = np.array([[1]])
    for _ in range(5):
        H_KK = np.kron(np.array([[1, 1], [1, -1]]), H_KK)
    np.testing.assert_array_equal(hadamard_centres(64, 32), np.concatenate([H_KK, -H_KK]))
    assert set(distances(hadamard_centres(64, 32))) == {16, 32}
    np.testing.assert_array_equal(hadamard_centres(2, 1), [[1], [-1]])


def test_spread_centres_have_no_bit_twice():
    published, spread = hadamard_centres(10, 64), spread_hadamard_centres(10, 64)
    assert len({tuple(column) for column in published.T}) == 16
    assert len({tuple(column) for column in spread.T}) == 64
    assert set(distances(spread)) == {32}
    assert {tuple(row) for row in spread_hadamard_centres(32, 16)} == {tuple(row) for row in hadamard_centres(32, 16)}


@pytest.mark.parametrize(("num_classes", "num_bits"), [(10, 48), (21, 12), (100, 24)])
def test_bernoulli_centres_lie_farther_apart_than_draws(num_classes, num_bits):
    centres_CK = bernoulli_centres(num_classes, num_bits, seed=1)
    assert centres_CK.shape == (num_classes, num_bits)
    assert set(np.unique(centres_CK)) == {-1.0, 1.0}
    rng = np.random.default_rng(0)
    drawn = [distances(rng.choice([-1, 1], size=(num_classes, num_bits))).min() for _ in range(20)]
    assert distances(centres_CK).min() > max(drawn)


def test_bernoulli_centres_follow_their_seed_and_use_every_code():
    np.testing.assert_array_equal(bernoulli_centres(10, 48, seed=7), bernoulli_centres(10, 48, seed=7))
    assert (bernoulli_centres(10, 48, seed=7) != bernoulli_centres(10, 48, seed=8)).any()
    assert len({tuple(row) for row in bernoulli_centres(8, 3)}) == 8


def test_auto_takes_hadamard_where_it_exists():
    np.testing.assert_array_equal(hash_centres(10, 64, seed=5), hadamard_centres(10, 64))
    np.testing.assert_array_equal(hash_centres(10, 48, seed=5), bernoulli_centres(10, 48, seed=5))
    np.testing.assert_array_equal(hash_centres(129, 64, seed=5), bernoulli_centres(129, 64, seed=5))
    np.testing.assert_array_equal(hash_centres(10, 64, seed=5, kind="bernoulli"), bernoulli_centres(10, 64, seed=5))


def test_multi_label_centres_are_the_majority_vote():
    rng = np.random.default_rng(6)
    centres_CK = hadamard_centres(5, 8)
    labels_NC = rng.integers(0, 2, size=(40, 5))
    labels_NC[0] = 0
    tie_K = rng.choice([-1, 1], size=8)
    voted_NK = multi_label_centres(torch.from_numpy(labels_NC), torch.from_numpy(centres_CK), tie_break_K=tie_K)
    ties = 0
    for n, k in itertools.product(range(40), range(8)):
        votes = [centres_CK[c, k] for c in range(5) if labels_NC[n, c]]
        ups, downs = votes.count(1), votes.count(-1)
        ties += ups == downs
        assert voted_NK[n, k] == (1 if ups > downs else -1 if downs > ups else tie_K[k])
    assert ties > 8
    np.testing.assert_array_equal(voted_NK[0], tie_K)  # an image without a label


def test_ties_follow_the_seed_and_are_one_centre_for_all_images():
    centres_CK = hadamard_centres(5, 16)
    none_NC = np.zeros((3, 5), dtype=np.int64)
    first = multi_label_centres(none_NC, centres_CK, seed=1)
    assert (first == first[0]).all()
    np.testing.assert_array_equal(first, multi_label_centres(none_NC, centres_CK, seed=1))
    assert (first != multi_label_centres(none_NC, centres_CK, seed=2)).any()
