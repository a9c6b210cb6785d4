"""Messages between the service and its worker processes: four bytes of length, then raw bytes.

Nothing is ever unpickled, so a worker that a hostile image has taken over gives the service bytes, and no code.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Callable
from typing import BinaryIO

from distilhash.errors import DistilhashError

LENGTH = struct.Struct(">I")
MOST_BYTES = 1 << 28  # of one message
DONE, REFUSED = b"\0", b"\1"  # the first byte of an answer: the rest is the result, or a sentence


def packed(message: bytes) -> bytes:
    """A message as it goes through the pipe."""
    assert len(message) <= MOST_BYTES, "uploads have a lower cap, and thumbnails are small"
    return LENGTH.pack(len(message)) + message


def serve_pipe(begin: Callable[[], tuple[bytes, Callable[[bytes], bytes]]]) -> None:
    """The whole life of a worker: greet, then answer messages on stdin until it is closed.

    ``begin`` returns the greeting and the function that answers; a DistilhashError of either is an answer, too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the service, which closes the pipe
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever a library prints must not get between the messages
        answer: Callable[[bytes], bytes] | None = None
        try:
            greeting, answer = begin()
            _write(answers, DONE + greeting)
        except DistilhashError as error:
            _write(answers, REFUSED + _sentence(error))
        while answer is not None and (message := _read(sys.stdin.buffer)) is not None:
            try:
                reply = DONE + answer(message)
            except DistilhashError as error:
                reply = REFUSED + _sentence(error)
            _write(answers, reply)


def _sentence(error: DistilhashError) -> bytes:
    reason = getattr(error, "reason", "") or str(error)
    return " ".join(str(reason).split()).removesuffix(".").encode("utf-8", "replace")


def _read(file: BinaryIO) -> bytes | None:
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    message = file.read(length)
    return message if len(message) == length else None


def _write(file: BinaryIO, message: bytes) -> None:
    file.write(packed(message))
    file.flush()
