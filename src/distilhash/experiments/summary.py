"""What the run directory of a comparison holds, gathered for the report."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distilhash.codes import CodeTable, hamming
from distilhash.data.sources import ImageSource
from distilhash.data.splits import Split
from distilhash.experiments.arms import PARTS, codes_path, read_seconds
from distilhash.experiments.charts import DASHES, Line
from distilhash.experiments.page import Neighbour, Query, Report
from distilhash.experiments.presets import FRAMEWORKS, Preset
from distilhash.experiments.trials import ARMS, PAPER, Grid, Trial, read_trials
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
        queries=_queries(shown, images, path) if preset.examples else (),
        provenance=_provenance(trials, preset, path),
        notes=_notes(preset),
    )


def _training(trials: Sequence[Trial], path: Path) -> list[tuple[str, str, list[Line]]]:
    """Losses and agreement by epoch; the curves of a stage that another machine ran are left out."""
    place = path / str(trials[0].seed)
    distilled = RunDirectory.metrics_in(place / "distill")
    hashed = [(f"{ARMS[t.arm]}, {t.framework.upper()}", RunDirectory.metrics_in(place / t.stage), "loss", t.arm)
              for t in trials]  # fmt: skip
    return [
        ("Distillation loss", "loss", _lines((ARMS["distilled"], distilled, "loss", "distilled"))),
        ("Agreement with the teacher", "agreement",
         _lines(("cosine", distilled, "cosine", ""), ("overlap@10", distilled, "overlap_at_10", ""))),
        ("Hashing loss", "loss", _lines(*hashed)),
    ]  # fmt: skip


def _lines(*curves: tuple[str, list[dict[str, Any]], str, str]) -> list[Line]:
    """Curves (name, lines of metrics.jsonl, value, arm), those of an arm in its colour; none without a number."""
    found: list[Line] = []
    for name, lines, value, arm in curves:
        x = [line["epoch"] for line in lines if value in line]
        y = [math.nan if line[value] is None else line[value] for line in lines if value in line]
        if any(map(math.isfinite, y)):
            i = len(found)
            found.append(Line(name, x, y, arm or f"neutral-{i % 4 + 1}", DASHES[i % len(DASHES)]))
    return found


def _queries(trials: Sequence[Trial], images: ImageSource, path: Path) -> list[Query]:
    """One query of each class, drawn by the seed and not by its result, with the nearest images of every arm; CSQ's."""
    trials = [trial for trial in trials if trial.framework == "csq"]
    split = Split.load(path / str(trials[0].seed) / "split.json")
    codes = [[CodeTable.load(codes_path(path, trial, part)) for part in PARTS] for trial in trials]
    labels, others = (np.asarray(table.labels) for table in codes[0])
    order = np.random.default_rng(trials[0].seed).permutation(len(labels))
    names = images.class_names

    def picture(index: int) -> bytes:
        return png_bytes(np.asarray(images.read(np.array([index]))[0]))

    queries = []
    for label in np.unique(labels):
        drawn = next(i for i in order if labels[i] == label)
        found = []
        for trial, (query, database) in zip(trials, codes, strict=True):
            distances_B = hamming(query.packed[[drawn]], database.packed, num_bits=query.num_bits)[0]
            nearest = np.argsort(distances_B, kind="stable")[:NEIGHBOURS]
            found.append((trial.arm, [Neighbour(picture(split.database[j]), names[others[j]], int(distances_B[j]),
                                                others[j] == label) for j in nearest]))  # fmt: skip
        queries.append(Query(picture(split.query[drawn]), names[label], found))
    return queries


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
        (True, "Every student is hashed on the same labelled images, in the same views. The last epoch is reported."),
        (True, "Intervals are of 95%, paired over the queries: they hold for these hashers. Other initial weights move"
         " an entry further, and another processor or number of threads moves it by about as much as another seed."),
        (preset.measure_every, "Some labelled images are a validation set, on which hashers are not trained. The epoch"
         " that is best on it is reported beside the last one."),
        (preset.database_size, f"The database is a random {preset.database_size or 0:,} of the protocol's images, so"
         " that the run fits into minutes."),
    )  # fmt: skip
    return [note for told, note in notes if told]
