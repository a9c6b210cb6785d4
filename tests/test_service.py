"""The service from outside: answers are compared with the codes of the index, and attacks are tried.

The hasher is `plain_service`'s, which needs no network.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import zlib
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import HTTPException
from PIL import Image

from distilhash import cli
from distilhash.codes import hamming
from distilhash.photos.catalogue import PhotoStore
from distilhash.retrieval.index import Index
from distilhash.server import security
from distilhash.server.app import UPLOADS_AT_ONCE, Service, create_app
from distilhash.server.library import Library
from distilhash.server.security import HEADERS
from distilhash.server.workers import Workers
from plain_service import BITS, make_index, running, started

COUNT = 30


def picture(seed: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of photos, some of them twice, beside something that is nobody's business."""
    root = tmp_path_factory.mktemp("served")
    photos = root / "photos"
    photos.mkdir()
    for number in range(COUNT):
        picture(number % 25).save(photos / f"{number:02d}.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture(90, (20, 40)).save(photos / "turned.jpg", exif=exif)
    picture(91).save(photos / "scan.tif")
    (root / "secret").mkdir()
    picture(92).save(root / "secret" / "secret.png")
    return root


@pytest.fixture(scope="module")
def ids(place):
    """The ids of an index that also lies about what is in its folder."""
    photos = place / "photos"
    honest = sorted(photos.iterdir())
    (photos / "link.png").symlink_to(place / "secret" / "secret.png")
    (photos / "text.png").write_text("root:x:0:0\n")
    os.mkfifo(photos / "pipe.png")
    lies = [place / "secret" / "secret.png", photos / "link.png"]
    found = make_index(place / "index", photos, [*honest, photos / "text.png"])
    store_only = make_index(place / "lying.index", photos, [*honest[:1], *lies, photos / "text.png"])
    return found, store_only


@pytest.fixture(scope="module")
def service(place, ids):
    """The address of a service of that index."""
    with started(place / "index") as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(service):
    with httpx.Client(base_url=service, timeout=60) as found:
        yield found


def answer(client, path: str, status: int = 200, **settings):
    found = client.get(path, **settings)
    assert found.status_code == status, found.text
    return found.json()


def test_photos_come_page_by_page_with_their_doubles_counted(client, ids, place):
    total = len(ids[0])
    with Index.open(place / "index") as index:
        codes = index.codes_of(index.ids)
    near = (hamming(codes, codes) <= 2).sum(axis=1) - 1
    seen, start = [], 0
    while start is not None:
        page = answer(client, "/api/photos", params={"start": start, "limit": 7})
        assert page["total"] == total and len(page["photos"]) <= 7
        seen += page["photos"]
        start = page["next"]
    assert {photo["name"]: photo["id"] for photo in seen} == ids[0]
    assert [photo["near_duplicates"] for photo in seen] == near.tolist() and near.max() > 0
    assert seen[0]["path"] == "photos/00.png"
    assert answer(client, "/api/status")["photos"] == total


def test_neighbours_are_those_of_the_codes(client, place):
    with Index.open(place / "index") as index:
        everything, codes = index.ids, index.codes_of(index.ids)
    away = hamming(codes[3:4], codes)[0]
    expected = sorted((int(d), int(i)) for d, i in zip(away, everything, strict=True) if i != everything[3])
    found = answer(client, f"/api/photos/{everything[3]}/neighbours", params={"top": 9})
    assert [(hit["distance"], hit["id"]) for hit in found["hits"]] == expected[:9]
    assert [hit["near_duplicate"] for hit in found["hits"]] == [distance <= 2 for distance, _ in expected[:9]]
    assert found["query"]["id"] == everything[3] and found["within"] is None
    radius = expected[12][0]
    found = answer(client, f"/api/photos/{everything[3]}/neighbours", params={"radius": radius, "top": 5})
    assert found["within"] == sum(distance <= radius for distance, _ in expected)
    assert [(hit["distance"], hit["id"]) for hit in found["hits"]] == expected[:5]


def test_groups_are_counted_and_as_many_as_are_asked_for(client, place):
    with Index.open(place / "index") as index:
        everything, codes = index.ids, index.codes_of(index.ids)
    apart = hamming(codes, codes)
    leaders = {}  # row: how many near-duplicates it leads
    for row in sorted(range(1, len(codes)), key=lambda row: (apart[0, row], everything[row])):
        first = next((leader for leader in leaders if apart[leader, row] <= 2), None)
        leaders[row if first is None else first] = 0 if first is None else leaders[first] + 1
    expected = [(int(everything[row]), count) for row, count in leaders.items()]
    assert sum(leaders.values()) > 0
    for top in (2, 500):
        path = f"/api/photos/{everything[0]}/neighbours"
        hits = answer(client, path, params={"top": top, "group": True})["hits"]
        assert [(hit["id"], hit["near_duplicates"]) for hit in hits] == expected[:top]


def test_an_upload_finds_its_own_photo_first_raw_or_in_a_form(client, place, ids):
    content = (place / "photos" / "07.png").read_bytes()
    raw = client.post("/api/search", content=content, headers={"Content-Type": "image/png"}).json()
    form = client.post("/api/search", files={"image": ("any name", content, "image/png")}).json()
    assert raw == form
    own = ids[0]["07.png"]
    assert (raw["hits"][0]["id"], raw["hits"][0]["distance"]) == (own, 0)
    others = answer(client, f"/api/photos/{own}/neighbours")["hits"]
    assert [hit["id"] for hit in raw["hits"][1:]] == [hit["id"] for hit in others]
    doubles = [hit for hit in raw["hits"] if hit["like"] is not None]
    assert doubles and all(hit["like"] != hit["id"] for hit in doubles)


def test_thumbnails_are_upright_and_images_are_as_they_are(client, place, ids):
    turned = client.get(f"/api/photos/{ids[0]['turned.jpg']}/thumbnail")
    assert turned.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(turned.content)).size == (20, 40)
    assert client.get(f"/api/photos/{ids[0]['turned.jpg']}/thumbnail").content == turned.content
    whole = client.get(f"/api/photos/{ids[0]['03.png']}/image")
    assert whole.headers["content-type"] == "image/png"
    assert whole.content == (place / "photos" / "03.png").read_bytes()
    scan = client.get(f"/api/photos/{ids[0]['scan.tif']}/image")
    assert scan.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(scan.content)).size == (24, 24)


def test_only_photos_below_the_indexed_folders_are_shown(place, ids):
    secret = (place / "secret" / "secret.png").read_bytes()
    with started(place / "lying.index") as (address, _), httpx.Client(base_url=address, timeout=60) as client:
        for name in ("secret.png", "link.png", "text.png"):
            for kind in ("thumbnail", "image"):
                found = client.get(f"/api/photos/{ids[1][name]}/{kind}")
                assert found.status_code == 404, name
                assert secret[:64] not in found.content and b"root:x" not in found.content
        (place / "photos" / "00.png").rename(place / "away.png")
        assert client.get(f"/api/photos/{ids[1]['00.png']}/image").status_code == 404
        (place / "photos" / "00.png").symlink_to(place / "secret" / "secret.png")
        assert client.get(f"/api/photos/{ids[1]['00.png']}/image").status_code == 404
        (place / "photos" / "00.png").unlink()
        (place / "away.png").rename(place / "photos" / "00.png")
        assert client.get(f"/api/photos/{ids[1]['00.png']}/image").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/photos/..%2f..%2fetc%2fpasswd/image", "/web/app.js",
     "/api/photos/1/../../../etc/passwd", "//etc/passwd", "/api/photos/-1/image", "/api/photos/%00/image",
     "/api/photos/9999999999999999999999/image", f"/api/photos/{'9' * 5000}/image", "/api/photos/1_0/image",
     "/api/photos/1.0/thumbnail", "/api/photos/%d9%a1/image"],
)  # fmt: skip
def test_a_path_is_never_a_file(service, path):
    address = httpx.URL(service)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
    connection.putrequest("GET", path)
    connection.endheaders()
    found = connection.getresponse()
    assert found.status == 404
    assert b"root:" not in found.read()
    connection.close()


def test_too_many_bytes_are_refused_before_they_are_read(service):
    address = httpx.URL(service)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
    connection.putrequest("POST", "/api/search")
    connection.putheader("Content-Length", str(security.MAX_UPLOAD_BYTES + 1))
    connection.endheaders()  # and not a byte of it
    found = connection.getresponse()
    assert found.status == 413 and "32 MiB" in json.loads(found.read())["error"]
    connection.close()

    async def counted() -> tuple[int, int]:
        taken = 0

        class Endless:
            async def stream(self):
                nonlocal taken
                while True:
                    taken += 1 << 20
                    yield bytes(1 << 20)

        with pytest.raises(HTTPException) as refused:
            await security.read_body(Endless())
        return refused.value.status_code, taken

    assert asyncio.run(counted()) == (413, security.MAX_UPLOAD_BYTES + (1 << 20))


def test_an_upload_counts_until_its_search_is_done(place, ids, monkeypatch):
    """More clients than slots, and a decoder and an encoder that answer when they are told to."""
    clients, begun = UPLOADS_AT_ONCE + 5, 0
    decoded, encoded = asyncio.Event(), asyncio.Event()

    class Slow(Workers):
        def __init__(self, event, found):
            self.event, self.found = event, found

        async def ask(self, message, seconds):
            await self.event.wait()
            return self.found

    async def body():
        nonlocal begun
        begun += 1
        for _ in range(4):
            await asyncio.sleep(0)
            yield b"part"

    async def reached(count):
        while begun < count:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # in which no more may begin

    async def tried(library):
        service = Service(library, Slow(decoded, b"pixels"), Slow(encoded, bytes(BITS // 8)), "thresholds", "")
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            waiting = [asyncio.ensure_future(client.post("/api/search", content=body())) for _ in range(clients)]
            read = []
            for event in (decoded, encoded):
                await reached(UPLOADS_AT_ONCE)
                read.append(begun)
                event.set()
            statuses = [answer.status_code for answer in await asyncio.gather(*waiting)]
            encoded.clear()
            busy = [asyncio.ensure_future(client.post("/api/search", content=body())) for _ in range(UPLOADS_AT_ONCE)]
            await reached(clients + UPLOADS_AT_ONCE)
            monkeypatch.setattr(security, "SLOT_SECONDS", 0.05)
            refused = await client.post("/api/search", content=b"image")
            encoded.set()
            statuses += [answer.status_code for answer in await asyncio.gather(*busy)]
            return read, set(statuses), refused

    with contextlib.closing(Library(place / "index")) as library:
        read, statuses, refused = asyncio.run(asyncio.wait_for(tried(library), 60))
    assert (read, statuses, begun) == ([UPLOADS_AT_ONCE] * 2, {200}, clients + UPLOADS_AT_ONCE)
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


SOUND = encoded(picture(0))
JPEG = encoded(picture(0), "JPEG")
HOSTILE = {
    "a bomb": png_of(60_000, 60_000),
    "a long line": png_of(2_000_000_000, 1),
    "no pixels": png_of(0, 0),
    "too few pixels": png_of(500, 500, bytes(10)),
    "half a PNG": SOUND[: len(SOUND) // 2],
    "half a JPEG": JPEG[: len(JPEG) // 2],
    "a JPEG of markers": b"\xff\xd8" + b"\xff\xe1\xff\xff" * 2000,
    "a wrong checksum": SOUND.replace(b"IDAT", b"IDAX"),
    "a GIF bomb": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0;",
    "a TIFF that points at itself": b"II*\0\x08\0\0\0\x01\0\x00\x01\x04\0\xff\xff\xff\xff\x08\0\0\0\x08\0\0\0",
    "half a TIFF of floats": encoded(Image.new("F", (4, 4)), "TIFF")[:-30],
    "a BMP of impossible size": b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\xff\xff\xff\x7f" * 2 + bytes(28),
    "an empty WebP": b"RIFF\x0c\0\0\0WEBPVP8 \0\0\0\0",
    "a broken HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "a page": b"<html><script>alert(1)</script>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "an icon": encoded(picture(0), "ICO"),
    "a pixmap without pixels": b"P6 60000 60000 255\n",
    "a pickle": b"cposix\nsystem\n(S'touch stolen'\ntR.",
    "a zip": b"PK\x03\x04" + bytes(26),
    "noise": np.random.default_rng(0).bytes(5000),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_one_sentence(client, name):
    found = client.post("/api/search", content=HOSTILE[name], headers={"Content-Type": "image/png"})
    assert found.status_code == 422, found.text
    sentence = found.json()["error"]
    assert sentence.startswith("the image cannot be read: ") and sentence.endswith(".") and "\n" not in sentence
    assert client.post("/api/search", content=SOUND).status_code == 200


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (415, {"content": b"x", "headers": {"Content-Type": "text/html"}}),
        (415, {"content": SOUND, "headers": {"Content-Encoding": "gzip"}}),
        (400, {"content": b""}),
        (400, {"files": {"other": SOUND}}),
        (400, {"files": [("image", SOUND), ("image", SOUND)]}),
        (400, {"data": {"image": "text"}, "files": {"x": b""}}),
        (400, {"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}),
        (400, {"content": SOUND, "params": {"top": "0"}}),
        (400, {"content": SOUND, "params": {"top": "1e3"}}),
        (400, {"content": SOUND, "params": [("top", "1"), ("top", "2")]}),
        (400, {"content": SOUND, "params": {"url": "http://127.0.0.1/"}}),
        (400, {"content": SOUND, "params": {"radius": str(BITS + 1)}}),
    ],
)
def test_what_is_no_image_or_no_number_is_refused(client, status, sent):
    found = client.post("/api/search", **sent)
    assert (found.status_code, list(found.json())) == (status, ["error"])


def test_every_answer_has_the_headers(client):
    for path in ("/", "/app.js", "/api/status", "/api/photos/1/thumbnail", "/api/photos/1/image", "/nothing"):
        found = client.get(path)
        assert {name: found.headers.get(name) for name in HEADERS} == HEADERS, path
        assert "access-control-allow-origin" not in found.headers and "server" not in found.headers
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    foreign = client.get("/api/status", headers={"Host": "evil.example"})
    assert foreign.status_code == 403 and foreign.headers["x-frame-options"] == "DENY"
    page = client.get("/").text
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page and "style=" not in page


def test_a_token_from_the_environment_is_asked_for_and_not_left_there(place, ids, monkeypatch, capsys):
    monkeypatch.setenv("DISTILHASH_TOKEN", "short")
    assert cli.main(["serve", str(place / "index")]) == 2
    assert "at least 16" in capsys.readouterr().err
    assert "DISTILHASH_TOKEN" not in os.environ  # of the processes that it starts
    monkeypatch.setenv("DISTILHASH_TOKEN", "a-token-of-this-test")
    with started(place / "index") as (address, _):
        assert httpx.get(f"{address}/api/status").status_code == 401
        headers = {"Authorization": "Bearer a-token-of-this-test"}
        assert httpx.get(f"{address}/api/status", headers=headers).status_code == 200


def test_what_cannot_be_served_is_one_sentence(place, ids, tmp_path, capsys):
    def refused(*words: object) -> str:
        assert cli.main(["serve", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    index = place / "index"
    assert "needs a token" in refused(index, "--host", "0.0.0.0")
    for name in (
        "*.example",
        "https://photos.example",
        "photos.example:8443",
        "photos.example/x",
        "b\u00fccher.example",
    ):
        assert name in refused(index, "--host-name", name)
    for path in ("https://photos.example/photos", "/photos?x", "//photos"):
        assert path in refused(index, "--root-path", path)
    assert "at least 16" in refused(index, "--host", "0.0.0.0", "--token", "short")
    assert "no such index" in refused(tmp_path / "nothing")
    assert "hasher of the index is gone" not in refused(index, "--host", "203.0.113.1", "--token", "x" * 16)
    assert "no such address" in refused(index, "--host", "no..name", "--token", "x" * 16)  # what IDNA cannot encode
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen there" in refused(index, "--port", taken.getsockname()[1])


def route_address() -> str:
    """This computer's address towards others, where there are any; nothing is sent."""
    with socket.socket(type=socket.SOCK_DGRAM) as unused, contextlib.suppress(OSError):
        unused.connect(("192.0.2.1", 9))
        return str(unused.getsockname()[0])
    return "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"] if Path("/proc/net/if_inet6").exists() else ["0.0.0.0"])
def test_all_addresses_of_this_computer_are_printed_and_are_its_names(place, ids, host):
    with running(place / "index", "--host", host, "--token", "x" * 16) as (addresses, _):
        names = [httpx.URL(one).host for one in addresses]
        assert names[0] == "127.0.0.1" and route_address() in names and host not in names
        assert len(set(names)) == len(names) and any(":" in name for name in names) <= (host == "::")
        for name in names:
            family = socket.AF_INET6 if ":" in name else socket.AF_INET
            socket.create_server((name, 0), family=family).close()  # only an address of this computer can be bound
        with httpx.Client(base_url=addresses[0], headers={"Authorization": f"Bearer {'x' * 16}"}) as client:
            for address in addresses:
                sent = {"Host": address.removeprefix("http://"), "Origin": address}
                assert client.get("/api/status", headers=sent).status_code == 200, address
                assert client.post("/api/search", content=SOUND, headers=sent).status_code == 200, address
            foreign = {"Host": f"192.0.2.9:{client.base_url.port}"}
            assert client.get("/api/status", headers=foreign).status_code == 403
            # One that this computer may have got since then: every address in 127/8 is its own.
            assert client.get(f"http://127.0.0.5:{client.base_url.port}/api/status").status_code == 200


def test_ctrl_c_ends_it_and_its_workers(place, ids):
    with started(place / "index") as (address, process):
        assert httpx.get(f"{address}/api/status", timeout=60).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read().splitlines() == ["ended"]  # and its end: no worker holds it open


def test_a_photo_that_is_missing_comes_last_and_is_marked(tmp_path):
    for number in (0, 0, 1, 2):
        count = len(list(tmp_path.glob("photos/*")))
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture(number).save(tmp_path / "photos" / f"{count}.png")
    ids = make_index(tmp_path / "index", tmp_path / "photos")
    (tmp_path / "photos" / "0.png").unlink()
    library = Library(tmp_path / "index")
    photo = library.photo(ids["3.png"])
    found = library.search(photo, top=10)
    assert [hit.missing for hit in found.hits] == [False, False, True] and found.hits[-1].id == ids["0.png"]
    assert ids["0.png"] not in [hit.id for hit in library.search(photo, top=2).hits]
    assert [photo.missing for photo in library.page(0, 10)[0]] == [True, False, False, False]
    library.close()


def smooth(seed: int, side: int) -> Image.Image:
    return picture(seed, (4, 4)).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    """A service of photos in folders and of three months, each of two copies."""
    root = tmp_path_factory.mktemp("dated")
    for number, folder in enumerate(["a", "a", "a/b", "a/b", "c", "c"]):
        (root / "photos" / folder).mkdir(parents=True, exist_ok=True)
        side = 16 * (number + 1)
        picture(number // 2, (4, 4)).resize((side, side), Image.Resampling.BICUBIC).save(
            root / "photos" / folder / f"{number}.png"
        )
    make_index(root / "index", root / "photos")
    with contextlib.closing(PhotoStore(root / "index")) as store, store.writing():
        for photo in store.photos():
            moment = datetime(2024, 3 + int(Path(photo.path).stem) // 2, 15)
            store.put_photos([photo._replace(changed_ns=int(moment.timestamp()) * 10**9)])
    with started(root / "index") as (address, _), httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_photos_of_a_folder_and_of_days_come_newest_first(dated):
    def names(**wanted):
        page = answer(dated, "/api/photos", params=wanted)
        assert page["total"] == len(page["photos"])
        return [Path(photo["file"]).stem for photo in page["photos"]]

    assert names() == ["4", "5", "2", "3", "0", "1"]
    assert names(folder="photos/a") == ["2", "3", "0", "1"] and names(folder="photos/a/b") == ["2", "3"]
    assert names(folder="photos/a", until="2024-03-15") == ["0", "1"] and names(since="2024-05-15") == ["4", "5"]
    assert names(since="2024-03-16", until="2024-05-14") == ["2", "3"] and names(folder="photos/") == []
    places = answer(dated, "/api/places")
    counts = [("photos", 6), ("photos/a", 4), ("photos/a/b", 2), ("photos/c", 2)]
    assert [(folder["path"], folder["photos"]) for folder in places["folders"]] == counts
    months = [("2024-05", 2), ("2024-04", 2), ("2024-03", 2)]
    assert [(month["month"], month["photos"]) for month in places["months"]] == months
    assert {dated.get("/api/photos", params={"since": day}).status_code for day in ("0", "2024-02-30")} == {400}


def test_groups_of_duplicates_have_the_best_copy_first(dated):
    found = answer(dated, "/api/duplicates", params={"limit": 2})
    assert (found["total"], found["photos"], found["next"]) == (3, 6, 2)
    more = answer(dated, "/api/duplicates", params={"start": 2})
    assert more["next"] is None
    groups = [[photo["name"] for photo in group["photos"]] for group in found["groups"] + more["groups"]]
    assert sorted(groups) == [["1.png", "0.png"], ["3.png", "2.png"], ["5.png", "4.png"]]
    best = found["groups"][0]["photos"][0]
    assert best["width"] == best["height"] == 16 * (int(best["name"][0]) + 1) and best["distance"] == 0


def test_an_upload_is_found_again_by_its_code_alone(dated):
    first = dated.post(
        "/api/search", content=encoded(picture(1, (4, 4)).resize((64, 64), Image.Resampling.BICUBIC))
    ).json()
    again = answer(dated, "/api/search", params={"code": first["code"]})
    assert again == first | {"code": None} and again["hits"][0]["distance"] == 0
    mark, digits = first["code"].split(".")
    for code in (f"00000000.{digits}", f"{mark}.{digits}00", f"{mark}.{digits[2:]}"):
        assert dated.get("/api/search", params={"code": code}).status_code == 409
    assert dated.get("/api/search", params={"code": "x"}).status_code == 400
