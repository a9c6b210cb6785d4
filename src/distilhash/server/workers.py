"""Worker processes of the service: asked over a pipe, killed when they take too long, and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process

from distilhash.errors import DistilhashError
from distilhash.server.pipes import DONE, LENGTH, MOST_BYTES, packed

START_SECONDS = 120.0  # a slow disk reads torch for a long time


class Refusal(Exception):  # noqa: N818 (it is an answer)
    """A worker said why it cannot do what it was asked."""


class WorkerLost(Exception):  # noqa: N818
    """A worker ended, or was ended because it took too long."""


class Workers:
    """Some processes of one module. Start them, ask them, close them, all in one event loop."""

    def __init__(self, module: str, *arguments: str, count: int = 1) -> None:
        # -P: what lies in the working directory is not imported.
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._idle: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        self._all: set[Process] = set()
        self._count, self._closed = count, False

    async def start(self) -> bytes:
        """Start them all; the greeting of the last. Errors: DistilhashError where one cannot begin."""
        started = await asyncio.gather(*(self._begin() for _ in range(self._count)))
        for process, _ in started:
            self._idle.put_nowait(process)
        return started[-1][1]

    async def ask(self, message: bytes, seconds: float) -> bytes:
        """What an idle worker answers; the time counts from when one is idle. Errors: Refusal, WorkerLost."""
        process = await self._idle.get()
        try:
            if process is None or process.returncode is not None:
                process = None
                process, _ = await self._begin()
            async with asyncio.timeout(seconds):
                answer = await _exchange(process, message)
        except DistilhashError as error:
            raise WorkerLost(str(error)) from error
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            await self._end(process)
            process = None
            late = isinstance(error, TimeoutError)
            raise WorkerLost(f"it took more than {seconds:g} seconds" if late else "its worker ended") from error
        except BaseException:  # cancelled between question and answer: the next question would get this answer
            await self._end(process)
            process = None
            raise
        finally:
            self._idle.put_nowait(process)
        return _result(answer)

    async def close(self) -> None:
        """End them all."""
        self._closed = True
        await asyncio.gather(*(self._end(process) for process in list(self._all)))

    async def _begin(self) -> tuple[Process, bytes]:
        if self._closed:
            raise DistilhashError("the service is ending")
        process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, env=_environment())
        self._all.add(process)
        try:
            async with asyncio.timeout(START_SECONDS):
                greeting = _result(await _receive(process))
        except Refusal as error:
            await self._end(process)
            raise DistilhashError(str(error)) from error
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            await self._end(process)
            raise DistilhashError("a worker process could not start", self._command[3]) from error
        except BaseException:
            await self._end(process)
            raise
        return process, greeting

    async def _end(self, process: Process | None) -> None:
        if process is None:
            return
        self._all.discard(process)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _exchange(process: Process, message: bytes) -> bytes:
    assert process.stdin is not None
    process.stdin.write(packed(message))
    await process.stdin.drain()
    return await _receive(process)


async def _receive(process: Process) -> bytes:
    assert process.stdout is not None
    (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    if not 1 <= length <= MOST_BYTES:
        raise OSError("an answer of impossible length")
    return await process.stdout.readexactly(length)


def _result(answer: bytes) -> bytes:
    if answer[:1] != DONE:
        raise Refusal(answer[1:].decode("utf-8", "replace"))
    return answer[1:]


def _environment() -> dict[str, str]:
    """One thread each for NumPy's own libraries: the workers are several."""
    return os.environ | {"OPENBLAS_NUM_THREADS": "1"}
