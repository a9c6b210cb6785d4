"""The command line as its user meets it: the whole pipeline on a small folder, both streams, help, exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import distilhash
from distilhash import api, cli
from distilhash.checkpoint import load_hasher, load_student
from distilhash.codes import CodeTable
from distilhash.evaluation import mean_average_precision
from distilhash.losses import CENTRES
from distilhash.models import TEACHERS, create_teacher

CLASSES, EACH, QUERIES = 3, 40, 12  # 4 queries a class: a tenth of it
SMALL = ("--student-size", "32", "--student-stem", "small")
ONCE = ("--epochs", "1", "--batch-size", "32", "--precision", "float32")  # "auto" may choose otherwise the next time
DISTILL = ("--teacher-size", "32", *SMALL, *ONCE)


class Done(NamedTuple):
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str


def run(*words: object) -> Done:
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a library's warning would be a line of stderr that says nothing
        code = cli.main([str(word) for word in words])
    return Done(code, out.getvalue(), err.getvalue())


def run_json(*words: object):
    """The result of a command that must succeed, from the JSON on its stdout."""
    done = run(*words, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.fixture(scope="module")
def photos(cifar10, tmp_path_factory):
    """A folder of three class folders with 40 real images each."""
    root = tmp_path_factory.mktemp("photos")
    labels = np.asarray(cifar10.labels)
    for c in range(CLASSES):
        folder = root / cifar10.class_names[c]
        folder.mkdir()
        for number, index in enumerate(np.flatnonzero(labels == c)[:EACH]):
            Image.fromarray(cifar10.images[index]).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def pipeline(photos, tmp_path_factory):
    """Every command of the pipeline with --json, by its verb, and the folder of what they wrote."""
    root = tmp_path_factory.mktemp("runs")
    bits = ("--bits", 16, *ONCE)
    commands = {
        "distill": ("distill", photos, "--output", root / "student", *DISTILL),
        "hash": ("hash", photos, "--backbone", root / "student", "--output", root / "hasher", *bits),
        "query": ("encode", root / "hasher", photos, "--part", "query", "--output", root / "query.safetensors"),
        "database": ("encode", root / "hasher", photos, "--part", "database", "--output", root / "db.safetensors"),
        "evaluate": ("evaluate", root / "query.safetensors", root / "db.safetensors", "--at", 10, "--output",
                     root / "metrics.json"),
        "profile": ("profile", root / "hasher", root / "student", "--seconds", 0.01),
    }  # fmt: skip
    return {name: run(*words, "--json") for name, words in commands.items()} | {"root": root}


def test_the_pipeline_ends_well_and_speaks_json(pipeline):
    root = pipeline["root"]
    for name in ("distill", "hash", "query", "database", "evaluate", "profile"):
        assert pipeline[name].code == 0, pipeline[name].err
    results = {name: json.loads(done.out) for name, done in pipeline.items() if name != "root"}
    assert results["distill"] == {"student": str(root / "student" / "model")}
    assert results["hash"] == {"hasher": str(root / "hasher" / "model")}
    assert results["query"] == {"codes": str(root / "query.safetensors"), "images": QUERIES, "bits": 16}
    assert results["database"] == {
        "codes": str(root / "db.safetensors"), "images": CLASSES * EACH - QUERIES, "bits": 16
    }  # fmt: skip


def test_progress_is_on_stderr_alone(pipeline):
    split = str(pipeline["root"] / "hasher" / "split.json")
    for name, facts in {
        "distill": ("teacher features", "108/108", "epoch 1", "12 images are left out"),
        "hash": ("hash csq 16 bits", "epoch 1"),
        "query": (split, "12/12"),
    }.items():
        assert all(fact in pipeline[name].err for fact in facts), pipeline[name].err
    assert pipeline["evaluate"].err == ""


def test_evaluate_measures_the_tables(pipeline):
    root = pipeline["root"]
    query, database = CodeTable.load(root / "query.safetensors"), CodeTable.load(root / "db.safetensors")
    assert not set(query.names) & set(database.names)
    shown = json.loads(pipeline["evaluate"].out)
    pair = (query.packed, database.packed, query.labels, database.labels)
    assert shown["map_at_all"] == mean_average_precision(*pair, num_bits=16)
    assert shown["map_at_10"] == mean_average_precision(*pair, at=10, num_bits=16)
    assert shown["map_at_all"] > 1 / CLASSES  # chance
    assert (shown["queries"], shown["database"], shown["bits"]) == (QUERIES, 108, 16)
    kept = json.loads((root / "metrics.json").read_text())
    assert kept.pop("curve").keys() == {"precision", "recall", "n", "precision_at_n"}
    assert len(kept.pop("average_precision")) == QUERIES
    assert kept == shown


def test_profile_counts_both_kinds_of_run(pipeline):
    hasher, student = json.loads(pipeline["profile"].out)
    root = pipeline["root"]
    assert (hasher["network"], student["network"]) == (str(root / "hasher"), str(root / "student"))
    features = load_student(root / "student")[0].feature_dim
    assert hasher["parameters"] - student["parameters"] == 16 * features + 16  # the head
    assert hasher["macs"] - student["macs"] == 16 * features
    assert hasher["size"] == 32
    assert hasher["latency_ms_batch1"] > 0


def test_a_name_goes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v1").mkdir()
    (row,) = run_json("profile", "v1", "--size", 32, "--bits", 8, "--seconds", 0.01)
    assert (row["network"], row["size"]) == ("v1", 32)


def test_hashing_starts_from_the_distilled_weights_and_its_queries_were_not_seen(pipeline):
    root = pipeline["root"]
    splits = [json.loads((root / run / "split.json").read_text()) for run in ("student", "hasher")]
    assert splits[0] == splits[1]
    assert load_student(root / "student")[1]["unlabelled_images"] == 108
    assert "optimistic" not in pipeline["hash"].err
    fingerprint = json.loads((root / "hasher" / "config.json").read_text())["backbone_weights"]
    from distilhash.models.backbone import fingerprint_of

    assert fingerprint == fingerprint_of(load_student(root / "student")[0])


def test_the_hasher_knows_its_images_by_content(pipeline, photos, tmp_path):
    """A class renamed after hashing moves every position; a copy and a touch change every date and the root."""
    root = pipeline["root"]
    shutil.copytree(photos, tmp_path / "copy")
    first, *_ = sorted((tmp_path / "copy").iterdir())
    first.rename(tmp_path / "copy" / "zebra")
    asked = CodeTable.load(root / "query.safetensors")
    words = (
        "encode",
        root / "hasher",
        tmp_path / "copy",
        "--part",
        "query",
        "--output",
        tmp_path / "query.safetensors",
    )
    done = run(*words)
    assert done.code == 0 and "40 images renamed or moved" in done.err
    table = CodeTable.load(tmp_path / "query.safetensors")
    assert sorted(table.packed.tolist()) == sorted(asked.packed.tolist())
    assert {n.replace("zebra", first.name) for n in table.names} == set(asked.names)
    assert table.provenance["images_seen_in_training"] == 0
    everything = run_json("encode", root / "hasher", photos, "--output", tmp_path / "all.safetensors")["images"]
    seen = CodeTable.load(tmp_path / "all.safetensors").provenance["images_seen_in_training"]
    assert (everything, seen) == (CLASSES * EACH, CLASSES * EACH - QUERIES)


def test_queries_that_the_student_saw_are_counted_whatever_their_names_and_root(pipeline, photos, tmp_path):
    root = pipeline["root"]
    for number, file in enumerate(sorted(photos.rglob("*.png"))):
        name = tmp_path / "other" / f"class {file.parent.name}" / f"{119 - number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, name)
    student = root / "student" / "model" / "model.safetensors"  # that file alone is enough
    shutil.copyfile(student, tmp_path / "student.safetensors")
    words = ("hash", tmp_path / "other", "--backbone", tmp_path / "student.safetensors", "--split-seed", 7,
             "--output", tmp_path / "run", "--bits", 16, *ONCE)  # fmt: skip
    done = run(*words)
    queries = json.loads((tmp_path / "run" / "split.json").read_text())
    digests = [queries["images"][i].split()[0] for i in queries["query"]]
    left_out = json.loads((root / "student" / "split.json").read_text())
    unseen = {left_out["images"][i].split()[0] for i in left_out["query"]}
    seen = len(set(digests) - unseen)
    assert 0 < seen < QUERIES and f"{seen} of {QUERIES} queries" in done.err
    assert load_hasher(tmp_path / "run")[1]["queries_seen_in_distillation"] == seen
    table = tmp_path / "query.safetensors"
    done = run("encode", tmp_path / "run", tmp_path / "other", "--part", "query", "--output", table)
    assert done.code == 0 and f"{seen} of {QUERIES} queries were seen" in done.err
    assert CodeTable.load(table).provenance["images_seen_in_training"] == seen
    assert run_json("evaluate", table, table)["queries_seen_in_training"] == seen


def test_a_touch_changes_nothing_and_a_change_is_told_by_name(pipeline, photos, tmp_path):
    shutil.copytree(pipeline["root"] / "hasher", tmp_path / "hasher")
    shutil.copytree(photos, tmp_path / "copy")
    words = ("hash", tmp_path / "copy", "--backbone", pipeline["root"] / "student", "--output", tmp_path / "hasher",
             "--bits", 16, *ONCE, "--resume")  # fmt: skip
    assert run(*words).code == 0
    name = sorted(path for path in (tmp_path / "copy").rglob("*.png"))[3].relative_to(tmp_path / "copy")
    Image.new("RGB", (32, 32)).save(tmp_path / "copy" / name)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "copy" / name.parent / "new.png")
    done = run(*words)
    assert done.code == 2 and f"1 images changed, such as {name}; 1 images added" in done.err


def test_text_is_for_people(pipeline):
    root = pipeline["root"]
    done = run("evaluate", root / "query.safetensors", root / "db.safetensors")
    assert done.code == 0
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert lines["queries"] == "12"
    assert float(lines["map_at_all"]) == pytest.approx(json.loads(pipeline["evaluate"].out)["map_at_all"], abs=1e-4)
    table = run("profile", root / "hasher", "--seconds", 0.01).out.splitlines()
    assert len(table) == 2
    assert table[0].split()[:4] == ["network", "name", "size", "parameters"]


def next_of(done: Done) -> list[list[str]]:
    assert done.code == 0, done.err
    said = [line for line in done.err.splitlines() if line.startswith("next: distilhash ")]
    return [shlex.split(line)[2:] for line in said]


def test_each_command_says_the_next_one(pipeline, photos, tmp_path, monkeypatch):
    """From distilling to the curves by what is said."""
    monkeypatch.chdir(tmp_path)
    root, given = pipeline["root"], ("--bits", 16, *ONCE)
    (words,) = next_of(run("distill", photos, "--output", root / "student", *DISTILL, "--resume"))
    assert words == ["hash", str(photos), "--backbone", str(root / "student")]
    said = []
    for _ in range(5):
        ours = ("--output", root / "hasher", *given, "--resume") if words[0] == "hash" else ()
        said.append(words[0])
        (words,) = next_of(run(*words, *ours)) or [[]]
    assert (said, words) == (["hash", "encode", "encode", "evaluate", "evaluate"], [])
    assert json.loads(Path("metrics.json").read_text())["database"] == 108
    assert "next" not in run("evaluate", "query.safetensors", "database.safetensors", "--quiet").err


@pytest.mark.parametrize("line", ["fit 'a b' --output c", "export h 'a b'", "export h cifar10", "index a", "distill a"])
def test_what_is_said_next_is_a_command(line):
    words = shlex.split(line)
    for following in cli.NEXT[words[0]](cli.parse(words[0], words[1:])[0]):
        name, *others = map(str, following)
        assert cli.parse(name, others)


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"distilhash {distilhash.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("sea", "search"), ("search p.index --gro", "--group-duplicates"), ("encode --part qu", "query"),
     ("hash --optimizer mu", "muon")],
)  # fmt: skip
def test_bash_completes_commands_flags_and_choices(typed, offered, tmp_path):
    script = tmp_path / "completion"
    script.write_text(run("completion", "bash").out)
    words = ["distilhash", *typed.split()]
    line = f"source {script}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
    line += '$(complete -p distilhash | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert offered in done.stdout.split(), done


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_every_shell_has_a_script(shell):
    done = run("completion", shell)
    assert done.code == 0 and all(command in done.out for command in cli.COMMANDS)


def test_a_person_at_a_terminal_hears_something_within_a_second(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(cli, "console", Console(file=screen, force_terminal=True))
    heard = []

    def slow():
        time.sleep(0.9)
        heard.append(screen.getvalue())
        return {"students": ["v1"]}

    monkeypatch.setattr(api, "known_names", slow)
    assert cli.main(["list"]) == 0 and heard[0].startswith("list: ")
    assert cli.main(["list", "--quiet"]) == 0 and heard[1] == heard[0]


def test_a_finished_run_resumes_at_once_and_is_replaced_only_when_told(pipeline, photos):
    root = pipeline["root"]
    words = ("hash", photos, "--backbone", root / "student", "--output", root / "hasher", "--bits", 16, *ONCE)
    model = root / "hasher" / "model" / "model.safetensors"
    before = model.read_bytes(), model.stat().st_mtime_ns
    assert run_json(*words, "--resume") == {"hasher": str(root / "hasher" / "model")}
    assert (model.read_bytes(), model.stat().st_mtime_ns) == before
    assert run_json(*words, "--overwrite")
    assert model.stat().st_mtime_ns != before[1]
    assert (model.read_bytes() == before[0]) is True, "the same seed, the same run"  # a diff would take minutes


def test_distill_takes_an_unlabelled_folder_of_any_depth(photos, tmp_path):
    sources = sorted(photos.rglob("*.png"))[:60]
    for number, source in enumerate(sources):
        folder = tmp_path / "mixed" / ("" if number < 20 else "2024/june" if number < 40 else "old")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(source.read_bytes())
    words = ("distill", tmp_path / "mixed", "--output", tmp_path / "run", *DISTILL, "--loss", "raw", "--quiet")
    assert run(*words).code == 2 and not (tmp_path / "run").exists(), "it might be a labelled folder with strays"
    done = run(*words, "--unlabelled", "--json")
    assert (done.code, done.err) == (0, "")
    assert not (tmp_path / "run" / "split.json").exists()
    assert load_student(tmp_path / "run")[1]["unlabelled_images"] == 60


def test_hash_from_scratch(photos, tmp_path):
    words = ("hash", photos, "--output", tmp_path / "run", *SMALL, *ONCE, "--framework", "dch", "--bits", 48)
    assert run_json(*words)["hasher"]
    hasher, description = load_hasher(tmp_path / "run")
    assert (hasher.backbone.name, hasher.num_bits, hasher.input.size) == ("v1", 48, 32)
    assert description["settings"]["framework"] == "dch"


def test_hash_a_frozen_teacher(photos, tmp_path):
    words = ("hash", photos, "--output", tmp_path / "run", "--backbone", "pip/efficientnet_lite0", "--teacher-size", 64,
             "--freeze-backbone", "--bits", 16, *ONCE)  # fmt: skip
    assert run_json(*words)
    hasher, _ = load_hasher(tmp_path / "run")
    teacher = create_teacher("pip/efficientnet_lite0", size=64)
    assert hasher.input.size == 64
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, hasher.backbone.state_dict()[name]), name


def test_list_files_with_several_labels(photos, tmp_path):
    """Train, database and test as published for NUS-WIDE, through hash, encode and evaluate."""
    files = sorted(photos.rglob("*.png"))
    root = tmp_path / "listed"
    lines = []
    for number, file in enumerate(files):
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "images" / f"{number}.png").write_bytes(file.read_bytes())
        own = np.eye(CLASSES, dtype=int)[number // EACH]
        also = np.eye(CLASSES, dtype=int)[number % CLASSES] * (number % 2)
        lines.append(f"images/{number}.png {' '.join(map(str, own | also))}")
    test = lines[::9][:QUERIES]
    rest = [line for line in lines if line not in test]
    for name, listed in (("train", rest[:70]), ("database", rest), ("test", test)):
        (root / f"{name}.txt").write_text("\n".join(listed) + "\n")

    assert run_json("hash", root, "--output", tmp_path / "run", *SMALL, *ONCE, "--bits", 16)
    for part, count in (("query", 12), ("database", 108)):
        table = tmp_path / f"{part}.safetensors"
        assert run_json("encode", tmp_path / "run", root, "--part", part, "--output", table)["images"] == count
        labels = CodeTable.load(table).labels
        assert labels.shape == (count, CLASSES)
        assert labels.sum(axis=1).max() == 2
    metrics = run_json("evaluate", tmp_path / "query.safetensors", tmp_path / "database.safetensors")
    assert 0 < metrics["map_at_all"] <= 1


def test_what_a_library_prints_is_not_taken_for_the_result(monkeypatch):
    def talkative():
        print("Downloading: weights")  # as torch.hub does
        return {"students": ["v1"]}

    monkeypatch.setattr("distilhash.api.known_names", talkative)
    assert run("list", "--json") == Done(0, '{\n  "students": [\n    "v1"\n  ]\n}\n', "Downloading: weights\n")


def test_list_names_every_kind():
    names = run_json("list")
    assert names.keys() == {
        "teachers", "students", "stems", "crop modes", "distillation losses", "distillation modes", "optimizers",
        "precisions", "devices", "hashing frameworks", "centres", "label-free methods", "data sets", "protocols",
        "parts", "tables", "budgets",
    }  # fmt: skip
    assert names["teachers"] == [*TEACHERS, "timm/NAME"]
    assert names["students"] == ["v1", "v2", "timm/NAME", "FILE.py:FUNCTION"]
    assert names["distillation losses"] == ["raw", "standardised", "prototypes"]
    assert names["optimizers"] == ["muon", "adamw", "published"]
    assert names["hashing frameworks"] == ["csq", "dch"]
    assert names["centres"] == list(CENTRES)
    assert names["protocols"] == ["cifar10", "cifar10-1", "cifar10-2"]
    text = run("list").out
    for kind, known in names.items():
        assert f"{kind} " in text
        assert ", ".join(known) in text


def shell(*words: str, program: tuple[str, ...] = ("-m", "distilhash")) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *program, *words], capture_output=True, text=True, check=False)


def test_as_a_program_it_prints_json_and_nothing_else():
    done = shell("list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["students"][:2] == ["v1", "v2"]


def test_as_a_program_it_exits_with_2_for_the_users_mistake(tmp_path):
    done = shell("distill", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"distilhash: there is no such folder; got {tmp_path / 'nowhere'}; name a folder of images, or cifar10.\n"
    )


def test_as_a_program_it_exits_with_1_for_our_bug():
    bug = "import distilhash.api as stages; stages.known_names = lambda: 1 / 0"
    done = shell(program=("-c", f"{bug}; import distilhash.cli as cli; cli.main(['list'])"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_paths_may_hold_spaces_and_umlauts(pipeline, photos, tmp_path):
    moved = tmp_path / "f\u00fcr Anna"
    moved.mkdir()
    (moved / "model.safetensors").write_bytes(
        (pipeline["root"] / "hasher" / "model" / "model.safetensors").read_bytes()
    )
    table = moved / "codes of all.safetensors"
    assert run_json("encode", moved, photos, "--output", table) == {"codes": str(table), "images": 120, "bits": 16}
    assert len(CodeTable.load(table)) == 120
