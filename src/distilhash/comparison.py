"""The demonstration: the arms of the paper's comparison on CIFAR-10, from images to the page that shows them.

Every stage writes into its own directory of the run, so a run that was stopped goes on where it was:

    split.json   teacher_features/   query_features/   distill/   hash-ARM-FRAMEWORK-BITS/
    codes/   seconds.json   results.json   report.html

Arms: the distilled student, the same student from scratch, and the frozen teacher with a head; all of them hashed on
the same labels. Query images enter only the last step, as queries.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distilhash import presets
from distilhash.artefact import fingerprint_of_indices, read_json, write_json
from distilhash.checkpoint import load_hasher, load_student
from distilhash.codes import CodeTable, hamming
from distilhash.config import DemoConfig, as_dict
from distilhash.data.cifar10 import load_cifar10
from distilhash.data.images import ImageSource
from distilhash.data.opening import to_stderr
from distilhash.data.order import SPLITS, shuffled
from distilhash.data.splits import Split, cifar10_split
from distilhash.encoding import encode, encode_features
from distilhash.evaluation.charts import Curve
from distilhash.evaluation.profile import count_macs, count_parameters
from distilhash.evaluation.protocol import evaluate_tables
from distilhash.evaluation.report import write_report
from distilhash.evaluation.results import ARMS, ArmResult, QueryExample, ReportData, png_bytes, results_json
from distilhash.models import Backbone, Hasher, Teacher
from distilhash.stages import new_hasher, new_student, open_teacher
from distilhash.training import distill as distillation
from distilhash.training import hashing
from distilhash.training.run import RunDirectory
from distilhash.training.teacher_features import compute_teacher_features

NEIGHBOURS = 10  # images shown for each query


def run_demo(
    config: DemoConfig, output: Path, *, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> list[ArmResult]:
    """Run every stage that is not yet done and write ``results.json`` and ``report.html``. Errors: UserError."""
    # What can be refused is refused here, before a directory is made, or deleted for --overwrite.
    plan = presets.demo_stages(config)
    images = load_cifar10(progress=None if quiet else to_stderr)
    split = _split(images, config)
    distillation.check(plan.distill, len(split.unlabelled))
    hashing.check(images, len(split.train), plan.hash)
    teacher = open_teacher(plan.teacher)
    run = RunDirectory(output, {"stage": "demo", **as_dict(config)}, resume=resume, overwrite=overwrite, quiet=quiet)
    return _Demo(config, plan, images, split, teacher, run).results()


def _split(images: ImageSource, config: DemoConfig) -> Split:
    """The published split, cut to what the demonstration has time to look at."""
    split = cifar10_split(
        np.asarray(images.labels), config.protocol, config.seed, class_names=tuple(images.class_names),
        source=images.fingerprint,
    )  # fmt: skip
    database = shuffled(split.database, config.seed, SPLITS, 1000)[: config.database_size]
    train = shuffled(split.train, config.seed, SPLITS, 1001)[: config.train_size]
    validation = np.intersect1d(split.validation, train)
    return dataclasses.replace(split, database=database, train=train, validation=validation)


class _Demo:
    """What the stages of one demonstration share."""

    def __init__(
        self,
        config: DemoConfig,
        plan: presets.Stages,
        images: ImageSource,
        split: Split,
        teacher: Teacher,
        run: RunDirectory,
    ) -> None:
        self.config, self.plan, self.images, self.split = config, plan, images, split
        self.teacher, self.run = teacher, run
        split.save(run.path / "split.json")
        student = new_student(plan.student, config.seed)
        # The teacher looks at the same part of an image as the student, in its arm too.
        self.teacher.input = self.teacher.input.framed_as(student.input)
        self.teacher.architecture["input"] = as_dict(self.teacher.input)

    def results(self) -> list[ArmResult]:
        """Every arm's numbers, the files that hold them, and the page."""
        for arm, framework in self.plan.arms:
            self._codes(arm, framework)
        arms = [self._measure(arm, framework) for arm, framework in self.plan.arms]
        write_json(self.run.path / "results.json", results_json(arms))
        write_report(self._report(arms), self.run.path / "report.html")
        return arms

    # One stage a method: each leaves a directory, and does nothing where that is whole.

    def _features(self, name: str, indices: np.ndarray) -> np.ndarray:
        with self._timed(name):
            return compute_teacher_features(
                self.images, indices, self.teacher, self.run.path / name, seed=self.config.seed,
                precision=self.plan.distill.precision, say=self.run.say,
            )  # fmt: skip

    def _distilled(self) -> Backbone:
        path = self.run.path / "distill"
        if not (path / "model" / "model.safetensors").exists():
            self._features("teacher_features", self.split.unlabelled)
            with self._timed("distill"):
                distillation.distill(
                    self.images, self.split.unlabelled, self.teacher,
                    new_student(self.plan.student, self.config.seed), self.plan.distill, self._stage(path),
                    features=self.run.path / "teacher_features",
                )  # fmt: skip
        return load_student(path)[0]

    def _hashed(self, arm: str, framework: str) -> Hasher:
        config = dataclasses.replace(self.plan.hash, framework=framework, freeze_backbone=arm == "teacher_frozen")
        name = self._name(arm, framework)
        path = self.run.path / name
        if not (path / "model" / "model.safetensors").exists():
            features = None
            if arm == "distilled":
                backbone = self._distilled()
            elif arm == "scratch":
                backbone = new_student(self.plan.student, self.config.seed)
            else:
                backbone = self.teacher
                features = self._rows(self.split.train)
            with self._timed(name):
                hashing.train_hasher(
                    self.images, self.split.train, new_hasher(backbone, config), config, self._stage(path),
                    features_ND=features,
                )  # fmt: skip
        return load_hasher(path)[0]

    def _codes(self, arm: str, framework: str) -> tuple[CodeTable, CodeTable]:
        tables = []
        for part in ("query", "database"):
            path = self.run.path / "codes" / f"{self._name(arm, framework)}-{part}.safetensors"
            if not path.exists():
                indices = getattr(self.split, part)
                hasher = self._hashed(arm, framework)
                self.run.say(f"codes of {len(indices):,} {part} images by {ARMS[arm]}, {framework}")
                made = {"arm": arm, "framework": framework, "indices": fingerprint_of_indices(indices)}
                if arm == "teacher_frozen":  # its features are known: only the head is left to run
                    rows = self._features("query_features", indices)[0] if part == "query" else self._rows(indices)
                    encode_features(rows, self.images, indices, hasher, provenance=made).save(path)
                else:
                    encode(self.images, indices, hasher, provenance=made).save(path)
            tables.append(CodeTable.load(path))
        return tables[0], tables[1]

    def _rows(self, indices: np.ndarray) -> np.ndarray:
        """Teacher features of unlabelled images, from the cache that distillation read."""
        cache_ND = self._features("teacher_features", self.split.unlabelled)[0]
        rows: np.ndarray = cache_ND[np.searchsorted(self.split.unlabelled, indices)]
        return rows

    def _measure(self, arm: str, framework: str) -> ArmResult:
        query, database = self._codes(arm, framework)
        metrics = evaluate_tables(query, database)
        hasher = self._hashed(arm, framework)
        seconds = read_json(self.run.path / "seconds.json", "stage times")
        stages = [self._name(arm, framework)]
        stages += {"distilled": ["teacher_features", "distill"], "teacher_frozen": ["teacher_features"]}.get(arm, [])
        return ArmResult(
            arm=arm,
            backbone=f"{hasher.backbone.name} at {hasher.input.size} px",
            framework=framework,
            bits=self.config.bits,
            seed=self.config.seed,
            dataset="cifar10",
            protocol=f"{self.config.protocol}, database {len(database.packed):,}",
            map_at_all=metrics["map_at_all"],
            stable_map_at_all=metrics["stable_map_at_all"],
            precision_at_radius_2=metrics["precision_at_radius_2"],
            parameters=count_parameters(hasher),
            macs=count_macs(hasher, hasher.input.size),
            seconds=sum(seconds.get(stage, 0.0) for stage in stages),
            input_size=hasher.input.size,
            precision_recall=(metrics["curve"]["recall"], metrics["curve"]["precision"]),
        )

    def _report(self, arms: list[ArmResult]) -> ReportData:
        distillation = RunDirectory.metrics_in(self.run.path / "distill")
        measured = [line for line in distillation if "cosine" in line]
        hashing = {
            f"{arm}, {framework}": RunDirectory.metrics_in(self.run.path / self._name(arm, framework))
            for arm, framework in self.plan.arms
        }
        provenance = read_json(self.run.path / "provenance.json", "provenance")
        seconds = read_json(self.run.path / "seconds.json", "stage times")
        split, plan = self.split, self.plan
        return ReportData(
            title="An untouched teacher, a compact student",
            subtitle=(
                "A pretrained teacher that nobody fine-tuned is distilled, without labels, into a compact student; the"
                " student is hashed to binary codes, and retrieval, parameters and operations are compared."
            ),
            arms=arms,
            distillation_loss=[_curve("distilled", distillation, "loss")],
            agreement=[_curve("cosine", measured, "cosine"), _curve("overlap@10", measured, "overlap_at_10")],
            hashing_loss=[_curve(name, lines, "loss") for name, lines in hashing.items()],
            examples=[(arm, self._examples(arm, framework)) for arm, framework in plan.arms if framework == "csq"],
            provenance={
                "command": _command(self.config),
                "data": f"CIFAR-10, protocol {self.config.protocol}: {len(split.query):,} queries, {len(split.train):,}"
                f" labelled, {len(split.database):,} of the database, split seed {split.seed}",
                "teacher": f"{self.teacher.name} at {self.teacher.input.size} pixels, frozen",
                "distillation": f"{len(split.unlabelled):,} unlabelled images, {plan.distill.epochs} epochs, loss"
                f" {plan.distill.loss}",
                "hashing": f"{plan.hash.epochs} epochs of {len(split.train):,} images for every student",
                "machine": provenance["machine"],
                "versions": ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
                "seconds": ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()),
            },
            notes=[
                "Query images are in no training step: not in distillation, not in hashing, not in any choice.",
                "Every student gets the same hashing: the same labelled images, epochs, rates and views. The last"
                " epoch is reported, whatever it is.",
                f"The database is a random {len(split.database):,} of the protocol's images, so that the run fits into"
                " minutes; a full run is a matter of --database-size.",
                "mAP@all is expected average precision: images at equal Hamming distance are taken in random order, in"
                " closed form. The stable one takes them in database order.",
            ],
        )

    def _examples(self, arm: str, framework: str) -> list[QueryExample]:
        """One query of each class, drawn by the seed and not by its result, with its nearest images."""
        query, database = self._codes(arm, framework)
        labels, names = np.asarray(query.labels), self.images.class_names
        order = np.random.default_rng(self.config.seed).permutation(len(labels))
        shown = [next(i for i in order if labels[i] == label) for label in range(len(names))]
        distances_QB = hamming(query.packed[shown], database.packed, num_bits=query.num_bits)
        examples = []
        for row, position in zip(distances_QB, shown, strict=True):
            nearest = np.argsort(row, kind="stable")[:NEIGHBOURS]
            label = int(labels[position])
            found = [(int(i), int(np.asarray(database.labels)[i])) for i in nearest]
            neighbours = [
                (self._png(self.split.database[i]), names[other], int(row[i]), other == label) for i, other in found
            ]
            png = self._png(self.split.query[position])
            examples.append(QueryExample(query_png=png, label=names[label], neighbours=neighbours))
        return examples

    def _png(self, index: int) -> bytes:
        return png_bytes(self.images.read(np.array([index]))[0])

    def _name(self, arm: str, framework: str) -> str:
        return f"hash-{arm}-{framework}-{self.config.bits}"

    def _stage(self, path: Path) -> RunDirectory:
        return RunDirectory(path, {"demo": as_dict(self.config), "stage": path.name}, resume=True, quiet=self.run.quiet)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a block to the stage's, over all attempts."""
        path = self.run.path / "seconds.json"
        began = time.monotonic()
        try:
            yield
        finally:
            seconds: dict[str, Any] = read_json(path, "stage times") if path.exists() else {}
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - began, 2)
            write_json(path, seconds)


def _command(config: DemoConfig) -> str:
    """The command of this demonstration, with the settings that are not the defaults."""
    given = [(field.name, getattr(config, field.name), field.default) for field in dataclasses.fields(config)]
    flags = [f"--{name.replace('_', '-')} {value}" for name, value, default in given if value != default]
    return " ".join(["distilhash demo", *flags])


def _curve(name: str, lines: list[dict[str, Any]], value: str) -> Curve:
    points = [(line["epoch"], line[value]) for line in lines if value in line]
    return Curve(name, [x for x, _ in points], [y for _, y in points])
