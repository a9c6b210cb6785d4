"""An exported hasher without PyTorch: images to outputs on the CPU through ONNX Runtime.

An exported directory holds ``config.json`` (the input, the number of bits, and the SHA-256 of each model file),
``model.onnx`` and ``model.int8.onnx``. All of it may come from a stranger. Before a model reaches the runtime its file
is checked against the config's SHA-256, its size against a limit, its inputs and outputs against the shapes in the
config, and it may refer to nothing outside itself: no tensors in other files, no operators from libraries, no
subgraphs.

Shapes: N images, n images of a batch, S side of the input in pixels, K bits.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from distilhash.config import InputConfig
from distilhash.data.prefetch import BATCH_PIXELS, cores, prefetch
from distilhash.data.sources import DIGEST_BYTES, ImageSource
from distilhash.data.transforms import Preprocess
from distilhash.errors import DistilhashError
from distilhash.files import readable_file

if TYPE_CHECKING:
    import onnxruntime

Format = Literal["distilhash.export/1"]
(FORMAT,) = get_args(Format)
FLOAT, INT8 = "model.onnx", "model.int8.onnx"
SEEN = "images_seen.npy"
MAX_BYTES = 1 << 30  # of a model file; the largest teacher has 0.4 GB
MAX_CONFIG_BYTES = 1 << 20
MAX_SIDE, MAX_BITS = 4096, 1 << 16

_AGAIN = "export the hasher again: distilhash export"


def is_exported(path: str | Path) -> bool:
    """Whether this is a directory that ``distilhash export`` wrote, whole or damaged."""
    return Path(path).is_dir() and any((Path(path) / name).exists() for name in (FLOAT, INT8))


def model_file(place: str | Path, *, int8: bool = False) -> Path | None:
    """The model file, which may be missing, that an exported directory or a model file in it means; else None.

    Args:
        place: where to look.
        int8: take the int8 model, also beside a float32 one that is named.
    """
    path = Path(place)
    if path.name in (FLOAT, INT8) and (path.is_file() or is_exported(path.parent)):
        return path.with_name(INT8) if int8 else path
    return path / (INT8 if int8 or _has_int8_alone(path) else FLOAT) if is_exported(path) else None


def _has_int8_alone(directory: Path) -> bool:
    """Whether a directory is meant to hold no float32 model, as a default hasher is; not whether one is lost."""
    with contextlib.suppress(DistilhashError):
        return set(ExportedConfig.load(directory).files) == {INT8}
    return False


class ExportedHasher:
    """An exported hasher that is ready to run; :meth:`open` makes one.

    Attributes:
        input: the preprocessing of images.
        num_bits: K.
        threads: batches that run at once.
        precision: "float32" or "int8".
        fingerprint: of the function from images to codes, for code tables; int8 has one of its own.
        model_fingerprint: of the weights that run: two exports of one hasher may have been calibrated differently.
    """

    def __init__(self, session: onnxruntime.InferenceSession, config: ExportedConfig, model: str, threads: int) -> None:
        self.input, self.num_bits, self.threads = config.input, config.bits, threads
        kind, self.precision = ("fp32", "float32") if model == FLOAT else ("int8", "int8")
        self.fingerprint = config.hasher if model == FLOAT else f"{config.hasher}-int8"
        self.model_fingerprint = f"{config.hasher}-{kind}-{config.files[model].sha256[:16]}"
        self.seen: NDArray[np.uint8] | None = None  # digests (M, 16) of what it was trained on, where they are known
        self._session = session

    @classmethod
    def open(cls, directory: str | Path, *, int8: bool = False, threads: int | None = None) -> ExportedHasher:
        """Load a hasher from a directory that ``distilhash export`` wrote.

        Args:
            directory: that one.
            int8: take the int8 model.
            threads: batches that run at once; None: one for each core.

        Raises:
            DistilhashError: the directory, its config or its model is missing, damaged or not allowed.
        """
        if threads is not None and threads < 1:
            raise DistilhashError("a hasher runs on at least one thread", threads)
        config, model = ExportedConfig.load(Path(directory)), INT8 if int8 else FLOAT
        hasher = cls(session_of(checked_model(Path(directory) / model, config)), config, model, threads or cores())
        if (Path(directory) / SEEN).is_file():
            hasher.seen = _seen(Path(directory) / SEEN)
        return hasher

    def outputs(self, images: ImageSource, indices: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        """Outputs (n, K) of ``images[indices]``, batch after batch, in that order.

        Each thread takes a batch of its own all the way from the files to the outputs.
        """
        pixels = Preprocess(self.input)
        size = max(1, min(BATCH_PIXELS // self.input.size**2, -(-len(indices) // self.threads)))

        def outputs_of(block: NDArray[np.int64]) -> NDArray[np.float32]:
            return self.run(pixels.planes(pixels.read(images, block)))

        blocks = [indices[start : start + size] for start in range(0, len(indices), size)]
        return prefetch(outputs_of, blocks, ahead=2 * self.threads, threads=self.threads)

    def run(self, images_N3SS: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs (N, K) of preprocessed images."""
        outputs_NK: NDArray[np.float32] = self._session.run(["outputs"], {"images": images_N3SS})[0]
        return outputs_NK


class ModelFile(BaseModel, frozen=True, strict=True):
    """What the config says of a model file."""

    sha256: str
    bytes: int


class ExportedConfig(BaseModel, frozen=True, strict=True, extra="forbid", allow_inf_nan=False):
    """What ``config.json`` of an exported directory says; these rules hold within ``input``, too."""

    format: Format
    input: InputConfig
    bits: Annotated[int, Field(ge=1, le=MAX_BITS)]
    hasher: str  # fingerprint of the checkpoint
    files: dict[str, ModelFile]
    source: dict[str, Any] = {}
    export: dict[str, Any] = {}
    images: str = ""  # fingerprint of those that calibrated it

    @classmethod
    def load(cls, directory: str | Path) -> ExportedConfig:
        """Read the config of a directory; DistilhashError where it is missing, or wrong in any detail."""
        path = readable_file(Path(directory, "config.json"), "no config of an exported hasher here", _AGAIN)
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise DistilhashError("the config of an exported hasher is too large", path, _AGAIN)
        try:
            config = cls.model_validate_json(path.read_bytes())
            if config.input.size > MAX_SIDE:
                raise DistilhashError(f"an input has at most {MAX_SIDE} pixels a side", config.input.size)
            Preprocess(config.input)
            return config
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            cause = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except DistilhashError as error:
            cause = str(error)
        raise DistilhashError("the config of an exported hasher is damaged", f"{path} ({cause})", _AGAIN)


def checked_model(path: str | Path, config: ExportedConfig) -> bytes:
    """The bytes of a model file that has passed the checks of this module.

    Raises:
        DistilhashError: the file is missing, too large, not the config's, not ONNX, or not allowed.
    """
    import onnx

    path = Path(path)
    if not path.is_file():
        raise DistilhashError("the exported hasher lacks a model", path, _AGAIN)
    if path.stat().st_size > MAX_BYTES:
        raise DistilhashError("a model file is too large", f"{path}: {path.stat().st_size:,} bytes", _AGAIN)
    content = path.read_bytes()
    if path.name not in config.files or hashlib.sha256(content).hexdigest() != config.files[path.name].sha256:
        raise DistilhashError("a model file is not the one that its config names", path, _AGAIN)
    try:
        parsed = onnx.load_model_from_string(content)  # a parse alone: tensors in other files are not opened
    except MemoryError:
        raise
    except Exception as error:  # protobuf has several for the ways in which bytes are no model
        raise DistilhashError("a model file is not ONNX", path, _AGAIN) from error
    fault = _fault(parsed, config)
    if fault:
        raise DistilhashError("a model file is refused", f"{path} ({fault})", _AGAIN)
    return content


def session_of(content: bytes) -> onnxruntime.InferenceSession:
    """Load the bytes of a model file into ONNX Runtime: on the CPU, one thread for a batch.

    Raises:
        DistilhashError: the runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no base
        raise DistilhashError("ONNX Runtime refuses the model", " ".join(str(error).split())) from error


def with_head(content: bytes, weight_KD: NDArray[np.floating], bias_K: NDArray[np.floating]) -> bytes:
    """The model whose "outputs" (N, K) are a linear map of what this one's were, (N, D), brought to length 1."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(content)
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["features" if name == "outputs" else name for name in node.input]
        node.output[:] = ["features" if name == "outputs" else name for name in node.output]
    head = {"head.weight": weight_KD, "head.bias": bias_K}
    graph.initializer.extend(numpy_helper.from_array(np.float32(array), name) for name, array in head.items())
    graph.node.append(onnx.helper.make_node("LpNormalization", ["features"], ["directions"], axis=1, p=2))
    graph.node.append(onnx.helper.make_node("Gemm", ["directions", *head], ["outputs"], transB=1))
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(bias_K)
    made: bytes = model.SerializeToString(deterministic=True)
    return made


def _fault(model: Any, config: ExportedConfig) -> str:
    """What is wrong with a parsed model; empty where nothing is."""
    graph = model.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    tensors = [*graph.initializer, *(attribute.t for attribute in attributes if attribute.HasField("t"))]
    tensors += [tensor for attribute in attributes for tensor in attribute.tensors]
    sparse = any(attribute.HasField("sparse_tensor") or attribute.sparse_tensors for attribute in attributes)
    faults = {
        "it has operators of its own": model.functions or any(n.domain not in ("", "ai.onnx") for n in graph.node),
        "it has subgraphs": any(attribute.HasField("g") or attribute.graphs for attribute in attributes),
        "it has sparse tensors": sparse or graph.sparse_initializer,
        "its tensors lie in other files": any(tensor.data_location or tensor.external_data for tensor in tensors),
    }
    misfits = (
        _misfit("input", graph.input, "images", [3, config.input.size, config.input.size]),
        _misfit("output", graph.output, "outputs", [config.bits]),
    )
    return ", ".join([fault for fault, there in faults.items() if there] + [misfit for misfit in misfits if misfit])


def _misfit(what: str, values: Any, name: str, shape: list[int]) -> str:
    """What is wrong with the inputs or outputs of a graph, which shall be one batch of this shape."""
    if [value.name for value in values] != [name]:
        return f"its {what} is not {name!r} alone"
    kind = values[0].type.tensor_type
    dims = kind.shape.dim
    if kind.elem_type != 1 or not dims or dims[0].HasField("dim_value"):  # 1: float32
        return f"its {what} is not a batch of float32"
    return "" if [dim.dim_value for dim in dims[1:]] == shape else f"its {what} has another shape than the config says"


def _seen(file: Path) -> NDArray[np.uint8]:
    """The digests in a file that anyone may have edited."""
    try:
        seen = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DistilhashError("an exported hasher is damaged", f"{file}: {error}", _AGAIN) from error
    if seen.dtype != np.uint8 or seen.ndim != 2 or seen.shape[1] != DIGEST_BYTES:
        got = f"{file}: {seen.dtype} {seen.shape}"
        raise DistilhashError("an exported hasher is damaged", got, _AGAIN)
    return np.asarray(seen)
