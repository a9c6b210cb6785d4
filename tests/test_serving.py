"""The command serve with a real hasher: an upload finds what the command search finds."""

from __future__ import annotations

import json

import httpx

from distilhash import cli
from plain_service import started

REAL = """
import sys
from distilhash import cli
sys.exit(cli.main(["serve", *sys.argv[1:]]))
"""


def test_an_upload_finds_what_search_finds(here, capsys):
    assert cli.main(["index", "photos", "--hasher", "hasher", "--quiet"]) == 0
    image = here / "photos" / "class1" / "05.png"
    capsys.readouterr()
    assert cli.main(["search", "photos.index", str(image), "--top", "20", "--json"]) == 0
    ((expected,),) = [json.loads(capsys.readouterr().out)]
    with started(here / "photos.index", run=REAL) as (address, _):
        assert httpx.get(f"{address}/api/status", timeout=60).json()["bits"] == 16
        answer = httpx.post(f"{address}/api/search?top=100", content=image.read_bytes(), timeout=60).json()
    own = [hit for hit in answer["hits"] if hit["path"] == "photos/class1/05.png"]
    assert [hit["distance"] for hit in own] == [0]
    others = [(hit["id"], hit["distance"]) for hit in answer["hits"] if hit not in own]
    assert others[:20] == [(hit["id"], hit["distance"]) for hit in expected["hits"]]
