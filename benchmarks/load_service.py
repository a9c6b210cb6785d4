"""Load test of a running service: errors and latency with many clients at once.

python benchmarks/load_service.py http://127.0.0.1:8765 --image photo.jpg --clients 50 --seconds 60

Each client asks for a page of photos, thumbnails of it, neighbours, and every eighth time for an upload's, one request
after another on a connection of its own. The result is JSON: requests and errors, and for each kind the 50th and 99th
percentile of the waiting time in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import defaultdict
from pathlib import Path

import httpx
import numpy as np


async def client(
    address: str, token: str, image: bytes, until: float, draw: random.Random, waits: dict[str, list[float]],
    errors: dict[str, int],
) -> None:  # fmt: skip
    """Send requests one after another until the time is over."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=address, headers=headers, limits=limits, timeout=60) as session:
        ids = [photo["id"] for photo in (await session.get("/api/photos?limit=200")).json()["photos"]]
        while time.monotonic() < until:
            kind = draw.choices(["photos", "thumbnail", "neighbours", "search"], [1, 4, 2, 1])[0]
            one = draw.choice(ids)
            began = time.monotonic()
            try:
                if kind == "photos":
                    answer = await session.get(f"/api/photos?start={draw.randrange(len(ids))}&limit=60")
                elif kind == "search":
                    answer = await session.post("/api/search?top=20", content=image)
                else:
                    answer = await session.get(f"/api/photos/{one}/{kind}")
                sound = answer.status_code == 200 and len(answer.content) > 0
            except httpx.HTTPError:
                sound = False
            if sound:
                waits[kind].append(time.monotonic() - began)
            else:
                errors[kind] += 1


async def load(options: argparse.Namespace) -> dict[str, object]:
    """Run all clients and summarise their waiting times."""
    waits: dict[str, list[float]] = defaultdict(list)
    errors: dict[str, int] = defaultdict(int)
    image, until = options.image.read_bytes(), time.monotonic() + options.seconds
    draws = (random.Random(number) for number in range(options.clients))
    await asyncio.gather(*(client(options.address, options.token, image, until, draw, waits, errors) for draw in draws))
    everything = [wait for kind in waits.values() for wait in kind]
    found: dict[str, object] = {
        "clients": options.clients, "seconds": options.seconds, "requests": len(everything) + sum(errors.values()),
        "errors": sum(errors.values()), "requests_per_second": round(len(everything) / options.seconds, 1),
    }  # fmt: skip
    for kind, seconds in {"all": everything, **waits}.items():
        p50, p99 = np.percentile(seconds, [50, 99]) * 1000 if seconds else (float("nan"),) * 2
        found[kind] = {"requests": len(seconds), "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="address of a running distilhash serve")
    parser.add_argument("--image", type=Path, required=True, help="image that is uploaded")
    parser.add_argument("--token", default="", help="token of the service")
    parser.add_argument("--clients", type=int, default=50, help="clients at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration in seconds (default: %(default)s)")
    print(json.dumps(asyncio.run(load(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
