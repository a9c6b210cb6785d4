"""The command line: the only module that parses arguments, prints results and exits.

Each command is a function below: tyro makes its flags of the signature and of the configs' fields, and its help of the
docstring of the API's function of the same name. Results go to stdout (``--json`` for programs), messages and progress
to stderr. Exit codes: 0 done, 1 our bug, 2 the user's mistake or what the system refuses (one sentence), 130 Ctrl-C,
141 a reader of stdout that went away, 143 SIGTERM. One file, since a command here is little more than its signature.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TextIO

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
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from distilhash import api
from distilhash.config import (
    PHOTO_STUDENT,
    DemoConfig,
    DistillConfig,
    ExportConfig,
    FitConfig,
    HashConfig,
    Protocol,
    ReproduceConfig,
    ScanConfig,
    StudentConfig,
    TeacherConfig,
)
from distilhash.device import choose
from distilhash.errors import DistilhashError, printable, refused
from distilhash.files import to_json
from distilhash.progress import console, log

TOKEN = "DISTILHASH_TOKEN"
SHOWN = 3  # failures of each kind, in one line
CONFIG = (
    tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName, tyro.conf.SuppressFixed,
    tyro.conf.HelptextFromCommentsOff,
)  # fmt: skip

Scan = OmitArgPrefixes[UseAppendAction[ScanConfig]]

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

    @property
    def directory(self) -> dict[str, Any]:
        """What the functions of the API take."""
        return {"resume": self.resume, "overwrite": self.overwrite}


@dataclasses.dataclass(frozen=True)
class Splitting:
    """Split of labelled images into query, train, validation and database."""

    protocol: Protocol = "cifar10"
    """Published split of CIFAR-10; other images ignore it."""
    split_seed: int = 0
    """Random seed of a split that is drawn."""
    split: Path | None = None
    """The split.json of an earlier run. None: a new split."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command prints: data as JSON or text, and a mistake to end with although there is a result."""

    data: Any
    text: Any = None  # a string or a table of rich; None: the data as a table
    mistake: DistilhashError | None = None


def _demo(
    *,
    output: Path = api.DEMO_OUTPUT,
    config: OmitArgPrefixes[DemoConfig] = DemoConfig(),
    show: OmitArgPrefixes[Run] = Run(),
) -> Result:
    return _trials(api.demo(output, config=config, **show.directory), output)


def _reproduce(
    table: Positional[Literal["cifar10", "nuswide"]],
    *,
    output: Path = api.REPRODUCE_OUTPUT,
    config: OmitArgPrefixes[ReproduceConfig] = ReproduceConfig(),
    show: OmitArgPrefixes[Run] = Run(),
) -> Result:
    return _trials(api.reproduce(table, output, config=config, **show.directory), output)


def _distill(
    images: Positional[str],
    *,
    output: Path = api.DISTILL_OUTPUT,
    features: Path | None = None,
    rebuild_features: bool = False,
    unlabelled: bool = False,
    config: OmitArgPrefixes[DistillConfig] = DistillConfig(),
    teacher: TeacherConfig = TeacherConfig(),
    student: StudentConfig = StudentConfig(),
    scan: Scan = ScanConfig(),
    splitting: OmitArgPrefixes[Splitting] = Splitting(),
    show: OmitArgPrefixes[Run] = Run(),
) -> Result:
    model = api.distill(
        images, output, teacher=teacher, student=student, config=config, features=features,
        rebuild_features=rebuild_features, unlabelled=unlabelled, scan=scan, **vars(splitting), **show.directory,
    )  # fmt: skip
    return Result({"student": str(model)})


def _hash(
    images: Positional[str],
    *,
    backbone: str = "v1",
    output: Path = api.HASH_OUTPUT,
    config: OmitArgPrefixes[HashConfig] = HashConfig(),
    student: StudentConfig = StudentConfig(),
    teacher: TeacherConfig = TeacherConfig(),
    scan: Scan = ScanConfig(),
    splitting: OmitArgPrefixes[Splitting] = Splitting(),
    show: OmitArgPrefixes[Run] = Run(),
) -> Result:
    model = api.hash(
        images,
        output,
        backbone,
        config=config,
        student=student,
        teacher=teacher,
        scan=scan,
        **vars(splitting),
        **show.directory,
    )
    return Result({"hasher": str(model)})


def _fit(
    photos: Positional[str],
    *,
    output: Path = api.FIT_OUTPUT,
    config: OmitArgPrefixes[FitConfig] = FitConfig(),
    teacher: TeacherConfig = TeacherConfig(),
    student: StudentConfig = PHOTO_STUDENT,
    scan: Scan = ScanConfig(),
    show: OmitArgPrefixes[Run] = Run(),
) -> Result:
    found = api.fit(photos, output, config=config, teacher=teacher, student=student, scan=scan, **show.directory)
    rows = [{"hashed": name, **found[name]} for name in ("student", "teacher") if name in found]
    told = {key: value for key, value in found.items() if key not in ("student", "teacher", "verdict")}
    return Result(found, [_table(told), *(["", _table(rows)] if rows else []), f"\n{found['verdict']}"])


def _encode(
    hasher: Positional[Path],
    images: Positional[str],
    *,
    part: Literal["all", "query", "database", "train", "validation"] = "all",
    output: Path = api.CODES,
    precision: Literal["float32", "bfloat16"] | None = None,
    int8: bool = False,
    threads: int | None = None,
    scan: Scan = ScanConfig(),
    splitting: OmitArgPrefixes[Splitting] = Splitting(),
    show: OmitArgPrefixes[Compute] = Compute(),
) -> Result:
    from distilhash.deploy.runtime import model_file

    if show.device and model_file(hasher) is not None:
        raise DistilhashError("an exported hasher runs on the processor", f"--device {show.device}", "leave it out")
    return Result(
        api.encode(
            hasher, images, output, part=part, precision=precision, int8=int8, threads=threads, scan=scan,
            **vars(splitting),
        )
    )  # fmt: skip


def _evaluate(
    query: Positional[Path],
    database: Positional[Path],
    *,
    at: int | None = None,
    output: Path | None = None,
    show: OmitArgPrefixes[Show] = Show(),
) -> Result:
    return Result(api.evaluate(query, database, at=at, output=output))


def _profile(
    networks: Positional[tuple[str, ...]],
    *,
    bits: int = 64,
    size: int | None = None,
    seconds: float = 1.0,
    show: OmitArgPrefixes[Show] = Show(),
) -> Result:
    return Result(api.profile(_some(networks, "NETWORKS"), bits=bits, size=size, seconds=seconds))


def _export(
    hasher: Positional[Path],
    images: Positional[str],
    *,
    output: Path = api.EXPORT_OUTPUT,
    overwrite: bool = False,
    config: OmitArgPrefixes[ExportConfig] = ExportConfig(),
    scan: Scan = ScanConfig(),
    splitting: OmitArgPrefixes[Splitting] = Splitting(),
    show: OmitArgPrefixes[Show] = Show(),
) -> Result:
    report = api.export(hasher, output, images, config=config, overwrite=overwrite, scan=scan, **vars(splitting))
    return Result(report, f"{report['verdict']}\n\nThe report: {printable(str(output / 'README.md'))}")


def _check(images: Positional[str], *, scan: Scan = ScanConfig(), show: OmitArgPrefixes[Show] = Show()) -> Result:
    found = api.check(images, scan=scan)
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
    mistake = None
    if not found["ready"]:
        first, *others = found["problems"]
        more = f" (and {len(others)} more, listed above)" if others else ""
        mistake = DistilhashError(f"these images are not ready: {first}{more}")
    return Result(found, text, mistake)


def _index(
    folders: Positional[tuple[str, ...]] = (),
    *,
    index: Path = api.INDEX,
    hasher: str | None = None,
    int8: bool = False,
    verify: bool = False,
    prune: bool = False,
    forget: UseAppendAction[tuple[str, ...]] = (),
    rebuild: bool = False,
    scan: Scan = ScanConfig(),
    show: OmitArgPrefixes[Show] = Show(),
) -> Result:
    done = api.index(
        folders, index, hasher, int8=int8, scan=scan, verify=verify, prune=prune, forget=forget, rebuild=rebuild
    )
    for key, what in (
        ("unreadable", "cannot be listed, and keep their photos"), ("failures", "cannot be read"),
        ("missing", f"are missing and kept ({'' if prune else '--prune drops them, '}--forget drops a whole folder)"),
        ("passed_over", "are left out now and kept (--prune drops them)"),
    ):  # fmt: skip
        rows = done[key]
        if rows:
            shown = [row if isinstance(row, str) else f"{row[0]} ({row[1]})" for row in rows[:SHOWN]]
            first = "; ".join(map(printable, shown))
            log.warning("%s", f"{len(rows):,} {what}: {first}{'; ...' if len(rows) > SHOWN else ''}")
    from distilhash.photos.duplicates import NearDuplicates

    counted = {key: len(value) if isinstance(value, list) else value for key, value in done.items()}
    told = ("unreadable", "failures", "other_files", "rebuild_pays", "near_duplicates")
    table = _table({key: value for key, value in counted.items() if key not in told})
    return Result(done, [table, str(NearDuplicates(**done["near_duplicates"]))])


def _search(
    index: Positional[Path],
    images: Positional[tuple[str, ...]] = (),
    *,
    ids: Annotated[UseAppendAction[tuple[int, ...]], tyro.conf.arg(name="id")] = (),
    top: int | None = None,
    radius: int | None = None,
    group_duplicates: int | Literal["auto"] | None = None,
    hasher: str | None = None,
    int8: bool = False,
    show: OmitArgPrefixes[Show] = Show(),
) -> Result:
    found = api.search(
        index, images, ids=ids, top=top, radius=radius, group_duplicates=group_duplicates, hasher=hasher, int8=int8
    )
    lines = []
    for answer in found:
        lines.append(f"{printable(answer['query'])}: {len(answer['hits'])} hits")
        for hit in answer["hits"]:
            for indent, photo in (("", hit), *(("  like it: ", double) for double in hit["duplicates"])):
                mark = "  (missing)" if photo["missing"] else ""
                name = f"{indent}{printable(photo['path'])}{mark}"
                lines.append(f"{photo['distance']:>6}  {photo['id']:>8}  {name}".rstrip())
    return Result(found, "\n".join(lines))


def _code(
    hasher: Positional[str],
    images: Positional[tuple[str, ...]],
    *,
    int8: bool = False,
    show: OmitArgPrefixes[Show] = Show(),
) -> Result:
    found = api.code(hasher, _some(images, "IMAGES"), int8=int8)
    return Result(found, "\n".join(f"{row['code']}  {printable(row['image'])}" for row in found))


def _serve(
    index: Positional[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    host_names: Annotated[UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="host-name")] = (),
    root_path: str = "/",
    hasher: str | None = None,
    int8: bool = False,
    show: OmitArgPrefixes[Show] = Show(),
) -> None:
    kept = os.environ.pop(TOKEN, None)  # the processes that decode uploads do not inherit it
    token = kept if token is None else token
    api.serve(
        index, host=host, port=port, token=token, hasher=hasher, int8=int8, host_names=host_names, root_path=root_path
    )
    log.info("ended")


def _list(*, show: OmitArgPrefixes[Show] = Show()) -> Result:
    return Result(api.known_names())


COMMANDS: dict[str, Callable[..., Result | None]] = {
    "demo": _demo,
    "reproduce": _reproduce,
    "distill": _distill,
    "hash": _hash,
    "fit": _fit,
    "encode": _encode,
    "evaluate": _evaluate,
    "profile": _profile,
    "export": _export,
    "check": _check,
    "index": _index,
    "search": _search,
    "code": _code,
    "serve": _serve,
    "list": _list,
}
for _name, _command in COMMANDS.items():
    _command.__doc__ = (api.known_names if _name == "list" else getattr(api, _name)).__doc__


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
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name not in COMMANDS:
        what = "a command is missing" if not name else f"unknown command {name!r}"
        return _refuse(f"{what}; choose one of: {', '.join(COMMANDS)}; see distilhash --help.")
    try:
        call = parse(name, words[1:])
    except UsageError as error:
        return _refuse(str(error))
    except SystemExit:  # after --help
        return 0
    return _run(name, call, call.keywords["show"])


def _run(name: str, call: functools.partial[Result | None], show: Show) -> int:
    """Run a command, print its result, and return the exit code."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken images, which are reported in one line of our own
    _show_log(quiet=show.quiet)
    choose(show.device if isinstance(show, Compute) else None)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some libraries print; stdout is for the result
            result = call() or Result(None)
    except DistilhashError as error:
        result = Result(None, mistake=error)
    except OSError as error:
        if error.errno is None:
            raise
        result = Result(None, mistake=refused(f"cannot use {error.filename or 'the disk'}", error))
    except MemoryError as error:
        result = Result(None, mistake=DistilhashError("the memory does not suffice", error, "close some programs"))
    except KeyboardInterrupt as error:
        kept = "nothing was written"
        if isinstance(show, Run):
            instead = " instead of --overwrite" if show.overwrite else ""
            kept = f"the same command with --resume{instead} goes on from the last saved state"
        elif name == "index":
            kept = "the same command goes on from the last photos that were kept"
        _to_stderr(f"distilhash: interrupted; {kept}.")
        return 128 + (error.args or [signal.SIGINT])[0]  # of SIGTERM the number comes along
    if result.data is not None:
        _print(to_json(result.data, indent=2) if show.json else result.text or _table(result.data))
    return _refuse(str(result.mistake)) if result.mistake is not None else 0


class UsageError(Exception):
    """Words that are no command: a flag that there is not, a value of another type."""


def parse(name: str, words: list[str]) -> functools.partial[Result | None]:
    """The command with its arguments, not yet run.

    Args:
        name: a key of COMMANDS.
        words: its arguments.

    Raises:
        UsageError: they are not its arguments.
        SystemExit: after --help.
    """
    command = COMMANDS[name]

    @functools.wraps(command)
    def bind(*arguments: Any, **settings: Any) -> functools.partial[Result | None]:
        return functools.partial(command, *arguments, **settings)

    def refuse(event: ParseErrorEvent) -> NoReturn:
        raise UsageError(_sentence(event, name))

    # --teacher NAME and --teacher-size N are short for --teacher.name NAME and --teacher.size N.
    if name in ("distill", "hash", "fit"):
        words = [re.sub(r"^--(teacher|student)(?=$|=)", r"--\1.name", word) for word in words]
        words = [re.sub(r"^--(teacher|student)-", r"--\1.", word) for word in words]
    if name == "search":  # --group-duplicates alone is --group-duplicates auto
        for place in [i for i, word in enumerate(words) if word == "--group-duplicates"][::-1]:
            if not re.fullmatch(r"-?\d+|auto|None", "".join(words[place + 1 : place + 2])):
                words = [*words[: place + 1], "auto", *words[place + 1 :]]
    with on_parse_error(refuse):
        call: functools.partial[Result | None] = tyro.cli(bind, prog=f"distilhash {name}", args=words, config=CONFIG)
    return call


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
    return f"{said}; see distilhash {name} --help."


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([
        "usage: distilhash COMMAND [arguments]", "",
        "Distil a pretrained image teacher into a compact student without labels, hash",
        "it to short binary codes, measure what that costs, and search with it.", "",
        *lines, "",
        "distilhash COMMAND --help shows its settings, with units and defaults.",
    ])  # fmt: skip


def _trials(rows: list[dict[str, Any]], output: Path) -> Result:
    from distilhash.experiments.tables import terminal_table
    from distilhash.experiments.trials import read_trials

    return Result(rows, [terminal_table(read_trials(rows)), f"\nThe report: {printable(str(output / 'report.html'))}"])


def _some(values: tuple[str, ...], what: str) -> tuple[str, ...]:
    if not values:
        raise DistilhashError(f"{what} is required", fix="name at least one")
    return values


class _LogHandler(logging.Handler):
    """Writes to stderr: above the progress bar in a terminal, as plain lines elsewhere."""

    def emit(self, record: logging.LogRecord) -> None:
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


def _print(result: Any) -> None:
    """Print text, or rich's tables among texts."""
    for part in result if isinstance(result, list) else [result]:
        if isinstance(part, str):
            print(part)
        else:
            Console(highlight=False).print(part)


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
