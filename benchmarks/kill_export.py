"""Proof that a killed export leaves nothing half-written: SIGKILL at random moments, then one in peace.

    python benchmarks/kill_export.py --kills 10 --seed 0

`distilhash export` of a small untrained hasher is killed after times drawn between none and a little more than a whole
run takes: first where nothing stands at the output, then where an exported hasher does, which --overwrite replaces.
After each kill the output must be absent (only where nothing stood there) or whole: every file there, the models those
that the config names, and loadable. Between two renames that may be the old one, under the name from which the next run
puts it back. The last run is not killed, and must end in the same models and config as the first, with nothing left
beside them. The report is left out of that: it holds times.

One line on stdout, progress on stderr; exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distilhash.checkpoint import save_model
from distilhash.deploy.runtime import ExportedHasher
from distilhash.errors import DistilhashError
from distilhash.models import create_hasher, create_student

FILES = {"README.md", "config.json", "model.int8.onnx", "model.onnx", "report.json"}
SAME = ("config.json", "model.int8.onnx", "model.onnx")
SMALL = ["--calibration-images", "16", "--compared-images", "16", "--seconds", "0.01"]
LONGER = 1.1  # kills fall within so many times the time of a whole run; those that come too late do not count


def main() -> int:
    """Run the proof and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="how often a process is killed, count")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    draw, began = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill_export_") as place:
        root = Path(place)
        make(root)
        start(root, "whole").wait()
        seconds = time.monotonic() - began
        wrong = faults(root / "whole", may_be_absent=False)
        places: Counter[str] = Counter()
        while places.total() < options.kills and not wrong:
            fresh = places.total() < options.kills // 2
            process = start(root, "fresh" if fresh else "whole")
            time.sleep(draw.uniform(0, LONGER * seconds))
            process.send_signal(signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                found = place_of(root, "fresh" if fresh else "whole")
                places[found] += 1
                print(f"killed {found}", file=sys.stderr, flush=True)
                wrong += faults(root / "fresh", may_be_absent=True) + faults(root / "whole", may_be_absent=False)
        for name in ("fresh", "whole"):
            if start(root, name).wait() != 0:
                wrong.append(f"the last run of {name} failed")
            wrong += faults(root / name, may_be_absent=False)
        if not wrong:
            wrong += [n for n in SAME if (root / "fresh" / n).read_bytes() != (root / "whole" / n).read_bytes()]
        wrong += [f"left behind: {path.name}" for path in root.glob(".*")]
    where = ", ".join(f"{count} {name}" for name, count in places.most_common())
    verdict = "DIFFERENT: " + ", ".join(wrong) if wrong else "absent or whole, and equal in the end"
    print(f"{verdict}: {places.total()} kills ({where}), {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def make(root: Path) -> None:
    """A hasher and 60 images in class folders."""
    rng = np.random.default_rng(0)
    for number in range(60):
        path = root / "images" / f"class{number % 3}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    torch.manual_seed(0)
    student = create_student("v1", size=32, stem="small")
    about = {"kind": "hasher", "architecture": student.architecture, "bits": 32}
    save_model(root / "hasher" / "model", create_hasher(student, 32), about)


def start(root: Path, name: str) -> subprocess.Popen[bytes]:
    """The command, with --overwrite where it has something to replace."""
    output = root / name
    command = [sys.executable, "-m", "distilhash", "export", str(root / "hasher"), str(root / "images"), *SMALL]
    command += ["--output", str(output), *(["--overwrite"] if output.exists() else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def place_of(root: Path, name: str) -> str:
    """What the process was about, as what it left shows."""
    left = [path for path in root.glob(f".{name}.*.tmp") if path.is_dir()]
    if not left:
        return "before the first file" if name == "whole" or not (root / name).exists() else "after the rename"
    files = {path.name for folder in left for path in folder.iterdir()}
    if "model.onnx" not in files:
        return "while writing models"
    return "while deleting or comparing" if FILES - files else "before or after the rename"


def faults(path: Path, *, may_be_absent: bool) -> list[str]:
    """What is wrong with an exported directory."""
    path = next(iter(path.parent.glob(f".{path.name}.*.old")), path) if not path.exists() else path
    if not path.exists():
        return [] if may_be_absent else [f"{path.name} is gone"]
    names = {file.name for file in path.iterdir()}
    if names != FILES:
        return [f"{path.name} holds {', '.join(sorted(names))}"]
    try:
        for int8 in (False, True):
            ExportedHasher.open(path, int8=int8, threads=1)
    except DistilhashError as error:
        return [str(error)]
    return []


if __name__ == "__main__":
    sys.exit(main())
