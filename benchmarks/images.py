"""`python -m benchmarks.images`: images a second that CLIP's loader gives to one core.

JPEGs of 500 x 375 pixels and about 76 KB, from a warm cache, to 224 x 224. In each round, on one core: bare decode and
resize of the shorter side by Pillow, then the loader with one thread, from file names to batches of normalised float32.
Limits: 250 images a second, and 80 % of bare decode and resize in the same round. With all cores too, for the record.
Results go to ``benchmarks/results/images/images.json``.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import report

OUT = Path(__file__).with_name("results") / "images" / "images.json"
WIDTH, HEIGHT, SIZE, BATCH = 500, 375, 224, 128
COUNT, REPEATS = 512, 5
LEAST_PER_SECOND, LEAST_SHARE = 250.0, 0.8


def make(folder: Path, count: int) -> list[Path]:
    """Smooth shapes under noise, of the size of a photograph's file."""
    import numpy as np
    from PIL import Image

    drawn = np.random.default_rng(0)
    files = []
    for number in range(count):
        rough = Image.fromarray(drawn.integers(0, 256, (12, 16, 3)).astype(np.uint8))
        smooth = np.asarray(rough.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + drawn.normal(0.0, 9.0, (HEIGHT, WIDTH, 1)).astype(np.float32)
        files.append(folder / f"{number}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def bare(files: Sequence[Path]) -> None:
    """Decode, resize the shorter side, nothing else."""
    from PIL import Image

    for path in files:
        with Image.open(path) as image:
            image.convert("RGB").resize((SIZE * WIDTH // HEIGHT, SIZE), Image.Resampling.BICUBIC)


def loaded(files: Sequence[Path], workers: int) -> None:
    """What the bench does up to the model."""
    import torch

    from stockpot.lab._pixels import Preparation, batches

    preparation = Preparation(SIZE)
    for pixels in batches(files, SIZE, BATCH, workers=workers):
        preparation.normalised(pixels, "cpu", torch.float32)


def per_second(work: Callable[[], None], count: int) -> float:
    """Of so many images."""
    begun = time.perf_counter()
    work()
    return count / (time.perf_counter() - begun)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT, help="images")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    import torch

    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        files = make(Path(folder), given.count)
        size = statistics.mean(path.stat().st_size for path in files)
        os.sched_setaffinity(0, cores[:1])
        torch.set_num_threads(1)
        bare(files)
        loaded(files, 1)
        rounds = []
        for _ in range(REPEATS):
            load = os.getloadavg()[0]
            floor = per_second(lambda: bare(files), len(files))
            ours = per_second(lambda: loaded(files, 1), len(files))
            rounds.append({"bare_per_second": floor, "loader_per_second": ours, "share": ours / floor, "load": load})
        os.sched_setaffinity(0, cores)
        together = [per_second(lambda: loaded(files, len(cores)), len(files)) for _ in range(REPEATS)]
    found: dict[str, Any] = {
        "machine": report.machine(),
        "images": {"count": given.count, "pixels": [WIDTH, HEIGHT], "mean_bytes": round(size), "to": SIZE},
        "rounds": rounds,
        "loader_per_second_of_one_core": statistics.median(own["loader_per_second"] for own in rounds),
        "share_of_bare": statistics.median(own["share"] for own in rounds),
        "all_cores": {"cores": len(cores), "loader_per_second": statistics.median(together)},
    }
    found["limits"] = {
        "loader_per_second_of_one_core": {
            "limit": LEAST_PER_SECOND, "kept": found["loader_per_second_of_one_core"] >= LEAST_PER_SECOND
        },
        "share_of_bare": {"limit": LEAST_SHARE, "kept": found["share_of_bare"] >= LEAST_SHARE},
    }  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    console = Console(highlight=False)
    console.print(
        f"one core: {found['loader_per_second_of_one_core']:.0f} images/s (limit {LEAST_PER_SECOND:.0f}), "
        f"{100 * found['share_of_bare']:.0f} % of bare decode and resize (limit {100 * LEAST_SHARE:.0f} %); "
        f"{len(cores)} cores: {found['all_cores']['loader_per_second']:.0f} images/s"
    )


if __name__ == "__main__":
    main()
