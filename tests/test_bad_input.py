"""Every mistake in a command ends with one sentence (what, given, fix) on stderr, exit code 2, and nothing changed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distilhash import cli
from distilhash.codes import CodeTable
from distilhash.config import Config
from mistakes import COMMANDS, refused

TEACHERS = (
    "pip/efficientnet_lite0, pip/efficientnet_lite1, pip/efficientnet_lite2, timm/NAME, torchvision/alexnet, "
    "torchvision/resnet50"
)
PROTOCOLS = "cifar10, cifar10-1, cifar10-2"
UNKNOWN = [  # command, flag, name, what it is called, and the known ones
    ("demo", "--protocol", "x", "--protocol", PROTOCOLS),
    ("hash cifar10", "--protocol", "cifar10-3", "--protocol", PROTOCOLS),
    ("distill", "--teacher", "nope", "teacher", TEACHERS),
    ("distill", "--teacher-name", "pip/nope", "teacher", TEACHERS),
    ("distill", "--student", "v9", "student", "v1, v2, timm/NAME, FILE.py:FUNCTION"),
    ("distill", "--student-stem", "huge", "--student.stem", "published, small, tiny"),
    ("distill", "--student-crop-mode", "x", "--student.crop-mode", "crop, pad"),
    ("distill", "--loss", "kl", "distillation loss", "prototypes, raw, standardised"),
    ("distill", "--mode", "x", "--mode", "cached, online"),
    ("distill", "--optimizer", "sgd", "--optimizer", "adamw, muon, published"),
    ("hash", "--optimizer", "sgd", "--optimizer", "adamw, muon, published"),
    ("hash", "--student-stem", "huge", "--student.stem", "published, small, tiny"),
    ("hash", "--framework", "itq", "hashing framework", "csq, dch"),
    ("hash", "--centres", "x", "--centres", "auto, bernoulli, hadamard, spread"),
    ("hash", "--backbone", "pip/nope", "teacher", TEACHERS),
    ("hash", "--backbone", "v9", "backbone", f"a distilled student's run directory, {TEACHERS}, v1, v2"),
    ("encode", "--part", "test", "--part", "all, database, query, train, validation"),
    ("profile", "v9", "v9", "network", f"a run directory, {TEACHERS}, v1, v2"),
]


@pytest.mark.parametrize(("command", "flag", "name", "kind", "known"), UNKNOWN)
def test_an_unknown_name_lists_the_known_ones(command, flag, name, kind, known, here, capsys):
    given = (flag, name) if flag.startswith("--") else (name,)
    said = refused(capsys, *COMMANDS[command], *given)
    assert said.startswith(f"unknown {kind}; got {name!r}; choose one of: ")
    assert set(said.split("choose one of: ")[1].split(";")[0].removesuffix(".").split(", ")) == set(known.split(", "))


def test_an_unknown_name_of_timm_suggests_near_ones(here, capsys):
    said = refused(capsys, *COMMANDS["distill"], "--teacher", "timm/resnet5")
    assert said.startswith("timm has no model of this name; got 'resnet5'; did you mean ")
    assert "resnet50" in said


# Numbers


NUMBERS = [  # command, flag, what is given, what the sentence begins with
    ("distill", "--epochs", "0", "distill epochs must be at least 1; got 0"),
    ("distill", "--epochs", "-3", "distill epochs must be at least 1; got -3"),
    ("distill", "--batch-size", "0", "distill batch_size must be at least 2; got 0"),
    ("distill", "--batch-size", "1", "distill batch_size must be at least 2; got 1"),
    ("distill", "--learning-rate", "0", "distill learning_rate must be above 0; got 0.0"),
    ("distill", "--learning-rate", "-1e-3", "distill learning_rate must be above 0; got -0.001"),
    ("distill", "--learning-rate", "nan", "distill learning_rate must be above 0; got nan"),
    ("distill", "--learning-rate", "inf", "distill learning_rate must be finite; got inf"),
    ("distill", "--muon-lr", "0", "distill muon_lr must be above 0; got 0.0"),
    ("distill", "--weight-decay", "-1", "distill weight_decay must be at least 0; got -1.0"),
    ("distill", "--temperature", "0", "distill temperature must be above 0; got 0.0"),
    ("distill", "--prototypes", "1", "distill prototypes must be at least 2; got 1"),
    ("distill", "--views", "0", "distill views must be at least 1; got 0"),
    ("distill", "--validation-size", "10", "distill validation_size must be at least 11; got 10"),
    ("distill", "--checkpoint-seconds", "-1", "distill checkpoint_seconds must be at least 0; got -1.0"),
    ("distill", "--seed", "-1", "distill seed must be at least 0; got -1"),
    ("distill", "--seed", str(2**63), f"distill seed must be below {2**63}; got {2**63}"),
    ("distill", "--teacher-size", "0", "teacher size must be at least 1; got 0"),
    ("distill", "--student-size", "-32", "student size must be at least 1; got -32"),
    ("distill", "--student-margin", "0.5", "student margin must be below 0.5; got 0.5"),
    ("hash", "--bits", "0", "hash bits must be at least 1; got 0"),
    ("hash", "--epochs", "0", "hash epochs must be at least 1; got 0"),
    ("hash", "--batch-size", "-1", "hash batch_size must be at least 2; got -1"),
    ("hash", "--batch-size", "1", "hash batch_size must be at least 2; got 1"),
    ("fit", "--batch-size", "1", "fit batch_size must be at least 2; got 1"),
    ("hash", "--learning-rate", "nan", "hash learning_rate must be above 0; got nan"),
    ("hash", "--gamma", "0", "hash gamma must be above 0; got 0.0"),
    ("hash", "--quantization-weight", "-1", "hash quantization_weight must be at least 0; got -1.0"),
    ("demo", "--database-size", "0", "demo database_size must be at least 1; got 0"),
    ("demo", "--train-size", "127", "demo train_size must be at least 128; got 127"),
    ("demo", "--teacher-size", "0", "demo teacher_size must be at least 1; got 0"),
    ("demo", "--distill-epochs", "0", "demo distill_epochs must be at least 1; got 0"),
    ("demo", "--hash-epochs", "0", "demo hash_epochs must be at least 1; got 0"),
    ("demo", "--bits", "-8", "demo bits must be at least 1; got -8"),
    ("profile", "--bits", "0", "a code has a positive whole number of bits; got 0."),
    ("profile", "--size", "0", "the input size must be at least 1 pixel; got 0."),
    ("profile", "--seconds", "nan", "the time to measure for must be above zero seconds; got nan."),
    ("profile", "--seconds", "0", "the time to measure for must be above zero seconds; got 0.0."),
]


@pytest.mark.parametrize(("command", "flag", "given", "beginning"), NUMBERS)
def test_a_number_out_of_bounds_is_refused_before_anything_is_done(command, flag, given, beginning, here, capsys):
    assert refused(capsys, *COMMANDS[command], f"{flag}={given}").startswith(beginning)


def test_every_number_of_every_config_has_bounds():
    for config in Config.__subclasses__():
        for field in dataclasses.fields(config):
            assert not field.type.startswith(("int", "float")), f"{config.__name__}.{field.name}"


def test_a_rank_of_zero_is_refused(here, capsys):
    rng = np.random.default_rng(0)
    for name in ("query", "database"):
        packed = rng.integers(0, 256, (4, 2), np.uint8)
        CodeTable(packed, 16, [f"{name}{i}" for i in range(4)], np.arange(4) % 2).save(here / f"{name}.safetensors")
    said = refused(capsys, "evaluate", "query.safetensors", "database.safetensors", "--at", "0", "--output", "m.json")
    assert said == "at= is the number of ranks that count, at least 1; got 0; leave it out for all ranks."


def test_48_bits_have_no_hadamard_centres(here, capsys):
    assert refused(capsys, *COMMANDS["hash"], "--bits", "48", "--centres", "hadamard") == (
        "Hadamard centres need a power of two of bits, and at most twice as many classes as bits; got 3 classes and "
        "48 bits; ask for 32 or 64 bits, or for 'bernoulli' centres."
    )


def test_too_few_images_are_counted(here, capsys):
    said = refused(capsys, *COMMANDS["distill"], "--batch-size", "128")
    assert all(fact in said for fact in ("66", "13", "128", "--batch-size"))
    said = refused(capsys, *COMMANDS["hash"], "--batch-size", "128")
    assert all(fact in said for fact in ("66", "128", "--batch-size"))


# Words that are no command


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ((), ["missing", "distilhash --help", *cli.COMMANDS]),
        (("serch",), ["'serch'", "did you mean search;"]),
        (("profile", "v1", "--secnds", "3"), ["--secnds", "did you mean --seconds;"]),
        (("check", "p", "--exlude=x"), ["--exlude", "did you mean --exclude;"]),
        (("hash", "p", "--frmework", "csk"), ["did you mean --framework;"]),
        (("completion", "fsh"), ["'fsh'", "did you mean fish;"]),
        (("frobnicate",), ["'frobnicate'", "distilhash --help", *cli.COMMANDS]),
        (("hash",), ["IMAGES", "distilhash hash --help"]),
        (("profile",), ["NETWORKS"]),
        (("hash", "photos", "--epoch", "3"), ["--epoch", "distilhash hash --help"]),
        (("hash", "photos", "--bits", "many"), ["--bits", "'many'", "whole number", "distilhash hash --help"]),
        (("hash", "photos", "--gamma", "many"), ["--gamma", "'many'", "number", "distilhash hash --help"]),
        (("hash", "photos", "--resume", "--overwrite"), ["--resume", "--overwrite", "distilhash hash --help"]),
        (("hash", "photos", "--bits"), ["--bits", "distilhash hash --help"]),
    ],
)
def test_a_command_that_cannot_be_parsed_is_one_line(words, facts, here, capsys):
    said = refused(capsys, *words)
    assert all(fact in said for fact in facts)


@pytest.mark.parametrize(
    ("command", "stage", "hint"),
    [
        ("hash", "hash", "the same command with --resume goes on from the last saved state"),
        ("encode", "encode", "nothing was written"),
    ],
)
def test_an_interrupt_says_what_becomes_of_the_work(command, stage, hint, here, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"distilhash.api.{stage}", interrupted)
    assert cli.main(list(COMMANDS[command])) == 130
    assert capsys.readouterr() == ("", f"distilhash: interrupted; {hint}.\n")


def test_our_bugs_are_not_dressed_up_as_the_users_mistakes(here, monkeypatch):
    monkeypatch.setattr("distilhash.api.hash", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(list(COMMANDS["hash"]))
