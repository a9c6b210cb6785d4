"""The command line: the only module that parses arguments, prints results and exits.

tyro makes a command's flags and help of the API's function of that name (COMMANDS); TEXTS says how a result is printed
that is no plain table. Results go to stdout (``--json`` for programs), messages and progress to stderr. Exit codes:
0 done, 1 our bug, 2 the user's mistake or what the system refuses (one sentence), 130 Ctrl-C, 141 a reader of stdout
that went away, 143 SIGTERM. One file, so that all printing and every exit code is in one place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import logging
import os
import re
import shlex
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, get_origin, get_type_hints

import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro._errors import (  # private: pyproject.toml holds tyro to the versions that have them
    BadValue,
    InstantiationFailure,
    InvalidChoice,
    MissingArgs,
    MutexConflict,
    ParseErrorEvent,
    UnrecognizedArgs,
    on_parse_error,
)
from tyro.conf import OmitArgPrefixes, Positional

from distilhash import __version__, api
from distilhash.config import Protocol
from distilhash.device import choose
from distilhash.errors import DistilhashError, did_you_mean, printable, refused, unknown_name
from distilhash.files import to_json
from distilhash.progress import console, log

SHELLS = ("bash", "fish", "zsh")
SHOWN = 3  # failures of each kind, in one line
CONFIG = (
    tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName, tyro.conf.SuppressFixed,
    tyro.conf.HelptextFromCommentsOff, tyro.conf.UseAppendAction,
)  # fmt: skip

_rerun = tyro.conf.create_mutex_group(required=False, title="existing run")


@dataclasses.dataclass(frozen=True)
class Show:
    """Output."""

    json: bool = False
    """Print the result as JSON."""
    quiet: bool = False
    """Print no progress and no messages but warnings."""


@dataclasses.dataclass(frozen=True)
class Compute(Show):
    """Device and output."""

    device: str | None = None
    """auto (a GPU where there is one), cpu, cuda, cuda:N or mps. None: DISTILHASH_DEVICE, or auto."""


@dataclasses.dataclass(frozen=True)
class Run(Compute):
    """Device, output, and what becomes of a run that is there."""

    resume: Annotated[bool, _rerun] = False
    """Go on with the run in the output directory."""
    overwrite: Annotated[bool, _rerun] = False
    """Replace the run in the output directory."""


@dataclasses.dataclass(frozen=True)
class Splitting:
    """Split of labelled images into query, train, validation and database."""

    protocol: Protocol = "cifar10"
    """Published split of CIFAR-10; other images ignore it."""
    split_seed: int = 0
    """Random seed of a split that is drawn."""
    split: Path | None = None
    """The split.json of an earlier run. None: a new split."""


@functools.cache
def command_of(name: str) -> Callable[..., tuple[dict[str, Any], Show]]:
    """The API's function as tyro reads it, with what commands share in groups; it gives its arguments."""
    function = _function(name)
    taken = {key: hint for key, hint in function.__annotations__.items() if key != "return"}
    hints = get_type_hints(types.SimpleNamespace(__annotations__=taken), vars(api))
    parameters = inspect.signature(function).parameters
    groups: dict[str, type] = {"splitting": Splitting} if "protocol" in parameters else {}
    groups["show"] = Run if "resume" in parameters else Compute if name == "encode" else Show
    shared = {field.name for group in groups.values() for field in dataclasses.fields(group)}
    own = [_argument(each, hints[each.name]) for each in parameters.values() if each.name not in shared]
    for key, group in groups.items():
        hint: Any = Annotated[group, OmitArgPrefixes]
        own.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=group(), annotation=hint))
    signature = inspect.Signature(own)

    def command(*values: Any, **named: Any) -> tuple[dict[str, Any], Show]:
        given = signature.bind(*values, **named).arguments
        show = given.pop("show")
        for group in filter(None, (given.pop("splitting", None), show)):
            given |= {key: value for key, value in vars(group).items() if key in parameters}
        return given, show

    command.__doc__ = function.__doc__
    command.__annotations__ = {each.name: each.annotation for each in own}
    command.__signature__ = signature  # type: ignore[attr-defined]
    return command


def _argument(parameter: inspect.Parameter, hint: Any) -> inspect.Parameter:
    """A parameter of the API as an argument: of one type, and by its place where it is required or a plain list."""
    name, required = parameter.name, parameter.default is parameter.empty
    path = str if name in ("images", "photos", "backbone", "hasher") else Path  # a name may stand there, too
    hint = {
        str | Path: path, str | Path | Any: path, str | Path | None: path | None, Sequence[str | Path]: tuple[str, ...],
        Sequence[str | Path | Any]: tuple[str, ...], Sequence[str]: tuple[str, ...], Sequence[int]: tuple[int, ...],
    }.get(hint, hint)  # fmt: skip
    several = get_origin(hint) is tuple
    if parameter.kind is not parameter.KEYWORD_ONLY and (required or several or name == "library"):
        return parameter.replace(annotation=Annotated[hint, Positional])
    if several:  # --host-name, once for each
        hint = Annotated[hint, tyro.conf.arg(name=name.removesuffix("s").replace("_", "-"))]
    elif name in ("config", "scan"):
        hint = Annotated[hint, OmitArgPrefixes]
    return parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hint)


def _function(name: str) -> Callable[..., Any]:
    return getattr(api, "known_names" if name == "list" else name)  # type: ignore[no-any-return]


COMMANDS = (
    "demo", "reproduce", "distill", "hash", "fit", "encode", "evaluate", "profile", "export", "check", "index",
    "search", "duplicates", "info", "code", "serve", "list",
)  # fmt: skip


def _trials(rows: list[dict[str, Any]], given: dict[str, Any]) -> list[Any]:
    from distilhash.experiments.tables import terminal_table
    from distilhash.experiments.trials import read_trials

    return [terminal_table(read_trials(rows)), f"\nThe report: {printable(str(given['output'] / 'report.html'))}"]


def _fit(found: dict[str, Any], _: object) -> list[Any]:
    rows = [{"hashed": name, **found[name]} for name in ("student", "teacher") if name in found]
    told = {key: value for key, value in found.items() if key not in ("student", "teacher", "verdict")}
    return [_table(told), *(["", _table(rows)] if rows else []), f"\n{found['verdict']}"]


def _export(report: dict[str, Any], given: dict[str, Any]) -> list[Any]:
    return [f"{report['verdict']}\n\nThe report: {printable(str(given['output'] / 'README.md'))}"]


def _check(found: dict[str, Any], _: object) -> list[Any]:
    lines = [f"{name}: {count:,} images" for name, count in found["overlaps"].items() if count]
    lines += [f"missing: {path}" for path in found["missing"]]
    lines += [f"unreadable: {bad['image']} ({bad['reason']})" for bad in found["unreadable"]]
    lines += [f"note: {note}" for note in found["notes"]]
    lines += [f"problem: {problem}" for problem in found["problems"]]
    text = [
        f"{printable(found['images'])}: {found['kind']}, {found['label_columns']} classes",
        *([_table(found["parts"])] if found["parts"] else []),
        "\n".join([*map(printable, lines), "ready" if found["ready"] else "not ready"]),
    ]
    if found["ready"]:
        return text
    first, *others = found["problems"]
    more = f" (and {len(others)} more, listed above)" if others else ""
    return [*text, DistilhashError(f"these images are not ready: {first}{more}")]


def _index(done: dict[str, Any], given: dict[str, Any]) -> list[Any]:
    from distilhash.photos.duplicates import NearDuplicates

    drops = "" if given["prune"] else "--prune drops them, "
    for key, what in (
        ("unreadable", "cannot be listed, and keep their photos"), ("failures", "cannot be read"),
        ("missing", f"are missing and kept ({drops}--forget drops a whole folder)"),
        ("passed_over", "are left out now and kept (--prune drops them)"),
    ):  # fmt: skip
        rows = done[key]
        if rows:
            shown = [row if isinstance(row, str) else f"{row[0]} ({row[1]})" for row in rows[:SHOWN]]
            first = "; ".join(map(printable, shown))
            log.warning("%s", f"{len(rows):,} {what}: {first}{'; ...' if len(rows) > SHOWN else ''}")
    counted = {key: len(value) if isinstance(value, list) else value for key, value in done.items()}
    told = ("unreadable", "failures", "other_files", "rebuild_pays", "near_duplicates")
    table = _table({key: value for key, value in counted.items() if key not in told})
    return [table, str(NearDuplicates(**done["near_duplicates"]))]


def _search(found: list[dict[str, Any]], _: object) -> list[Any]:
    lines = []
    for answer in found:
        lines.append(f"{printable(answer['query'])}: {len(answer['hits'])} hits")
        for hit in answer["hits"]:
            for indent, photo in (("", hit), *(("  like it: ", double) for double in hit["duplicates"])):
                mark = "  (missing)" if photo["missing"] else ""
                name = f"{indent}{printable(photo['path'])}{mark}"
                lines.append(f"{photo['distance']:>6}  {photo['id']:>8}  {name}".rstrip())
    return ["\n".join(lines)]


def _duplicates(found: dict[str, Any], _: object) -> list[Any]:
    from distilhash.photos.copies import told_size, verdict

    lines = []
    for number, group in enumerate(found["groups"], 1):
        lines.append(f"group {number}: {len(group)} photos")
        for place, copy in enumerate(group):
            near = f"{copy['distance']:>6}" if place else "  best"
            lines.append(f"{near}  {told_size(copy):<34}  {printable(copy['path'])}")
    return ["\n".join([*lines, verdict(found)])]


def _info(found: dict[str, Any], _: object) -> list[Any]:
    from distilhash.photos.duplicates import NearDuplicates

    told = {key: value for key, value in found.items() if key != "near_duplicates"}
    return [_table(told), str(NearDuplicates(**found["near_duplicates"]))]


def _code(found: list[dict[str, Any]], _: object) -> list[Any]:
    return ["\n".join(f"{row['code']}  {printable(row['image'])}" for row in found)]


# By command: its result and its arguments to texts and tables of rich, and an error to end with although there is a
# result. The others print a table.
TEXTS: dict[str, Callable[[Any, dict[str, Any]], list[Any]]] = {
    "demo": _trials, "reproduce": _trials, "fit": _fit, "export": _export, "check": _check, "index": _index,
    "search": _search, "duplicates": _duplicates, "info": _info, "code": _code,
}  # fmt: skip


def _after_encode(given: dict[str, Any]) -> list[tuple[object, ...]]:
    """The other part of the split, or how near the two are; of all images nobody says whether they have labels."""
    part, codes = given["part"], given["output"]
    if part not in ("query", "database"):
        return []
    other = "database" if part == "query" else "query"
    file = codes.with_name(f"{other}.safetensors")
    if file.exists():
        return [("evaluate", codes, file) if part == "query" else ("evaluate", file, codes)]
    int8 = ["--int8"] if given["int8"] else []
    return [("encode", given["hasher"], given["images"], "--part", other, "--output", file, *int8)]


# By command: the words of commands that come next, from its arguments.
NEXT: dict[str, Callable[[dict[str, Any]], list[tuple[object, ...]]]] = {
    "distill": lambda given: [
        # Only a labelled folder has a split.
        ("hash", given["images"] if (given["output"] / "split.json").exists() else "LABELLED", "--backbone",
         given["output"]),
    ],
    "hash": lambda given: [
        ("encode", given["output"], given["images"], "--part", "query", "--output", "query.safetensors"),
    ],
    "fit": lambda given: [("index", given["photos"], "--hasher", given["output"])],
    "encode": _after_encode,
    # With its curves.
    "evaluate": lambda given: [] if given["output"] else [
        ("evaluate", given["query"], given["database"], "--output", "metrics.json"),
    ],
    "export": lambda given: [
        ("encode", given["output"], "cifar10") if given["images"] == "cifar10"
        else ("index", given["images"], "--hasher", given["output"]),
    ],
    "index": lambda given: [("search", given["index"], "PHOTO"), ("serve", given["index"])],
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after "distilhash". None: those of this process.

    Returns:
        The exit code; our own bugs raise.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever its encoding cannot express is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _main(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except OSError as error:  # of stdout: _run tells those of a command
        if error.errno is None:
            raise
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return 141  # 128 + SIGPIPE, as a shell has it
        return _refuse(str(refused("cannot print the result", error)))


def _main(words: list[str]) -> int:
    name = words[0] if words else ""
    if name in ("-h", "--help", "--version"):
        print(f"distilhash {__version__}" if name == "--version" else _overview())
        return 0
    try:
        if not name:
            raise DistilhashError("a command is missing", fix=f"choose one of: {', '.join(COMMANDS)}")
        if name == "completion":
            return _complete(*words[1:])
        if name not in COMMANDS:
            raise unknown_name("command", name, COMMANDS)
    except DistilhashError as error:
        return _refuse(f"{str(error).rstrip('.')}; see distilhash --help.")
    try:
        arguments, show = parse(name, words[1:])
    except UsageError as error:
        return _refuse(str(error))
    except SystemExit:  # after --help
        return 0
    return _run(name, arguments, show)


def _run(name: str, arguments: dict[str, Any], show: Show) -> int:
    """Run a command, print its result, and return the exit code."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken images, which are reported in one line of our own
    _show_log(quiet=show.quiet)
    try:
        with _heard(name), contextlib.redirect_stdout(sys.stderr):  # some libraries print; stdout is for the result
            result = _call(name, arguments, getattr(show, "device", None))
    except DistilhashError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno is None:
            raise
        return _refuse(str(refused(f"cannot use {error.filename or 'the disk'}", error)))
    except MemoryError as error:
        return _refuse(str(DistilhashError("the memory does not suffice", error, "close some programs")))
    except KeyboardInterrupt as error:
        kept = "nothing was written"
        if isinstance(show, Run):
            instead = " instead of --overwrite" if show.overwrite else ""
            kept = f"the same command with --resume{instead} goes on from the last saved state"
        elif name == "index":
            kept = "the same command goes on from the last photos that were kept"
        _to_stderr(f"distilhash: interrupted; {kept}.")
        return 128 + (error.args or [signal.SIGINT])[0]  # of SIGTERM the number comes along
    return 0 if result is None else _print(name, result, arguments, show)


@contextlib.contextmanager
def _heard(name: str) -> Iterator[None]:
    """Before a second has passed, say in a terminal that the command is at work, where it says nothing itself."""
    handler = log.handlers[0]
    assert isinstance(handler, _LogHandler)

    def say() -> None:
        if handler.silent:
            log.info("%s: loads libraries and its input", name)

    timer = threading.Timer(0.5, say)
    timer.daemon = True
    if console.is_terminal:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _print(name: str, result: Any, arguments: dict[str, Any], show: Show) -> int:
    parts = TEXTS[name](result, arguments) if name in TEXTS else [_table(result)]
    mistakes = [part for part in parts if isinstance(part, DistilhashError)]
    for part in [to_json(result, indent=2)] if show.json else parts:
        if isinstance(part, str):
            print(part)
        elif part not in mistakes:
            Console(highlight=False).print(part)
    if name in NEXT and not show.json:
        for words in NEXT[name](arguments):
            log.info("next: %s", shlex.join(["distilhash", *map(str, words)]))
    return _refuse(str(mistakes[0])) if mistakes else 0


def _complete(shell: str = "", *_: str) -> int:
    """Print the script that completes commands and settings in a shell."""
    if shell not in SHELLS:
        raise unknown_name("shell", shell, SHELLS)
    words = ["--tyro-print-completion", shell]
    with contextlib.suppress(SystemExit):  # after it is printed
        commands = {name: command_of(name) for name in COMMANDS}
        tyro.extras.subcommand_cli_from_dict(commands, prog="distilhash", args=words, config=CONFIG)
    return 0


def _call(name: str, arguments: dict[str, Any], device: str | None) -> Any:
    choose(device)
    if name == "encode" and device:
        from distilhash.deploy.runtime import model_file

        if model_file(arguments["hasher"]) is not None:
            raise DistilhashError("an exported hasher runs on the processor", f"--device {device}", "leave it out")
    result = _function(name)(**arguments)
    return {{"distill": "student", "hash": "hasher"}[name]: str(result)} if isinstance(result, Path) else result


class UsageError(Exception):
    """Words that are no command: a flag that there is not, a value of another type."""


def parse(name: str, words: list[str]) -> tuple[dict[str, Any], Show]:
    """The arguments of the API's function for a command, and what else its flags ask for.

    Args:
        name: one of COMMANDS.
        words: its arguments.

    Raises:
        UsageError: they are not its arguments.
        SystemExit: after --help.
    """
    parameters = inspect.signature(command_of(name)).parameters

    def refuse(event: ParseErrorEvent) -> NoReturn:
        raise UsageError(_sentence(event, name))

    # --teacher NAME and --teacher-size N are short for --teacher.name NAME and --teacher.size N.
    if "teacher" in parameters:
        words = [re.sub(r"^--(teacher|student)(?=$|=)", r"--\1.name", word) for word in words]
        words = [re.sub(r"^--(teacher|student)-", r"--\1.", word) for word in words]
    if name == "search":  # --group-duplicates alone is --group-duplicates auto
        for place in [i for i, word in enumerate(words) if word == "--group-duplicates"][::-1]:
            if not re.fullmatch(r"-?\d+|auto|None", "".join(words[place + 1 : place + 2])):
                words = [*words[: place + 1], "auto", *words[place + 1 :]]
    with on_parse_error(refuse):
        given, show = tyro.cli(command_of(name), prog=f"distilhash {name}", args=words, config=CONFIG)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and given[key] == ():
            raise UsageError(f"{key.upper()} is missing; see distilhash {name} --help.")
    return given, show


def _sentence(event: ParseErrorEvent, name: str) -> str:
    """What is wrong with the words of a command, in one sentence."""
    if isinstance(event, InstantiationFailure):
        flag = "" if event.argument is None else f"{event.argument.display_name()}: "
        said = " ".join(f"{flag}{event.message}".split()).rstrip(".")
        said = re.sub(r"invalid literal for int\(\) with base 10: ", "not a whole number; got ", said)
        said = re.sub(r"could not convert string to float: ", "not a number; got ", said)
    elif isinstance(event, InvalidChoice):
        known = ", ".join(event.choices)
        said = f"unknown {event.argument.display_name()}; got {event.value!r}; choose one of: {known}"
    elif isinstance(event, MissingArgs):
        missing = ", ".join(str(argument.arg.lowered.metavar) for argument in event.missing_arguments)
        unknown = f"; unknown argument {' '.join(event.unrecognized_tokens)}" if event.unrecognized_tokens else ""
        said = f"{missing} is missing{unknown}"
    elif isinstance(event, MutexConflict):
        said = f"{event.first_token} and {event.second_token} exclude each other"
    elif isinstance(event, UnrecognizedArgs):
        said = f"unknown argument {' '.join(event.tokens)}"
    elif isinstance(event, BadValue):
        said = f"{event.argument.display_name()} needs a value"
    else:
        said = f"these arguments cannot be read ({type(event).__name__})"
    if isinstance(event, InvalidChoice):
        meant = did_you_mean(event.value, event.choices)
    elif isinstance(event, UnrecognizedArgs):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            parse(name, ["--help"])
        meant = did_you_mean(event.tokens[0].partition("=")[0], re.findall(r"--[a-z0-9.-]+", shown.getvalue()))
    else:
        meant = ""
    return f"{said}; {meant and f'{meant}; '}see distilhash {name} --help."


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {(_function(name).__doc__ or '').splitlines()[0]}" for name in COMMANDS]
    return "\n".join([
        "usage: distilhash COMMAND [arguments]", "",
        "Distil a pretrained image teacher into a compact student without labels, hash",
        "it to short binary codes, measure what that costs, and search with it.", "",
        *lines, "",
        "distilhash COMMAND --help shows its settings, with units and defaults;",
        f"distilhash completion {'|'.join(SHELLS)} prints a script that completes them.",
    ])  # fmt: skip


class _LogHandler(logging.Handler):
    """Writes to stderr: above the progress bar in a terminal, as plain lines elsewhere."""

    silent = True  # so far

    def emit(self, record: logging.LogRecord) -> None:
        self.silent = False
        text = printable(self.format(record))
        if console.is_terminal:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            _to_stderr(text)


def _show_log(*, quiet: bool) -> None:
    for handler in log.handlers[:]:
        log.removeHandler(handler)
    log.addHandler(_LogHandler())
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())  # else a library's basicConfig() prints each line again
    log.setLevel(logging.WARNING if quiet else logging.INFO)


def _to_stderr(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # a message that nobody can read ends no work
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let go of a stream that refuses what it still holds, which would fail once more at the end of the process."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _refuse(sentence: str) -> int:
    _to_stderr(f"distilhash: {printable(sentence)}")
    return 2


def _table(result: dict[str, Any] | list[dict[str, Any]]) -> Table | str:
    """A mapping as aligned lines; a list of rows as a table of rich in a terminal, as aligned columns elsewhere."""
    if isinstance(result, dict):
        lines = [[key, _value(value)] for key, value in result.items()]
    else:
        lines = [list(result[0]), *([_value(value) for value in row.values()] for row in result)]
    if isinstance(result, dict) or not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in result[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left", overflow="fold")
    for line in lines[1:]:
        table.add_row(*map(escape, line))
    return table


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return printable((", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value))
