"""The command serve: an index of photos as a web page and a JSON API, until Ctrl-C.

On 127.0.0.1 every user of this computer may ask. Any other address needs a token, which every request must carry.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilhash.deploy.runtime import model_file
from distilhash.errors import DistilhashError
from distilhash.hasher import named
from distilhash.photos.encoder import hashers_of
from distilhash.progress import log

if TYPE_CHECKING:
    from distilhash.server.library import Library
    from distilhash.server.workers import Workers

MIN_TOKEN = 16  # characters
MAX_DECODERS = 4
PROXIES = ["127.0.0.0/8", "::1", "::ffff:127.0.0.0/104"]  # on this computer: their X-Forwarded-Proto is believed
ENCODER, DECODER = ("distilhash.server.jobs", "encode"), ("distilhash.server.jobs", "decode")


def serve(
    index: str | Path, *, host: str, port: int, token: str | None, hasher: str | Path | None, int8: bool,
    host_names: Sequence[str], root_path: str,
) -> None:  # fmt: skip
    """Serve an index of photos until Ctrl-C or SIGTERM; for the arguments see ``distilhash.api.serve``."""
    if token is not None and not (len(token) >= MIN_TOKEN and token.isascii() and token.isprintable()):
        raise DistilhashError(
            f"a token needs at least {MIN_TOKEN} printable ASCII characters", f"{len(token)}", "choose a longer one"
        )
    if token is None and not _is_loopback(host):
        fix = "set DISTILHASH_TOKEN or --token, or serve on 127.0.0.1"
        raise DistilhashError("an address that others can reach needs a token", host, fix)
    if not 0 <= port <= 65535:
        raise DistilhashError("a port is a number from 0 to 65535", port)
    if not re.fullmatch(r"/?([\w.~-]+/)*[\w.~-]*", root_path):
        raise DistilhashError("a root path has neither scheme nor host", root_path, "write --root-path /photos")
    from distilhash.server.library import Library

    hosts = [_host_header(name) for name in (host, *host_names)]
    with contextlib.closing(Library(Path(index))) as library, _listen(host, port) as listener:
        places = [named(place, int8=int8) for place in hashers_of(library.about(), library.path, hasher)]
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_run(library, places, listener, host, hosts, token or "", root_path))


async def _run(
    library: Library, hashers: Sequence[Path], listener: socket.socket, host: str, hosts: Sequence[str], token: str,
    root_path: str,
) -> None:  # fmt: skip
    import uvicorn

    from distilhash.server.app import Service, create_app
    from distilhash.server.security import SecurityMiddleware, bracketed
    from distilhash.server.workers import Workers

    async with contextlib.AsyncExitStack() as stack:
        encoder, hasher, about = await _encoder_of(library, hashers, stack)
        # One more than cores, because the replacement of a killed worker takes a moment to start.
        count = min(MAX_DECODERS, os.cpu_count() or 1) + 1
        decoders = Workers(*DECODER, json.dumps(about["input"]), count=count)
        stack.push_async_callback(decoders.close)
        await decoders.start()
        name = hasher.name if model_file(hasher) is None else f"{hasher.parent.name}/{hasher.name}"
        service = Service(library, decoders, encoder, about["fingerprint"], name)
        root_path = f"/{root_path.strip('/')}".rstrip("/")
        reached = _reached(listener) or [host]
        hosts = [*hosts, *map(bracketed, reached)]
        # Around the whole application, so that the answer to an internal error carries the headers, too.
        inner = create_app(service, token=bool(token))
        app = SecurityMiddleware(inner, hosts=hosts, token=token, root_path=root_path)
        config = uvicorn.Config(
            app, lifespan="off", ws="none", http="h11", access_log=False, log_level="warning", server_header=False,
            forwarded_allow_ips=PROXIES, timeout_graceful_shutdown=1, limit_concurrency=512,
        )  # fmt: skip
        port = listener.getsockname()[1]
        log.info("serving %s (Ctrl-C ends it)", " ".join(f"http://{bracketed(name)}:{port}/" for name in reached))
        await uvicorn.Server(config).serve(sockets=[listener])


async def _encoder_of(
    library: Library, hashers: Sequence[Path], stack: contextlib.AsyncExitStack
) -> tuple[Workers, Path, dict[str, Any]]:
    """The encode worker of the first of these hashers that made the index, that hasher, and the worker's greeting."""
    from distilhash.server.workers import Workers

    refused = list[DistilhashError]()
    for hasher in hashers:
        encoder = Workers(*ENCODER, str(hasher))
        stack.push_async_callback(encoder.close)
        try:
            about = json.loads(await encoder.start())
        except DistilhashError as error:
            refused.append(error)
            continue
        if about["fingerprint"] == library.about()["encoder"]:
            return encoder, hasher, about
        what, fix = "the index was made with another hasher", "name that one with --hasher"
        refused.append(DistilhashError(what, hasher, fix))
        await encoder.close()
    raise refused[0]


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises DistilhashError if the address is taken or not of this computer."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        dualstack = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=512, dualstack_ipv6=dualstack)
    except (socket.gaierror, UnicodeError) as error:
        reason = f"{host} ({error.args[-1]})"
        raise DistilhashError("there is no such address", reason, "name one of this computer") from None
    except OSError as error:
        reason, elsewhere = f"{host} port {port} ({os.strerror(error.errno or 0)})", error.errno == errno.EADDRNOTAVAIL
        fix = (
            "name an address of this computer with --host" if elsewhere else "choose another --port; 0 takes a free one"
        )
        raise DistilhashError("cannot listen there", reason, fix) from None


def _host_header(name: str) -> str:
    """A host as browsers write it. Raises DistilhashError for what is none."""
    from distilhash.server.security import bracketed

    try:
        return bracketed(str(ipaddress.ip_address(name.strip("[]"))))
    except ValueError:
        if re.fullmatch(r"[A-Za-z0-9._-]+", name):  # a wildcard would admit every host, and with it DNS rebinding
            return name.lower().rstrip(".")
    fix = "write --host-name photos.example, once for each host"
    raise DistilhashError("a host name is ASCII, without scheme, port or wildcard", name, fix)


def _reached(listener: socket.socket) -> list[str]:
    """The addresses of this computer, loopback first, if the socket listens on all of them; else none."""
    import ifaddr

    if not ipaddress.ip_address(listener.getsockname()[0]).is_unspecified:
        return []
    ips = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    found = [ipaddress.ip_address(ip if isinstance(ip, str) else ip[0]) for ip in ips]
    six = listener.family == socket.AF_INET6
    four = not six or not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    # Browsers cannot name the interface that an IPv6 link-local address needs.
    found = [ip for ip in found if (four if ip.version == 4 else six and not ip.is_link_local)]
    return [str(ip) for ip in sorted(found, key=lambda ip: (not ip.is_loopback, ip.version, ip))]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
