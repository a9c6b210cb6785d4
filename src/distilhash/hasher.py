"""A hasher for people: images to packed codes, in PyTorch or, where it was exported, on ONNX Runtime.

    hasher = distilhash.Hasher.from_pretrained("runs/hasher")  # or an exported directory, or OWNER/NAME on the Hub
    codes = hasher.encode(["a.jpg", Image.open("b.png")])      # uint8 (2, hasher.num_bits / 8)

The network itself, an nn.Module that is trained, is ``distilhash.models.HasherNetwork``; this object is made of its
files and is not trained.

Shapes: N images, n images of a batch, H, W sides in pixels, K bits, P = ceil(K / 8) bytes, M digests.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilhash.codes import Bytes, CodeTable, packed_outputs
from distilhash.data.sources import ArraySource, Given, GivenSource, ImageSource, count_seen
from distilhash.deploy.runtime import FLOAT, INT8, SEEN, ExportedHasher, model_file
from distilhash.errors import DistilhashError, require_train
from distilhash.files import write_directory_atomically

# What a directory of a hasher holds, in PyTorch or exported, and what is published of it.
FILES = ("config.json", "model.safetensors", FLOAT, INT8, SEEN, "report.json", "README.md")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclasses.dataclass(frozen=True, eq=False)
class Hasher:
    """Images to packed codes; `from_pretrained` makes one."""

    path: str  # its model directory, or the model file of an exported one
    num_bits: int
    fingerprint: str  # of the network with its weights: other codes, other fingerprint
    outputs: Callable[[ImageSource, NDArray[np.int64]], Iterator[NDArray[np.float32]]]  # (n, K), batch after batch
    made: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what code tables say of it
    seen: NDArray[np.uint8] | None = None  # digests (M, 16) of what it was trained on, where they are known

    @classmethod
    def from_pretrained(
        cls, path_or_hub_name: str | Path, *, int8: bool = False, threads: int | None = None,
        precision: str | None = "float32", device: str | None = "cpu",
    ) -> Hasher:  # fmt: skip
        """Load a hasher: in PyTorch, or, where it was exported, on ONNX Runtime without PyTorch.

        The defaults give the codes of an index: a photo has the same on every machine.

        Args:
            path_or_hub_name: run or model directory of a hasher, an exported one or one of its model files; where there
                is none, OWNER/NAME of a repository on the Hugging Face Hub, which is downloaded.
            int8: take the int8 model of an exported hasher.
            threads: of an exported hasher. None: one for each core.
            precision: of PyTorch's convolutions. None: as the hasher was trained, where the processor has it.
            device: of PyTorch. None: that of the command line and DISTILHASH_DEVICE.

        Raises:
            DistilhashError: there is no hasher, it is damaged, or a package that it needs is not installed.
        """
        name = str(path_or_hub_name)
        place = Path(name)
        if not place.exists() and _HUB_NAME.fullmatch(name):
            place = _downloaded(name)
        return cls.open(place, int8=int8, threads=threads, precision=precision, device=device)

    @classmethod
    def open(
        cls, place: str | Path, *, int8: bool = False, threads: int | None = None, precision: str | None = "float32",
        device: str | None = "cpu",
    ) -> Hasher:  # fmt: skip
        """from_pretrained() of a place on this machine: nothing is downloaded."""
        place = named(place, int8=int8)
        if model_file(place) is not None:
            exported = ExportedHasher.open(place.parent, int8=place.name == INT8, threads=threads)
            made = {"hasher": exported.fingerprint, "precision": exported.precision, "device": "cpu"}
            about = (exported.num_bits, exported.model_fingerprint, exported.outputs, made, exported.seen)
            return cls(str(place.absolute()), *about)

        require_train("a hasher that is not exported")
        import torch

        from distilhash.checkpoint import load_hasher
        from distilhash.device import current, usable_precision
        from distilhash.inference import prepared
        from distilhash.models.backbone import fingerprint_of

        network, _ = load_hasher(place)
        precision = precision or usable_precision(network.precision)
        where = torch.device(device) if device else current()
        run, fingerprint = prepared(network, precision=precision, device=where), fingerprint_of(network)
        made = {"hasher": fingerprint, "precision": precision, "device": str(where)}
        return cls(str(place.absolute()), network.num_bits, fingerprint, run, made, network.seen)

    def encode(
        self, images: Sequence[Given] | Any, *, batch_size: int | None = None, show_progress: bool = False
    ) -> Bytes:
        """Codes (N, P) of images, packed: first bit first. A file and its pixels have the same code.

        Args:
            images: a list of paths, PIL images of any mode, or uint8 arrays (H, W, 3), also mixed; or one uint8 array
                or tensor (N, H, W, 3) or (N, 3, H, W).
            batch_size: most images in memory at a time. None: as suits network and machine.
            show_progress: log progress.

        Raises:
            UnreadableImage: a file cannot be decoded.
            DistilhashError: images of another type or shape.
        """
        batch = hasattr(images, "ndim") and len(images) > 0
        source = ArraySource(_colours_last(images)) if batch else GivenSource(images)
        return self.codes(source, batch_size=batch_size, show_progress=show_progress)

    def codes(
        self, images: ImageSource, indices: NDArray[np.int64] | None = None, *, batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Bytes:  # fmt: skip
        """Codes (N, P) of ``images[indices]``, in that order; None: of all."""
        chosen = np.arange(len(images)) if indices is None else np.asarray(indices, np.int64)
        if batch_size is not None and batch_size < 1:
            raise DistilhashError("the batch size must be at least 1", batch_size)
        size = batch_size or max(1, len(chosen))
        blocks = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        batches = itertools.chain.from_iterable(self.outputs(images, block) for block in blocks)
        return packed_outputs(batches, self.num_bits, len(chosen), show_progress=show_progress)

    def table(self, images: ImageSource, indices: NDArray[np.int64] | None = None) -> CodeTable:
        """The codes of ``images[indices]`` with their names and labels, and what made them."""
        chosen = np.arange(len(images)) if indices is None else np.asarray(indices, np.int64)
        packed = self.codes(images, chosen, show_progress=True)
        seen = {} if self.seen is None else {"images_seen_in_training": count_seen(images, chosen, self.seen)}
        return CodeTable.of(packed, self.num_bits, images, chosen, {**self.made, **seen})

    def save_pretrained(self, directory: str | Path) -> None:
        """Copy the hasher into a directory of its own, with its model card (README.md).

        Raises:
            DistilhashError: the directory exists.
        """
        if Path(directory).exists():
            raise DistilhashError("the output exists", directory, "choose another place")
        with write_directory_atomically(directory) as folder:
            for file in self._files():
                shutil.copyfile(file, folder / file.name)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Publish the hasher on the Hugging Face Hub by the package huggingface_hub, and return its address.

        Its files hold digests of the images that it was trained on, by which whoever has such an image recognises it.

        Args:
            name: OWNER/NAME of the repository, made where there is none.
            private: who may see it, where it is made.
        """
        hub = _hub(f"publishing {name}")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder, "hasher"))
            api = hub.HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=name, folder_path=Path(folder, "hasher")))

    def _files(self) -> list[Path]:
        """Its files, wherever below the path that it was opened by they are."""
        places = [Path(self.path), Path(self.path) / "model", Path(self.path).parent]
        home = next(place for place in places if any((place / name).is_file() for name in FILES[1:4]))
        return [home / name for name in FILES if (home / name).is_file()]


def named(hasher: str | Path, *, int8: bool = False) -> Path:
    """The place of a hasher; of an exported one the model file that is to run.

    Args:
        hasher: a run directory, a model directory, an exported directory or one of its model files.
        int8: False means float32, or the model that the path names.

    Raises:
        DistilhashError: ``int8`` for a hasher that was not exported.
    """
    model = model_file(hasher, int8=int8)
    if model is None and int8:
        raise DistilhashError("int8 is for an exported hasher", hasher, "export it: distilhash export")
    return model or Path(hasher)


def _hub(needed_by: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise DistilhashError(f"{needed_by} needs huggingface_hub", error, "pip install huggingface_hub") from error


def _downloaded(name: str) -> Path:
    """The files of a hasher on the Hub, as this machine keeps them."""
    hub = _hub(f"{name} is no directory here, and downloading it")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # its errors share no base
        what = "there is no such directory, and no hasher of this name could be downloaded"
        got = f"{name} ({type(error).__name__}: {error})".splitlines()[0]
        raise DistilhashError(what, got, "name a directory of a hasher, or OWNER/NAME of the Hub") from error


def _colours_last(images: Any) -> NDArray[np.uint8]:
    """A batch (N, 3, H, W) or (N, H, W, 3), of PyTorch or NumPy, as (N, H, W, 3); a tensor's colours come first."""
    is_tensor = hasattr(images, "detach")
    array: NDArray[np.uint8] = images.detach().cpu().numpy() if is_tensor else np.asarray(images)
    if array.ndim == 4 and array.shape[1] == 3 and (is_tensor or array.shape[3] != 3):
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    return array
