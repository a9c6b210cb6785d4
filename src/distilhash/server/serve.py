"""The command serve: an index of photos as a web page and a JSON API, until Ctrl-C.

On 127.0.0.1 every user of this computer may ask. Any other address needs a token, which every request must carry.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilhash.config import InputConfig
from distilhash.deploy.runtime import model_file
from distilhash.errors import DistilhashError
from distilhash.photos.encoder import hasher_of, named
from distilhash.progress import log

if TYPE_CHECKING:
    from distilhash.server.library import Library

HOST, PORT = "127.0.0.1", 8765
MIN_TOKEN = 16  # characters
MAX_DECODERS = 4
ENCODER, DECODER = "distilhash.server.encode_worker", "distilhash.server.decode_worker"


def serve(
    index: str | Path,
    *,
    host: str = HOST,
    port: int = PORT,
    token: str | None = None,
    hasher: str | Path | None = None,
    int8: bool = False,
    host_names: Sequence[str] = (),
) -> None:
    """Serve an index of photos as a web page and a JSON API, until Ctrl-C or SIGTERM.

    Args:
        index: an index file of ``distilhash index``.
        host: an address of this computer; any but its loopback needs a token.
        port: 0 takes a free one.
        token: at least 16 characters, which every request must carry.
        hasher: the hasher that the index was made with; left out, its stored path.
        int8: run the int8 model of an exported hasher. An index made with it needs no flag.
        host_names: further names in the Host header that are allowed.

    Raises:
        DistilhashError: an argument makes no sense, the index or its hasher is missing, or the port is taken.
    """
    if token is not None and not (len(token) >= MIN_TOKEN and token.isascii() and token.isprintable()):
        raise DistilhashError(
            f"a token needs at least {MIN_TOKEN} printable ASCII characters", f"{len(token)}", "choose a longer one"
        )
    if token is None and not _is_loopback(host):
        fix = "set DISTILHASH_TOKEN or --token, or serve on 127.0.0.1"
        raise DistilhashError("an address that others can reach needs a token", host, fix)
    if not 0 <= port <= 65535:
        raise DistilhashError("a port is a number from 0 to 65535", port)
    for name in host_names:
        if "*" in name:  # TrustedHostMiddleware would allow every host, and with it DNS rebinding
            raise DistilhashError("a host name cannot have a wildcard", name, "name each host with --host-name")
    _require_packages()
    from distilhash.server.library import Library

    with contextlib.closing(Library(Path(index))) as library, _listening(host, port) as listener:
        place = named(hasher_of(library.about(), library.path, hasher), int8=int8)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_run(library, str(place), listener, host, token or "", host_names))


async def _run(
    library: Library, hasher: str, listener: socket.socket, host: str, token: str, host_names: Sequence[str]
) -> None:
    import uvicorn

    from distilhash.server.app import Service, create_app
    from distilhash.server.security import SecurityMiddleware
    from distilhash.server.workers import Workers

    encoder = Workers(ENCODER, hasher)
    decoders: Workers | None = None
    try:
        about: dict[str, Any] = json.loads(await encoder.start())
        if about["fingerprint"] != library.about()["encoder"]:
            raise DistilhashError("the index was made with another hasher", hasher, "name that one with --hasher")
        config = json.dumps(dataclasses.asdict(InputConfig(**about["input"])))
        # One more than cores, because the replacement of a killed worker takes a moment to start.
        decoders = Workers(DECODER, config, count=min(MAX_DECODERS, os.cpu_count() or 1) + 1)
        await decoders.start()
        service = Service(library, decoders, encoder, about["fingerprint"], _display_name(hasher))
        names = [_bracketed(name.lower().strip("[]").rstrip(".")) for name in (host, *host_names)]
        # Around the whole application, so that the answer to an internal error carries the headers, too.
        app = SecurityMiddleware(create_app(service, token=bool(token)), hosts=names, token=token)
        config_of_server = uvicorn.Config(
            app, lifespan="off", ws="none", http="h11", access_log=False, log_level="warning", server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=1, limit_concurrency=512,
        )  # fmt: skip
        log.info("serving http://%s:%d/ (Ctrl-C ends it)", _bracketed(host), listener.getsockname()[1])
        await uvicorn.Server(config_of_server).serve(sockets=[listener])
    finally:
        await encoder.close()
        if decoders is not None:
            await decoders.close()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _display_name(hasher: str) -> str:
    """The last part of a hasher's path; of an exported model with its directory."""
    place = Path(hasher)
    return place.name if model_file(place) is None else f"{place.parent.name}/{place.name}"


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket. Raises DistilhashError if the address is taken or not of this computer."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        reason = f"{host} ({error.strerror})"
        raise DistilhashError("there is no such address", reason, "name one of this computer") from None
    with listener:
        try:
            if os.name == "posix":  # on Windows it would let two servers share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(512)  # here, because on some systems only listen() reports a taken port
        except OSError as error:
            reason = f"{host} port {port} ({error.strerror})"
            raise DistilhashError("cannot listen there", reason, "choose another --port; 0 takes a free one") from None
        yield listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _require_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401  (starlette parses forms with it)
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise DistilhashError("serving needs further packages", str(error), "pip install 'distilhash[serve]'") from None
