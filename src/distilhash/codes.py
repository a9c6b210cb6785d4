"""Binary codes: packing to bits, Hamming distance, and the table of codes that a hasher writes.

A code of K bits is a row of -1/+1 (what a hasher's sign gives) or its packed form: one bit for each entry, 1 where the
entry is +1, most significant bit of the first byte first (the order of ``np.packbits``), the last byte padded with
zeros. A uint8 array is always read as packed; every other dtype as -1/+1.

A CodeTable on disk is one safetensors file: the tensors ``packed``, ``names_utf8`` and ``name_ends`` (all names in one
run of bytes, and where each ends), ``labels`` and ``digests`` where there are any, and a header with the number of
bits, the names of the classes and the provenance. NumPy only: no torch is imported. One file, because all of it is this
one format in memory and on disk.

Shapes: N images, Q queries, B database images, K bits, P = ceil(K / 8) bytes, W = ceil(K / 64) words, C classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray

from distilhash.errors import DistilhashError, refused
from distilhash.files import readable_file, write_atomically
from distilhash.progress import progress

FORMAT = "distilhash.codes"
VERSION = 1
TENSORS = {"packed", "names_utf8", "name_ends", "labels", "digests"}
DIGEST = 16  # bytes

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]


def pack(codes_NK: ArrayLike) -> Bytes:
    """Pack codes (N, K) to bits (N, P): 1 where an entry is above zero, so that a hasher's outputs may be given too.

    Raises:
        DistilhashError: the array is not of two dimensions, or holds NaN.
    """
    codes = np.asarray(codes_NK)
    if codes.ndim != 2:
        raise DistilhashError("codes must be an array of two dimensions, (images, bits)", f"shape {codes.shape}")
    if codes.dtype.kind == "f" and np.isnan(codes).any():
        raise DistilhashError("codes hold NaN, which has no sign", fix="look at the network's outputs")
    return np.packbits(codes > 0, axis=1)


def unpack(packed: ArrayLike, num_bits: int) -> NDArray[np.int8]:
    """Unpack codes (N, P) to -1/+1 (N, K): the inverse of pack.

    Raises:
        DistilhashError: the bytes are not codes of this many bits.
    """
    bits = np.unpackbits(_checked_packed(np.asarray(packed), num_bits, "codes"), axis=1, count=num_bits)
    return bits.view(np.int8) * np.int8(2) - np.int8(1)


def to_words(packed_NP: Bytes) -> Words:
    """The same bits as (N, W) 64-bit words, the last one padded with zeros: the form in which bits are counted."""
    num_images, num_bytes = packed_NP.shape
    padded = np.zeros((num_images, -(-num_bytes // 8) * 8), np.uint8)
    padded[:, :num_bytes] = packed_NP
    return padded.view(np.uint64)


def packed_pair(query: ArrayLike, database: ArrayLike, num_bits: int | None = None) -> tuple[Bytes, Bytes, int]:
    """Pack two sets of codes that are to be compared.

    Args:
        query: (Q, K) of -1/+1, or packed (Q, P) uint8.
        database: (B, K) or (B, P), likewise.
        num_bits: K; needed where both sides are packed.

    Returns:
        (Q, P) and (B, P) uint8, and K.

    Raises:
        DistilhashError: the codes differ in length, hold other entries than -1/+1, or packed bytes do not fit K.
    """
    sides = np.asarray(query), np.asarray(database)
    if num_bits is None:  # what one side says
        num_bits = next((codes.shape[1] for codes in sides if codes.dtype != np.uint8 and codes.ndim == 2), None)
    query_packed, num_bits = packed_codes(sides[0], num_bits, "query_codes")
    return query_packed, packed_codes(sides[1], num_bits, "database_codes")[0], num_bits


def packed_codes(codes: ArrayLike, num_bits: int | None = None, name: str = "codes") -> tuple[Bytes, int]:
    """Codes (n, K) of -1/+1, or packed already, as packed codes (n, P), and K.

    Args:
        num_bits: K; needed where they are packed.
        name: of the codes, for errors.

    Raises:
        DistilhashError: they have another length, hold other entries than -1/+1, or packed bytes do not fit K.
    """
    array = np.asarray(codes)
    if array.ndim != 2 or array.shape[1] == 0:
        raise DistilhashError(f"{name} must be an array of two dimensions, (images, bits)", f"shape {array.shape}")
    if array.dtype == np.uint8:
        if num_bits is None:
            raise DistilhashError("packed codes (uint8) do not say how many bits they hold", fix="pass num_bits=")
        return _checked_packed(array, num_bits, name), num_bits
    if num_bits not in (None, array.shape[1]):
        given = f"{array.shape[1]} in {name}, {num_bits} elsewhere"
        raise DistilhashError("all codes must have the same number of bits", given)
    wrong = array[np.abs(array) != 1] if array.dtype.kind in "if" else array.ravel()
    if wrong.size or array.dtype.kind not in "if":
        given = f"{wrong[0]!s} ({array.dtype})" if wrong.size else str(array.dtype)
        fix = "take np.where(outputs > 0, 1, -1), or pack them"
        raise DistilhashError(f"{name} must hold -1 and +1 only", given, fix)
    return pack(array), array.shape[1]


def hamming(query: ArrayLike, database: ArrayLike, num_bits: int | None = None) -> NDArray[np.uint8 | np.uint16]:
    """Hamming distances (Q, B) of all pairs, uint8 for codes of up to 255 bits, else uint16.

    Args:
        query: as packed_pair.
        database: as packed_pair.
        num_bits: K; None for two packed sides means 8 bits a byte.
    """
    query, database = np.asarray(query), np.asarray(database)
    if num_bits is None and query.dtype == database.dtype == np.uint8 and query.ndim == 2:
        num_bits = 8 * query.shape[1]
    query_packed, database_packed, num_bits = packed_pair(query, database, num_bits)
    query_words, database_words = to_words(query_packed), np.ascontiguousarray(to_words(database_packed).T)
    distances = np.zeros((len(query_words), len(database_packed)), distance_dtype(num_bits))
    for row, words in zip(distances, query_words, strict=True):
        for word, column in zip(words, database_words, strict=True):
            np.add(row, np.bitwise_count(column ^ word), out=row)
    return distances


def distance_dtype(num_bits: int) -> type[np.uint8 | np.uint16]:
    """The smallest unsigned type that holds every distance between codes of this length."""
    return np.uint8 if num_bits <= 255 else np.uint16


def _checked_packed(packed: NDArray[Any], num_bits: int, name: str) -> Bytes:
    """The same bytes, checked to be codes of this many bits with zeros behind them."""
    if packed.dtype != np.uint8 or packed.ndim != 2:
        given = f"{packed.dtype} {packed.shape}"
        raise DistilhashError(f"packed {name} must be uint8 of two dimensions, (images, bytes)", given)
    if num_bits < 1:
        raise DistilhashError("the number of bits must be at least 1", num_bits)
    if packed.shape[1] != -(-num_bits // 8):
        given = f"{packed.shape[1]} bytes a code for {num_bits} bits"
        fix = f"{num_bits} bits take {-(-num_bits // 8)} bytes"
        raise DistilhashError(f"packed {name} do not fit their number of bits", given, fix)
    if num_bits % 8 and (packed[:, -1] & (0xFF >> num_bits % 8)).any():
        raise DistilhashError(f"packed {name} have bits set beyond their length of {num_bits}", fix="check num_bits")
    return packed


def packed_outputs(batches: Iterable[NDArray[Any]], num_bits: int, count: int, *, show_progress: bool = True) -> Bytes:
    """Codes (N, P) of a hasher's outputs (n, K), batch after batch: the sign of each, packed. Zero counts as -1.

    Args:
        count: N, which progress is measured by.
    """
    packed = [np.empty((0, -(-num_bits // 8)), np.uint8)]
    with progress("encode", count) if show_progress else contextlib.nullcontext() as counter:
        for outputs_nK in batches:
            packed.append(pack(outputs_nK))
            if counter is not None:
                counter.add(len(outputs_nK))
    return np.concatenate(packed)


class Images(Protocol):
    """What a table keeps of a source of images, besides their codes."""

    names: list[str]
    class_names: list[str]

    @property
    def labels(self) -> NDArray[Any] | None:
        """As in CodeTable."""

    @property
    def digests(self) -> Bytes:
        """As in CodeTable."""

    @property
    def fingerprint(self) -> str:
        """Of the whole source, for the provenance."""


@dataclasses.dataclass(frozen=True, eq=False)
class CodeTable:
    """The codes of a set of images, and what is known of these; refused where the parts do not fit."""

    packed: Bytes  # (N, P)
    num_bits: int  # K
    names: list[str]  # N, in the order of the codes
    labels: NDArray[Any] | None = None  # (N,) integer classes, or (N, C) uint8 of 0/1
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)  # JSON data: what made the codes, from what
    digests: Bytes | None = None  # (N, 16) a hash of each image's content, by which evaluation knows it again
    class_names: Sequence[str] = ()  # C, of the labels' numbers or columns; none where the classes have no names

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        _checked_packed(self.packed, self.num_bits, "codes")
        labels = self.labels
        if labels is not None:
            classes = labels.ndim == 1 and labels.dtype.kind in "iu"
            if not classes and not (labels.ndim == 2 and labels.dtype == np.uint8 and (labels <= 1).all()):
                given = f"{labels.dtype} {labels.shape}"
                raise DistilhashError("labels must be (N,) integer classes or (N, C) uint8 of 0/1", given)
        if self.digests is not None and (self.digests.dtype != np.uint8 or self.digests.shape[1:] != (DIGEST,)):
            given = f"{self.digests.dtype} {self.digests.shape}"
            raise DistilhashError(f"digests must be (N, {DIGEST}) uint8", given)
        for kind, column in (("name", self.names), ("label", labels), ("digest", self.digests)):
            if column is not None and len(column) != len(self):
                given = f"{len(column)} {kind}s, {len(self)} codes"
                raise DistilhashError(f"a code table needs one {kind} a code", given)
        names = self.class_names
        if len(names) and labels is not None and labels.size:
            low, high = (0, labels.shape[1] - 1) if labels.ndim == 2 else (labels.min(), labels.max())
            if len(set(names)) < len(names) or low < 0 or high >= len(names):
                given = f"{len(set(names))} different names, classes {low} to {high}"
                raise DistilhashError("every class of a code table needs a name of its own", given)

    @classmethod
    def of(
        cls, packed: Bytes, num_bits: int, images: Images, indices: NDArray[np.int64], provenance: dict[str, Any]
    ) -> CodeTable:
        """The codes (N, P) of ``images[indices]`` with all that the source knows of these images."""
        labels = images.labels
        return cls(
            packed, num_bits, [images.names[index] for index in indices.tolist()],
            labels=None if labels is None else labels[indices],
            provenance={"images": images.fingerprint, **provenance},
            digests=images.digests[indices],
            class_names=() if labels is None else images.class_names,
        )  # fmt: skip

    def __len__(self) -> int:
        """Number of images."""
        return len(self.packed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to one file, whole or not at all; DistilhashError where the disk refuses."""
        # "surrogatepass": a file name on disk need not be valid Unicode, and must come back as it was.
        encoded = [name.encode("utf-8", "surrogatepass") for name in self.names]
        tensors: dict[str, NDArray[Any]] = {
            "packed": np.ascontiguousarray(self.packed),
            "names_utf8": np.frombuffer(b"".join(encoded), np.uint8),
            "name_ends": np.cumsum([len(name) for name in encoded], dtype=np.int64),
        }
        for name, column in (("labels", self.labels), ("digests", self.digests)):
            if column is not None:
                tensors[name] = np.ascontiguousarray(column)
        header = {"format": FORMAT, "version": str(VERSION), "num_bits": str(self.num_bits)}
        header["class_names"] = json.dumps(list(self.class_names))
        header["provenance"] = json.dumps(self.provenance)
        # One key: safetensors writes several in random order, and equal tables must be equal files.
        metadata = {"distilhash": json.dumps(header, sort_keys=True)}
        write_atomically(Path(path), safetensors.numpy.save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CodeTable:
        """Read a table from a file; DistilhashError where there is none, or it is not a whole and valid table."""
        readable_file(Path(path), "there is no code table at this path", "write one with: distilhash encode")
        try:
            with safetensors.safe_open(path, framework="np") as file:
                header = json.loads((file.metadata() or {}).get("distilhash", "{}"))
                tensors = {name: file.get_tensor(name) for name in TENSORS & set(file.keys())}
            if not isinstance(header, dict):
                raise ValueError("its header is not an object")
            if header.get("format") != FORMAT or header.get("version") != str(VERSION):
                raise ValueError(f"its format is {header.get('format')!r}, version {header.get('version')!r}")
            provenance = json.loads(header["provenance"])
            if not isinstance(provenance, dict):
                raise ValueError("its provenance is not an object")
            class_names = json.loads(header.get("class_names", "[]"))  # tables of earlier versions have none
            if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
                raise ValueError("its class names are not a list of texts")
            names = _split_names(tensors["names_utf8"], tensors["name_ends"])
            return cls(
                tensors["packed"], int(header["num_bits"]), names, tensors.get("labels"), provenance,
                tensors.get("digests"), class_names,
            )  # fmt: skip
        except KeyError as error:
            cause = f"{error.args[0]} is missing"
        except OSError as error:
            raise refused(f"cannot read {path}", error) from error
        # AttributeError: a tensor of float8, which NumPy lacks.
        except (safetensors.SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
            cause = str(error).removesuffix(".")
        fix = "write it again with: distilhash encode"
        raise DistilhashError("this file is not a code table", f"{path} ({cause})", fix)


def _split_names(utf8: NDArray[Any], ends: NDArray[Any]) -> list[str]:
    if utf8.dtype != np.uint8 or ends.dtype != np.int64 or utf8.ndim != 1 or ends.ndim != 1:
        raise ValueError("its names are not a run of bytes with int64 ends")
    spans = list(itertools.pairwise([0, *ends.tolist()]))
    if (spans[-1][1] if spans else 0) != len(utf8) or any(start > stop for start, stop in spans):
        raise ValueError("its name ends do not fit the names")
    text = utf8.tobytes()
    return [text[start:stop].decode("utf-8", "surrogatepass") for start, stop in spans]
