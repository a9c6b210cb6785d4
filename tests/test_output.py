"""Output meets whatever stdout is: full, closed, a pipe, a narrow terminal, any encoding; file names act on none."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from distilhash import cli
from distilhash.errors import DistilhashError, printable
from mistakes import picture, refused

# A title of the terminal, a line end, a colour, text from right to left, a byte that is not UTF-8, Japanese.
NAMES = ["a\x1b]0;owned\x07.png", "b\nfake.png", "c\x1b[31m.png", "d\u202egnp.png", "e\udcff.png", "f\u65e5.png"]
SHOWN = [r"a\x1b]0;owned\x07.png", r"b\nfake.png", r"c\x1b[31m.png", r"d\u202egnp.png", r"e\xff.png", "f\u65e5.png"]


def distilhash(words: str, redirection: str = "", **streams: object) -> subprocess.CompletedProcess[str]:
    """A command of its own process, through a shell."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    line = f"{sys.executable} -m distilhash {words} {redirection}"
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    streams |= {"env": environment, "stderr": subprocess.PIPE}
    return subprocess.run(["sh", "-c", line], text=True, check=False, **streams)


@pytest.mark.parametrize("words", ["list", "list --json", "search --help"])
def test_a_full_stdout_is_one_sentence(words):
    done = distilhash(words, ">/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("distilhash: ") and done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("words", ["list", "list --json", "search --help"])
def test_a_reader_that_goes_away_ends_the_command_quietly(words):
    read, write = os.pipe()
    os.close(read)
    try:
        done = distilhash(words, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("words", "redirection", "code"),
    [
        ("search --help", ">&-", 0), ("list", ">&- <&- 2>&-", 0), ("list", "<&-", 0), ("list", "2>/dev/full", 0),
        ("nonsense", "2>/dev/full", 2), ("nonsense", "2>&-", 2),
    ],
)  # fmt: skip
def test_closed_streams_and_lost_messages_end_no_work(words, redirection, code):
    done = distilhash(words, redirection, stdout=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (code, "")


def test_what_acts_on_a_terminal_is_escaped():
    assert [printable(name) for name in NAMES] == SHOWN
    assert printable("für Ω 日本 👩‍👧 a b") == "für Ω 日本 👩‍👧 a b"
    error = DistilhashError("no such file", NAMES[0])
    assert (error.got, SHOWN[0] in str(error), "\x1b" in str(error)) == (NAMES[0], True, False)


@pytest.fixture
def odd(here):
    """A folder of images with names that act on terminals, each twice: readable and not, in folders alike."""
    draw = np.random.default_rng(0)
    for folder in NAMES[:2]:
        for name in NAMES:
            picture(here / "odd" / folder / name, draw.integers(0, 256, (32, 32, 3), np.uint8))
        (here / "odd" / folder / f"bad{NAMES[0]}").write_text("no image")
    return here


def output(encoding: str, *words: str, terminal: bool = False) -> tuple[int, str, str]:
    """The exit code and both streams of a command, whose stdout and stderr have an encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    streams[0].isatty = lambda: terminal
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = cli.main(list(words))
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "cp1252"])
def test_every_command_prints_any_name_in_any_encoding(odd, encoding, capsys):
    images = [str(odd / "odd" / folder / name) for folder in NAMES[:2] for name in NAMES]
    texts = []
    for words in (
        ("check", "odd"), ("index", "odd", "--hasher", "hasher", "--index", f"{NAMES[0]}.index"),
        ("search", f"{NAMES[0]}.index", *images[:3], "--top", "20"), ("code", "hasher", *images),
        ("encode", "hasher", "odd", "--output", f"codes{NAMES[4]}"), ("search", NAMES[1], "--id", "1"),
        ("code", "hasher", NAMES[2]), ("hash", "odd", "--bits", NAMES[0]), (NAMES[0],), ("list", NAMES[1]),
    ):  # fmt: skip
        for flags in ((), ("--json",)):
            code, out, err = output(encoding, *words, *flags)
            assert code in (0, 2)
            texts += [out, err]
            if flags and out:
                json.loads(out)
                assert out.isascii()
    for text in texts:
        assert all(character == "\n" or printable(character) == character for character in text)
        assert "fake.png" not in [line.split("/")[-1] for line in text.splitlines()]
    found = "".join(texts)
    assert [name for name in SHOWN[:3] if name not in found] == []
    assert r"\xff.png" in found and ("\\u202egnp.png" in found)
    assert ("f\u65e5.png" if encoding == "utf-8" else r"f\u65e5.png") in found


def test_json_gives_the_names_as_they_are(odd, capsys):
    _, out, _ = output("ascii", "code", "hasher", f"odd/{NAMES[0]}/{NAMES[4]}", f"odd/{NAMES[1]}/{NAMES[1]}", "--json")
    assert [row["image"] for row in json.loads(out)] == [f"odd/{NAMES[0]}/{NAMES[4]}", f"odd/{NAMES[1]}/{NAMES[1]}"]


def test_a_run_takes_names_that_are_not_utf8(odd, capsys, monkeypatch):
    """Its settings, provenance, log and model say them."""
    (odd / "student").rename(odd / NAMES[4])
    words = ["hash", "photos", "--backbone", NAMES[4], "--output", f"run{NAMES[4]}", "--bits", "8", "--epochs", "1",
             "--precision", "float32", "--batch-size", "32", "--quiet"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["distilhash", *words])
    code, out, told = output("utf-8", *words)
    assert (code, out) == (0, "hasher  rune\\xff.png/model\n") and r"e\xff.png does not say which images" in told
    made = json.loads((odd / f"run{NAMES[4]}" / "provenance.json").read_text())
    assert NAMES[4] in made["command"]


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_cut_off_where_there_is_little_room(here, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "profiled-" + "x" * 100
    (here / name).symlink_to("hasher")
    code, out, _ = output("utf-8", "profile", name, "--size", "32", "--seconds", "0.01", terminal=terminal)
    assert code == 0 and "\u2026" not in out
    assert "x" * 100 in ("".join(out.split()) if terminal else out) or out.count("x") >= 100


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours_gets_none(here, variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, out, _ = output("utf-8", "profile", "hasher", "v1", "--size", "32", "--seconds", "0.01", terminal=True)
    assert code == 0 and not re.search("\x1b\\[[0-9;]*[34][0-9]", out)


def test_a_refused_name_is_said_escaped(here, capsys):
    assert r"no\x1b[2J\nsuch" in refused(capsys, "check", "no\x1b[2J\nsuch")


@pytest.mark.parametrize(
    ("words", "name", "code"), [("index photos", "SIGINT", 130), ("hash photos --overwrite", "SIGTERM", 143)]
)
def test_a_signal_ends_a_command_in_one_line(words, name, code):
    """The command sends it to itself in the midst of its work."""
    stage = words.split()[0]
    program = (
        "import functools, os, signal, time\n"
        "from distilhash import __main__, api, cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a command in the background ignores
        f"@functools.wraps(api.{stage})\n"
        f"def work(*_, **__): os.kill(os.getpid(), signal.{name}); time.sleep(60)\n"
        f"api.{stage} = work\n"
        "__main__.run()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "DISTILHASH_STARTED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *words.split()], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("distilhash: interrupted; ") and done.stderr.count("\n") == 1
    assert ("--resume" in done.stderr) == (stage == "hash") and ("--overwrite" in done.stderr) == (stage == "hash")
