"""The paper's comparison, cell by cell: {arm} x {framework} x {bits} x {seed}, each measured once and kept.

    SEED/teacher_features/   SEED/split.json   SEED/distill/   SEED/hash-ARM-FRAMEWORK-BITS/
    cells/ARM-FRAMEWORK-BITS-SEED.json   results.json   table.md   cells.csv   index.html

Cells share the teacher's features and one distilled student for each seed (``arms``); where every seed looks at the
same images in one view, all share one teacher_features/ beside the seeds. A cell that has its file is done; cells may
be computed in any order, on several machines (``shard``) and by several runs of the command, and the tables are always
those of the files that are there.

Hashers are trained on the training images without the validation slice, so that an epoch can be chosen on it. What
counts is the last epoch; the chosen one is reported beside it, and the best on the queries only where it is asked for,
as the published code has it, and marked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.checkpoint import load_hasher, load_model
from distilhash.codes import CodeTable
from distilhash.config import ReproduceConfig, as_dict
from distilhash.data.loading import open_readable, split_of
from distilhash.data.sources import ImageSource
from distilhash.data.splits import Split
from distilhash.errors import DistilhashError, unknown_name
from distilhash.evaluation.evaluate import evaluate_tables
from distilhash.evaluation.metrics import mean_average_precision
from distilhash.evaluation.profile import count_macs, count_parameters
from distilhash.experiments.arms import Arms, framed_teacher
from distilhash.experiments.grid import Cell, cells_of, shard_of
from distilhash.experiments.matrix_page import write_matrix
from distilhash.experiments.presets import TABLES, Matrix
from distilhash.files import fingerprint_of_indices, read_json, write_json
from distilhash.models import Hasher, Teacher
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory

AT = {"cifar10": None, "nuswide": 5000}  # ranks that count in a table's mAP


def reproduce(
    table: str,
    output: str | Path,
    *,
    config: ReproduceConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Compute the cells of a table that are not there yet; return every cell that is. Errors: DistilhashError."""
    config = config or ReproduceConfig()
    if table not in TABLES:
        raise unknown_name("table", table, TABLES)
    if config.budget not in TABLES[table]:
        raise unknown_name("budget", config.budget, TABLES[table])
    matrix = TABLES[table][config.budget]()
    cells = shard_of(cells_of(matrix, config), config.shard)
    images = _images(table, config)
    splits = {seed: _split(images, matrix, config, seed) for seed in {cell.seed for cell in cells}}
    for split in splits.values():
        distillation.check(matrix.stages.distill, len(split.unlabelled))
    for cell in cells:
        hashing.check(
            images, len(splits[cell.seed].fit), matrix.stages.hashing(cell.arm, cell.framework, cell.bits, cell.seed)
        )
    teacher = framed_teacher(matrix.stages)
    settings = {"stage": "reproduce", "table": table, "budget": config.budget, "protocol": config.protocol,
                "images": images.fingerprint, "matrix": as_dict(matrix)}  # fmt: skip
    run = RunDirectory(output, settings, resume=resume, overwrite=overwrite, quiet=quiet)
    all_arms = {seed: _arms(matrix, images, split, teacher, seed, run) for seed, split in splits.items()}
    work = _Reproduction(table, config, matrix, run)
    for cell in cells:
        if not work.file(cell).exists():
            run.say(f"cell {cell.name}, {len(work.done())} are done")
            write_json(work.file(cell), work.measured(cell, all_arms[cell.seed]))
            work.write()
    return work.write()


def _arms(matrix: Matrix, images: ImageSource, split: Split, teacher: Teacher, seed: int, run: RunDirectory) -> Arms:
    """The arms of a seed; all seeds read one feature cache, but where each looks at images or views of its own."""
    place = run.path / str(seed)
    cut = any((matrix.query_size, matrix.train_size, matrix.database_size))
    own = cut or matrix.stages.distill.cached_views > 1
    return Arms(
        plan=matrix.stages, images=images, split=split, labelled=split.fit, teacher=teacher, seed=seed, place=place,
        features=(place if own else run.path) / "teacher_features",
        features_of=np.union1d(split.unlabelled, split.query) if cut else np.arange(len(images)), run=run,
    )  # fmt: skip


class _Reproduction:
    """What the cells of one table share beside their arms."""

    def __init__(self, table: str, config: ReproduceConfig, matrix: Matrix, run: RunDirectory) -> None:
        self.table, self.config, self.matrix, self.run = table, config, matrix, run
        self.at = AT[table]
        (run.path / "cells").mkdir(exist_ok=True)

    def file(self, cell: Cell) -> Path:
        """Where a cell's numbers are kept."""
        return self.run.path / "cells" / f"{cell.name}.json"

    def done(self) -> list[dict[str, Any]]:
        """The cells that are there, whoever computed them."""
        return [read_json(file, "cell") for file in sorted((self.run.path / "cells").glob("*.json"))]

    def write(self) -> list[dict[str, Any]]:
        """The tables and the page of the cells that are there."""
        done = self.done()
        write_json(self.run.path / "results.json", done)
        write_matrix(done, self.run.path, title=f"The paper's comparison: {self.table}")
        return done

    def measured(self, cell: Cell, arms: Arms) -> dict[str, Any]:
        """Train a cell's hasher, where that is not done, and measure it."""
        split = arms.split
        arms.place.mkdir(parents=True, exist_ok=True)
        split.save(arms.place / "split.json")
        hasher = arms.hasher(
            cell.arm, cell.framework, cell.bits, measure=self._measure(arms), every=self.matrix.measure_every
        )
        query, database = self._codes(arms, hasher)
        metrics = evaluate_tables(query, database, at=self.at)
        path = arms.path(cell.arm, cell.framework, cell.bits)
        epochs = [line for line in RunDirectory.metrics_in(path) if "validation_map" in line]
        name = "map_at_all" if self.at is None else f"map_at_{self.at}"
        best = max(epochs, key=lambda line: line.get("test_map", 0.0))
        plan = arms.plan.hashing(cell.arm, cell.framework, cell.bits, cell.seed)
        made = read_json(self.run.path / "provenance.json", "provenance")
        return {
            **dataclasses.asdict(cell),
            "backbone": f"{hasher.backbone.name} at {hasher.input.size} px",
            "dataset": self.table,
            "protocol": f"{split.protocol}: {len(split.query):,} queries, {len(split.train):,} labelled (a tenth of"
            f" them to choose by), database {len(split.database):,}",
            name: metrics[name],
            "relevant_share": metrics["relevant_share"],
            "stable_map": metrics[f"stable_{name}"],
            "validation_map": epochs[-1]["validation_map"],
            "chosen": self._chosen(arms, path, metrics[name], plan.epochs),
            "best_on_test": {"epoch": best["epoch"], "map": best["test_map"]} if self.config.best_on_test else None,
            "precision_at_radius_2": metrics["precision_at_radius_2"],
            "parameters": count_parameters(hasher),
            "macs": count_macs(hasher, hasher.input.size),
            "seconds": round(arms.seconds(cell.arm, cell.framework, cell.bits), 1),
            "input_size": hasher.input.size,
            "epochs": plan.epochs,
            "budget": self.config.budget,
            "machine": made["machine"],
            "versions": made["versions"],
            "command": self._command(cell),
            "settings": self._settings(arms, cell),
            "curves": {axis: metrics["curve"][axis] for axis in ("recall", "precision")},
            "precision_at_n": {"n": metrics["curve"]["n"], "precision": metrics["curve"]["precision_at_n"]},
        }  # fmt: skip

    def _measure(self, arms: Arms) -> Callable[[Hasher], dict[str, float]]:
        """What is measured after an epoch: the validation slice searched in the other training images."""

        def measure(hasher: Hasher) -> dict[str, float]:
            found = {"validation_map": self._map(arms, hasher, arms.split.validation, arms.labelled)}
            if self.config.best_on_test:
                found["test_map"] = self._map(arms, hasher, arms.split.query, arms.split.database)
            return found

        return measure

    def _map(self, arms: Arms, hasher: Hasher, query: np.ndarray, database: np.ndarray) -> float:
        asked, searched = (arms.codes(hasher, indices, {}) for indices in (query, database))
        assert asked.labels is not None and searched.labels is not None
        return mean_average_precision(
            asked.packed, searched.packed, asked.labels, searched.labels, at=self.at, num_bits=hasher.num_bits
        )

    def _codes(self, arms: Arms, hasher: Hasher) -> tuple[CodeTable, CodeTable]:
        split = arms.split
        made = [{"indices": fingerprint_of_indices(indices)} for indices in (split.query, split.database)]
        return arms.codes(hasher, split.query, made[0]), arms.codes(hasher, split.database, made[1])

    def _chosen(self, arms: Arms, path: Path, last: float, epochs: int) -> dict[str, Any]:
        """The epoch that the validation slice chooses, and its mAP on the queries."""
        epoch = int(load_model(path / "chosen")[1]["epoch"])
        if epoch == epochs:
            return {"epoch": epoch, "map": last}
        hasher = load_hasher(path / "chosen")[0]
        return {"epoch": epoch, "map": self._map(arms, hasher, arms.split.query, arms.split.database)}

    def _settings(self, arms: Arms, cell: Cell) -> dict[str, Any]:
        """The settings that this cell depends on."""
        plan = arms.plan
        hashed = _settings_of(arms.path(cell.arm, cell.framework, cell.bits))
        if cell.arm.startswith("teacher"):
            return {"teacher": as_dict(plan.teacher), "hash": hashed}
        if cell.arm == "scratch":
            return {"student": as_dict(plan.student), "hash": hashed}
        return {
            "teacher": as_dict(plan.teacher), "student": as_dict(plan.student),
            "distill": _settings_of(arms.place / "distill"), "hash": hashed,
        }  # fmt: skip

    def _command(self, cell: Cell) -> str:
        """The command that computes this cell alone."""
        words = ["distilhash reproduce", self.table, "--budget", self.config.budget]
        if self.table == "cifar10":
            words += ["--protocol", self.config.protocol]
        else:
            words += ["--images", "FOLDER"]
        words += ["--arms", cell.arm, "--frameworks", cell.framework, "--bits", str(cell.bits)]
        return " ".join([*words, "--seeds", str(cell.seed)])


def _settings_of(path: Path) -> dict[str, Any]:
    """The settings of a network that was trained, with what had been left open, such as the precision."""
    description = load_model(path)[1]
    return {**description["settings"], "precision": description["precision"]}


def _images(table: str, config: ReproduceConfig) -> ImageSource:
    if table == "cifar10":
        return open_readable("cifar10", labelled=True)
    if not config.images:
        raise DistilhashError("this table needs a folder with list files", "no --images", "name the folder of NUS-WIDE")
    return open_readable(config.images, labelled=True)


def _split(images: ImageSource, matrix: Matrix, config: ReproduceConfig, seed: int) -> Split:
    """The split of a seed, whole or cut to what the budget looks at."""
    split = split_of(images, config.images or "cifar10", config.protocol, seed, None, needed=True)
    assert split is not None
    return split.cut(seed, query=matrix.query_size, train=matrix.train_size, database=matrix.database_size)
