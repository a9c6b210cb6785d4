"""The photos of an index over HTTP: a JSON API, thumbnails, and the page in ``web``.

Nothing in this process decodes an image or holds a network. An upload goes to a ``decoder`` process, which may be
killed, and what it makes of it, pixels of one fixed size, to the ``coder`` process; the codes are compared here.
``guard`` stands before all of it. GET /openapi.json describes the API.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from distilhash.errors import DistilhashError
from distilhash.photos.catalogue import Photo
from distilhash.server import openapi
from distilhash.server.decoder import FRAME, THUMBNAIL, VIEW
from distilhash.server.library import LARGEST_ID, NEAR_DUPLICATE, Library
from distilhash.server.security import error
from distilhash.server.uploads import MOST_BYTES, Refused, uploaded
from distilhash.server.workers import Refusal, WorkerLost, Workers

DECODE_SECONDS, CODE_SECONDS = 10.0, 60.0
UPLOADS_AT_ONCE = 8
VERSION = metadata.version("distilhash")
CACHE_BYTES = 64 << 20  # of thumbnails
KEEP = {"Cache-Control": "private, max-age=86400"}  # the address changes with the file
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("app", "asking", "outside", "tiles")
    },
}
STARTS = {  # of the formats that every browser shows
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
}


@dataclasses.dataclass
class Service:
    """What the answers are made of."""

    library: Library
    decoders: Workers
    coder: Workers
    encoder: str  # fingerprint of the coder's hasher
    hasher: str  # its name
    token: bool = False  # whether one is asked for
    decode_seconds: float = DECODE_SECONDS

    def __post_init__(self) -> None:
        """Begin with no thumbnails."""
        self._thumbnails: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._held = 0  # bytes of them
        self._turns = asyncio.Semaphore(UPLOADS_AT_ONCE)

    def app(self) -> Starlette:
        """The application, without its guard."""
        api = {"/api/status": self.status, "/api/photos": self.photos, "/openapi.json": self.openapi}
        api |= {f"/api/photos/{{id}}/{name}": getattr(self, name) for name in ("neighbours", "thumbnail", "image")}
        routes = [Route(path, _plain(function), methods=["GET"]) for path, function in api.items()]
        routes += [Route("/api/search", _plain(self.search), methods=["POST"])]
        for path, (name, kind) in FILES.items():
            content = resources.files("distilhash.server").joinpath("static", name).read_bytes()
            routes.append(Route(path, functools.partial(_file, content, kind), methods=["GET"]))
        for route in routes:
            route.methods = {"POST"} if route.path == "/api/search" else {"GET"}  # Starlette adds HEAD
        return Starlette(routes=routes, exception_handlers={HTTPException: _unknown, Exception: _bug})

    async def status(self, request: Request) -> Response:
        """What is served."""
        _parameters(request)
        return _json(
            photos=await run_in_threadpool(len, self.library), bits=self.library.num_bits, hasher=self.hasher,
            index=self.library.path.name, near_duplicate_bits=NEAR_DUPLICATE, most_upload_bytes=MOST_BYTES,
            version=VERSION,
        )  # fmt: skip

    async def openapi(self, request: Request) -> Response:
        """The description of all this."""
        return _json(**openapi.description(VERSION, self.library.num_bits, self.token))

    async def photos(self, request: Request) -> Response:
        """A page of photos."""
        asked = _parameters(request, after=(-1, LARGEST_ID), limit=(1, openapi.MOST_ON_A_PAGE))
        limit = asked.get("limit", openapi.PAGE)
        found = await run_in_threadpool(self.library.page, asked.get("after", -1), limit + 1)
        following = found[limit - 1]["id"] if len(found) > limit else None
        return _json(photos=found[:limit], total=await run_in_threadpool(len, self.library), next=following)

    async def neighbours(self, request: Request) -> Response:
        """The photos nearest to a photo."""
        wanted = self._wanted(request)
        return _json(**await run_in_threadpool(self._neighbours, await self._photo(request), wanted))

    def _neighbours(self, photo: Photo, wanted: tuple[int, int | None]) -> dict[str, Any]:
        found = self.library.near(self.library.code_of(photo.id), *wanted, photo.id)
        return {"query": self.library.described(photo), **found}

    async def search(self, request: Request) -> Response:
        """The photos nearest to an uploaded image."""
        wanted = self._wanted(request)
        image = await uploaded(request, self._turns)
        if (await run_in_threadpool(self.library.about)).get("encoder") != self.encoder:
            raise Refused(409, "the index was made anew with another hasher: start distilhash serve again")
        try:
            framed = await self.decoders.ask(FRAME + image, self.decode_seconds)
        except (Refusal, WorkerLost) as reason:
            raise Refused(422, f"the image cannot be read: {reason}") from reason
        code_1P = np.frombuffer(await self.coder.ask(framed, CODE_SECONDS), np.uint8)[None]
        return _json(query=None, **await run_in_threadpool(self.library.near, code_1P, *wanted, None))

    async def thumbnail(self, request: Request) -> Response:
        """A photo, small and upright."""
        _parameters(request, version=None)
        photo = await self._photo(request)
        key = (photo.id, photo.size, photo.changed_ns)
        content = self._thumbnails.get(key)
        if content is None:
            content = await self._jpeg(THUMBNAIL, await self._place(photo))
            self._held += len(content) - len(self._thumbnails.pop(key, b""))  # another request may have been first
            self._thumbnails[key] = content
            while self._held > CACHE_BYTES:
                self._held -= len(self._thumbnails.popitem(last=False)[1])
        else:
            self._thumbnails.move_to_end(key)
        return Response(content, headers=KEEP, media_type="image/jpeg")

    async def image(self, request: Request) -> Response:
        """A photo as it is, or as JPEG where browsers do not show its format."""
        _parameters(request, version=None)
        place = await self._place(await self._photo(request))
        kind = await run_in_threadpool(_kind, place)
        if kind:
            return FileResponse(place, media_type=kind, headers=KEEP)
        return Response(await self._jpeg(VIEW, place), headers=KEEP, media_type="image/jpeg")

    async def _photo(self, request: Request) -> Photo:
        text = request.path_params["id"]
        identity = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
        photo = await run_in_threadpool(self.library.photo, identity)
        if photo is None:
            raise Refused(404, "there is no such photo")
        return photo

    async def _place(self, photo: Photo) -> Path:
        place = await run_in_threadpool(self.library.place, photo)
        if place is None:
            raise Refused(404, "the file of this photo is gone")
        return place

    async def _jpeg(self, kind: bytes, place: Path) -> bytes:
        try:
            return await self.decoders.ask(kind + bytes(place), self.decode_seconds)
        except (Refusal, WorkerLost) as reason:
            raise Refused(404, f"this photo cannot be shown: {reason}") from reason

    def _wanted(self, request: Request) -> tuple[int, int | None]:
        """Most hits, and the radius."""
        asked = _parameters(request, top=(1, openapi.MOST_HITS), radius=(0, self.library.num_bits))
        return asked.get("top", openapi.TOP), asked.get("radius")


def _plain(function: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The same with its exceptions as answers."""

    async def answer(request: Request) -> Response:
        try:
            return await function(request)
        except Refused as refused:
            return error(refused.status, str(refused))
        except (DistilhashError, WorkerLost) as reason:
            return error(503, str(reason).removesuffix("."))

    return answer


def _json(**values: Any) -> Response:
    return Response(json.dumps(values), media_type="application/json")


def _parameters(request: Request, **bounds: tuple[int, int] | None) -> dict[str, int]:
    """The whole numbers in the query, each within its bounds; None: any text. Errors: Refused."""
    found: dict[str, int] = {}
    given = request.query_params.multi_items()
    for name, text in given:
        if name not in bounds:
            raise Refused(400, f"there is no parameter {name[:40]!r} here")
        if sum(other == name for other, _ in given) > 1:
            raise Refused(400, f"{name} is given twice")
        bound = bounds[name]
        if bound is None:
            continue
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and bound[0] <= int(text) <= bound[1]):
            raise Refused(400, f"{name} must be a whole number from {bound[0]} to {bound[1]}")
        found[name] = int(text)
    return found


def _kind(place: Path) -> str:
    """The type of a file by how it begins; "" for one that browsers do not show, or that is no image."""
    with place.open("rb") as file:
        start = file.read(12)
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return "image/webp"
    return next((kind for begin, kind in STARTS.items() if start.startswith(begin)), "")


async def _file(content: bytes, kind: str, request: Request) -> Response:
    return Response(content, headers={"Cache-Control": "no-cache", "Content-Type": kind})


async def _unknown(request: Request, reason: Exception) -> Response:
    assert isinstance(reason, HTTPException)
    sentence = "there is nothing at this address" if reason.status_code == 404 else str(reason.detail).lower()
    return error(reason.status_code, sentence, dict(reason.headers or {}))


async def _bug(request: Request, reason: Exception) -> Response:
    return error(500, "something went wrong here; the terminal of distilhash serve says what")
