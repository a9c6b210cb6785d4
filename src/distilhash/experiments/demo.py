"""The demonstration: the arms of the paper's comparison on CIFAR-10, from images to the page that shows them.

Every stage writes into its own directory of the run (``arms``), so a run that was stopped goes on where it was. Beside
them lie split.json, codes/, results.json and report.html. Query images enter only the last step, as queries.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.codes import CodeTable, hamming
from distilhash.config import DemoConfig, as_dict
from distilhash.data.cifar10 import load_cifar10
from distilhash.data.sources import ImageSource
from distilhash.data.splits import Split, cifar10_split
from distilhash.evaluation.evaluate import evaluate_tables
from distilhash.evaluation.profile import count_macs, count_parameters
from distilhash.experiments import presets
from distilhash.experiments.arms import Arms, framed_teacher
from distilhash.experiments.report import write_report
from distilhash.experiments.results import ARMS, ArmResult, QueryExample, ReportData, png_bytes, results_json
from distilhash.experiments.svg import Curve
from distilhash.files import fingerprint_of_indices, read_json, write_json
from distilhash.models import Hasher
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory

NEIGHBOURS = 10  # images shown for each query


def run_demo(
    config: DemoConfig, output: Path, *, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> list[ArmResult]:
    """Run every stage that is not yet done and write ``results.json`` and ``report.html``. Errors: DistilhashError."""
    # What can be refused is refused here, before a directory is made, or deleted for --overwrite.
    plan = presets.demo_stages(config)
    images = load_cifar10()
    split = _split(images, config)
    distillation.check(plan.distill, len(split.unlabelled))
    hashing.check(images, len(split.train), plan.hash)
    teacher = framed_teacher(plan)
    run = RunDirectory(output, {"stage": "demo", **as_dict(config)}, resume=resume, overwrite=overwrite, quiet=quiet)
    arms = Arms(
        plan=plan, images=images, split=split, labelled=split.train, teacher=teacher, seed=config.seed, place=run.path,
        features=run.path / "teacher_features", features_of=np.union1d(split.unlabelled, split.query), run=run,
    )  # fmt: skip
    return _Demo(config, arms).results()


def _split(images: ImageSource, config: DemoConfig) -> Split:
    """The published split, cut to what the demonstration has time to look at."""
    split = cifar10_split(
        np.asarray(images.labels), config.protocol, config.seed, class_names=tuple(images.class_names),
        source=images.fingerprint,
    )  # fmt: skip
    return split.cut(config.seed, train=config.train_size, database=config.database_size)


class _Demo:
    """One demonstration: its arms, measured, and the page of them."""

    def __init__(self, config: DemoConfig, arms: Arms) -> None:
        self.config, self.arms = config, arms
        self.plan, self.images, self.split, self.run = arms.plan, arms.images, arms.split, arms.run
        arms.split.save(arms.run.path / "split.json")

    def results(self) -> list[ArmResult]:
        """Every arm's numbers, the files that hold them, and the page."""
        for arm, framework in self.plan.arms:
            self._codes(arm, framework)
        arms = [self._measure(arm, framework) for arm, framework in self.plan.arms]
        write_json(self.run.path / "results.json", results_json(arms))
        write_report(self._report(arms), self.run.path / "report.html")
        return arms

    def _codes(self, arm: str, framework: str) -> tuple[CodeTable, CodeTable]:
        tables = []
        for part in ("query", "database"):
            name = self.arms.path(arm, framework, self.config.bits).name
            path = self.run.path / "codes" / f"{name}-{part}.safetensors"
            if not path.exists():
                indices = getattr(self.split, part)
                hasher = self._hasher(arm, framework)
                self.run.say(f"codes of {len(indices):,} {part} images by {ARMS[arm]}, {framework}")
                made = {"arm": arm, "framework": framework, "indices": fingerprint_of_indices(indices)}
                self.arms.codes(hasher, indices, made).save(path)
            tables.append(CodeTable.load(path))
        return tables[0], tables[1]

    def _hasher(self, arm: str, framework: str) -> Hasher:
        return self.arms.hasher(arm, framework, self.config.bits)

    def _measure(self, arm: str, framework: str) -> ArmResult:
        query, database = self._codes(arm, framework)
        metrics = evaluate_tables(query, database)
        hasher = self._hasher(arm, framework)
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
            seconds=self.arms.seconds(arm, framework, self.config.bits),
            input_size=hasher.input.size,
            precision_recall=(metrics["curve"]["recall"], metrics["curve"]["precision"]),
        )

    def _report(self, arms: list[ArmResult]) -> ReportData:
        distillation = RunDirectory.metrics_in(self.run.path / "distill")
        measured = [line for line in distillation if "cosine" in line]
        hashing = {
            f"{arm}, {framework}": RunDirectory.metrics_in(self.arms.path(arm, framework, self.config.bits))
            for arm, framework in self.plan.arms
        }
        provenance = read_json(self.run.path / "provenance.json", "provenance")
        seconds = self.arms.all_seconds()
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
                "teacher": f"{self.arms.teacher.name} at {self.arms.teacher.input.size} pixels, frozen",
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


def _command(config: DemoConfig) -> str:
    """The command of this demonstration, with the settings that are not the defaults."""
    given = [(field.name, getattr(config, field.name), field.default) for field in dataclasses.fields(config)]
    flags = [f"--{name.replace('_', '-')} {value}" for name, value, default in given if value != default]
    return " ".join(["distilhash demo", *flags])


def _curve(name: str, lines: list[dict[str, Any]], value: str) -> Curve:
    points = [(line["epoch"], line[value]) for line in lines if value in line]
    return Curve(name, [x for x, _ in points], [y for _, y in points])
