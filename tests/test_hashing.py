"""Supervised hashing: both frameworks learn, a frozen backbone stays frozen, and what cannot be run is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from distilhash import losses
from distilhash.checkpoint import load_tensors
from distilhash.data.sources import ArraySource
from distilhash.data.transforms import Preprocess
from distilhash.errors import DistilhashError
from distilhash.inference import head_inputs
from distilhash.losses import csq_loss, dch_loss, hash_centres
from distilhash.training import hash as hashing
from distilhash.training.hash import train_hasher
from distilhash.training.run import RunDirectory
from tiny import HASH, TinyStudent, hash_tiny, losses_of, tiny_hasher, tiny_images

LONGER = dataclasses.replace(HASH, epochs=12, learning_rate=0.01)


def settings(**changes):
    return dataclasses.replace(HASH, **changes)


def multi_label_images():
    """The tiny images with a second label on every third of them."""
    single = tiny_images()
    labels = np.eye(4, dtype=np.uint8)[single.labels]
    labels[::3, 0] = 1
    return ArraySource(single.images, labels, class_names=single.class_names)


def codes_of(hasher, images):
    with torch.inference_mode():
        return hasher(Preprocess(hasher.input)(images.read(np.arange(len(images))))).sign().numpy()


def bytes_of(module):
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "published"])
@pytest.mark.parametrize("framework", ["csq", "dch"])
def test_both_frameworks_learn(tmp_path, framework, optimizer):
    images = tiny_images()
    config = dataclasses.replace(LONGER, framework=framework, optimizer=optimizer, weight_decay=0.0)
    hasher = hash_tiny(tmp_path / "run", config, images=images)
    found = losses_of(tmp_path / "run")
    assert found[-1] < 0.7 * found[0]
    codes = codes_of(hasher, images)
    distances = (16 - codes @ codes.T) / 2
    same = images.labels[:, None] == images.labels
    assert distances[same].mean() < 0.5 * distances[~same].mean()


@pytest.mark.parametrize("framework", ["csq", "dch"])
def test_images_of_several_labels_are_hashed(tmp_path, framework):
    images = multi_label_images()
    hasher = hash_tiny(tmp_path / "run", dataclasses.replace(LONGER, framework=framework), images=images)
    found = losses_of(tmp_path / "run")
    assert found[-1] < 0.8 * found[0]
    assert codes_of(hasher, images).shape == (120, 16)


def test_the_first_step_is_the_loss_of_the_paper(tmp_path):
    """One step of all images, so the recorded loss is that of the fresh network in training mode."""
    images = tiny_images()
    hasher = tiny_hasher()
    outputs = hasher.train()(Preprocess(hasher.input)(images.images, hashing.make_views(np.arange(120), 0, 0)))
    labels = images.labels
    expected = {
        ("csq", None): csq_loss(outputs, hash_centres(4, 16)[labels], 1e-4),
        ("csq", 0.5): csq_loss(outputs, hash_centres(4, 16)[labels], 0.5),
        ("dch", None): dch_loss(outputs, torch.eye(4)[labels], 20.0, 0.1),
        ("dch", 0.5): dch_loss(outputs, torch.eye(4)[labels], 20.0, 0.5),
    }
    for number, ((framework, weight), loss) in enumerate(expected.items()):
        config = settings(framework=framework, quantization_weight=weight, epochs=1, batch_size=120)
        hash_tiny(tmp_path / str(number), config)
        assert losses_of(tmp_path / str(number)) == [pytest.approx(loss.item(), rel=1e-4)]


def test_a_frozen_backbone_keeps_its_bytes_and_the_head_learns(tmp_path):
    fresh = tiny_hasher()
    hasher = hash_tiny(tmp_path / "run", dataclasses.replace(LONGER, freeze_backbone=True))
    assert bytes_of(hasher.backbone) == bytes_of(fresh.backbone)  # BatchNorm statistics included
    assert not torch.equal(hasher.head.weight, fresh.head.weight)
    found = losses_of(tmp_path / "run")
    assert found[-1] < 0.8 * found[0]


def test_a_head_is_trained_on_the_features_that_are_given(tmp_path):
    images, config = tiny_images(), settings(freeze_backbone=True)
    features_ND = head_inputs(images, np.arange(len(images)), TinyStudent())
    images.read = None  # no image is looked at again
    heads = [
        hash_tiny(tmp_path / str(number), config, images=images, features_ND=given_ND).head.weight
        for number, given_ND in enumerate((features_ND, features_ND, features_ND[::-1]))
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_every_epoch_shows_new_views_and_a_frozen_backbone_none(tmp_path, monkeypatch):
    seen = []
    real = hashing.make_views
    monkeypatch.setattr(hashing, "make_views", lambda *arguments: seen.append(arguments[1:]) or real(*arguments))
    hash_tiny(tmp_path / "run", settings(seed=7))
    assert seen == [(epoch, 7) for epoch in range(3) for _ in range(3)]
    hash_tiny(tmp_path / "frozen", settings(freeze_backbone=True))
    assert len(seen) == 9


def test_only_the_chosen_images_are_read(tmp_path):
    images = tiny_images()
    chosen = np.arange(1, 120, 2)
    read = set()
    real = images.read
    images.read = lambda indices: read.update(np.asarray(indices).tolist()) or real(indices)
    config = settings(batch_size=20, epochs=2)
    train_hasher(images, chosen, tiny_hasher(), config, RunDirectory(tmp_path / "run", {}))
    assert read == set(chosen)


def test_the_checkpoint_says_what_it_was_made_from(tmp_path):
    images = tiny_images()
    hash_tiny(tmp_path / "run", images=images)
    tensors, description = load_tensors(tmp_path / "run" / "model" / "model.safetensors", "checkpoint")
    assert (description["kind"], description["bits"], description["images"]) == ("hasher", 16, images.fingerprint)
    assert description["settings"]["framework"] == "csq"
    assert tensors["head.weight"].shape == (16, 32)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_pretrained_kernels_use_a_lower_muon_lr_unless_one_is_given(tmp_path, monkeypatch):
    def moved(name, pretrained, **changes):
        monkeypatch.setattr(TinyStudent, "pretrained", pretrained)
        hasher = hash_tiny(tmp_path / name, settings(**changes))
        given = load_tensors(tmp_path / name / "model" / "model.safetensors", "checkpoint")[1]["settings"]
        inner = [i for i, layer in enumerate(hasher.backbone.layers) if getattr(layer, "in_channels", 0) > 3]
        now, before = (network.layers[inner[0]].weight for network in (hasher.backbone, TinyStudent()))
        return given["muon_lr"], (now - before).norm().item()

    (fresh_rate, fresh), (pretrained_rate, pretrained) = moved("fresh", False), moved("pretrained", True)
    assert (fresh_rate, pretrained_rate) == (hashing.MUON_LRS[False], hashing.MUON_LRS[True])
    assert pretrained < 0.5 * fresh
    assert moved("given", True, muon_lr=fresh_rate) == (fresh_rate, fresh)


def test_classes_need_no_names(tmp_path):
    images = tiny_images()
    images.class_names = []
    hash_tiny(tmp_path / "unnamed", settings(epochs=1), images=images)
    hash_tiny(tmp_path / "named", settings(epochs=1))
    assert losses_of(tmp_path / "unnamed") == losses_of(tmp_path / "named")


def centred(labels_NC, config):
    """A framework that nobody published: every code shall be all ones."""
    return lambda outputs_nK, labels_nC, indices_n: (outputs_nK - 1).square().mean()


class Proxies(nn.Module):
    """One that learns a code for each class, as some do."""

    def __init__(self, labels_NC, config):
        super().__init__()
        self.labels_NC = labels_NC
        self.proxies_CK = nn.Parameter(torch.randn(labels_NC.shape[1], config.bits))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, outputs_nK, labels_nC, indices_n):
        assert torch.equal(labels_nC, self.labels_NC[indices_n])
        self.calls += 1
        return (outputs_nK - labels_nC.float() @ self.proxies_CK).square().mean()


@pytest.fixture
def own_frameworks(monkeypatch):
    monkeypatch.setattr(losses.frameworks, "FRAMEWORKS", dict(losses.FRAMEWORKS))
    losses.register("ones")(centred)
    losses.register("proxies")(Proxies)


def test_a_registered_framework_trains_as_itself(tmp_path, own_frameworks):
    hasher = hash_tiny(tmp_path / "ones", dataclasses.replace(LONGER, framework="ones"))
    assert (codes_of(hasher, tiny_images()) > 0).mean() > 0.95
    found = losses_of(tmp_path / "ones")
    assert found[-1] < 0.5 * found[0]


def test_a_loss_that_learns_is_trained_and_continued(tmp_path, own_frameworks, monkeypatch):
    config, states = settings(framework="proxies"), []
    whole = hash_tiny(tmp_path / "whole", config)
    real = RunDirectory.save_state

    def save(run, tensors, step):
        real(run, tensors, step)
        states.append({name: tensor.clone() for name, tensor in tensors.items()})
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "save_state", save)
        hash_tiny(tmp_path / "run", config)
    assert states[-1]["loss.calls"] == 5
    assert not torch.equal(states[0]["loss.proxies_CK"], states[-1]["loss.proxies_CK"])
    assert bytes_of(hash_tiny(tmp_path / "run", config, resume=True)) == bytes_of(whole)


def test_an_unknown_framework_names_the_registered_ones(own_frameworks):
    with pytest.raises(DistilhashError) as error:
        hashing.check(tiny_images(), np.arange(120), settings(framework="mine"))
    assert all(name in error.value.fix for name in ("csq", "dch", "ones", "proxies"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"framework": "itq"}, r"unknown hashing framework; got 'itq'; choose one of: csq, dch\."),
        ({"optimizer": "sgd"}, r"unknown hash optimizer; got 'sgd'; choose one of: adamw, muon, published\."),
        ({"batch_size": 121}, r"too few labelled images to hash on; got 120 with batches of 121;"),
        ({"bits": 48, "centres": "hadamard"}, r"Hadamard centres need a power of two of bits.*; got 4 classes and 48"),
        ({"centres": "random"}, r"unknown hash centres; got 'random'; choose one of: auto, bernoulli, hadamard,"),
    ],
)
@pytest.mark.parametrize("freeze", [False, True])
def test_what_cannot_be_run_is_refused_before_anything_is_read(tmp_path, change, sentence, freeze):
    images = tiny_images()
    images.read = None
    with pytest.raises(DistilhashError, match=sentence):
        hash_tiny(tmp_path / "run", settings(freeze_backbone=freeze, **change), images=images)


@pytest.mark.parametrize("change", [{"bits": 48}, {"bits": 48, "framework": "dch", "centres": "hadamard"}, {"bits": 1}])
def test_lengths_without_hadamard_centres_can_be_hashed_otherwise(tmp_path, change):
    images = tiny_images(classes=2)
    assert hash_tiny(tmp_path / "run", settings(epochs=1, **change), images=images).num_bits == change["bits"]


def test_images_without_labels_are_refused(tmp_path):
    images = ArraySource(tiny_images().images)
    with pytest.raises(
        DistilhashError, match=r"hashing needs labels; got images without labels; give class subfolders or"
    ):
        hash_tiny(tmp_path / "run", images=images)


@pytest.mark.parametrize("framework", ["csq", "dch"])
@pytest.mark.parametrize(
    ("labels", "fact"),
    [
        (np.zeros(120, np.int64), "120 training images, all of one class"),
        (np.full(120, 2), "120 training images, all of one class"),
        (np.zeros((120, 3), np.uint8), "120 training images, all with no labels"),
        (np.tile(np.array([1, 0, 1], np.uint8), (120, 1)), "120 training images, all with the same labels"),
    ],
    ids=["one class", "the third class", "no label", "the same labels"],
)
def test_labels_that_tell_no_two_images_apart_are_refused(tmp_path, framework, labels, fact):
    images = ArraySource(tiny_images().images, labels, class_names=["a", "b", "c"])
    with pytest.raises(DistilhashError) as error:
        hashing.check(images, np.arange(120), settings(framework=framework))
    assert error.value.got == fact
    some = labels.copy()
    some[::2] = 1  # half of them differ from the others
    hashing.check(ArraySource(images.images, some, class_names=images.class_names), np.arange(120), HASH)
