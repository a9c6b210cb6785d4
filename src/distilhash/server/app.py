"""The photos of an index over HTTP: a JSON API, thumbnails, and the page in ``static``.

This process decodes no image and holds no network. A decode worker, which may be killed, turns an upload into pixels of
the input size, the encode worker turns these into a code, and the code is compared here. FastAPI checks parameters and
generates /openapi.json; its documentation pages are off, since they load scripts from a CDN.

Routes, parameters and responses stay in one file because together they are the API's contract.
"""

# No `from __future__ import annotations`: FastAPI resolves annotations, and those inside create_app must be objects.

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from distilhash import __version__
from distilhash.errors import DistilhashError
from distilhash.photos import copies
from distilhash.photos.catalogue import Photo
from distilhash.server.jobs import CROP, SIZE, THUMBNAIL, VIEW
from distilhash.server.library import MAX_ID, Copy, Count, Id, Library, ListedPhoto, Neighbours, Places
from distilhash.server.security import FORM, MAX_UPLOAD_BYTES, RAW, error_response, upload
from distilhash.server.workers import Workers

DECODE_SECONDS, ENCODE_SECONDS = 10.0, 60.0
UPLOADS_AT_ONCE = 8
MOST_COPIES = 100  # of a group
THUMBNAIL_CACHE_BYTES = 64 << 20
IMMUTABLE = {"Cache-Control": "private, max-age=86400"}  # the address changes with the file
STATIC_TYPES = {  # by hand, because on Windows the registry may call JavaScript text/plain
    ".html": "text/html",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".js": "text/javascript",
}
SIGNATURES = {  # first bytes of the formats that every browser shows, as regular expressions
    "image/jpeg": rb"\xff\xd8\xff",
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/gif": rb"GIF8[79]a",
    "image/bmp": rb"BM",
    "image/webp": rb"(?s)RIFF....WEBP",
}


class Error(BaseModel, extra="forbid"):
    """A refusal in one sentence."""

    error: str


class Status(BaseModel, extra="forbid"):
    """What is served, and the limits that a client needs."""

    photos: Count
    bits: Count
    hasher: str
    index: str
    near_duplicate_bits: Count
    most_upload_bytes: Count
    version: str


class PhotoPage(BaseModel, extra="forbid"):
    """Photos, newest first. ``total``: on all pages; ``next``: the ``start`` of the next page, null on the last one."""

    photos: list[ListedPhoto]
    total: Count
    next: Count | None


class Group(BaseModel, extra="forbid"):
    """Near-duplicates, the best copy first: at most MOST_COPIES of ``count``."""

    photos: list[Copy]
    count: Count


class GroupPage(BaseModel, extra="forbid"):
    """Groups of near-duplicates, those whose other copies take most bytes first. ``total``: groups on all pages."""

    groups: list[Group]
    total: Count
    photos: Count
    next: Count | None


class NoQuery(BaseModel, extra="forbid"):
    """No parameters."""


def _day(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):  # pydantic also takes seconds since 1970
        raise ValueError("not a day such as 2024-05-31")
    return text


Day = Annotated[date, BeforeValidator(_day)] | SkipJsonSchema[None]


class GroupQuery(BaseModel, extra="forbid"):
    """Which page of groups."""

    start: int = Field(0, ge=0, le=MAX_ID, description="How many come before this page")
    limit: int = Field(60, ge=1, le=200, description="Most on this page")


class PageQuery(GroupQuery):
    """Which photos, and which page of them."""

    folder: str = Field("", description="Only photos of this folder and its subfolders, as their paths begin")
    since: Day = Field(None, description="Only photos whose files were last changed on this day or later")
    until: Day = Field(None, description="Only photos whose files were last changed on this day or earlier")


class VersionQuery(BaseModel, extra="forbid"):
    """The state of a file, as part of its address."""

    version: str = Field("", description="Any text; another one makes a browser load the file again")


def _digits(text: str) -> str:
    if not (text.isascii() and text.isdigit()):  # int() also takes "1.0", "1_0" and other alphabets' digits
        raise ValueError("not a whole number")
    return text


PhotoId = Annotated[Id, BeforeValidator(_digits)]


class Service:
    """What requests are answered from.

    Args:
        decoders, encoder: workers of ``distilhash.server.jobs``.
        fingerprint, hasher: fingerprint of the encoder's hasher, and its name for the page.
    """

    def __init__(self, library: Library, decoders: Workers, encoder: Workers, fingerprint: str, hasher: str) -> None:
        self.library, self.decoders, self.encoder = library, decoders, encoder
        self.fingerprint, self.hasher = fingerprint, hasher
        self.upload_slots = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._thumbnails: OrderedDict[Photo, bytes] = OrderedDict()  # least recently used first
        self._grouping, self._grouped = asyncio.Lock(), -1  # the version of the index whose groups are kept
        self._groups: list[list[copies.Copy]] = []
        self._sizes: dict[Photo, copies.Size] = {}

    async def search(self, image: bytes, top: int, radius: int | None, group: bool) -> Neighbours:
        """The nearest photos to an uploaded image. Raises HTTPException: 409, 422."""
        await self._check_hasher()
        try:
            pixels = await self.decoders.ask(CROP + image, DECODE_SECONDS)
        except DistilhashError as reason:
            raise HTTPException(422, f"the image cannot be read: {reason}") from reason
        code_1P = np.frombuffer(await self.encoder.ask(pixels, ENCODE_SECONDS), np.uint8)[None]
        found = await run_in_threadpool(self.library.search, code_1P, top, radius, group)
        return found.model_copy(update={"code": f"{self._mark}.{code_1P.tobytes().hex()}"})

    async def search_again(self, code: str, top: int, radius: int | None, group: bool) -> Neighbours:
        """The nearest photos to the code of an earlier upload. Raises HTTPException: 409."""
        await self._check_hasher()
        mark, _, digits = code.partition(".")
        code_1P = np.frombuffer(bytes.fromhex(digits), np.uint8)[None]
        bits = self.library.num_bits
        if mark != self._mark or code_1P.shape[1] != -(-bits // 8) or np.unpackbits(code_1P)[bits:].any():
            raise HTTPException(409, "this search was made with another hasher: choose the image again")
        return await run_in_threadpool(self.library.search, code_1P, top, radius, group)

    async def _check_hasher(self) -> None:
        if (await run_in_threadpool(self.library.about)).get("encoder") != self.fingerprint:
            raise HTTPException(409, "the index was rebuilt with another hasher: restart distilhash serve")

    @property
    def _mark(self) -> str:
        return hashlib.sha256(self.fingerprint.encode()).hexdigest()[:8]

    async def groups(self) -> list[list[copies.Copy]]:
        """All groups of near-duplicates, computed again where the index has changed."""
        async with self._grouping:
            version = await run_in_threadpool(self.library.version)
            if version != self._grouped:
                photos, codes_nP = await run_in_threadpool(self.library.near_copies)
                self._sizes = {photo: self._sizes.get(photo) or await self._size(photo) for photo in photos}
                sizes, bits = [*self._sizes.values()], self.library.near_duplicate_bits
                self._groups = await run_in_threadpool(copies.star_groups, photos, sizes, codes_nP, bits)
                self._grouped = version
            return self._groups

    async def _size(self, photo: Photo) -> copies.Size:
        path = await run_in_threadpool(self.library.file_of, photo)
        try:
            found = b"0 0" if path is None else await self.decoders.ask(SIZE + bytes(path), DECODE_SECONDS)
        except DistilhashError:
            found = b"0 0"
        width, height = map(int, found.split())
        return width, height

    async def thumbnail(self, photo: Photo, path: Path) -> bytes:
        """A small JPEG of a photo, from the cache or a decoder. Raises HTTPException: 404."""
        if photo not in self._thumbnails:
            self._thumbnails[photo] = await self.jpeg(THUMBNAIL, path)
            while sum(map(len, self._thumbnails.values())) > THUMBNAIL_CACHE_BYTES:
                self._thumbnails.popitem(last=False)
        self._thumbnails.move_to_end(photo)
        return self._thumbnails[photo]

    async def jpeg(self, kind: bytes, path: Path) -> bytes:
        """THUMBNAIL or VIEW of a file. Raises HTTPException: 404."""
        try:
            return await self.decoders.ask(kind + bytes(path), DECODE_SECONDS)
        except DistilhashError as reason:
            raise HTTPException(404, f"this photo cannot be shown: {reason}") from reason


def create_app(service: Service, *, token: bool = False) -> FastAPI:
    """The application. It must run behind ``SecurityMiddleware``; ``token``: whether that asks for one."""
    library = service.library

    class HitsQuery(BaseModel, extra="forbid"):
        top: int = Field(120, ge=1, le=500, description="Most hits")
        radius: Annotated[int, Field(ge=0, le=library.num_bits)] | SkipJsonSchema[None] = Field(
            None, description="Largest distance of a hit in bits; any, if left out"
        )
        group: bool = Field(False, description="Leave out near-duplicates of a nearer hit, and count them there")

    def find_photo(id: PhotoId) -> Photo:
        photo = library.photo(id)
        if photo is None:
            raise HTTPException(404, "there is no such photo")
        return photo

    class CodeQuery(HitsQuery):
        code: str = Field(pattern=r"^[0-9a-f]{8}\.([0-9a-f]{2})+$", max_length=1024, description="Of an earlier answer")

    FoundPhoto = Annotated[Photo, Depends(find_photo)]

    def find_file(photo: FoundPhoto) -> Path:
        path = library.file_of(photo)
        if path is None:
            raise HTTPException(404, "the file of this photo is gone")
        return path

    FoundFile = Annotated[Path, Depends(find_file)]

    bearer = HTTPBearer(scheme_name="token", auto_error=False)
    api = APIRouter(
        prefix="/api",
        dependencies=[Depends(_refuse_repeated), *([Depends(bearer)] if token else [])],
        responses=_errors({"4XX": "Refused: the sentence says why", 503: "The index or a worker is unavailable"}),
    )

    @api.get("/status")
    def status(query: Annotated[NoQuery, Query()]) -> Status:
        """What is served."""
        return Status(
            photos=len(library), bits=library.num_bits, hasher=service.hasher, index=library.path.name,
            near_duplicate_bits=library.near_duplicate_bits, most_upload_bytes=MAX_UPLOAD_BYTES, version=__version__,
        )  # fmt: skip

    @api.get("/photos")
    def photos(query: Annotated[PageQuery, Query()]) -> PhotoPage:
        """Photos, newest first, page by page."""
        page, total = library.page(query.start, query.limit, query.folder, query.since, query.until)
        end = query.start + query.limit
        return PhotoPage(photos=page, total=total, next=end if end < total else None)

    @api.get("/places")
    def places(query: Annotated[NoQuery, Query()]) -> Places:
        """The folders and months of the photos."""
        return library.places()

    @api.get("/duplicates")
    async def duplicates(query: Annotated[GroupQuery, Query()]) -> GroupPage:
        """Groups of near-duplicates, page by page."""
        found, end = await service.groups(), query.start + query.limit
        page = found[query.start : end]
        shown = await run_in_threadpool(library.copies, [group[:MOST_COPIES] for group in page])
        groups = [Group(photos=photos, count=len(group)) for photos, group in zip(shown, page, strict=True)]
        return GroupPage(
            groups=groups, total=len(found), photos=sum(map(len, found)), next=end if end < len(found) else None
        )

    @api.get("/photos/{id}/neighbours")
    def neighbours(photo: FoundPhoto, query: Annotated[HitsQuery, Query()]) -> Neighbours:
        """The nearest photos to a photo."""
        return library.search(photo, query.top, query.radius, query.group)

    @api.get("/photos/{id}/thumbnail", response_class=Response, responses=_images("jpeg"))
    async def thumbnail(photo: FoundPhoto, path: FoundFile, query: Annotated[VersionQuery, Query()]) -> Response:
        """A small JPEG of a photo, upright."""
        return Response(await service.thumbnail(photo, path), headers=IMMUTABLE, media_type="image/jpeg")

    @api.get("/photos/{id}/image", response_class=Response, responses=_images("jpeg", "png", "gif", "webp", "bmp"))
    async def image(path: FoundFile, query: Annotated[VersionQuery, Query()]) -> Response:
        """The file of a photo, or a JPEG of it if browsers do not show its format."""
        media_type = await run_in_threadpool(_media_type, path)
        if media_type:
            return FileResponse(path, media_type=media_type, headers=IMMUTABLE)
        return Response(await service.jpeg(VIEW, path), headers=IMMUTABLE, media_type="image/jpeg")

    @api.post(
        "/search",
        openapi_extra={  # the body is read by hand, with a limit
            "requestBody": {"required": True, "content": {RAW: _BINARY, "image/*": _BINARY, FORM: _FORM}}
        },
        responses=_errors(
            {
                408: "The image came too slowly",
                409: "The index was rebuilt with another hasher",
                413: "The image has too many bytes",
                415: "Neither an image nor a form",
                422: "The image cannot be read",
            }
        ),
    )
    async def search(request: Request, query: Annotated[HitsQuery, Query()]) -> Neighbours:
        """The nearest photos to an uploaded image."""
        async with upload(request, service.upload_slots) as image:
            return await service.search(image, query.top, query.radius, query.group)

    @api.get("/search", responses=_errors({409: "The code is of another hasher"}))
    async def search_again(query: Annotated[CodeQuery, Query()]) -> Neighbours:
        """The nearest photos to an image that was uploaded before, by its code."""
        return await service.search_again(query.code, query.top, query.radius, query.group)

    app = FastAPI(
        title="distilhash: search for similar photos",
        version=__version__,
        servers=[{"url": "."}],  # relative to the description, under whatever path a proxy serves it
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        exception_handlers={
            StarletteHTTPException: _http_error,
            RequestValidationError: _parameter_error,
            DistilhashError: _unavailable,
            Exception: _internal_error,
        },
    )
    app.include_router(api)
    for file in (Path(__file__).parent / "static").iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        app.add_route(path, _static(file), include_in_schema=False)
    return app


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "properties": {"image": _BINARY["schema"]}, "required": ["image"]}}


def _errors(descriptions: dict[int | str, str]) -> dict[int | str, dict[str, object]]:
    return {status: {"model": Error, "description": text} for status, text in descriptions.items()}


def _images(*kinds: str) -> dict[int | str, dict[str, object]]:
    return {200: {"description": "The image", "content": {f"image/{kind}": _BINARY for kind in kinds}}}


def _static(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content, media_type = file.read_bytes(), STATIC_TYPES[file.suffix]

    async def static(request: Request) -> Response:
        return Response(content, headers={"Cache-Control": "no-cache"}, media_type=media_type)

    return static


def _media_type(path: Path) -> str:
    """The type of a file by its first bytes; "" for one that browsers do not show, or that is no image."""
    with path.open("rb") as file:
        start = file.read(12)
    return next((kind for kind, signature in SIGNATURES.items() if re.match(signature, start)), "")


def _refuse_repeated(request: Request) -> None:
    names = [name for name, _ in request.query_params.multi_items()]
    if len(set(names)) < len(names):  # pydantic would take the last value
        raise HTTPException(400, "a parameter is given twice")


async def _parameter_error(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    place, name = first["loc"][0], str(first["loc"][-1])[:40]
    if place == "path":  # the only path parameter is an id
        return error_response(404, "there is no such photo")
    if first["type"] == "extra_forbidden":
        return error_response(400, f"there is no parameter {name!r}")
    return error_response(400, f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}")


async def _http_error(request: Request, error: StarletteHTTPException) -> Response:
    return error_response(error.status_code, str(error.detail), dict(error.headers or {}))


async def _unavailable(request: Request, error: Exception) -> Response:
    return error_response(503, str(error))


async def _internal_error(request: Request, error: Exception) -> Response:
    return error_response(500, "internal error; the terminal of distilhash serve shows the traceback")
