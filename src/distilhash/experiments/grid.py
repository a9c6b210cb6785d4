"""Which cells of a table are computed, in which order, and which of them by this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from distilhash.config import ReproduceConfig
from distilhash.errors import DistilhashError, unknown_name
from distilhash.experiments.presets import Matrix
from distilhash.experiments.results import ARMS

FRAMEWORKS = ("csq", "dch")
ORDER = ("distilled", "scratch", "teacher_frozen", "teacher_finetuned")  # of computing: the dearest arm last
assert set(ORDER) == set(ARMS)


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """One number of the table."""

    seed: int
    bits: int
    framework: str
    arm: str

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.arm}-{self.framework}-{self.bits}-{self.seed}"


def cells_of(matrix: Matrix, config: ReproduceConfig) -> list[Cell]:
    """The cells that are asked for, in the order of computing: first what the others build on, the dearest last."""
    arms = _chosen_of("arm", config.arms, ORDER)
    frameworks = _chosen_of("hashing framework", config.frameworks, FRAMEWORKS)
    bits, seeds = _numbers("bits", config.bits), _numbers("seeds", config.seeds)
    cells = [
        Cell(seed, length, framework, arm)
        for arm in arms
        for seed in seeds or matrix.seeds
        for length in bits or matrix.bits
        for framework in frameworks
        if bits or length == matrix.main_bits or seed == matrix.seeds[0]
        if seeds or config.arms or arm != "teacher_finetuned" or matrix.repeated_finetuning or seed == matrix.seeds[0]
    ]
    # The main length first: an unfinished table then has the row that matters.
    finetuned = [cell for cell in cells if cell.arm == "teacher_finetuned"]
    others = [cell for cell in cells if cell.arm != "teacher_finetuned"]
    return [
        cell
        for group in (others, finetuned)
        for cell in sorted(group, key=lambda c: (c.seed, c.bits != matrix.main_bits, c.bits, ORDER.index(c.arm)))
    ]


def shard_of(cells: list[Cell], shard: str) -> list[Cell]:
    """The i-th of n runs of cells, which share a seed's student as far as they can."""
    number, _, count = shard.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise DistilhashError("a shard is written i/n with 1 <= i <= n", shard, "such as 2/3, the second of three")
    first, last = ((int(number) - 1 + end) * len(cells) // int(count) for end in (0, 1))
    return cells[first:last]


def _chosen_of(kind: str, text: str | None, known: Sequence[str]) -> list[str]:
    names = list(_words(text)) or list(known)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
    return names


def _numbers(what: str, text: str | None) -> list[int]:
    words = list(_words(text))
    if not all(word.isdigit() and int(word) < 2**31 for word in words):
        raise DistilhashError(f"--{what} takes whole numbers with commas between them", text, "such as 16,64")
    return [int(word) for word in words]


def _words(text: str | None) -> Iterator[str]:
    return (word.strip() for word in (text or "").split(",") if word.strip())
