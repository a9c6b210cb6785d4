"""The start of the command line: `distilhash` and `python -m distilhash`.

Libraries read some environment variables before Python can set them, so the process that a person starts sets those
that are missing and starts itself anew, once. Nothing else in this package sets any.
"""

import os
import signal
import sys

ENVIRONMENT = {
    # OpenMP's threads sleep while they wait for work: spinning ones take the cores from other processes.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1000",
    # glibc keeps freed blocks below 64 MiB: a network allocates the same ones in every layer, and faulting their pages
    # in again takes a part of each pass. Larger blocks, such as a large photo's pixels, go back to the system.
    "MALLOC_MMAP_THRESHOLD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    # Pillow would cut them into blocks of 16 MiB, which glibc keeps.
    "PILLOW_BLOCK_SIZE": "128m",
}
STARTED = "DISTILHASH_STARTED"  # set in the second start, so that there is no third


def run() -> None:
    """Run the command line in this environment and exit with its code."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next file that is opened would take its number, and its output
            stream = open(os.devnull, "r" if name == "stdin" else "w")  # noqa: PTH123, SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing and sys.platform == "linux" and STARTED not in os.environ:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing, STARTED: "1"})
    os.environ.update(missing)
    os.environ.pop(STARTED, None)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)
    try:
        from distilhash.cli import main

        code = main()
    except KeyboardInterrupt as error:  # before a command began, or after it ended
        print("distilhash: interrupted.", file=sys.stderr)
        code = 128 + (error.args or [signal.SIGINT])[0]
    sys.exit(code)


def _end(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    run()
