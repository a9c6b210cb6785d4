"""Every command as one function of paths and names, as ``distilhash.distill(...)``.

The command line makes its flags of these signatures, and its help of these docstrings. A function opens what it is
given, refuses what it can before anything is written, and runs one stage of the packages below, whose own functions
take objects. Imports are inside the functions, so that none pays for another's PyTorch. Messages and progress go to the
logger "distilhash". Every function raises DistilhashError for a mistake of its caller. One file, so that there is one
place to look a command up.

Arguments that several functions share:

* ``images``: "cifar10", a folder of images (class subfolders where labels are needed), a folder with list files
  (train.txt, database.txt and test.txt), a table (.csv, .tsv or .parquet, with columns path and label), or in Python a
  dataset object, as of torchvision or Hugging Face datasets.
* ``protocol``: published split of CIFAR-10; other images ignore it.
* ``split_seed``: random seed of a split that is drawn; ``split``: the split.json of an earlier run instead.
* ``scan``: which files below a folder are read.
* ``resume``: go on with the run in the output directory; ``overwrite``: replace it. With neither, an existing run is
  refused; settings other than those it began with are refused, too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from distilhash.config import (
    FRAMEWORKS,
    LOSSES,
    PHOTO_STUDENT,
    STUDENTS,
    TEACHERS,
    DemoConfig,
    DistillConfig,
    ExportConfig,
    FitConfig,
    HashConfig,
    InputConfig,
    Part,
    Protocol,
    ReproduceConfig,
    ScanConfig,
    StudentConfig,
    TeacherConfig,
    as_dict,
)  # fmt: skip
from distilhash.errors import DistilhashError, require_train, unknown_name
from distilhash.progress import log

if TYPE_CHECKING:
    from distilhash.evaluation.result import Evaluation
    from distilhash.models import Backbone, HasherNetwork

TOKEN = "DISTILHASH_TOKEN"  # the environment variable of the service's secret


def demo(
    output: str | Path = Path("runs/demo"), *, config: DemoConfig = DemoConfig(), resume: bool = False,
    overwrite: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run the paper's comparison on CIFAR-10 in minutes.

    Args:
        output: Run directory, for results.json, report.html and what each stage wrote.
        config: Sizes, epochs, bits and seed.

    Returns:
        The rows of results.json, one for each trial.
    """
    require_train("the demo")
    from distilhash.experiments.runner import run_demo

    return run_demo(config, output, resume=resume, overwrite=overwrite)


def reproduce(
    table: Literal["cifar10", "nuswide"], output: str | Path = Path("runs/reproduce"), *,
    config: ReproduceConfig = ReproduceConfig(), resume: bool = False, overwrite: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Compute the trials of a table of the paper that are missing.

    Args:
        table: "cifar10" or "nuswide".
        output: Run directory, for a file of each trial, results.json, and the report.
        config: Which trials, and how much each may take.

    Returns:
        The rows of results.json: every trial that is there.
    """
    require_train("the comparison")
    from distilhash.experiments.runner import reproduce as run

    return run(table, output, config=config, resume=resume, overwrite=overwrite)


def distill(
    images: str | Path | Any, output: str | Path = Path("runs/distill"), *, features: str | Path | None = None,
    rebuild_features: bool = False, unlabelled: bool = False, config: DistillConfig = DistillConfig(),
    teacher: TeacherConfig = TeacherConfig(), student: StudentConfig = StudentConfig(),
    scan: ScanConfig = ScanConfig(), protocol: Protocol = "cifar10", split_seed: int = 0,
    split: str | Path | None = None, resume: bool = False, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Distil a frozen teacher into a student, without labels.

    Args:
        images: "cifar10", a folder of images, or a folder with list files. Where they have labels, the queries of the
            split are left out; where it is not clear whether they have, they are refused.
        output: Run directory.
        features: Directory of the teacher's feature cache. None: in the run.
        rebuild_features: Compute the feature cache again.
        unlabelled: Take the images for unlabelled ones: no split is drawn, and no query left out.
        config: Loss, optimizer and schedule.
        teacher: Network, weights and input size.
        student: Network and input size.

    Returns:
        The student's model directory.
    """
    require_train("distillation")
    import numpy as np

    from distilhash.data.loading import open_readable, split_of
    from distilhash.files import fingerprint_of_indices
    from distilhash.models import new_student, open_teacher
    from distilhash.training import distill as stage
    from distilhash.training.run import RunDirectory

    if unlabelled and split is not None:
        what = "--unlabelled leaves no queries out, and --split says which"
        raise DistilhashError(what, split, "name one of the two")
    source = open_readable(images, labelled=False if unlabelled else None, certain=not unlabelled, scan=scan)
    chosen = None if unlabelled else split_of(source, images, protocol, split_seed, split, needed=True)
    indices = np.arange(len(source)) if chosen is None else chosen.unlabelled
    stage.check(config, source, indices)
    teacher_network, network = open_teacher(teacher), new_student(student, config.seed)
    queries = None if chosen is None else fingerprint_of_indices(chosen.query)
    settings = {
        "stage": "distill", "images": source.fingerprint, "teacher": as_dict(teacher), "student": as_dict(student),
        "distill": as_dict(config), "split": queries,
    }  # fmt: skip
    run = RunDirectory(output, settings, images=source, resume=resume, overwrite=overwrite)
    if run.finished:
        return run.path / "model"
    with run:
        if chosen is not None:
            chosen.save(run.path / "split.json")
            run.log(f"{len(chosen.query):,} images are left out: the queries of the split (--unlabelled takes them)")
        stage.distill(
            source, indices, teacher_network, network, config, run,
            features=features, rebuild_features=rebuild_features, queries=queries,
        )  # fmt: skip
    return run.path / "model"


def hash(
    images: str | Path | Any, output: str | Path = Path("runs/hash"), backbone: str | Path | None = None, *,
    config: HashConfig = HashConfig(), student: StudentConfig = StudentConfig(),
    teacher: TeacherConfig = TeacherConfig(), scan: ScanConfig = ScanConfig(), protocol: Protocol = "cifar10",
    split_seed: int = 0, split: str | Path | None = None, resume: bool = False, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Train a hasher on labelled images.

    Args:
        images: "cifar10", a folder with a subfolder for each class, or a folder with list files.
        output: Run directory.
        backbone: Run directory of a distilled student, a student's name (from scratch), or a teacher's name (trained,
            too, unless ``config.freeze_backbone``). None: a student from scratch.
        config: Framework, bits, optimizer and schedule.
        student: Network and input size of a student from scratch.
        teacher: Weights and input size of a teacher.

    Returns:
        The hasher's model directory.
    """
    require_train("training a hasher")
    from distilhash.data.loading import open_readable, split_of
    from distilhash.data.sources import count_seen
    from distilhash.files import fingerprint_of_indices
    from distilhash.inference import head_inputs
    from distilhash.models import is_teacher, new_hasher
    from distilhash.models.backbone import fingerprint_of
    from distilhash.training import hash as stage
    from distilhash.training.run import RunDirectory

    source = open_readable(images, labelled=True, scan=scan)
    chosen = split_of(source, images, protocol, split_seed, split, needed=True)
    assert chosen is not None
    stage.check(source, chosen.train, config)
    network = stage.open_backbone(None if backbone is None else str(backbone), student, teacher, config)
    seen = 0 if network.seen is None else count_seen(source, chosen.query, network.seen)
    queries = fingerprint_of_indices(chosen.query)
    settings = {
        "stage": "hash", "images": source.fingerprint, "backbone": network.architecture,
        "backbone_weights": fingerprint_of(network), "hash": as_dict(config), "split": queries,
    }  # fmt: skip
    run = RunDirectory(output, settings, images=source, resume=resume, overwrite=overwrite)
    if run.finished:
        return run.path / "model"
    with run:
        chosen.save(run.path / "split.json")
        if seen:
            log.warning(
                "the student was distilled on %s of %s queries of this split: numbers on them will be optimistic",
                f"{seen:,}", f"{len(chosen.query):,}",
            )  # fmt: skip
        elif network.seen is None and backbone and Path(backbone).exists() and not is_teacher(str(backbone)):
            log.warning("%s does not say which images it was distilled on: queries may be among them", backbone)
        hasher = new_hasher(network, config)
        features_ND = head_inputs(source, chosen.train, hasher.backbone) if hasher.freeze_backbone else None
        about = {"queries_seen_in_distillation": seen}
        stage.train_hasher(source, chosen.train, hasher, config, run, features_ND=features_ND, about=about)
    return run.path / "model"


def fit(
    photos: str | Path | Any, output: str | Path = Path("runs/fit"), *, config: FitConfig = FitConfig(),
    teacher: TeacherConfig = TeacherConfig(), student: StudentConfig = PHOTO_STUDENT, scan: ScanConfig = ScanConfig(),
    resume: bool = False, overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make a hasher of unlabelled photos.

    Args:
        photos: A folder of photos, with all folders below it.
        output: Run directory.
        config: Method, bits and schedule.
        teacher: Network, weights and input size.
        student: Network and input size.

    Returns:
        "hasher" (its model directory), "backbone", "method", "photos", "bits" and "verdict" (a sentence). Where a
        student was distilled, also "student" and "teacher": what the hasher of each does on a validation set, such as
        "overlap_at_10" (the share of the ten nearest photos by the teacher's features among those by code) and "moved"
        (how far brighter and mirrored copies move, as a share of the way to the nearest other photo).
    """
    require_train("fitting a hasher")
    from distilhash.training import fit as stage

    return stage.fit(
        photos, output, config=config, teacher=teacher, student=student, scan=scan, resume=resume, overwrite=overwrite,
    )  # fmt: skip


def encode(
    hasher: str | Path, images: str | Path | Any, output: str | Path = Path("codes.safetensors"), *, part: Part = "all",
    precision: Literal["float32", "bfloat16"] | None = None, int8: bool = False, threads: int | None = None,
    scan: ScanConfig = ScanConfig(), protocol: Protocol = "cifar10", split_seed: int = 0,
    split: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Encode images into a code table.

    Args:
        hasher: Run or model directory of a hasher, or an exported one.
        images: "cifar10", a folder of images, or a folder with list files.
        output: File of the code table.
        part: Part of the split, which is the hasher's own where it has one.
        precision: Of convolutions. None: as the hasher was trained, where the processor has it.
        int8: Take the int8 model of an exported hasher.
        threads: Of an exported hasher. None: one for each core.

    Returns:
        "codes" (the file), "images" (how many) and "bits".
    """
    from distilhash.data.loading import open_readable, part_of
    from distilhash.deploy.runtime import model_file
    from distilhash.device import PRECISIONS
    from distilhash.hasher import Hasher

    if precision not in (None, *PRECISIONS[1:]):
        raise unknown_name("precision", str(precision), PRECISIONS[1:])
    exported = model_file(hasher) is not None
    if exported and precision is not None:
        fix = "or take --int8"
        raise DistilhashError("an exported hasher runs in the precision it was exported in", precision, fix)
    if threads is not None and not exported:
        raise DistilhashError("threads are for an exported hasher", hasher, "export it: distilhash export")
    opened = Hasher.open(hasher, int8=int8, threads=threads, precision=precision, device=None)
    source = open_readable(images, labelled=part != "all" or None, scan=scan)
    indices = part_of(source, images, part, protocol, split_seed, split, beside=Path(hasher))
    table = opened.table(source, indices)
    seen = table.provenance.get("images_seen_in_training")
    if part == "query" and seen:
        log.warning("%s of %s queries were seen in training: numbers on them will be optimistic", seen, len(indices))
    table.save(output)
    return {"codes": str(output), "images": len(indices), "bits": table.num_bits}


def evaluate(
    query: str | Path, database: str | Path, *, at: int | None = None, output: str | Path | None = None
) -> Evaluation:
    """Measure retrieval with two code tables.

    Args:
        query: Code table of the queries, with labels.
        database: Code table of the database, with labels, from the same hasher.
        at: Also report mAP over this many nearest images.
        output: JSON file for the metrics and the curves.

    Returns:
        Metrics by name, such as "map_at_all" (expected average precision, ties in random order), as a dictionary with
        ``per_class`` (mean average precision), ``worst(n)`` (queries) and ``plot()`` (precision and recall).
    """
    from distilhash.evaluation.metrics import evaluate_files

    return evaluate_files(Path(query), Path(database), at=at, output=None if output is None else Path(output))


def profile(
    networks: Sequence[str], *, bits: int = 64, size: int | None = None, seconds: float = 1.0
) -> list[dict[str, Any]]:
    """Count parameters and multiply-adds of networks, and time them.

    Args:
        networks: Names of students or teachers, which get random weights and a hash head, or run directories.
        bits: Length of the code of such a head, bits.
        size: Side of the input, pixels. None: the network's own.
        seconds: Duration of each timing, seconds.

    Returns:
        For each network "network", "parameters", "macs" (of one image), "latency_ms_batch1", "images_per_second", ...
    """
    require_train("profiling")
    from distilhash.evaluation.profile import profile as measure

    opened = [(name, _network(name, bits, size)) for name in networks]  # all, before the first is timed
    return [
        {"network": name, **dataclasses.asdict(measure(network, size or network.input.size, seconds=seconds))}
        for name, network in opened
    ]


def export(
    hasher: str | Path, images: str | Path | Any, output: str | Path = Path("exported"), *, overwrite: bool = False,
    config: ExportConfig = ExportConfig(), scan: ScanConfig = ScanConfig(), protocol: Protocol = "cifar10",
    split_seed: int = 0, split: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a hasher as ONNX in float32 and int8.

    Args:
        hasher: Run or model directory of a hasher.
        images: Images to calibrate and compare on. Where they have a split, its queries are left out of calibration,
            and mAP is measured on it.
        output: Directory, written whole or not at all.
        overwrite: Replace the exported hasher in the output directory.
        config: Numbers of images and durations.

    Returns:
        The report, as in report.json: agreement of codes, mAP, milliseconds, bytes, and a "verdict".
    """
    require_train("export")
    from distilhash.deploy.export import export_hasher

    return export_hasher(
        hasher, output, images, config=config, protocol=protocol, split_seed=split_seed, split=split,
        scan=scan, overwrite=overwrite,
    )  # fmt: skip


def check(images: str | Path, *, scan: ScanConfig = ScanConfig()) -> dict[str, Any]:
    """Count what a folder holds and lacks before training.

    Args:
        images: "cifar10", a folder of images, or a folder with list files; no file is changed.

    Returns:
        "ready" (whether training could begin), "parts" (images, missing, unreadable and without a label, of each list
        or of the folder), "overlaps", "missing", "unreadable", "unlistable", "other_files", "problems" and "notes".
    """
    from distilhash.data.check import inspect_images

    return inspect_images(images, scan)


def index(
    folders: Sequence[str | Path] = (), index: str | Path = Path("photos.index"), hasher: str | Path | None = None, *,
    bits: int | None = None, int8: bool = False, verify: bool = False, prune: bool = False,
    forget: Sequence[str | Path] = (), rebuild: bool = False, scan: ScanConfig = ScanConfig(),
) -> dict[str, Any]:  # fmt: skip
    """Bring an index file up to date with folders of photos.

    Args:
        folders: Folders of photos, with all folders below them. None: all folders of the index.
        index: The file, made where there is none.
        hasher: Run or model directory of a hasher, or an exported one. None: the index's own, or a default hasher
            fitted to the photos.
        bits: Length of a code of the default hasher. None: 256, or as the index has it.
        int8: Take the int8 model of an exported hasher; the index remembers it.
        verify: Read the content of every file, also where size and date are as they were, and try again what could not
            be read.
        prune: Drop photos whose files are missing or left out; not below a folder of the index that is absent, empty
            or cannot be listed, since its disk may not be mounted.
        forget: Drop a folder of the index, which may be gone from the disk, and the photos that lie below no other.
        rebuild: Encode all folders of the index again where the hasher is another; a default hasher is fitted again.

    Returns:
        "index", "codes" (how many it holds), how many photos were added, changed, renamed, deleted, unchanged, failed
        or unsettled, "failures" and "unreadable" (files and folders, with reasons), "missing" and "passed_over" (photos
        that are kept, though their files are gone or left out), "rebuild_pays", and "near_duplicates": in how many
        "bits" they differ at most, with the estimated "recall" and "precision".
    """
    from distilhash.photos import search as photos

    return photos.index(
        folders, index, hasher, int8=int8, scan=scan, verify=verify, prune=prune, forgotten=forget, rebuild=rebuild,
        bits=bits,
    )  # fmt: skip


def search(
    index: str | Path, images: Sequence[str | Path | Any] = (), *, ids: Sequence[int] = (), top: int | None = None,
    radius: int | None = None, group_duplicates: int | Literal["auto"] | None = None,
    hasher: str | Path | None = None, int8: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Find the photos of an index that are like an image.

    A query is not among its own hits.

    Args:
        index: Index file.
        images: Image files to search for; in Python also PIL images and uint8 arrays (H, W, 3).
        ids: Search for a photo of the index by its id, which needs no hasher.
        top: Most hits for a query. None: 10, or with a radius all.
        radius: Largest distance of a hit, bits. None: any.
        group_duplicates: List a hit within so many bits of a nearer one below it; "auto" is the number that the index
            measured. None: apart.
        hasher: Where the index's hasher is. None: where it was.
        int8: Take the int8 model of an exported hasher.

    Returns:
        For each query "query" and "hits", each with "id", "path", "distance" (bits), "missing" (whether its file is
        gone; these come last) and "duplicates".
    """
    from distilhash.photos import search as photos

    return photos.search(
        index, images, ids=ids, top=top, radius=radius, group_duplicates=group_duplicates, hasher=hasher, int8=int8
    )


def duplicates(
    library: str | Path = Path("photos.index"), *, radius: int | None = None, csv: str | Path | None = None,
    html: str | Path | None = None, hasher: str | Path | None = None, int8: bool = False,
    scan: ScanConfig = ScanConfig(),
) -> dict[str, Any]:  # fmt: skip
    """List groups of near-duplicates, the best copy first.

    Args:
        library: Index file, or a folder, which is encoded for this once and by no index.
        radius: Largest distance of a photo from the best copy, bits. None: the one that the index measured.
        csv: Also write a CSV file (.csv).
        html: Also write a contact sheet (.html), one file with thumbnails.
        hasher: Hasher of a folder, as for an index. None: a default hasher fitted to its photos.
        int8: Take the int8 model of an exported hasher.

    Returns:
        "photos" (how many the library holds), "missing" (near-duplicates that are left out as their files are gone),
        "radius", "bits", and "groups", lists of photos with "id", "path", "size" (bytes), "width" and "height" (pixels;
        0 where the file cannot be read), "date" (of the file's last change) and "distance" (bits from the best copy).

        Nothing is deleted. A group is the best copy (the largest picture, then the largest file, then the first path)
        and the photos within the radius of it that are in no earlier group; groups whose other copies take most bytes
        come first.
    """
    from distilhash.photos.copies import duplicates as run

    return run(library, radius=radius, table=csv, sheet=html, hasher=hasher, int8=int8, scan=scan)


def info(index: str | Path) -> dict[str, Any]:
    """Tell what an index of photos holds.

    Args:
        index: Index file.

    Returns:
        "index", "bytes" (of the file), "photos" (that have a code), "failures" (that could not be read), "missing"
        (whose files are gone), "folders", "bits", "hasher" (where it was) and "near_duplicates", as from ``index``.
    """
    from distilhash.photos import search as photos

    return photos.info(index)


def code(hasher: str | Path, images: Sequence[str | Path], *, int8: bool = False) -> list[dict[str, str]]:
    """Compute the codes of image files.

    Args:
        hasher: Run or model directory of a hasher, or an exported one.
        images: Image files.
        int8: Take the int8 model of an exported hasher.

    Returns:
        For each file "image" and "code", hexadecimal digits with the first bit first.
    """
    from distilhash.photos import search as photos

    return photos.code(hasher, images, int8=int8)


def serve(
    index: str | Path, *, host: str = "127.0.0.1", port: int = 8765, token: str | None = None,
    host_names: Sequence[str] = (), root_path: str = "/", hasher: str | Path | None = None, int8: bool = False,
) -> None:  # fmt: skip
    """Serve an index of photos as a page and a JSON API.

    Ends with Ctrl-C or SIGTERM.

    Args:
        index: Index file.
        host: Address to listen on, 0.0.0.0 or :: for all; any but this computer's loopback needs a token.
        port: TCP port; 0 takes a free one, which is logged.
        token: Secret of 16 characters or more that every request must bring; open the page once with ?token=TOKEN.
            None: DISTILHASH_TOKEN, which other users do not see in the list of processes.
        host_names: A further name by which browsers reach this computer, as that of a proxy.
        root_path: Path under which a proxy serves this, as /photos, where the proxy does not remove it.
        hasher: Where the index's hasher is. None: where it was.
        int8: Take the int8 model of an exported hasher.
    """
    from distilhash.server.serve import serve as run

    kept = os.environ.pop(TOKEN, None)  # the processes that decode uploads do not inherit it
    token = kept if token is None else token
    run(index, host=host, port=port, token=token, hasher=hasher, int8=int8, host_names=host_names, root_path=root_path)
    log.info("ended")


def known_names() -> dict[str, list[str]]:
    """List every name that can be chosen, by kind."""
    from distilhash.data.loading import PARTS
    from distilhash.device import DEVICES
    from distilhash.experiments.presets import TABLES

    def choices(config: type, setting: str) -> list[str]:
        return list(get_args(get_type_hints(config)[setting]))

    return {
        "teachers": [*TEACHERS, "timm/NAME"],
        "students": [*STUDENTS, "timm/NAME", "FILE.py:FUNCTION"],
        "stems": choices(StudentConfig, "stem"),
        "crop modes": choices(StudentConfig, "crop_mode"),
        "distillation losses": list(LOSSES),
        "distillation modes": choices(DistillConfig, "mode"),
        "optimizers": choices(DistillConfig, "optimizer"),
        "precisions": choices(DistillConfig, "precision"),
        "devices": list(DEVICES),
        "hashing frameworks": list(FRAMEWORKS),
        "centres": choices(HashConfig, "centres"),
        "label-free methods": choices(FitConfig, "method"),
        "data sets": [
            "cifar10",
            "a folder of images",
            "a folder with train.txt, database.txt and test.txt",
            "a .csv, .tsv or .parquet table of path and label",
        ],
        "protocols": list(get_args(Protocol)),
        "parts": list(PARTS),
        "tables": list(TABLES),
        "budgets": choices(ReproduceConfig, "budget"),
    }


def _network(name: str, bits: int, size: int | None) -> Backbone | HasherNetwork:
    """What a name to be profiled stands for; a bare student or teacher gets a hash head."""
    from distilhash.checkpoint import load_model
    from distilhash.models import TEACHERS, create_hasher, create_student, create_teacher, is_student, is_teacher

    if size is not None and size < 1:
        raise DistilhashError("the input size must be at least 1 pixel", size)
    if is_student(name):
        return create_hasher(create_student(name, size or InputConfig().size), num_bits=bits)
    if is_teacher(name):
        return create_hasher(create_teacher(name, size=size, pretrained=False), num_bits=bits)
    if Path(name).exists():
        return load_model(name)[0]
    raise unknown_name("network", name, [*STUDENTS, *TEACHERS, "timm/NAME", "a run directory"])
