"""What strangers may do: who may ask the service (SecurityMiddleware), and how much they may send (upload).

The middleware runs before a request is parsed:

- Host: only known names, and the address that was connected to, so that a foreign page cannot reach the service through
  DNS rebinding. No forwarded header replaces it: such a page could send one.
- Sec-Fetch-Site and Origin: requests that a browser sends for another page are refused. A browser that says
  "same-origin" knows the address before any proxy, and is believed; where it says nothing, Origin must be ours.
- Token, where one is set: ``Authorization: Bearer TOKEN``, or ?token=TOKEN once, which sets a session cookie.
- Every response carries headers that restrict what a browser does with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from fastapi import HTTPException, Request
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "POST")
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

MAX_UPLOAD_BYTES = 32 << 20
UPLOAD_SECONDS, SLOT_SECONDS = 30.0, 30.0  # for the whole body; for those before it to be answered
TOO_LARGE = f"an image may have {MAX_UPLOAD_BYTES >> 20} MiB at most"
RAW, FORM = "application/octet-stream", "multipart/form-data"


class SecurityMiddleware:
    """ASGI middleware with all of these checks; a refusal is ``{"error": sentence}``.

    Args:
        app: the application to protect.
        hosts: names in the Host header that are allowed besides the local ones, in lower case, IPv6 in brackets.
        token: what every request must bring; "" for none.
        root_path: path before the application's own, where a proxy does not remove it, as "/photos"; "" for none.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str] = (), token: str = "", root_path: str = "") -> None:
        self._app, self._hosts, self._token, self._root_path = app, [*LOCAL_HOSTS, *hosts], token, root_path
        self._session = secrets.token_urlsafe(32)  # the cookie's value, so that no browser stores the token itself

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        assert scope["type"] == "http", "the server offers neither WebSocket nor lifespan"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        async def admit(scope: Scope, receive: Receive, _: Send) -> None:
            if self._root_path and scope["path"] == self._root_path:  # relative addresses need the slash
                query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
                answer: ASGIApp | None = RedirectResponse(f"{self._root_path.rpartition('/')[2]}/{query}", 308)
            else:
                if scope["path"].startswith(f"{self._root_path}/"):
                    scope = {**scope, "path": scope["path"].removeprefix(self._root_path)}
                answer = self._refuse_request(scope) or self._require_token(scope)
            await (answer or self._app)(scope, receive, send_with_headers)

        async def refuse_host(message: Message) -> None:  # TrustedHostMiddleware's own answer is 400 in plain text
            if message["type"] == "http.response.start":
                refusal = error_response(403, "unknown host name; allow it with --host-name")
                await refusal(scope, receive, send_with_headers)

        hosts = [*self._hosts, bracketed(scope["server"][0])]  # an IP address in Host cannot be rebound
        await TrustedHostMiddleware(admit, hosts, www_redirect=False)(scope, receive, refuse_host)

    def _refuse_request(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in METHODS:
            return error_response(405, "only GET and POST are allowed", {"Allow": ", ".join(METHODS)})
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        if scope["method"] == "POST":
            own = origin is None or origin == f"{scope['scheme']}://{headers['host']}"
            foreign = site != "same-origin" and not (site == "none" and own)
        else:  # a link from elsewhere to the page itself is allowed
            foreign = site in ("cross-site", "same-site") and scope["path"] != "/"
        return error_response(403, "requests from other sites are not allowed") if foreign else None

    def _require_token(self, scope: Scope) -> Response | None:
        if not self._token:
            return None
        request = HTTPConnection(scope)
        cookie = f"distilhash-{scope['server'][1]}"  # browsers share cookies between ports
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _equal(given.strip(), self._token):
            return None
        if _equal(request.cookies.get(cookie, ""), self._session):
            return None
        if scope["method"] == "GET" and scope["path"] == "/" and "token" in request.query_params:
            if _equal(request.query_params["token"], self._token):
                response = RedirectResponse("./", 303)  # takes the token out of the address bar
                # Without a path it is the page's own, under whatever path a proxy serves it.
                secure = scope["scheme"] == "https"
                response.set_cookie(cookie, self._session, httponly=True, samesite="lax", path=None, secure=secure)
                return response
            return error_response(401, "wrong token", {"WWW-Authenticate": "Bearer"})
        sentence = "a token is required: open the page with ?token=TOKEN, or send Authorization: Bearer TOKEN"
        return error_response(401, sentence, {"WWW-Authenticate": "Bearer"})


def error_response(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """The response of every refusal: ``{"error": sentence}``, with a full stop."""
    return JSONResponse({"error": f"{sentence.removesuffix('.')}."}, status, headers)


def bracketed(host: str) -> str:
    """A host or address as in a Host header: IPv6 in brackets, IPv4 as such where a socket for both calls it IPv6."""
    host = host.removeprefix("::ffff:") if "." in host else host
    return f"[{host}]" if ":" in host else host


@contextlib.asynccontextmanager
async def upload(request: Request, slots: asyncio.Semaphore) -> AsyncIterator[bytes]:
    """The image in a request: its body, or the one file of a form, named "image".

    ``slots`` bounds how many uploads are in memory at once: one is taken before the body is read, and given back when
    the context ends. Raises HTTPException: 400, 408, 413, 415 or 503.
    """
    kind = request.headers.get("content-type", RAW).partition(";")[0].strip().lower()
    if kind not in (RAW, FORM) and not kind.startswith("image/"):
        raise HTTPException(415, f"an image is needed: a body of type image/* or {RAW}, or a multipart form")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "a compressed body is not supported")
    if int(request.headers.get("content-length", "0")) > MAX_UPLOAD_BYTES:
        raise HTTPException(413, TOO_LARGE)
    try:
        async with asyncio.timeout(SLOT_SECONDS):
            await slots.acquire()
    except TimeoutError:
        raise HTTPException(503, "too many images are being searched for; try again", {"Retry-After": "10"}) from None
    try:
        yield await _read_image(request, kind)
    finally:
        slots.release()


async def _read_image(request: Request, kind: str) -> bytes:
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            body = await read_body(request)
    except TimeoutError:
        raise HTTPException(408, f"the image did not arrive within {UPLOAD_SECONDS:g} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection closed before the whole image arrived") from None
    image = await _file_of(body, request.headers) if kind == FORM else body
    if not image:
        raise HTTPException(400, "the image is empty")
    return image


async def read_body(request: Request) -> bytes:
    """The body of a request. Raises HTTPException 413 as soon as it exceeds MAX_UPLOAD_BYTES."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_UPLOAD_BYTES:
            raise HTTPException(413, TOO_LARGE)
    return bytes(body)


async def _file_of(body: bytes, headers: Headers) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(headers, stream(), max_files=1, max_fields=0)
        parser.spool_max_size = MAX_UPLOAD_BYTES  # in memory, never on disk
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise HTTPException(400, 'the form cannot be read: it needs one file, named "image"') from error
    image = form.get("image")
    if not isinstance(image, UploadFile):
        raise HTTPException(400, 'the form needs one file, named "image"')
    try:
        return await image.read()
    finally:
        await form.close()


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())  # in constant time
