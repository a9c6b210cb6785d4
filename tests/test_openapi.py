"""The service's own description of itself: asked at random as it says, it answers as it says."""

from __future__ import annotations

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

from plain_service import make_index, started


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    root = tmp_path_factory.mktemp("described")
    (root / "photos").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{number}.png")
    make_index(root / "index", root / "photos")
    with started(root / "index") as (address, _):
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_its_own_description_is_true(described):
    paths = set()
    for found in described.get_all_operations():
        operation = found.ok()
        paths.add(operation.path)
        # Random bytes fit the description of an image, and are none.
        _ask(operation, [positive_data_acceptance] if operation.path == "/api/search" else [])
    assert {"/api/status", "/api/photos", "/api/search", "/api/photos/{id}/neighbours"} <= paths


def _ask(operation, uncertain):
    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def ask(case):
        case.call_and_validate(excluded_checks=uncertain)

    ask()
