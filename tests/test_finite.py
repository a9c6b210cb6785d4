"""What is not a number is never trained on, saved, encoded or written as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import distilhash
from distilhash import cli
from distilhash.checkpoint import load_hasher, load_tensors, save_model, save_tensors
from distilhash.errors import DistilhashError
from distilhash.files import to_json, write_json
from distilhash.models.backbone import not_finite
from distilhash.training import optim
from distilhash.training.run import RunDirectory
from distilhash.training.teacher_features import compute_teacher_features
from mistakes import refused
from tiny import DISTILL, HASH, distil_tiny, hash_tiny, tiny_images, tiny_teacher

STAGES = {"distil": (distil_tiny, DISTILL), "hash": (hash_tiny, HASH)}


def strict(text: str):
    """JSON as every other parser reads it."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def state_of(run: Path):
    return load_tensors(run / "checkpoints" / "last" / "state.safetensors", "training state")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("distil", {"learning_rate": 1e30}),
        ("distil", {"learning_rate": 1e30, "optimizer": "published", "loss": "raw"}),
        ("distil", {"muon_lr": 1e30}),
        ("hash", {"learning_rate": 1e30}),
        ("hash", {"learning_rate": 1e30, "framework": "dch", "optimizer": "adamw"}),
        ("hash", {"learning_rate": 1e30, "freeze_backbone": True}),
    ],
    ids=str,
)
def test_a_diverging_run_stops_and_keeps_its_last_finite_state(tmp_path, stage, changes, precision):
    work, config = STAGES[stage]
    config = dataclasses.replace(config, precision=precision, epochs=12, **changes)
    with pytest.raises(DistilhashError) as error:
        work(tmp_path / "run", config)
    assert "step" in error.value.got and "1e+30" in error.value.got and stage in error.value.what
    assert not (tmp_path / "run" / "model").exists()
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        strict(line)
    if (tmp_path / "run" / "checkpoints").exists():
        assert not not_finite(state_of(tmp_path / "run")[0])


@pytest.mark.parametrize("stage", STAGES)
def test_it_stops_at_the_very_step_and_a_lower_rate_may_follow(tmp_path, stage, monkeypatch):
    work, config = STAGES[stage]
    real, steps = optim.Optimizers.step, []

    def step(self, loss, number):
        steps.append(number)
        return real(self, loss * (torch.nan if number == 4 else 1), number)

    with monkeypatch.context() as patch:
        patch.setattr(optim.Optimizers, "step", step)
        with pytest.raises(DistilhashError, match="step 5 of 9"):
            work(tmp_path / "run", config)
    assert steps == [0, 1, 2, 3, 4]
    tensors, description = state_of(tmp_path / "run")
    assert description["step"] == 4 and not not_finite(tensors)
    work(tmp_path / "run", config, resume=True)  # nothing is wrong with the kept state
    work(tmp_path / "whole", config)
    model = Path("model", "model.safetensors")
    assert (tmp_path / "run" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("at", [3, 4, 8], ids=["ends an epoch", "within one", "the last"])
def test_weights_that_overflow_behind_a_finite_loss_are_not_kept(tmp_path, stage, at, monkeypatch):
    work, config = STAGES[stage]
    real = optim.Optimizers.step

    def step(self, loss, number):
        value = real(self, loss, number)
        if number == at:
            with torch.no_grad():
                next(next(iter(self.modules.values())).parameters())[0, 0, 0, 0] = torch.inf
        return value

    monkeypatch.setattr(optim.Optimizers, "step", step)
    with pytest.raises(DistilhashError, match=f"layers.0.weight is not finite; got step {at + 1} of 9"):
        work(tmp_path / "run", config)
    assert state_of(tmp_path / "run")[1]["step"] == at
    assert not (tmp_path / "run" / "model").exists()


@pytest.fixture
def spoilt(here):
    """A hasher of which one weight is NaN, as no command would write it."""
    network, about = load_hasher("hasher")
    tensors = dict(network.state_dict())
    tensors["head.bias"] = torch.where(torch.arange(16) == 5, torch.nan, tensors["head.bias"])
    save_tensors(here / "spoilt" / "model" / "model.safetensors", tensors, about)
    return network, about


@pytest.mark.parametrize(
    "words",
    [
        ("encode", "spoilt", "photos"),
        ("export", "spoilt", "photos"),
        ("index", "photos", "--hasher", "spoilt"),
        ("code", "spoilt", "photos/class0/00.png"),
        ("profile", "spoilt"),
    ],
    ids=lambda words: words[0],
)
def test_a_model_that_is_not_finite_is_refused_by_the_name_of_its_tensor(spoilt, capsys, words):
    assert "head.bias" in refused(capsys, *words, *(("--quiet",) if words[0] == "index" else ()))


def test_a_model_that_is_not_finite_is_neither_loaded_nor_saved(spoilt, here):
    with pytest.raises(DistilhashError, match=r"head\.bias"):
        load_hasher("spoilt")
    network, about = spoilt
    torch.nn.init.constant_(network.backbone.bn1.running_var, -torch.inf)
    with pytest.raises(DistilhashError, match=r"backbone\.bn1\.running_var"):
        save_model(here / "new", network, about)
    assert not (here / "new").exists()


def test_weights_from_outside_that_are_not_finite_are_refused(here, capsys):
    state = distilhash.models.create_teacher("pip/efficientnet_lite0").network.state_dict()
    name = next(iter(state))
    torch.save({**state, name: state[name] * torch.inf}, "weights.pth")
    said = refused(capsys, "distill", "photos", "--teacher-weights", "weights.pth", "--batch-size", 16, "--quiet")
    assert name in said


def test_a_teacher_that_overflows_is_said_with_the_image(tmp_path):
    teacher = tiny_teacher()
    torch.nn.init.constant_(teacher.network[1].weight, 1e38)
    for precision in ("float32", "bfloat16"):
        with pytest.raises(DistilhashError, match="00000") as error:
            distil_tiny(tmp_path / precision, dataclasses.replace(DISTILL, precision=precision), teacher=teacher)
        assert ("--precision float32" in error.value.fix) == (precision == "bfloat16")


def test_a_cache_that_came_to_harm_is_said_with_the_image(tmp_path):
    distil_tiny(tmp_path / "run", dataclasses.replace(DISTILL, views=2))
    cache = tmp_path / "run" / "teacher_features"
    rows = np.load(cache / "features.npy", mmap_mode="r+")
    rows[1, 77, 3] = np.nan
    rows.flush()
    again = {"views": 2, "crop_mode": distilhash.config.InputConfig(crop_mode="pad", margin=0.1)}
    with pytest.raises(DistilhashError, match="00077") as error:
        compute_teacher_features(tiny_images(), np.arange(120), tiny_teacher(), cache, **again)
    assert "--rebuild-features" in error.value.fix
    compute_teacher_features(tiny_images(), np.arange(120), tiny_teacher(), cache, rebuild=True, **again)


def test_json_says_null_for_what_is_undefined(tmp_path, capsys, monkeypatch):
    data = {"a": [float("nan"), (np.float64("inf"), 1.5)], "b": {"c": -float("inf"), "d": None, "e": "NaN"}}
    plain = {"a": [None, [None, 1.5]], "b": {"c": None, "d": None, "e": "NaN"}}
    assert strict(to_json(data)) == plain
    write_json(tmp_path / "x.json", data)
    assert strict((tmp_path / "x.json").read_text()) == plain
    run = RunDirectory(tmp_path / "run", {})
    run.record(1, loss=float("nan"))
    assert strict((tmp_path / "run" / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}
    monkeypatch.setattr(cli.api, "evaluate", lambda *_, **__: data)
    assert cli.main(["evaluate", "q", "d", "--json"]) == 0
    assert strict(capsys.readouterr().out) == plain
