"""The comparison of the paper: which trials there are, and that they come out the same however the work is cut."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distilhash import cli
from distilhash.codes import CodeTable, pack
from distilhash.config import ReproduceConfig
from distilhash.data.splits import holdout_split
from distilhash.errors import DistilhashError
from distilhash.evaluation.metrics import mean_average_precision
from distilhash.experiments import arms
from distilhash.experiments import runner as running
from distilhash.experiments.comparison import done_of, tables_of
from distilhash.experiments.presets import TABLES, desktop_cifar10, keys_of, paper_cifar10, shard_of, smoke
from distilhash.experiments.runner import reproduce
from distilhash.experiments.summary import report_of
from distilhash.experiments.trials import TrialKey
from distilhash.files import write_json
from test_distill import Spy
from test_resume import Interrupted
from tiny import tiny_images
from trial_rows import row as trial_row


@pytest.fixture
def images(monkeypatch):
    """A table of two arms at 16 bits on 160 images of 16 pixels; what is read of them is noted."""
    preset = dataclasses.replace(
        smoke(), bits=(16,), seeds=(0,), query_size=None, train_size=None, database_size=None,
        own={},
    )  # fmt: skip
    spy = tiny_images(160, source=Spy)
    monkeypatch.setitem(TABLES, "cifar10", {"smoke": lambda: preset})
    monkeypatch.setattr(running, "open_readable", lambda *arguments, **options: spy)
    monkeypatch.setattr(
        running, "split_of",
        lambda source, where, protocol, seed, *rest, **options: holdout_split(np.asarray(source.labels), seed=seed),
    )  # fmt: skip
    return spy


def run(path, **options):
    chosen = {"budget": "smoke", "arms": "distilled,teacher_frozen", "frameworks": "csq"} | {
        name: options.pop(name) for name in list(options) if name not in ("resume", "overwrite")
    }
    return reproduce("cifar10", path, config=ReproduceConfig(**chosen), **options)


def numbers(trials):
    """What must not depend on how the work was cut."""
    return [{key: value for key, value in trial.items() if key not in ("seconds", "command")} for trial in trials]


def tuned(arm, framework):
    """Learning rate and epochs that are best on the validation set, by the mean over code lengths."""
    scores = {}
    for measured in json.loads((Path(__file__).parents[1] / "results" / "tuning.json").read_text()):
        setting = measured["setting"]
        if (setting["arm"], setting["framework"]) == (arm, framework):
            place = setting["learning_rate"], setting["epochs"]
            scores[place] = scores.get(place, 0) + measured["validation_map"]
    return max(scores, key=scores.get)


def test_the_budgets_have_the_trials_that_they_promise():
    names = [trial.name for trial in keys_of(desktop_cifar10(), ReproduceConfig())]
    assert len(names) == len(set(names)) == 4 * 2 * 4 * 3  # every arm at every length for every seed
    assert names[0] == "distilled-csq-64-0"
    assert ["finetuned" in name for name in names] == [False] * 72 + [True] * 24
    assert len(keys_of(paper_cifar10(), ReproduceConfig(seeds="0,1,2", bits="16,32,48,64"))) == 96
    for bits in (16, 64):  # the settings that results/tuning.json selects
        key = TrialKey(arm="teacher_frozen", framework="dch", bits=bits, seed=0)
        config = desktop_cifar10().hash_config(key)
        assert (config.learning_rate, config.epochs) == tuned("teacher_frozen", "dch")
        config = desktop_cifar10().hash_config(key.model_copy(update={"framework": "csq"}))
        assert (config.learning_rate, config.epochs) == tuned("teacher_frozen", "csq")
    few = keys_of(desktop_cifar10(), ReproduceConfig(arms="scratch", frameworks="dch", bits="48", seeds="5,7,5"))
    assert [trial.name for trial in few] == ["scratch-dch-48-5", "scratch-dch-48-7"]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 60])
def test_shards_are_all_trials_once(count):
    trials = keys_of(desktop_cifar10(), ReproduceConfig())
    assert [trial for i in range(count) for trial in shard_of(trials, f"{i + 1}/{count}")] == trials


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shard": "3/2"}, "3/2"),
        ({"shard": "1/3"}, "1/3"),
        ({"shard": "\N{SUPERSCRIPT ONE}/2"}, "/2"),  # a digit, and no decimal one
        ({"bits": "16,\N{SUPERSCRIPT TWO}"}, "--bits"),
        ({"arms": "student"}, "unknown arm; got '?student"),
        ({"frameworks": "itq"}, "unknown hashing framework; got '?itq"),
        ({"bits": "sixteen"}, "--bits .*; got sixteen"),
        ({"budget": "lavish"}, "unknown reproduce budget; got '?lavish"),
    ],
)
def test_what_cannot_be_computed_is_refused_before_a_directory_is_made(tmp_path, images, wrong, said):
    with pytest.raises(DistilhashError, match=said):
        run(tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


def test_tables_are_refused_by_name(tmp_path, capsys):
    assert cli.main(["reproduce", "imagenet", "--output", str(tmp_path / "run")]) == 2
    assert "unknown table; got imagenet" in capsys.readouterr().err.replace("'", "")
    assert cli.main(["reproduce", "nuswide", "--output", str(tmp_path / "run")]) == 2
    assert "list files" in capsys.readouterr().err
    assert cli.main(["reproduce", "cifar10", "--images", str(tmp_path), "--output", str(tmp_path / "run")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_interrupted_and_sharded_work_gives_the_trials_of_whole_work(tmp_path, images, monkeypatch):
    whole = run(tmp_path / "whole")
    assert [trial["arm"] for trial in whole] == ["distilled", "teacher_frozen"]

    real, done = running.write_json, []
    for stop in (0, 1, 1):  # before the file of a trial, between it and the tables, and before the last tables

        def write(path, data, stop=stop):
            done.append(path)
            if len(done) == stop + 1:
                raise Interrupted
            real(path, data)

        done.clear()
        monkeypatch.setattr(running, "write_json", write)
        with pytest.raises(Interrupted):
            run(tmp_path / "cut", resume=True)
    monkeypatch.setattr(running, "write_json", real)
    assert numbers(run(tmp_path / "cut", resume=True)) == numbers(whole)

    for shard in ("1/2", "2/2"):
        assert len(run(tmp_path / shard[0], shard=shard)) == 1
    for file in (tmp_path / "2" / "trials").iterdir():
        (tmp_path / "1" / "trials" / file.name).write_bytes(file.read_bytes())
    merged = run(tmp_path / "1", resume=True)
    assert numbers(merged) == numbers(whole)
    assert (tmp_path / "1" / "table.md").read_text() == (tmp_path / "whole" / "table.md").read_text()


@pytest.mark.parametrize("began", [False, True])
def test_the_best_epoch_on_the_queries_is_asked_for_when_a_run_begins(tmp_path, images, monkeypatch, began):
    """What was not measured after each epoch cannot be told later, and what was measured after some is no best."""

    def interrupted(*_):
        raise Interrupted

    monkeypatch.setattr(running._Comparison, "measured", interrupted)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", best_on_test=began)
    with pytest.raises(DistilhashError, match="best_on_test"):
        run(tmp_path / "run", best_on_test=not began, resume=True)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", best_on_test=began, resume=True)


def test_a_trial_says_how_it_was_made_and_trains_on_no_query(tmp_path, images, monkeypatch):
    trained = []
    for owner, name in ((arms.distillation, "distill"), (arms.hashing, "train_hasher")):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda source, indices, *rest, real=real, **options: (
                trained.append(set(indices)), real(source, indices, *rest, **options)
            )[1],
        )  # fmt: skip
    (trial,) = run(tmp_path / "run", arms="distilled", best_on_test=True)
    split = holdout_split(np.asarray(images.labels), seed=0)
    assert trained == [set(split.unlabelled), set(split.fit)]
    epochs = [json.loads(line) for line in (tmp_path / "run/0/hash-distilled-csq-16/metrics.jsonl").open()]
    best = max(epochs, key=lambda line: line["validation_map"])
    assert trial["chosen"] == {"epoch": best["epoch"], "map": pytest.approx(best["test_map"])}
    assert trial["map_at_all"] == pytest.approx(epochs[-1]["test_map"])
    assert trial["best_on_test"]["map"] == max(line["test_map"] for line in epochs)
    assert trial["settings"]["hash"]["epochs"] == trial["epochs"] == 2
    assert trial["command"] == (
        "distilhash reproduce cifar10 --budget smoke --arms distilled --frameworks csq --bits 16 --seeds 0"
        " --best-on-test"
    )
    assert trial["split_seed"] == split.seed == 0
    assert np.mean(trial["average_precision"]) == pytest.approx(trial["map_at_all"], abs=1e-4)
    assert len(trial["average_precision"]) == len(split.query)
    for fact in (f"{torch.get_num_threads()} threads", torch.backends.cpu.get_cpu_capability(), torch.__version__):
        assert fact in trial["machine"]
    assert "optimistic" in (tmp_path / "run" / "table.md").read_text()
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_the_validation_set_is_searched_in_images_that_no_hasher_was_fitted_to(images, monkeypatch):
    """One that knows the fitted images by heart and nothing else scores as chance does."""
    split, labels = holdout_split(np.asarray(images.labels), validation_share=0.5), np.asarray(images.labels)
    known = np.isin(np.arange(len(images)), split.fit)
    signs = np.where(known, labels, np.random.default_rng(0).integers(0, 10, len(images)))
    codes = pack(np.where(signs[:, None] == np.arange(16), 1, -1))
    asked = []

    def code_table(indices):
        asked.append(indices)
        return CodeTable.of(codes[indices], 16, images, indices, {})

    monkeypatch.setattr(arms.Arms, "codes", lambda self, hasher, indices: code_table(indices))
    score = arms.Arms(smoke(), images, split, None, 0, None).measure(None)["validation_map"]
    assert not np.intersect1d(np.concatenate(asked), split.fit).size
    others = [
        mean_average_precision(codes[[i]], codes[v], labels[[i]], labels[v], num_bits=16)
        for i in split.validation for v in [np.setdiff1d(split.validation, i)]
    ]  # fmt: skip
    assert score == pytest.approx(np.mean(others), abs=1e-12)
    fitted = mean_average_precision(
        codes[split.fit], codes[split.fit], labels[split.fit], labels[split.fit], num_bits=16
    )
    assert fitted == 1 and score < 0.5


def test_all_seeds_share_the_split(tmp_path, images, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        running, "split_of",
        lambda source, where, protocol, seed, *rest, **_: (
            drawn.append(seed), holdout_split(np.asarray(source.labels), seed=seed)
        )[1],
    )  # fmt: skip
    monkeypatch.setattr(running._Comparison, "measured", lambda self, made, key: {})
    monkeypatch.setattr(running._Comparison, "write", lambda self, run: [])
    run(tmp_path / "run", seeds="0,1", split_seed=5)
    assert drawn == [5]


@pytest.mark.parametrize(
    ("columns", "train", "named"), [(21, 10_500, "nuswide"), (21, 10_499, "mine (lists)"), (5, 10_500, "mine (lists)")]
)
def test_only_the_lists_of_nus_wide_go_by_its_name(tmp_path, monkeypatch, columns, train, named):
    lists = {"train": np.arange(train), "test": np.arange(2_100)}
    source = SimpleNamespace(class_names=["word"] * columns, lists=lists, fingerprint="")
    monkeypatch.setattr(running, "open_readable", lambda *arguments, **options: source)
    monkeypatch.setattr(running._Comparison, "run", lambda self, *arguments, **options: [self.dataset, self.title])
    dataset, title = reproduce("nuswide", tmp_path / "run", config=ReproduceConfig(images=tmp_path / "mine"))
    assert dataset == named
    assert ("NUS-WIDE" in title) == (named == "nuswide")


def test_the_plan_of_a_finished_run_is_its_own(tmp_path, images):
    """Every entry that the preset has, and none of the lengths that it has not."""
    preset = dataclasses.replace(smoke(), seeds=(0,))
    rows = [trial_row(key.arm, bits=key.bits, framework=key.framework) for key in keys_of(preset, ReproduceConfig())]
    write_json(tmp_path / "provenance.json", {"versions": {}})
    report = report_of("t", rows, preset, images, tmp_path)
    assert done_of(tables_of(report.trials, report.grid)) == "16 of 16 entries are done"
