"""What the run directory of a comparison holds, gathered for the report."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distilhash.codes import CodeTable, hamming
from distilhash.data.sources import ImageSource
from distilhash.data.splits import Split
from distilhash.experiments.arms import PARTS, codes_path, read_seconds
from distilhash.experiments.presets import FRAMEWORKS, Preset
from distilhash.experiments.trials import (
    ARMS,
    PAPER,
    Curve,
    Example,
    Grid,
    Neighbour,
    Report,
    Trial,
    TrialKey,
    read_trials,
)  # fmt: skip
from distilhash.files import read_json
from distilhash.training.run import RunDirectory

NEIGHBOURS = 10  # images shown for each query
SUBTITLE = """A pretrained teacher that nobody fine-tuned is distilled, without labels, into a compact student; the
student is hashed to binary codes, and retrieval, parameters and operations are compared."""


def report_of(
    title: str, rows: Iterable[Mapping[str, Any]], preset: Preset, images: ImageSource, path: str | Path
) -> Report:
    """The report of the rows of results.json, with the training curves and examples of the run directory.

    Curves, examples and sizes are those of the lowest seed, at its longest code.
    """
    trials, path = read_trials(rows), Path(path)
    lowest = min(trial.seed for trial in trials)
    longest = max(trial.bits for trial in trials if trial.seed == lowest)
    shown = [trial for trial in trials if (trial.seed, trial.bits) == (lowest, longest)]
    full = len(preset.trials) == len(ARMS) * len(FRAMEWORKS)  # every combination was planned
    return Report(
        title=title,
        subtitle=" ".join(SUBTITLE.split()),
        trials=trials,
        grid=Grid(arms=PAPER.arms, frameworks=FRAMEWORKS, bits=preset.bits) if full else Grid(),
        training=_training(shown, path),
        examples=_examples(shown, images, path) if preset.examples else (),
        provenance=_provenance(trials, preset, path),
        notes=_notes(preset),
    )


def _key(trial: Trial) -> TrialKey:
    return TrialKey(seed=trial.seed, bits=trial.bits, framework=trial.framework, arm=trial.arm)


def _training(trials: Sequence[Trial], path: Path) -> list[tuple[str, str, list[Curve]]]:
    """Losses and agreement by epoch; the curves of a stage that another machine ran are empty."""
    place = path / str(trials[0].seed)
    distilled = RunDirectory.metrics_in(place / "distill")
    hashed = [(trial, RunDirectory.metrics_in(place / _key(trial).stage)) for trial in trials]
    return [
        ("Distillation loss", "loss", [_curve(ARMS["distilled"], distilled, "loss", "distilled")]),
        ("Agreement with the teacher", "agreement",
         [_curve("cosine", distilled, "cosine"), _curve("overlap@10", distilled, "overlap_at_10")]),
        ("Hashing loss", "loss",
         [_curve(f"{ARMS[t.arm]}, {t.framework.upper()}", lines, "loss", t.arm) for t, lines in hashed]),
    ]  # fmt: skip


def _curve(name: str, lines: list[dict[str, Any]], value: str, arm: str = "") -> Curve:
    points = [(line["epoch"], line[value]) for line in lines if value in line]
    return Curve(name=name, x=[x for x, _ in points], y=[y for _, y in points], arm=arm)


def _examples(trials: Sequence[Trial], images: ImageSource, path: Path) -> list[tuple[str, list[Example]]]:
    """One query of each class, drawn by the seed and not by its result, with its nearest images; CSQ's codes."""
    split = Split.load(path / str(trials[0].seed) / "split.json")
    names = images.class_names

    def picture(index: int) -> bytes:
        return png_bytes(np.asarray(images.read(np.array([index]))[0]))

    found = []
    for trial in (trial for trial in trials if trial.framework == "csq"):
        query, database = (CodeTable.load(codes_path(path, _key(trial), part)) for part in PARTS)
        labels, others = np.asarray(query.labels), np.asarray(database.labels)
        order = np.random.default_rng(trial.seed).permutation(len(labels))
        drawn = [next(i for i in order if labels[i] == label) for label in np.unique(labels)]
        distances_QB = hamming(query.packed[drawn], database.packed, num_bits=query.num_bits)
        nearest_QB = np.argsort(distances_QB, axis=1, kind="stable")[:, :NEIGHBOURS]
        examples = []
        for i, distances_B, nearest_B in zip(drawn, distances_QB, nearest_QB, strict=True):
            neighbours = [
                Neighbour(picture(split.database[j]), names[others[j]], int(distances_B[j]), others[j] == labels[i])
                for j in nearest_B
            ]
            examples.append(Example(query_png=picture(split.query[i]), label=names[labels[i]], neighbours=neighbours))
        found.append((trial.arm, examples))
    return found


def png_bytes(image_HW3: np.ndarray) -> bytes:
    """A PNG file of one uint8 RGB image."""
    file = io.BytesIO()
    Image.fromarray(image_HW3).save(file, "png")
    return file.getvalue()


def _provenance(trials: Sequence[Trial], preset: Preset, path: Path) -> dict[str, str]:
    made = read_json(path / "provenance.json", "provenance")
    seconds = read_seconds(path / str(min(trial.seed for trial in trials)))
    commands = {trial.command for trial in trials}
    teacher, hashed = preset.teacher, preset.hash
    return {
        **({"command": commands.pop()} if len(commands) == 1 else {}),  # else each trial has its own
        "teacher": f"{teacher.name}, frozen" + (f", at {teacher.size} pixels" if teacher.size else ""),
        "student": f"{preset.student.name} at {preset.student.size} pixels",
        "distillation": f"without labels, {preset.distill.epochs} epochs, loss {preset.distill.loss}",
        "hashing": f"{hashed.epochs} epochs for every student, optimizer {hashed.optimizer}",
        "versions": ", ".join(f"{name} {version}" for name, version in made["versions"].items()),
        "stage seconds": ", ".join(f"{name} {value:.0f}" for name, value in sorted(seconds.items())),
    }


def _notes(preset: Preset) -> list[str]:
    notes = (
        (True, "Query images are in no training step: not in distillation, not in hashing, and in no choice of"
         " settings."),
        (True, "Every student is hashed on the same labelled images with the same epochs, learning rates and views. The"
         " last epoch is reported."),
        (preset.measure_every, "Some labelled images are a validation set, on which hashers are not trained. The epoch"
         " that is best on it is reported beside the last one."),
        (preset.database_size, f"The database is a random {preset.database_size or 0:,} of the protocol's images, so"
         " that the run fits into minutes."),
    )  # fmt: skip
    return [note for told, note in notes if told]
