"""The service behind a real nginx with TLS, as the documents set it up, in a real Chromium.

Their own block is run: with its path, with a path that nginx does not remove, and without a path.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from plain_service import started
from test_page import COUNT, PATIENCE, chromium, make_place, tiles

NAME, TOKEN = "photos.example", "a-token-of-this-test"
PAGE = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text(encoding="utf-8")
KINDS = ("removed", "kept", "root")  # what nginx does with /photos/
PATHS = {"removed": "/photos/", "kept": "/photos/", "root": "/"}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def block(kind: str, port: int, upstream: str, certificate: Path) -> str:
    """The block of docs/deploy.md with this machine's ports and files."""
    (text,) = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
    kept = upstream if kind == "kept" else f"{upstream}/"
    for old, new in {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl{' http2' if kind == 'kept' else ''};",
        f"/etc/ssl/{NAME}.pem": str(certificate), f"/etc/ssl/{NAME}.key": str(certificate),
        "http://127.0.0.1:8765/;": f"{kept};", "location /photos/ ": f"location {PATHS[kind]} ",
    }.items():  # fmt: skip
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("proxied"))


@pytest.fixture(scope="module")
def sites(place):
    """The addresses behind nginx, by what it does with the path; only the service behind "kept" has a token."""
    certificate = place / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}", "-keyout", certificate, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    ports = dict(zip(KINDS, free_ports(len(KINDS)), strict=True))
    named = ("--host-name", NAME)
    with (
        started(place / "index", *named) as (plain, _),
        started(place / "index", *named, "--root-path", "/photos", "--token", TOKEN) as (rooted, _),
    ):
        blocks = [block(kind, port, rooted if kind == "kept" else plain, certificate) for kind, port in ports.items()]
        temporary = "".join(
            f"{kind}_temp_path {place};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (place / "nginx.conf").write_text(
            f"daemon off;\nuser root;\npid {place}/nginx.pid;\nerror_log {place}/nginx.log;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}{''.join(blocks)}}}\n"
        )
        nginx = subprocess.Popen(
            [
                shutil.which("nginx") or "/usr/sbin/nginx",
                "-e",
                place / "nginx.log",
                "-p",
                place,
                "-c",
                place / "nginx.conf",
            ]
        )
        try:
            for port in ports.values():
                _wait_for(port, nginx, place / "nginx.log")
            yield {kind: f"https://{NAME}:{port}{PATHS[kind]}" for kind, port in ports.items()}
        finally:
            nginx.terminate()
            nginx.wait(20)


def _wait_for(port: int, process: subprocess.Popen[bytes], errors: Path) -> None:
    for _ in range(400):
        assert process.poll() is None, errors.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError("nginx does not listen")


@pytest.fixture(scope="module")
def browser():
    with chromium(f"--host-resolver-rules=MAP {NAME} 127.0.0.1") as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
def test_a_person_sees_photos_and_searches(kind, browser, sites, place):
    context = browser.new_context(base_url=sites[kind], ignore_https_errors=True)
    context.set_default_timeout(PATIENCE)
    page, wrong, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
    page.on("response", lambda answer: asked.append((answer.status, answer.url)))
    page.goto(f"?token={TOKEN}" if kind == "kept" else "./")
    expect(tiles(page)).to_have_count(COUNT)
    assert page.url == sites[kind]  # and the token is gone
    expect(page.locator(".tile img.there")).to_have_count(COUNT)  # the thumbnails
    page.get_by_role("link", name="18.png, 1 near-duplicate").click()
    expect(page.locator("#query-name")).to_have_text("18.png")
    assert page.url == f"{sites[kind]}?photo=19"
    page.get_by_label("Maximum distance").fill("20")
    page.reload()
    expect(page.locator("#query-name")).to_have_text("18.png")
    assert page.url == f"{sites[kind]}?photo=19&radius=20"
    with context.expect_page() as opened:
        page.get_by_role("link", name="Open original").click()
    opened.value.wait_for_load_state()
    assert opened.value.evaluate("document.images[0].naturalWidth") == 64
    page.set_input_files("#file", place / "photos" / "05.png")
    expect(tiles(page).first).to_have_attribute("aria-label", "05.png, near-duplicate, 0 bits away")
    assert page.url.startswith(f"{sites[kind]}#code=")
    page.get_by_role("link", name="All photos").click()
    expect(tiles(page)).to_have_count(COUNT)
    page.get_by_role("link", name="distilhash").click()
    assert page.url == sites[kind]
    cookies = [(one["path"], one["secure"], one["httpOnly"]) for one in context.cookies(sites[kind])]
    assert cookies == ([("/photos", True, True)] if kind == "kept" else [])
    outside = [url for _, url in asked if not url.startswith((sites[kind], "blob:"))]
    assert (wrong, outside, [one for one in asked if one[0] >= 400]) == ([], [], [])
    context.close()


@pytest.fixture(scope="module")
def ask(sites):
    """Ask nginx as a client without Sec-Fetch-Site would."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with httpx.Client(verify=context, timeout=60, headers={"Authorization": f"Bearer {TOKEN}"}) as client:

        def send(kind: str, method: str = "GET", path: str = "", headers: dict[str, str] | None = None, **settings):
            port = httpx.URL(sites[kind]).port
            address = f"https://127.0.0.1:{port}{path if path.startswith('/') else PATHS[kind] + path}"
            return client.request(method, address, headers={"Host": f"{NAME}:{port}"} | (headers or {}), **settings)

        yield send


@pytest.mark.parametrize("kind", KINDS)
def test_only_its_own_page_and_name_pass_the_proxy(kind, ask, sites, place):
    image = (place / "photos" / "03.png").read_bytes()
    own = sites[kind].removesuffix(PATHS[kind])

    def search(**headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(kind, "POST", "api/search", headers=sent, content=image).status_code

    assert search() == search(Origin=own) == search(Origin=own, Sec_Fetch_Site="same-origin") == 200
    for wrong in ({"Origin": f"https://{NAME}"}, {"Origin": own.replace("https", "http")}, {"Origin": "null"},
                  {"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Host": "evil.example"},
                  {"Sec_Fetch_Site": "same-site", "Origin": own}, {"Host": "evil.example", "X_Forwarded_Host": NAME},
                  {"Origin": own.replace("https", "http"), "X_Forwarded_Proto": "http"},
                  {"Host": "x.example", "Origin": "https://x.example", "Sec_Fetch_Site": "same-origin"}):  # fmt: skip
        assert search(**wrong) == 403, wrong
    assert ask(kind, path="api/status", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert ask(kind, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link to the page


@pytest.mark.parametrize("kind", ["removed", "kept"])
def test_the_path_without_its_slash_leads_to_the_page(kind, ask, sites):
    answer = ask(kind, path="/photos?photo=3", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.is_redirect
    assert httpx.URL(sites[kind]).join("/photos").join(answer.headers["location"]) == f"{sites[kind]}?photo=3"


@pytest.mark.parametrize("kind", KINDS)
def test_the_description_says_where_the_interface_is(kind, ask, sites):
    (server,) = ask(kind, path="openapi.json").json()["servers"]
    assert httpx.URL(f"{sites[kind]}openapi.json").join(server["url"]) == sites[kind]


def test_nginx_passes_the_largest_upload_and_no_larger_one(ask, place):
    from distilhash.server.security import MAX_UPLOAD_BYTES

    image = (place / "photos" / "03.png").read_bytes()
    assert ask("root", "POST", "api/search", content=image.ljust(MAX_UPLOAD_BYTES, b"\0")).status_code == 200
    assert ask("root", "POST", "api/search", content=bytes(MAX_UPLOAD_BYTES + 1)).status_code == 413
