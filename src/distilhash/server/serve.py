"""The verb serve: an index of photos as a page and an API, until Ctrl-C.

On 127.0.0.1 whoever uses this computer may ask. Any other address needs a token, which every request must bring.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distilhash.config import InputConfig
from distilhash.deploy.runtime import model_file
from distilhash.errors import DistilhashError
from distilhash.photos.encoder import named
from distilhash.photos.search import hasher_of
from distilhash.server.library import Library

HOST, PORT = "127.0.0.1", 8765
LEAST_TOKEN = 16  # characters
DECODERS = 4  # at most
CODER, DECODER = "distilhash.server.coder", "distilhash.server.decoder"


def serve(
    index: str | Path,
    *,
    host: str = HOST,
    port: int = PORT,
    token: str | None = None,
    hasher: str | Path | None = None,
    int8: bool = False,
    host_names: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve an index of photos on a page and as JSON, until Ctrl-C or SIGTERM.

    ``host``: an address of this computer; any but its own loopback needs a ``token`` of 16 characters or more, which
    every request must bring. ``port`` 0 takes a free one. ``hasher``: left out, the one that the index was made with.
    ``int8``: the int8 model of an exported hasher; an index that was made with it needs no word.
    ``host_names``: further names by which browsers may ask. ``say`` is given the page's address. Errors: DistilhashError.
    """
    if token is not None and not (len(token) >= LEAST_TOKEN and token.isascii() and token.isprintable()):
        raise DistilhashError(
            f"a token needs at least {LEAST_TOKEN} plain characters", f"{len(token)}", "make a longer one"
        )
    if token is None and not _is_loopback(host):
        fix = "set DISTILHASH_TOKEN or --token, or serve on 127.0.0.1"
        raise DistilhashError("an address that others reach needs a token", host, fix)
    if not 0 <= port <= 65535:
        raise DistilhashError("a port is a number from 0 to 65535", port)
    _needed()
    with contextlib.closing(Library(Path(index))) as library, _listening(host, port) as listener:
        place = named(hasher_of(library.about(), library.path, hasher), int8=int8)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_run(library, str(place), listener, host, token or "", host_names, say))


async def _run(
    library: Library,
    hasher: str,
    listener: socket.socket,
    host: str,
    token: str,
    host_names: Sequence[str],
    say: Callable[[str], None],
) -> None:
    import uvicorn

    from distilhash.server.app import Service
    from distilhash.server.security import Guard
    from distilhash.server.workers import Workers

    coder = Workers(CODER, hasher)
    decoders: Workers | None = None
    try:
        about: dict[str, Any] = json.loads(await coder.start())
        if about["fingerprint"] != library.about()["encoder"]:
            raise DistilhashError("the index was made with another hasher", hasher, "name that one with --hasher")
        config = json.dumps(dataclasses.asdict(InputConfig(**about["input"])))
        decoders = Workers(DECODER, config, count=min(DECODERS, os.cpu_count() or 1) + 1)
        await decoders.start()
        service = Service(library, decoders, coder, about["fingerprint"], _name_of(hasher), bool(token))
        names = frozenset(name.lower().strip("[]").rstrip(".") for name in (host, *host_names))
        settings = uvicorn.Config(
            Guard(service.app(), hosts=names, token=token), lifespan="off", ws="none", http="h11", access_log=False,
            log_level="warning", server_header=False, proxy_headers=False, timeout_graceful_shutdown=1,
            limit_concurrency=512,
        )  # fmt: skip
        named = f"[{host}]" if ":" in host else host
        say(f"serving http://{named}:{listener.getsockname()[1]}/ (Ctrl-C ends it)")
        await uvicorn.Server(settings).serve(sockets=[listener])
    finally:
        await coder.close()
        if decoders is not None:
            await decoders.close()


def _name_of(hasher: str) -> str:
    """What the page calls a hasher: the last part of its path, and of an exported model its directory, too."""
    place = Path(hasher)
    return place.name if model_file(place) is None else f"{place.parent.name}/{place.name}"


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at this address. Errors: DistilhashError where it is taken, or none of this computer's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise DistilhashError(
            "there is no such address", f"{host} ({error.strerror})", "name one of this computer"
        ) from None
    with listener:
        try:
            if os.name == "posix":  # elsewhere this would let two servers share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(512)  # here, as on some systems only this says that the port is taken
        except OSError as error:
            reason = f"{host} port {port} ({error.strerror})"
            raise DistilhashError("cannot listen there", reason, "choose another --port; 0 takes a free one") from None
        yield listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _needed() -> None:
    try:
        import python_multipart  # noqa: F401  (starlette reads forms with it)
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise DistilhashError("serving needs further packages", str(error), "pip install 'distilhash[serve]'") from None
