"""The comparison, trial by trial: (arm, framework, bits, seed), each computed once and kept.

    SEED/split.json   SEED/distill/   SEED/hash-ARM-FRAMEWORK-BITS/   SEED/codes/   (more of it in ``arms``)
    trials/ARM-FRAMEWORK-BITS-SEED.json   results.json   table.md   trials.csv   report.html

``reproduce`` computes a table of the paper, ``run_demo`` a small preset of it. A trial that has its file is done;
trials may be computed in any order, on several machines (``shard``) and by several runs of the command, and results
and report are always those of the files that are there.

A hasher is reported after its last epoch. Where the preset measures in between, hashers are trained without the
validation set; the epoch that is best on it is reported beside the last one, and the best on the queries only where it
is asked for, as the published code has it, and marked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.checkpoint import load_hasher, load_model
from distilhash.config import DemoConfig, ReproduceConfig, as_dict
from distilhash.data.check import is_nus_wide
from distilhash.data.loading import open_readable, split_of
from distilhash.data.sources import ImageSource
from distilhash.data.splits import Split
from distilhash.errors import DistilhashError, unknown_name
from distilhash.evaluation.metrics import evaluate_tables
from distilhash.evaluation.profile import count_macs, count_parameters
from distilhash.experiments.arms import PARTS, Arms, cropped_teacher
from distilhash.experiments.comparison import DATASETS
from distilhash.experiments.page import write_report
from distilhash.experiments.presets import TABLES, Preset, demo, keys_of, preset_of, shard_of
from distilhash.experiments.summary import report_of
from distilhash.experiments.trials import TrialKey
from distilhash.files import provenance, read_json, write_json
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory


def reproduce(
    table: str, output: str | Path, *, config: ReproduceConfig | None = None, resume: bool = False,
    overwrite: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Compute the trials of a table of the paper, "cifar10" or "nuswide", that the run directory does not hold yet.

    Returns:
        The rows of results.json: every trial that is done.

    Raises:
        DistilhashError: an unknown name, images that do not suffice, or a run directory that is there.
    """
    config = config or ReproduceConfig()
    if table not in TABLES:
        raise unknown_name("table", table, TABLES)
    preset = preset_of(table, config)
    every = keys_of(preset, config)
    keys = shard_of(every, config.shard)
    if not keys:
        raise DistilhashError("this shard holds no trial", config.shard, f"there are {len(every)} to share out")
    if (table == "nuswide") != bool(config.images):
        what = "nuswide needs a folder with list files, and cifar10 takes none"
        raise DistilhashError(what, f"{table}, --images {config.images}")
    where = str(config.images or "cifar10")
    images = open_readable(where, labelled=True)
    shown = dataclasses.replace(config, images="FOLDER" if config.images else None)
    dataset = table
    if config.images and not is_nus_wide(images):  # other lists go by the name of their folder
        dataset = f"{Path(config.images).resolve().name} (lists)"
    comparison = _Comparison(
        title=f"The paper's comparison: {DATASETS.get(dataset, dataset)}",
        dataset=dataset, budget=config.budget, preset=preset, keys=keys, images=images, where=where,
        protocol=config.protocol, split_seed=config.split_seed, best_on_test=config.best_on_test,
        command=lambda key: _command(
            f"reproduce {table}", dataclasses.replace(
                shown, arms=key.arm, frameworks=key.framework, bits=str(key.bits), seeds=str(key.seed), shard="1/1"
            ),
        ),
    )  # fmt: skip
    settings: dict[str, Any] = {
        "stage": "reproduce", "table": table, "budget": config.budget, "protocol": config.protocol,
        "split_seed": config.split_seed, "images": images.fingerprint, "preset": as_dict(preset),
    }  # fmt: skip
    if config.best_on_test:  # measured as each hasher is trained, so that it can neither begin nor end in mid-run
        settings["best_on_test"] = True
    return comparison.run(output, settings, resume=resume, overwrite=overwrite)


def run_demo(
    config: DemoConfig, output: str | Path, *, resume: bool = False, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Run the demonstration on CIFAR-10: the distilled student and its baselines, at a size for a laptop.

    Returns:
        The rows of results.json, one for each trial.

    Raises:
        DistilhashError: settings that cannot be run, or a run directory that is there.
    """
    preset = demo(config)
    return _Comparison(
        title="A pretrained teacher, a compact student",
        dataset="cifar10", preset=preset, keys=keys_of(preset, ReproduceConfig()),
        images=open_readable("cifar10", labelled=True), where="cifar10", protocol=config.protocol,
        split_seed=config.seed, command=lambda key: _command("demo", config),
    ).run(output, {"stage": "demo", **as_dict(config)}, resume=resume, overwrite=overwrite)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Comparison:
    """One run of the comparison."""

    title: str
    dataset: str
    budget: str = ""
    preset: Preset
    keys: list[TrialKey]
    images: ImageSource
    where: str  # what the images were opened by
    protocol: str
    split_seed: int
    best_on_test: bool = False
    command: Callable[[TrialKey], str]  # computes one trial

    def run(self, output: str | Path, settings: dict[str, Any], **options: bool) -> list[dict[str, Any]]:
        """Compute the trials that are missing and write the report after each of them."""
        # What can be refused is refused here, before a directory is made, or deleted for --overwrite.
        split = self.split()
        distillation.check(self.preset.distill, self.images, split.unlabelled)
        for key in self.keys:
            hashing.check(self.images, self.preset.labelled(split), self.preset.hash_config(key))
        teacher = cropped_teacher(self.preset)
        run = RunDirectory(output, settings, images=self.images if "images" in settings else None, **options)
        missing = [key for key in self.keys if not _file(run, key).exists()]
        for number, key in enumerate(missing, start=1):
            run.log(f"trial {key.name}, {number} of {len(missing)}")
            arms = Arms(self.preset, self.images, split, teacher, key.seed, run, self.best_on_test)
            write_json(_file(run, key), self.measured(arms, key))
            self.write(run)
        return _done(run) if missing else self.write(run)

    def split(self) -> Split:
        """The split of all trials, whole or cut to what the preset looks at."""
        seed = self.split_seed
        split = split_of(self.images, self.where, self.protocol, seed, None, needed=True)
        assert split is not None
        split = dataclasses.replace(split, class_names=tuple(self.images.class_names))
        preset = self.preset
        return split.cut(seed, query=preset.query_size, train=preset.train_size, database=preset.database_size)

    def write(self, run: RunDirectory) -> list[dict[str, Any]]:
        """Results and report of the trials that are there."""
        done = _done(run)
        write_json(run.path / "results.json", done)
        write_report(report_of(self.title, done, self.preset, self.images, run.path), run.path)
        return done

    def measured(self, arms: Arms, key: TrialKey) -> dict[str, Any]:
        """Train a trial's hasher, where that is not done, and measure it: its row of results.json."""
        preset, split = self.preset, arms.split
        split.save(arms.path / "split.json")
        between = preset.measure_every is not None
        hasher = arms.hasher(key)
        metrics = evaluate_tables(*(arms.saved_codes(key, hasher, part) for part in PARTS), at=preset.at)
        name = "map_at_all" if preset.at is None else f"map_at_{preset.at}"
        validation = f" ({len(split.validation):,} of them for validation)" if between else ""
        config = preset.hash_config(key)
        made = provenance()  # a run may go on elsewhere
        return {
            **key.model_dump(),
            "split_seed": split.seed,
            "backbone": f"{hasher.backbone.name} at {hasher.input.size} px",
            "dataset": self.dataset,
            "protocol": f"{split.protocol}: {len(split.query):,} queries, {len(split.train):,} labelled{validation},"
            f" database {len(split.database):,}",
            name: metrics[name],
            "relevant_share": metrics["relevant_share"],
            "stable_map": metrics[f"stable_{name}"],
            "precision_at_radius_2": metrics["precision_at_radius_2"],
            **(self._epochs(arms, key, metrics[name], config.epochs) if between else {}),
            "parameters": count_parameters(hasher),
            "macs": count_macs(hasher, hasher.input.size),
            "seconds": round(arms.seconds(key), 1),
            "input_size": hasher.input.size, "epochs": config.epochs, "budget": self.budget,
            "machine": made["machine"], "versions": made["versions"],
            "command": self.command(key),
            "settings": self._settings(arms, key),
            "curves": {axis: metrics["curve"][axis] for axis in ("recall", "precision")},
            "average_precision": np.round(metrics["average_precision"], 4).tolist(),
            "precision_at_n": {"n": metrics["curve"]["n"], "precision": metrics["curve"]["precision_at_n"]},
        }  # fmt: skip

    def _epochs(self, arms: Arms, key: TrialKey, last: float, epochs: int) -> dict[str, Any]:
        """What another choice of the epoch gives: the best on the validation set, and on the queries."""
        path = arms.path / key.stage
        lines = [line for line in RunDirectory.metrics_in(path) if "validation_map" in line]
        chosen = int(load_model(path / "chosen")[1]["epoch"])
        value = last
        if chosen != epochs:
            value = arms.test_map(load_hasher(path / "chosen")[0])
        best = max((line for line in lines if "test_map" in line), key=lambda line: line["test_map"], default=None)
        return {
            "validation_map": lines[-1]["validation_map"],
            "chosen": {"epoch": chosen, "map": value},
            "best_on_test": best and {"epoch": best["epoch"], "map": best["test_map"]},
        }

    def _settings(self, arms: Arms, key: TrialKey) -> dict[str, Any]:
        """The settings that a trial depends on."""
        networks = {"distilled": ("teacher", "student"), "scratch": ("student",)}.get(key.arm, ("teacher",))
        used = {name: as_dict(getattr(self.preset, name)) for name in networks}
        used["hash"] = _trained_with(arms.path / key.stage)
        return {**used, "distill": _trained_with(arms.path / "distill")} if key.arm == "distilled" else used


def _command(name: str, config: DemoConfig | ReproduceConfig) -> str:
    """The command with every setting that is not its default."""
    given = [(field.name, getattr(config, field.name), field.default) for field in dataclasses.fields(config)]
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value, default in given if value != default
    ]  # fmt: skip
    return " ".join([f"distilhash {name}", *flags])


def _file(run: RunDirectory, key: TrialKey) -> Path:
    return run.path / "trials" / f"{key.name}.json"


def _done(run: RunDirectory) -> list[dict[str, Any]]:
    """The trials that are there, whoever computed them."""
    return [read_json(file, "trial") for file in sorted((run.path / "trials").glob("*.json"))]


def _trained_with(path: Path) -> dict[str, Any]:
    """The settings of a trained network, with what had been left open, such as the precision."""
    description = load_model(path)[1]
    return {**description["settings"], "precision": description["precision"]}
