"""Which trials of a preset are computed, in which order, and which of them by this machine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from distilhash.config import ReproduceConfig
from distilhash.errors import DistilhashError, unknown_name
from distilhash.experiments.presets import FRAMEWORKS, Preset
from distilhash.experiments.trials import ARMS, TrialKey


def keys_of(preset: Preset, config: ReproduceConfig) -> list[TrialKey]:
    """The trials that are asked for, in the order of computing.

    The main code length comes first, so that an unfinished table has the column that matters; the fine-tuned teacher
    comes last, as it takes longest.

    Raises:
        DistilhashError: an unknown arm or framework, or something else than numbers.
    """
    arms, frameworks = _names("arm", config.arms, ARMS), _names("hashing framework", config.frameworks, FRAMEWORKS)
    bits, seeds = _numbers("bits", config.bits), _numbers("seeds", config.seeds)
    pairs: Sequence[tuple[str, str]] = preset.trials
    if arms or frameworks:
        pairs = list(product(arms or dict.fromkeys(arm for arm, _ in pairs), frameworks or FRAMEWORKS))
    first = preset.seeds[0]

    def wanted(key: TrialKey) -> bool:
        once = arms or seeds or preset.finetune_every_seed or key.arm != "teacher_finetuned"
        return bool((bits or key.bits == preset.main_bits or key.seed == first) and (once or key.seed == first))

    def order(key: TrialKey) -> tuple[object, ...]:
        slowest = key.arm == "teacher_finetuned"
        return slowest, key.seed, key.bits != preset.main_bits, key.bits, list(ARMS).index(key.arm)

    keys = (
        TrialKey(seed=seed, bits=length, framework=framework, arm=arm)
        for (arm, framework), seed, length in product(pairs, seeds or preset.seeds, bits or preset.bits)
    )
    return sorted(dict.fromkeys(filter(wanted, keys)), key=order)


def shard_of(keys: list[TrialKey], shard: str) -> list[TrialKey]:
    """The i-th of n runs of trials ("i/n"), which share the student of a seed as far as they can.

    Raises:
        DistilhashError: ``shard`` is not of that form.
    """
    number, _, count = shard.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise DistilhashError("a shard is written i/n with 1 <= i <= n", shard, "such as 2/3, the second of three")
    first, last = ((int(number) - 1 + end) * len(keys) // int(count) for end in (0, 1))
    return keys[first:last]


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _names(kind: str, text: str | None, known: Sequence[str] | dict[str, str]) -> list[str]:
    names = _words(text)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
    return names


def _numbers(what: str, text: str | None) -> list[int]:
    words = _words(text)
    if not all(word.isdigit() and int(word) < 2**31 for word in words):
        raise DistilhashError(f"--{what} takes whole numbers with commas between them", text, "such as 16,64")
    return [int(word) for word in words]
