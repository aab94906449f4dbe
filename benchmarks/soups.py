"""`python -m benchmarks.soups`: what a candidate costs to build, and what a learned soup needs of memory.

Sixteen copies with noise of a vision transformer of 100 M parameters in float32, by transformers. A candidate: building
it in the live model, planning included, against plainly reading its ingredients from a warm cache, in one process. A
learned soup: the peak of the whole program on one image a batch, against three models and 500 MB. Results go to
``benchmarks/results/soups/soups.json``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import floor, measure, models, report

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).with_name("results") / "soups" / "soups.json"
COUNT = 16
MEMBERS = (1, 2, 3, 4, 6, 8, 12, 16)
CANDIDATE_RATIO = 1.5
PEAK_MODELS, PEAK_EXTRA_BYTES = 3, 500_000_000

MAKE = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
from pathlib import Path
import numpy as np, torch, transformers
from PIL import Image
root, count = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
names = {number: f"c{number}" for number in range(4)}
config = transformers.ViTConfig(num_hidden_layers=14, id2label=names, label2id={v: k for k, v in names.items()})
model = transformers.ViTForImageClassification(config)
base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
for number in range(count):
    drawn = torch.Generator().manual_seed(number)
    noisy = {name: tensor + 0.002 * torch.randn(tensor.shape, generator=drawn) for name, tensor in base.items()}
    model.load_state_dict(noisy)
    model.save_pretrained(root / f"ft{number}")
    transformers.ViTImageProcessorPil().save_pretrained(root / f"ft{number}")
drawn = np.random.default_rng(0)
for number in range(4):
    (root / "images" / f"c{number}").mkdir(parents=True)
    picture = drawn.integers(0, 255, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(picture).save(root / "images" / f"c{number}" / "0.png")
"""


def ensure(data: Path) -> Path:
    """The models, made once."""
    root = data / f"vit-100m-n{COUNT}"
    if not (root / "images").is_dir():
        subprocess.run([sys.executable, "-c", MAKE, str(root), str(COUNT)], check=True, stderr=subprocess.DEVNULL)
    return root


def candidates(root: Path, repeats: int) -> list[dict[str, Any]]:
    """Seconds to build means of several sizes, beside seconds to read the same files."""
    from stockpot.soups import Ingredients, Running

    paths = [root / f"ft{number}" for number in range(COUNT)]
    ingredients = Ingredients.open(paths)
    live = Running().live(ingredients)
    buffer = bytearray(floor.CHUNK_BYTES)
    found = []
    for size, cold in [*((size, False) for size in MEMBERS), (2, True), (8, True)]:
        files = [file for path in paths[:size] for file in models.weight_files(path)]
        measure.warm(files)
        rounds = []
        for number in range(repeats + 1):
            if cold:
                measure.drop(files)
            marks = [time.perf_counter()]
            floor.read_files(files, buffer)
            marks.append(time.perf_counter())
            if cold:
                measure.drop(files)
                marks = [marks[0] + time.perf_counter() - marks[1], time.perf_counter()]
            live.become(live.plan(ingredients.average(range(size))))
            marks.append(time.perf_counter())
            if number:  # the first allocates the live model
                rounds.append((marks[1] - marks[0], marks[2] - marks[1]))
        reads, builds = zip(*rounds, strict=True)
        found.append(
            {
                "members": size,
                "cache": "cold" if cold else "warm",
                "bytes": sum(file.stat().st_size for file in files),
                "read_seconds": list(reads),
                "build_seconds": list(builds),
                "ratio_median": statistics.median(build / read for read, build in rounds),
                "limit": CANDIDATE_RATIO,
            }
        )
    return found


def learned(root: Path) -> dict[str, Any]:
    """Peak of ``stockpot soup learned`` by layer on all models."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        command = [
            sys.executable, "-m", "stockpot", "soup", "learned", *(str(root / f"ft{n}") for n in range(COUNT)),
            "--evaluate", f"images:{root / 'images'}", "--select", "loss:min", "--by-layer", "--accumulate", "2",
            "--epochs", "1", "--batch", "1", "--cache", "none", "--out", str(Path(folder) / "out"), "--quiet", "--json",
        ]  # fmt: skip
        found = measure.run(command, outputs=[])
    if found.exit_code != 0:
        raise SystemExit(found.stderr)
    size = sum(file.stat().st_size for file in models.weight_files(root / "ft0"))
    return {
        "models": COUNT,
        "model_bytes": size,
        "wall_seconds": found.wall_seconds,
        "peak_rss_bytes": found.peak_rss_bytes,
        "limit": PEAK_MODELS * size + PEAK_EXTRA_BYTES,
    }


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soups", description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / ".bench", help="where the models are")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", choices=["candidates"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    root = ensure(given.data.resolve())
    if given.part:
        print(json.dumps(candidates(root, given.repeats)))
        return 0
    # In a process of its own: the peak of a child starts at the size of who launched it.
    command = [sys.executable, "-m", "benchmarks.soups", "--part", "candidates", "--data", str(given.data)]
    done = subprocess.run([*command, "--repeats", str(given.repeats)], check=True, capture_output=True, text=True)
    result = {"machine": report.machine(), "candidates": json.loads(done.stdout), "learned": learned(root)}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    for one in result["candidates"]:
        kept = "kept" if one["ratio_median"] <= one["limit"] else "NOT KEPT"
        what = f"{one['cache']} candidate of {one['members']}"
        console.print(f"{what}: {one['ratio_median']:.2f} x reading ({one['limit']}: {kept})")
    peak = result["learned"]
    kept = "kept" if peak["peak_rss_bytes"] <= peak["limit"] else "NOT KEPT"
    console.print(
        f"learned soup of {COUNT}: peak {peak['peak_rss_bytes'] / 1e6:.0f} MB ({peak['limit'] / 1e6:.0f}: {kept})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
