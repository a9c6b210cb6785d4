"""Who may ask the service: the outermost layer, before anything is parsed.

The Host header must name this service, or a page elsewhere could reach it by a name of its own that it lets point to
127.0.0.1 (DNS rebinding). What a browser sends on behalf of another page is refused by Sec-Fetch-Site and Origin.
Where there is a token, it comes as "Authorization: Bearer TOKEN", or once as /?token=TOKEN, which sets a cookie. Every
answer carries the headers that keep a browser from doing more with it than the page needs.
"""

from __future__ import annotations

import hmac
import json
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "POST")
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
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


class Guard:
    """An ASGI application around another. ``hosts``: names by which the service may be asked for; ``token``: or ""."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], token: str = "") -> None:
        self._app, self._hosts, self._token = app, hosts | LOCAL_NAMES, token
        self._session = secrets.token_urlsafe(32)  # in the cookie, so that the token itself is nowhere on disk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        assert scope["type"] == "http", "the server offers nothing else"
        headers = Headers(scope=scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    found[name] = value
                if "cache-control" not in found:
                    found["Cache-Control"] = "no-store"
            await send(message)

        answer = self._refusal(scope, headers) or self._admission(scope, headers)
        await (answer or self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name(hosts[0]) not in self._hosts:
            return error(403, "this service does not go by that host name; name it with --host-name")
        if scope["method"] not in METHODS:
            return error(405, "only GET and POST are answered", {"Allow": ", ".join(METHODS)})
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        if scope["method"] == "POST":
            foreign = site not in ("same-origin", "none")
            foreign |= origin is not None and urlsplit(origin)[:2] != (scope["scheme"], hosts[0])
        else:  # a link to the page from elsewhere is fine
            foreign = site in ("cross-site", "same-site") and scope["path"] != "/"
        return error(403, "another page may not ask this service") if foreign else None

    def _admission(self, scope: Scope, headers: Headers) -> Response | None:
        """None for who has the token."""
        if not self._token:
            return None
        cookie = f"distilhash-{_port(headers['host'])}"  # cookies do not know ports
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), self._token):
            return None
        if _same(_cookie(headers.get("cookie", ""), cookie), self._session):
            return None
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["method"] == "GET" and scope["path"] == "/" and "token" in asked:
            if _same(asked["token"][0], self._token):
                answer = RedirectResponse("/", 303)  # so that the token is not left in the address
                answer.set_cookie(cookie, self._session, httponly=True, samesite="lax", path="/")
                return answer
            return error(401, "that is not the token", {"WWW-Authenticate": "Bearer"})
        sentence = "a token is needed: open /?token=TOKEN once, or send the header Authorization: Bearer TOKEN"
        return error(401, sentence, {"WWW-Authenticate": "Bearer"})


def error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal: {"error": one sentence}."""
    return Response(json.dumps({"error": f"{sentence}."}), status, headers, "application/json")


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _name(host: str) -> str:
    """The name in a Host header, in lower case; "" where there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _port(host: str) -> int:
    try:
        return urlsplit(f"//{host}").port or 80
    except ValueError:
        return 80
