"""What a run that compares arms has to say, as plain data: the arms, the curves, the examples, and the sentence.

An arm is one way to arrive at a hasher: the distilled student, the same student from scratch, the frozen or the
fine-tuned teacher. Nothing here knows PyTorch, Pillow or HTML; ``report`` makes the page of it.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from distilhash.errors import DistilhashError, unknown_name
from distilhash.experiments.svg import Curve
from distilhash.experiments.trials import ARMS

MISSING = "\N{EN DASH}"

Neighbour = tuple[bytes, str, int, bool]  # PNG, label, Hamming distance, whether it is relevant to the query
Setting = tuple[str, str, str, int]  # dataset, protocol, framework, bits: arms are compared within one


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One hasher and its numbers; NaN where a number was not measured."""

    arm: str  # a key of ARMS
    backbone: str
    framework: str  # "csq" or "dch"
    bits: int
    seed: int
    dataset: str
    protocol: str
    map_at_all: float  # expected AP over the whole database, mean over queries
    stable_map_at_all: float = math.nan  # the same with ties by database order
    precision_at_radius_2: float = math.nan  # share of relevant images within Hamming distance 2
    parameters: int
    macs: int  # multiply-adds of one image
    seconds: float = math.nan  # training, every stage that this arm needed
    input_size: int  # side, pixels
    precision_recall: tuple[Sequence[float], Sequence[float]] = ((), ())  # recall, precision

    def __post_init__(self) -> None:
        """DistilhashError for an arm that has no name to be told by."""
        if self.arm not in ARMS:
            raise unknown_name("arm", self.arm, ARMS)

    @property
    def setting(self) -> Setting:
        """What must be equal for two arms to be comparable."""
        return (self.dataset, self.protocol, self.framework, self.bits)


@dataclass(frozen=True, kw_only=True)
class QueryExample:
    """One query image and what an arm finds nearest to it, nearest first."""

    query_png: bytes
    label: str
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything on the page. Curves named after an arm, or beginning with its key, take the arm's colour."""

    title: str
    subtitle: str = ""  # the argument, in a sentence or two
    arms: Sequence[ArmResult]
    distillation_loss: Sequence[Curve] = ()  # x: epochs
    agreement: Sequence[Curve] = ()  # cosine, overlap@10 on validation images; x: epochs
    hashing_loss: Sequence[Curve] = ()  # x: epochs
    examples: Sequence[tuple[str, Sequence[QueryExample]]] = ()  # arm, its queries
    provenance: Mapping[str, str] = field(default_factory=dict)  # "command" is set apart as code
    notes: Sequence[str] = ()  # sentences for "how it was measured"


def by_setting(arms: Sequence[ArmResult]) -> dict[Setting, list[ArmResult]]:
    """The arms of each setting, settings as they first come, arms in the order of ARMS and then as they come."""
    order = list(ARMS)
    groups: dict[Setting, list[ArmResult]] = {}
    for arm in sorted(arms, key=lambda a: order.index(a.arm)):
        groups.setdefault(arm.setting, []).append(arm)
    return {setting: groups[setting] for setting in dict.fromkeys(a.setting for a in arms)}


def score(value: float) -> str:
    """A number in [0, 1] as the field prints it: .573."""
    return f"{value:.3f}".removeprefix("0") if math.isfinite(value) else MISSING


def count(value: float) -> str:
    """A large count in four digits with its prefix: 3.437 M, 88.70 M."""
    if not math.isfinite(value):
        return MISSING
    for scale, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            return f"{value / scale:#.4g}".removesuffix(".") + prefix
    return f"{value:.0f}"


@dataclass(frozen=True)
class Contenders:
    """The arms that the headline speaks of: means over seeds, None where the run has no such arm."""

    student: ArmResult
    scratch: ArmResult | None
    teacher: ArmResult | None
    seeds: int

    @property
    def gain(self) -> float:
        """mAP above training from scratch, from the three digits that the reader sees."""
        return round(self.student.map_at_all, 3) - round(self.scratch.map_at_all, 3) if self.scratch else math.nan

    @property
    def gap(self) -> float:
        """mAP above the teacher (below it: negative), likewise."""
        return round(self.student.map_at_all, 3) - round(self.teacher.map_at_all, 3) if self.teacher else math.nan


def contenders(arms: Sequence[ArmResult]) -> Contenders | None:
    """The first setting and backbone with a distilled student, beside its rivals; None where nothing was distilled.

    The first and not the best: a pick by the score on the queries would flatter.
    """
    measured = [arm for arm in arms if math.isfinite(arm.map_at_all)]
    first = next((arm for arm in measured if arm.arm == "distilled"), None)
    if first is None:
        return None
    rivals = [arm for arm in measured if arm.setting == first.setting]

    def mean(name: str, backbone: str | None) -> tuple[ArmResult | None, int]:
        own = [arm for arm in rivals if arm.arm == name and backbone in (None, arm.backbone)]
        own = [arm for arm in own if arm.backbone == own[0].backbone]
        if not own:
            return None, 0
        values = {**vars(own[0]), "map_at_all": fmean(arm.map_at_all for arm in own)}
        return ArmResult(**values), len(own)

    student, seeds = mean("distilled", first.backbone)
    assert student is not None
    teacher = mean("teacher_frozen", None)[0] or mean("teacher_finetuned", None)[0]
    return Contenders(student, mean("scratch", first.backbone)[0], teacher, seeds)


def headline(arms: Sequence[ArmResult]) -> str:
    """The result in one sentence, true whichever way the differences fall."""
    found = contenders(arms)
    if found is None:
        best = max((arm for arm in arms if math.isfinite(arm.map_at_all)), key=lambda a: a.map_at_all, default=None)
        if best is None:
            return "No arm of this run has a result yet."
        return f"The {ARMS[best.arm].lower()} ({best.backbone}) reaches {score(best.map_at_all)} mAP."
    sentence = f"The distilled student reaches {score(found.student.map_at_all)} mAP"
    if found.seeds > 1:
        sentence += f" (mean of {found.seeds} seeds)"
    if len({arm.setting for arm in arms}) > 1:
        sentence += f" at {found.student.bits} bits with {found.student.framework.upper()}"
    teacher = found.teacher
    if teacher:
        sentence += f" with {times(teacher.macs, found.student.macs, 'multiply-adds')} its teacher"
    differences = []
    if found.scratch:
        differences.append(_against(found.gain, "the same student trained from scratch"))
    if teacher:
        differences.append(_against(found.gap, f"the {ARMS[teacher.arm].split()[0].lower()} teacher"))
    return sentence + (": " + " and ".join(differences) if differences else "") + "."


def _against(difference: float, rival: str) -> str:
    digits = score(abs(difference))
    if digits == ".000":
        return f"level with {rival}"
    return f"{digits} {'above' if difference > 0 else 'below'} {rival}"


def times(theirs: float, ours: float, what: str) -> str:
    """How ours compares, up to the rival's name: "4.3 times fewer multiply-adds than"; times is its sign."""
    if min(theirs, ours) <= 0:
        return f"{count(ours)} {what} against {count(theirs)} of"
    ratio = max(theirs, ours) / min(theirs, ours)
    if ratio < 1.05:
        return f"as many {what} as"
    digits = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
    return f"{digits}\N{MULTIPLICATION SIGN} {'fewer' if ours < theirs else 'more'} {what} than"


def results_json(arms: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """The list that results.json holds: every field but the curve, null where a number was not measured."""
    rows = []
    for arm in arms:
        row = {name: value for name, value in vars(arm).items() if name != "precision_recall"}
        row = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        rows.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
    return rows


def terminal_table(arms: Sequence[ArmResult]) -> str:
    """The arms as aligned plain text: names to the left, numbers to the right, a blank line between settings."""
    head = ["arm", "backbone", "loss", "bits", "seed", "mAP@all", "stable", "P@r<=2", "params", "MACs", "seconds"]
    groups = [[_cells(arm) for arm in group] for group in by_setting(arms).values()]
    widths = [max(len(row[i]) for row in [head, *(row for group in groups for row in group)]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        aligned = (c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(aligned).rstrip()

    blocks = ["\n".join(map(line, group)) for group in groups]
    return "\n".join([line(head), line(["-" * width for width in widths]), "\n\n".join(blocks)])


def _cells(arm: ArmResult) -> list[str]:
    names = ["".join(c if c.isprintable() else "?" for c in text) for text in (arm.backbone, arm.framework)]
    scores = (arm.map_at_all, arm.stable_map_at_all, arm.precision_at_radius_2)
    costs = [count(arm.parameters), count(arm.macs), whole(arm.seconds)]
    cells = [arm.arm, *names, str(arm.bits), str(arm.seed), *map(score, scores), *costs]
    return ["-" if cell == MISSING else cell for cell in cells]  # a terminal may know ASCII alone


def whole(value: float) -> str:
    """A number without decimals, thousands set apart: 1,234."""
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


def png_bytes(image_HWC: np.ndarray) -> bytes:
    """A PNG file of one (H, W, 3) uint8 image, with zlib alone."""
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or not image_HWC.size:
        raise DistilhashError("a PNG is made of an (H, W, 3) uint8 array", f"{image_HWC.shape} {image_HWC.dtype}")
    height, width = image_HWC.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = image_HWC.reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    pixels = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
