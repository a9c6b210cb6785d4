"""What is wrong with images, artefacts and run directories is told in one sentence, and costs nothing."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from distilhash import cli
from distilhash.checkpoint import save_model
from distilhash.codes import CodeTable
from distilhash.models import create_student
from mistakes import CLASSES, COMMANDS, DISTILL, EACH, HASH, picture, refused

# Images


@pytest.mark.parametrize("verb", ["distill", "hash"])
def test_an_empty_a_missing_and_no_folder(verb, here, capsys):
    (here / "empty").mkdir()
    (here / "file.png").write_bytes(b"")
    words = COMMANDS[verb][2:]
    said = refused(capsys, verb, "empty", *words)
    assert said.startswith("a folder holds no images; got empty; ") and {".jpg", ".png", ".avif"} <= set(said.split())
    assert refused(capsys, verb, "nowhere", *words) == (
        "there is no such folder; got nowhere; name a folder of images, or cifar10."
    )
    assert refused(capsys, verb, "file.png", *words) == (
        "a folder is wanted, and this is a file; got file.png; name a folder of images, or cifar10."
    )


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that promises more pixels than a memory holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    sides = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", sides) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def spoil(folder: Path) -> None:
    """Put three files that cannot be read into a folder: no image, half an image, and a bomb."""
    folder.mkdir(parents=True, exist_ok=True)
    picture(folder / "x-half.png", np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    (folder / "x-half.png").write_bytes((folder / "x-half.png").read_bytes()[:2000])
    (folder / "x-bomb.png").write_bytes(header_of_png(10_000, 10_000))
    (folder / "x-text.png").write_text("this is no image")


@pytest.mark.parametrize("verb", ["distill", "hash", "encode"])
def test_images_that_cannot_be_read_are_counted_listed_and_left_out(verb, made, here, capsys):
    shutil.copytree(made / "photos", here / "spoilt")
    spoil(here / "spoilt" / "class1")
    words = {"distill": ("distill", "spoilt", *DISTILL), "hash": ("hash", "spoilt", *HASH),
             "encode": ("encode", "hasher", "spoilt", "--output", "codes")}[verb]  # fmt: skip
    assert cli.main(list(words)) == 0
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if "cannot be read" in line]
    assert line.startswith("3 of 75 images cannot be read and are left out: class1/x-bomb.png (10000 x 10000 is more ")
    assert "class1/x-half.png (image file is truncated" in line
    assert "class1/x-text.png (not an image of a known format)" in line
    if verb == "encode":
        names = CodeTable.load(here / "codes").names
        assert len(names) == CLASSES * EACH
        assert not [name for name in names if "x-" in name]


def test_list_files_keep_their_parts_where_an_image_cannot_be_read(made, here, capsys):
    shutil.copytree(made / "photos", here / "listed")
    spoil(here / "listed" / "class1")
    files = sorted(path.relative_to(here / "listed").as_posix() for path in (here / "listed").rglob("*.png"))
    lines = [f"{file} {' '.join('1' if f'class{c}/' in file else '0' for c in range(CLASSES))}" for file in files]
    query = [line for line in lines if "/0" in line]
    rest = [line for line in lines if line not in query]
    for name, part in (("train", rest), ("database", rest), ("test", query)):
        (here / "listed" / f"{name}.txt").write_text("\n".join(part))
    assert cli.main(["encode", "hasher", "listed", "--part", "query", "--output", "codes"]) == 0
    assert "3 of 75 images cannot be read" in capsys.readouterr().err
    assert CodeTable.load(here / "codes").names == [line.split()[0] for line in query]


def test_where_no_image_can_be_read_nothing_is_done(here, capsys):
    for c in range(CLASSES):
        spoil(here / "spoilt" / f"class{c}")
    for verb in ("distill", "hash"):
        said = refused(capsys, verb, "spoilt", *COMMANDS[verb][2:])
        assert said.startswith(
            "none of the images can be read; got 9 of them, such as class0/x-bomb.png (10000 x 10000"
        )


def listed(here: Path, *lines: str) -> None:
    """A folder of list files; "train.txt" has these lines."""
    picture(here / "listed" / "a.png", np.zeros((32, 32, 3), np.uint8))
    picture(here / "listed" / "b.png", np.zeros((32, 32, 3), np.uint8))
    (here / "listed" / "train.txt").write_text("\n".join(lines))
    (here / "listed" / "database.txt").write_text("a.png 1 0\n")
    (here / "listed" / "test.txt").write_text("b.png 0 1\n")


@pytest.mark.parametrize("verb", ["distill", "hash"])
def test_a_list_with_ragged_labels_names_the_line(verb, here, capsys):
    listed(here, "a.png 1 0", "b.png 0 1 1")
    assert refused(capsys, verb, "listed", *COMMANDS[verb][2:]) == (
        "a list line has another number of labels than those before it; got 3 instead of 2 in line 2 of "
        "listed/train.txt."
    )


def test_a_list_with_missing_images_counts_and_names_them(here, capsys):
    listed(here, "a.png 1 0", "lost.png 0 1", "gone.png 1 1")
    assert refused(capsys, "hash", "listed", *COMMANDS["hash"][2:]) == (
        "the list files name images that are not there; got 2 of 4 missing under listed: lost.png, gone.png; put them "
        "there or take the lines out (2 in train); distilhash check listed counts them."
    )


def test_a_folder_without_classes_cannot_be_hashed(here, capsys):
    picture(here / "loose" / "a.png", np.zeros((32, 32, 3), np.uint8))
    said = refused(capsys, "hash", "loose", *COMMANDS["hash"][2:])
    assert "1 images beside the class folders in loose, such as a.png" in said


# Artefacts of another kind or make


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory):
    """A small network of timm with random weights, as flags."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    return "--teacher", "timm/test_resnet", "--teacher-weights", str(path), "--teacher-size", "32"


def test_the_feature_cache_of_another_teacher_is_refused_and_kept(here, other_teacher, capsys):
    assert cli.main([*COMMANDS["distill"], "--features", "cache"]) == 0
    shutil.move("run", "first")
    assert refused(capsys, *COMMANDS["distill"], "--features", "cache", *other_teacher) == (
        "the feature cache is of another teacher, other images or views, or another precision; got cache, of teacher "
        "pip/efficientnet_lite0; name another with --features, or compute it anew with --rebuild-features."
    )
    assert not (here / "run").exists()  # the mended command is not told that its run directory exists
    assert cli.main([*COMMANDS["distill"], "--features", "cache", *other_teacher, "--rebuild-features"]) == 0


def test_a_checkpoint_of_another_architecture_or_kind(here, made, capsys):
    student = create_student("v2", size=32, stem="small")
    claims = create_student("v1", size=32, stem="small").architecture
    save_model(here / "odd", student, {"kind": "student", "architecture": claims})
    said = refused(capsys, *COMMANDS["hash"], "--backbone", "odd")
    assert said.startswith("the checkpoint is of another architecture than it says; got odd, ")
    assert "layer5.0.bn1.bias" in said and said.endswith("; make it again.")

    assert refused(capsys, *COMMANDS["hash"], "--backbone", "hasher") == (
        "this checkpoint is not a student; got a hasher at hasher; name a student."
    )
    assert refused(capsys, "encode", "student", "photos") == (
        "this checkpoint is not a hasher; got a student at student; name a hasher."
    )
    assert refused(capsys, "encode", "photos", "photos") == (
        "no checkpoint here; got photos; name a run directory, its model/ directory or a model.safetensors."
    )


class Payload:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_a_pickle_is_never_opened(here, capsys):
    for name in ("evil.pth", "evil.safetensors"):
        (here / name).write_bytes(pickle.dumps({"weights": Payload()}))
    for words in (
        ("encode", "evil.pth", "photos"), ("profile", "evil.safetensors"), (*COMMANDS["hash"], "--backbone", "evil.pth")
    ):  # fmt: skip
        said = refused(capsys, *words)
        assert said.startswith(
            "checkpoint cannot be read: only safetensors files are loaded, never a pickle; got evil."
        )
        assert said.endswith("; name a file that a distilhash stage wrote.")
    for name in ("evil.pth", "evil.safetensors"):
        assert refused(capsys, *COMMANDS["distill"], "--teacher-weights", name) == (
            "this is not a file of plain tensors, and nothing else is loaded, pickled objects least of all; got "
            f"{name}; save the state dict: torch.save(model.state_dict(), ...) or safetensors.torch.save_file(...)."
        )
    assert not (here / "unpickled").exists()


def test_the_weights_of_another_network_are_refused(here, capsys, other_teacher):
    said = refused(capsys, *COMMANDS["distill"], *other_teacher, "--teacher", "torchvision/alexnet")
    assert said.startswith("these weights are not those of torchvision/alexnet; got 14 missing, such as features.0")
    assert refused(capsys, *COMMANDS["distill"], "--teacher-weights", "lost.pth") == (
        "there is no such file of weights; got lost.pth; give a .safetensors, .pth or .pt file."
    )


def test_code_tables_that_are_none(here, capsys):
    (here / "query.safetensors").write_bytes(b"no table")
    assert refused(capsys, "evaluate", "lost", "lost") == (
        "there is no code table at this path; got lost; write one with: distilhash encode."
    )
    said = refused(capsys, "evaluate", "query.safetensors", "query.safetensors")
    assert said.startswith("this file is not a code table; got query.safetensors (")
    CodeTable(np.zeros((2, 2), np.uint8), 16, ["a", "b"]).save(here / "bare.safetensors")
    said = refused(capsys, "evaluate", "bare.safetensors", "bare.safetensors")
    assert said.startswith("evaluation needs labels; got a code table without labels; ")


# Run directories


def test_a_run_directory_that_exists_is_refused_and_one_of_other_settings_too(here, capsys):
    assert cli.main([*COMMANDS["hash"]]) == 0
    assert refused(capsys, *COMMANDS["hash"]) == (
        "the run directory exists; got run; continue it with --resume or replace it with --overwrite."
    )
    assert refused(capsys, *COMMANDS["hash"], "--bits", "32", "--resume") == (
        "the run at run has other settings; got hash.bits was 16 and is 32; resume with the same ones, or start anew "
        "with --overwrite."
    )
    # A mistake in a command that overwrites costs nothing, either.
    refused(capsys, *COMMANDS["hash"], "--optimizer", "sgd", "--overwrite")
    refused(capsys, "hash", "photos", *HASH, "--backbone", "hasher", "--overwrite")


def test_overwrite_deletes_no_foreign_folder(here, capsys):
    (here / "run").mkdir()
    (here / "run" / "thesis.txt").write_text("years of work")
    assert refused(capsys, *COMMANDS["hash"], "--overwrite") == (
        "--overwrite deletes only a run directory; got run; choose another path or empty it yourself."
    )
    (here / "file").write_text("")
    assert refused(capsys, *COMMANDS["hash"], "--output", "file") == (
        "a run needs a directory; got the file file; choose another path."
    )


def test_a_student_that_does_not_say_what_it_saw(here, capsys):
    assert cli.main([*COMMANDS["hash"], "--backbone", "student"]) == 0
    assert "student does not say" in capsys.readouterr().err


def test_a_split_of_other_images_is_refused(here, capsys):
    assert cli.main(["hash", "photos", *HASH]) == 0
    shutil.copytree(here / "photos", here / "fewer", symlinks=False)
    (here / "fewer" / "class0" / "00.png").unlink()
    said = refused(capsys, "hash", "fewer", *HASH, "--output", "second", "--split", "run/split.json")
    assert "run/split.json" in said and "1 images missing, such as class0/00.png" in said
    said = refused(capsys, "encode", "run", "fewer", "--part", "query", "--quiet")
    assert "1 images missing, such as class0/00.png" in said
    assert "run/split.json" in refused(capsys, *COMMANDS["distill"], "--unlabelled", "--split", "run/split.json")
    said = refused(capsys, *COMMANDS["distill"], "--split", "lost.json")
    assert "lost.json" in said and "No such file or directory" in said
