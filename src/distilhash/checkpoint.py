"""Networks and training states on disk: safetensors with their description in the header, written atomically.

A model directory holds ``model.safetensors`` (weights, and the whole description in its header: that file alone is
enough), ``config.json`` (the same description, for people) and ``README.md``. A training state is one safetensors
file. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from distilhash.data.sources import DIGEST_BYTES
from distilhash.errors import DistilhashError, refused
from distilhash.files import readable_file, to_json, write_atomically, write_json
from distilhash.models import create_hasher, rebuild_backbone
from distilhash.models.backbone import Backbone, not_finite
from distilhash.models.hasher import HasherNetwork

FORMAT = "distilhash/1"
SEEN = "images_seen"  # beside the weights: what the network was trained on
ORIGIN = ("teacher", "teacher_fingerprint", "unlabelled_images")  # of a student, which its hashers tell, too
_HEADROOM = 1.05  # a filesystem needs a little more than the bytes of the tensors


def save_tensors(path: str | Path, tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    """Write tensors and a JSON description into one safetensors file, atomically."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    needed = int(sum(tensor.nbytes for tensor in flat.values()) * _HEADROOM)
    free = shutil.disk_usage(next(parent for parent in Path(path).absolute().parents if parent.exists())).free
    if free < needed:  # said before anything is written, and with the figures
        figures = f"{free >> 20} MiB free, {needed >> 20} MiB needed"
        raise DistilhashError(f"no room for {path}", figures, "free some room")
    # One entry: safetensors writes several in random order, and equal runs must end in equal bytes.
    header = {"distilhash": to_json({"format": FORMAT, "description": description}, sort_keys=True)}
    # Not save_file: that makes a temporary file of its own, which a kill would leave behind under a random name.
    write_atomically(path, save(flat, metadata=header))


def load_tensors(path: str | Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the description of a file that :func:`save_tensors` wrote; DistilhashError for any other file."""
    fix = "name a file that a distilhash stage wrote"
    readable_file(path, f"no {what} here", fix)
    try:
        with safe_open(path, framework="np") as handle:  # "pt" opens no path that is not UTF-8
            header = json.loads((handle.metadata() or {}).get("distilhash", "{}"))
            if header.get("format") != FORMAT or not isinstance(header.get("description"), dict):
                raise DistilhashError(f"this file is not a distilhash {what}", path, fix)
            tensors = {name: torch.from_numpy(handle.get_tensor(name)) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    except DistilhashError:
        raise
    except OSError as error:
        raise refused(f"cannot read {path}", error) from error
    except (SafetensorError, ValueError, AttributeError, RecursionError) as error:
        said = f"{what} cannot be read: only safetensors files are loaded, never a pickle"
        raise DistilhashError(said, f"{path} ({error})", fix) from error
    return tensors, header["description"]


def save_model(directory: str | Path, module: nn.Module, description: dict[str, Any]) -> None:
    """Write a backbone or a hasher as a model directory.

    ``description`` needs ``kind`` ("student" or "hasher") and ``architecture`` (the backbone's), for a hasher also
    ``bits``; whatever else it holds (provenance, settings) travels along.

    Raises:
        DistilhashError: a weight is not finite; nothing is written.
    """
    directory, tensors = Path(directory), dict(module.state_dict())
    _check_finite(tensors, directory)
    write_json(directory / "config.json", description)
    write_atomically(directory / "README.md", model_card(description))
    # Last, as its presence says that the directory is whole.
    if isinstance(module, Backbone | HasherNetwork) and module.seen is not None:
        tensors[SEEN] = torch.from_numpy(module.seen.copy())
    save_tensors(directory / "model.safetensors", tensors, description)


def model_card(description: dict[str, Any], *, exported: bool = False) -> str:
    """What a model is, what it was made from, and how to load it, in Markdown for people and the Hugging Face Hub.

    Args:
        description: as in save_model().
        exported: without PyTorch's files.
    """
    architecture, kind = description["architecture"], description["kind"]
    size = architecture.get("input", {}).get("size")
    facts = {
        "network": f"{architecture.get('name', '')}, {size} pixels" if size else architecture.get("name"),
        "code": f"{description['bits']} bits" if "bits" in description else None,
        "teacher": description.get("teacher"),
        "framework": description.get("settings", {}).get("framework") or description.get("label_free"),
        "images without labels": description.get("unlabelled_images"),
        "images with labels": description.get("labelled_images"),
    }
    what = {
        "hasher": "It turns images into short binary codes, which are compared by their Hamming distance.",
        "student": "It turns images into features like its teacher's, and is what a hasher is trained on.",
    }.get(kind, "")
    use = 'import distilhash\n\ncodes = distilhash.Hasher.from_pretrained("DIRECTORY").encode(["photo.jpg"])'
    if kind != "hasher":
        use = 'from distilhash.checkpoint import load_student\n\nnetwork, description = load_student("DIRECTORY")'
    lines = ["---", "library_name: distilhash", "tags: [image-retrieval, hashing]", "---"]
    lines += [f"# {'An exported' if exported else 'A'} distilhash {kind}", "", what, "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items() if value]
    lines += ["", "```python", use, "```", ""]
    if not exported:
        lines += [f"- {key}: `{to_json(value)}`" for key, value in sorted(description.items())]
    return "\n".join([*lines, ""])


def load_student(path: str | Path) -> tuple[Backbone, dict[str, Any]]:
    """The distilled backbone in a model directory (or run directory), and its description; in eval mode."""
    module, description = load_model(path, "student")
    assert isinstance(module, Backbone)
    return module, description


def load_hasher(path: str | Path) -> tuple[HasherNetwork, dict[str, Any]]:
    """The hasher in a model directory (or run directory), and its description; in eval mode."""
    module, description = load_model(path, "hasher")
    assert isinstance(module, HasherNetwork)
    return module, description


def load_model(path: str | Path, *kinds: str) -> tuple[Backbone | HasherNetwork, dict[str, Any]]:
    """The network in a model directory (or run directory), of one of these kinds (default: any); in eval mode."""
    tensors, description = load_tensors(_model_file(Path(path)), "checkpoint")
    seen = tensors.pop(SEEN, None)
    kinds = kinds or ("student", "hasher")
    kind, wanted = description.get("kind"), " or ".join(kinds)
    if kind not in kinds:
        raise DistilhashError(f"this checkpoint is not a {wanted}", f"a {kind} at {path}", f"name a {wanted}")
    try:
        backbone = rebuild_backbone(description["architecture"])
        module: Backbone | HasherNetwork = backbone
        if kind == "hasher":
            if len(tensors["head.weight"]) != description["bits"]:  # before a head of that many bits takes memory
                raise ValueError(f"{description['bits']} bits, and a head of {len(tensors['head.weight'])}")
            module = create_hasher(backbone, num_bits=len(tensors["head.weight"]))
            module.precision = str(description.get("precision", module.precision))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"{path} ({error!r})"
        raise DistilhashError("the checkpoint's description is damaged", found, "make it again") from error
    expected, given = ({(n, tuple(t.shape)) for n, t in state.items()} for state in (module.state_dict(), tensors))
    wrong = sorted({name for name, _ in expected ^ given})
    if wrong:
        found = f"{path}, {len(wrong)} tensors differ, first {', '.join(wrong[:3])}"
        raise DistilhashError("the checkpoint is of another architecture than it says", found, "make it again")
    module.load_state_dict(tensors)
    _check_finite(module.state_dict(), path)
    backbone.pretrained = True
    if kind == "student":
        backbone.origin = {key: description[key] for key in ORIGIN if key in description}
    if seen is not None:
        if seen.dtype != torch.uint8 or seen.ndim != 2 or seen.shape[1] != DIGEST_BYTES:
            raise DistilhashError("the checkpoint's description is damaged", f"{path} ({SEEN})", "make it again")
        module.seen = seen.numpy()
    return module.eval(), description


def _check_finite(tensors: dict[str, torch.Tensor], path: str | Path) -> None:
    name = not_finite(tensors)
    if name:
        fix = "train it again at a lower learning rate, or in float32"
        raise DistilhashError("the weights of this network are not finite", f"{path}, tensor {name}", fix)


def _model_file(path: Path) -> Path:
    for candidate in (path, path / "model.safetensors", path / "model" / "model.safetensors"):
        if candidate.is_file():
            return candidate
    fix = "name a run directory, its model/ directory or a model.safetensors"
    raise DistilhashError("no checkpoint here", path, fix)
