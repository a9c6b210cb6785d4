"""Who may ask the service, and the worker processes behind it."""

from __future__ import annotations

import asyncio
import os

import httpx
import pytest
from starlette.responses import PlainTextResponse

from distilhash.server.security import SecurityMiddleware
from distilhash.server.workers import WorkerLost, Workers


def test_a_worker_that_takes_too_long_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "sleepy.py").write_text(
        "import os, time\nfrom distilhash.server.workers import run_worker\n"
        "def answer(message):\n    if message == b'sleep': time.sleep(600)\n"
        "    if message == b'die': os._exit(3)\n    print('noise')\n    return message + b'!'\n"
        "run_worker(lambda: (b'', answer))\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    async def tried() -> None:
        workers = Workers("sleepy")
        await workers.start()
        try:
            with pytest.raises(WorkerLost, match=r"more than 0\.2 seconds"):
                await workers.ask(b"sleep", 0.2)
            assert await workers.ask(b"one", 60) == b"one!"
            with pytest.raises(WorkerLost, match="ended"):
                await workers.ask(b"die", 60)
            assert await asyncio.gather(*(workers.ask(b"%d" % n, 60) for n in range(9))) == [
                b"%d!" % n for n in range(9)
            ]
        finally:
            await workers.close()

    asyncio.run(tried())


def asked(app: SecurityMiddleware, method: str = "GET", path: str = "/", **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8765") as client:
            return await client.request(method, path, headers=sent)

    return asyncio.run(send())


def test_only_its_own_names_its_own_page_and_two_methods():
    app = SecurityMiddleware(PlainTextResponse("in"), hosts=["192.168.1.7", "photos.home"])
    for host in ("localhost", "127.0.0.1:9", "[::1]:8765", "LOCALHOST:99999", "192.168.1.7:8765", "photos.home"):
        assert asked(app, host=host).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8765", "evil@localhost.x", "",
                 "[::1", "*", "[::2]", "0.0.0.0", "192.168.1.8"):  # fmt: skip
        assert asked(app, host=host).status_code == 403, host
    for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"):
        assert (asked(app, method).status_code, asked(app, method).headers["allow"]) == (405, "GET, POST")
    own = "http://localhost:8765"
    assert asked(app, "POST", origin=own, sec_fetch_site="same-origin").status_code == 200
    assert asked(app, "POST").status_code == 200
    for headers in ({"origin": "null"}, {"origin": "http://evil.example"}, {"origin": "http://localhost:1"},
                    {"origin": "https://localhost:8765"}, {"origin": "http://["}, {"sec_fetch_site": "cross-site"},
                    {"sec_fetch_site": "same-site", "origin": own}):  # fmt: skip
        assert asked(app, "POST", **headers).status_code == 403, headers
    # What a browser says itself counts before an Origin that a proxy makes look foreign, but not before Host.
    for outside in ("https://photos.home", "https://photos.home:8443", "https://localhost:8765"):
        assert asked(app, "POST", origin=outside, sec_fetch_site="same-origin").status_code == 200
        assert asked(app, "POST", origin=outside, sec_fetch_site="none").status_code == 403
    rebound = {"origin": "http://evil.example", "sec_fetch_site": "same-origin", "x_forwarded_host": "localhost"}
    assert asked(app, "POST", host="evil.example", **rebound).status_code == 403
    assert asked(app, sec_fetch_site="cross-site").status_code == 200  # a link to the page
    assert asked(app, path="/api/photos/1/image", sec_fetch_site="cross-site").status_code == 403


@pytest.mark.parametrize("root", ["/photos", "/a/b"])
def test_a_path_before_its_own_is_known_or_removed_by_the_proxy(root):
    async def path_seen(scope, receive, send):
        await PlainTextResponse(scope["path"])(scope, receive, send)

    app = SecurityMiddleware(path_seen, root_path=root, token="a-token-of-this-test")
    sent = {"authorization": "Bearer a-token-of-this-test"}
    for path in ("/", "/api/status", "/app.js"):
        assert asked(app, path=path, **sent).text == asked(app, path=root + path, **sent).text == path
    assert asked(app, path=f"{root}x/", **sent).text == f"{root}x/"
    slash = asked(app, path=f"{root}?photo=3&radius=2", sec_fetch_site="cross-site")
    assert slash.url.join(slash.headers["location"]) == f"http://localhost:8765{root}/?photo=3&radius=2"
    assert asked(app, path=f"{root}/", sec_fetch_site="cross-site", **sent).status_code == 200
    assert asked(app, path=f"{root}/api/status", sec_fetch_site="cross-site", **sent).status_code == 403
    entered = asked(app, path=f"{root}/?token=a-token-of-this-test")
    assert entered.url.join(entered.headers["location"]) == f"http://localhost:8765{root}/"


def test_a_token_comes_as_a_header_or_once_in_the_address():
    token = "a-token-of-this-test"
    app = SecurityMiddleware(PlainTextResponse("in"), token=token)
    refused = asked(app)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert asked(app, authorization=f"Bearer {token}").status_code == 200
    for wrong in (f"Bearer {token}x", f"Basic {token}", "Bearer ", "Bearer \xe4"):
        assert asked(app, authorization=wrong.encode("latin-1")).status_code == 401
    assert asked(app, path="/?token=wrong").status_code == 401
    assert asked(app, path=f"/api/status?token={token}").status_code == 401
    entered = asked(app, path=f"/?token={token}")
    assert (entered.status_code, entered.url.join(entered.headers["location"])) == (303, "http://localhost:8765/")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and token not in cookie
    assert "Path" not in cookie and "Secure" not in cookie  # the browser's own default is the page's folder
    assert asked(app, cookie=cookie.partition(";")[0]).status_code == 200
    assert asked(app, cookie="distilhash-8765=guess").status_code == 401
    assert asked(app, cookie=cookie.partition(";")[0], host="evil.example").status_code == 403
