"""Worker processes of the service: asked over a pipe, killed when they take too long, and replaced.

A message is four bytes of length, then raw bytes. Nothing is unpickled, so a worker that a hostile image has taken over
can return bytes but cannot run code in the service. ``run_worker`` is the worker's side, ``Workers`` the service's; a
DistilhashError of a worker is raised in the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import BinaryIO

from distilhash.errors import DistilhashError

MAX_MESSAGE_BYTES = 1 << 28
START_SECONDS = 120.0  # reading PyTorch from a slow disk takes long
LENGTH = struct.Struct(">I")
DONE, FAILED = b"\0", b"\1"  # first byte of an answer; the result follows, or a sentence

Answer = Callable[[bytes], bytes]


class WorkerLost(DistilhashError):  # noqa: N818 (it is an answer)
    """A worker ended, or was killed because it took too long."""


class Workers:
    """Processes that run one module. Start, ask and close them in one event loop.

    Args:
        module, arguments: a module that calls ``run_worker`` when it is run, and its command line.
        count: number of processes.
    """

    def __init__(self, module: str, *arguments: str, count: int = 1) -> None:
        # -P: a module in the working directory is not imported by mistake.
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._idle: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        self._all: set[Process] = set()
        self._count, self._closed = count, False

    async def start(self) -> bytes:
        """Start all of them and return the greeting of one. Raises DistilhashError if one cannot start."""
        started = await asyncio.gather(*(self._start_one() for _ in range(self._count)))
        for process, _ in started:
            self._idle.put_nowait(process)
        return started[-1][1]

    async def ask(self, message: bytes, seconds: float) -> bytes:
        """Send a message to an idle worker and return its answer.

        Args:
            message: at most MAX_MESSAGE_BYTES.
            seconds: time limit, counted from when a worker is idle; a worker that exceeds it is killed.

        Raises:
            WorkerLost: the worker ended or was killed.
            DistilhashError: the worker refuses, or none can be started.
        """
        process, answer = await self._idle.get(), b""
        try:
            if process is None or process.returncode is not None:
                process, _ = await self._start_one()
            async with asyncio.timeout(seconds):
                answer = await _exchange(process, message)
        except TimeoutError as error:
            raise WorkerLost(f"it took more than {seconds:g} seconds") from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise WorkerLost("its worker ended") from error
        finally:
            self._idle.put_nowait(process if answer else None)
            if process is not None and not answer:  # also if cancelled: the next message would get the answer
                await self._kill(process)
        return _result(answer)

    async def close(self) -> None:
        """Kill all of them."""
        self._closed = True
        await asyncio.gather(*(self._kill(process) for process in list(self._all)))

    async def _start_one(self) -> tuple[Process, bytes]:
        if self._closed:
            raise DistilhashError("the service is shutting down")
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # several workers share the cores
        process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, env=environment)
        self._all.add(process)
        try:
            async with asyncio.timeout(START_SECONDS):
                return process, _result(await _receive(process))
        except BaseException as error:
            await self._kill(process)
            if isinstance(error, (OSError, asyncio.IncompleteReadError)):  # a TimeoutError is an OSError
                raise DistilhashError("a worker process could not start", self._command[3]) from error
            raise

    async def _kill(self, process: Process) -> None:
        self._all.discard(process)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _exchange(process: Process, message: bytes) -> bytes:
    assert process.stdin is not None
    process.stdin.write(_packed(message))
    await process.stdin.drain()
    return await _receive(process)


async def _receive(process: Process) -> bytes:
    assert process.stdout is not None
    (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    if not 1 <= length <= MAX_MESSAGE_BYTES:
        raise OSError("an answer of impossible length")
    return await process.stdout.readexactly(length)


def _result(answer: bytes) -> bytes:
    if answer[:1] != DONE:
        raise DistilhashError(answer[1:].decode("utf-8", "replace"))
    return answer[1:]


def run_worker(start: Callable[[], tuple[bytes, Answer]]) -> None:
    """Run this process as a worker: greet, then answer messages from stdin until it is closed.

    Args:
        start: returns the greeting and the function that answers. A DistilhashError of either is sent as a refusal.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which then closes the pipe
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a library prints must not get between the answers
        try:
            greeting, answer = start()
        except DistilhashError as error:
            _write(answers, _refusal(error))
            return
        _write(answers, DONE + greeting)
        while (message := _read(sys.stdin.buffer)) is not None:
            try:
                _write(answers, DONE + answer(message))
            except DistilhashError as error:
                _write(answers, _refusal(error))


def _refusal(error: DistilhashError) -> bytes:
    reason = getattr(error, "reason", "") or str(error)  # UnreadableImage without the name of the file
    return FAILED + " ".join(reason.split()).removesuffix(".").encode("utf-8", "replace")


def _packed(message: bytes) -> bytes:
    assert len(message) <= MAX_MESSAGE_BYTES, "uploads have a lower limit, and thumbnails are small"
    return LENGTH.pack(len(message)) + message


def _read(file: BinaryIO) -> bytes | None:
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    message = file.read(length)
    return message if len(message) == length else None


def _write(file: BinaryIO, message: bytes) -> None:
    file.write(_packed(message))
    file.flush()
