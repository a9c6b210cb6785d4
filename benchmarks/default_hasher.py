"""The default hasher against the network it was made from: neighbours kept by int8, by codes and by re-ranking; speed.

    python benchmarks/default_hasher.py --photos FOLDER --photos OTHER

An overlap is the share of a photo's ten nearest, by the cosine of the float32 features of PyTorch, that are among the
ten nearest found. None of the photos was used to make the int8 model (``scripts/default_backbone.py``).

    nearest rounding    the int8 model of ONNX Runtime's static quantisation on the same calibration images
    stored              int8 features of the shipped model, as 4 bits each
    codes               ITQ on those features, fitted to the photos themselves, or to as many others ("of others")
    reranked            the nearest codes, in the order of the stored features; all of them: what a scan of those finds

Speed is that of the network alone, batches of 16, in turn; OpenVINO is timed where it is installed.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from distilhash.codes import hamming, pack
from distilhash.data.folders import walk
from distilhash.data.transforms import Preprocess
from distilhash.deploy.quantize import to_int8, to_onnx
from distilhash.deploy.runtime import INT8, session_of
from distilhash.itq import itq
from distilhash.models import create_teacher
from distilhash.models.fold import folded
from distilhash.photos.encoder import BACKBONE, PhotoFiles
from rerank import compress, decompress
from sidebyside import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from default_backbone import Features, calibration_crops

NEAREST, BATCH, ROUNDS = 10, 16, 9
BITS = (64, 128, 256)
CANDIDATES = (100, 200)
SEED = 0


def nearest(similar_QN, top=NEAREST):
    """The most similar others of each photo, the first photos of the columns."""
    similar_QN = similar_QN.copy()
    np.fill_diagonal(similar_QN, -np.inf)
    return np.argsort(-similar_QN, axis=1, kind="stable")[:, :top]


def overlap(found_NT, wanted_NT):
    pairs = zip(found_NT.tolist(), wanted_NT.tolist(), strict=True)
    return round(float(np.mean([len({*found} & {*wanted}) / NEAREST for found, wanted in pairs])), 4)


def unit(features_ND):
    return features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)


def cosines(features_ND):
    return unit(features_ND) @ unit(features_ND).T


def in_batches(run, planes):
    return np.concatenate([run(planes[start : start + BATCH]) for start in range(0, len(planes), BATCH)])


def run_of(content):
    session = session_of(content)
    return lambda images: session.run(None, {"images": images})[0]


class Networks:
    """The original and what was made of it, as functions of preprocessed images."""

    def __init__(self, folder):
        self.teacher = create_teacher("pip/efficientnet_lite0")
        self.fast = folded(self.teacher)
        self.pixels = Preprocess(self.teacher.input)
        images = self.pixels.planes(calibration_crops(self.teacher.input.size))
        self.plain, self.int8 = to_onnx(Features(self.teacher)), (BACKBONE / INT8).read_bytes()
        self.runs = {
            "float32, PyTorch": self.torch,
            "float32, ONNX Runtime": run_of(self.plain),
            "int8, nearest rounding": run_of(to_int8(self.plain, images, folder)),
            "int8, shipped": run_of(self.int8),
        }

    def torch(self, images):
        with torch.inference_mode():
            return self.fast(torch.from_numpy(images).contiguous(memory_format=torch.channels_last)).numpy()

    def planes(self, folders, count):
        paths = sorted(file.path for file in walk([str(Path(folder).absolute()) for folder in folders], None).files)
        chosen = np.sort(np.random.default_rng(SEED).permutation(len(paths))[:count])
        files = PhotoFiles([paths[i] for i in chosen])
        return self.pixels.planes(self.pixels.read(files, np.arange(len(files))))


def overlaps(networks, options):
    """Rows of each folder, and of all of them as one."""
    sets = {}
    for folder in options.photos:
        images = networks.planes([folder], options.count)
        sets[folder.name] = {kind: in_batches(run, images) for kind, run in networks.runs.items()}
    if len(sets) > 1:
        sets["all"] = {kind: np.concatenate([found[kind] for found in sets.values()]) for kind in networks.runs}
    rows = []
    for name, features in sets.items():
        other = next((other for key, other in sets.items() if name != key), features)
        rows += neighbours(name, features, other["int8, shipped"])
    return rows


def neighbours(name, features, other_ND):
    """Rows of what each model, code length and number of candidates keeps of the original's neighbours."""
    wanted = nearest(cosines(features["float32, PyTorch"]))
    base = {"photos": name, "count": len(wanted)}
    rows = [
        {**base, "work": "network", "method": kind, "overlap": overlap(nearest(cosines(found)), wanted)}
        for kind, found in features.items()
    ]
    int8, stored = features["int8, shipped"], compress(features["int8, shipped"])
    similar_NN = unit(int8) @ decompress(stored).T
    rows.append({
        **base, "work": "stored", "method": f"{stored.shape[1]} bytes", "overlap": overlap(nearest(similar_NN), wanted),
    })  # fmt: skip
    for bits in BITS:
        for fitted, sample in (("these", int8), ("others", other_ND)):
            found = itq(unit(sample), bits)
            codes = pack(unit(int8) @ found.weight.T + found.bias)
            away = hamming(codes, codes).astype(np.float64)
            row = {**base, "work": "codes", "bits": bits, "fitted_to": fitted, "fitted": len(sample),
                   "overlap": overlap(nearest(-away), wanted)}  # fmt: skip
            for count in CANDIDATES:
                first = nearest(-away, min(count, len(away) - 1))
                best = np.argsort(-np.take_along_axis(similar_NN, first, axis=1), axis=1, kind="stable")[:, :NEAREST]
                row[f"reranked_{count}"] = overlap(np.take_along_axis(first, best, axis=1), wanted)
            rows.append(row)
    return rows


def speeds(networks, planes):
    """Rows of images a second, and of the ratio to PyTorch, of each engine on one and two threads."""
    import onnxruntime

    images = np.ascontiguousarray(planes[:BATCH])
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs = {"float32, PyTorch": networks.torch}
        for precision, content in (("float32", networks.plain), ("int8", networks.int8)):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = threads, 3
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            runs[f"{precision}, ONNX Runtime"] = lambda x, session=session: session.run(None, {"images": x})[0]
            if importlib.util.find_spec("openvino"):
                import openvino

                core = openvino.Core()
                settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
                network = core.read_model(content)
                network.reshape({0: list(images.shape)})  # with a batch of any size its int8 results are wrong
                model = core.compile_model(network, "CPU", settings)
                runs[f"{precision}, OpenVINO"] = lambda x, model=model: model({0: x})[0]
        seconds = {kind: [] for kind in runs}
        for turn in range(ROUNDS + 1):
            for kind, run in runs.items():
                began = time.perf_counter()
                run(images)
                if turn:
                    seconds[kind].append(time.perf_counter() - began)
        plain = np.array(seconds["float32, PyTorch"])
        rows += [
            {"work": "speed", "threads": threads, "method": kind, "rate": round(BATCH / statistics.median(taken), 1),
             "ratio": round(float(np.median(plain / np.array(taken))), 2), "unit": "images/s"}
            for kind, taken in seconds.items()
        ]  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, action="append", required=True, help="a folder; several may be named")
    parser.add_argument("--count", type=int, default=1_000, help="photos of each folder")
    parser.add_argument(
        "--only", choices=("overlap", "speed"), help="measure this, and keep the other rows of the output"
    )
    parser.add_argument("--output", type=Path, default=Path("results/default_hasher.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        networks = Networks(folder)
    rows = []
    if options.only != "speed":
        rows += overlaps(networks, options)
    if options.only != "overlap":
        rows += speeds(networks, networks.planes(options.photos[:1], BATCH))
    about = {"model_bytes": (BACKBONE / INT8).stat().st_size, "seed": SEED, "machine": machine()}
    for row in rows:
        print(row, flush=True)
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.only and options.output.exists() else []
    kept = [row for row in kept if (row["work"] == "speed") != (options.only == "speed")]
    rows = [*kept, *(row | about for row in rows)]
    options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
