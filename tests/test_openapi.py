"""The API's description: random requests that follow it get the answers that it promises."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

from distilhash.server.app import Service, create_app
from distilhash.server.library import Library
from distilhash.server.workers import Workers
from plain_service import BITS, make_index, started


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


def test_answers_follow_the_description(described):
    paths = set()
    for found in described.get_all_operations():
        operation = found.ok()
        paths.add(operation.path)
        # Random bytes fit the description of an image, but cannot be decoded.
        _ask(operation, [positive_data_acceptance] if operation.path == "/api/search" else [])
    assert {"/api/status", "/api/photos", "/api/search", "/api/photos/{id}/neighbours"} <= paths


def _ask(operation, uncertain):
    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def ask(case):
        case.call_and_validate(excluded_checks=uncertain)

    ask()


@pytest.mark.parametrize("token", [False, True])
def test_the_description_says_whether_a_token_is_needed_and_what_bounds_a_radius(tmp_path, token):
    make_index(tmp_path / "index", tmp_path)
    with contextlib.closing(Library(tmp_path / "index")) as library:
        workers = Workers("unused")
        found = create_app(Service(library, workers, workers, "", ""), token=token).openapi()
    for path in found["paths"].values():
        for operation in path.values():
            assert operation.get("security") == ([{"token": []}] if token else None)
            assert "HTTPValidationError" not in str(operation)
    parameters = found["paths"]["/api/search"]["post"]["parameters"]
    (radius,) = [one["schema"] for one in parameters if one["name"] == "radius"]
    assert (radius["minimum"], radius["maximum"]) == (0, BITS)
