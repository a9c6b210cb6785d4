"""The bytes of an uploaded image: counted while they come, so that too many are never kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

MOST_BYTES = 32 << 20
SECONDS = 30.0  # for all of it to come
RAW = "application/octet-stream"


class Refused(Exception):  # noqa: N818 (it is an answer)
    """An answer that is no result: its status, and a sentence without its full stop."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status
        super().__init__(sentence)


async def uploaded(request: Request, turns: asyncio.Semaphore) -> bytes:
    """The image in a request: its body, or the one file of a form, named image. Errors: Refused.

    ``turns`` bounds how many uploads are in memory at once.
    """
    kind = request.headers.get("content-type", RAW).partition(";")[0].strip().lower()
    if kind not in (RAW, "multipart/form-data") and not kind.startswith("image/"):
        raise Refused(415, f"an image is needed, as a body of type image/* or {RAW}, or in a multipart form")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "the body must not be compressed")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length[:12]) > MOST_BYTES or len(length) > 12:
        raise Refused(413, _too_large())
    try:
        async with asyncio.timeout(SECONDS), turns:
            body = await _body(request)
    except TimeoutError:
        raise Refused(408, f"the image did not come within {SECONDS:g} seconds") from None
    except ClientDisconnect:
        raise Refused(400, "the image did not come to its end") from None
    image = await _file_of(body, request.headers) if kind == "multipart/form-data" else body
    if not image:
        raise Refused(400, "the image is empty")
    return image


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise Refused(413, _too_large())
    return bytes(body)


async def _file_of(body: bytes, headers: Headers) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(headers, stream(), max_files=1, max_fields=0)
        parser.spool_max_size = MOST_BYTES  # in memory, never on disk
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refused(400, "the form cannot be read: it needs one file, named image") from error
    image = form.get("image")
    if not isinstance(image, UploadFile):
        raise Refused(400, "the form needs one file, named image")
    try:
        return await image.read()
    finally:
        await form.close()


def _too_large() -> str:
    return f"an image may have {MOST_BYTES >> 20} MiB at most"
