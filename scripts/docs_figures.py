"""Draw the figures of the documentation from the demo's models: ``make figures``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"


def main() -> None:
    """Run the demo and the commands that the pages show; keep the PNGs."""
    with tempfile.TemporaryDirectory() as folder:
        demo = Path("stockpot-demo")

        def run(*words: object) -> None:
            print("stockpot", *words)
            subprocess.run([sys.executable, "-m", "stockpot", *map(str, words)], check=True, cwd=folder)

        run("demo", "--out", demo, "--quiet")
        tuned = [demo / f"finetune-{number}" for number in range(1, 9)]
        held_out = ["--evaluate", "stockpot.lab:held_out_digits", "--select", "loss:min", "--cache", "results.sqlite"]
        run("geometry", "--base", demo / "base", *tuned, "--figures", "geometry")
        run("landscape", "--base", demo / "base", *tuned[:3], *held_out, "--grid", 21, "--figures", "landscape")
        run("barrier", "--base", demo / "base", *tuned[:4], *held_out, "--figures", "barrier")
        run("soup", "greedy", *tuned[:4], "--base", demo / "base", *held_out, "--out", "out", "--figures", "soup")
        FIGURES.mkdir(exist_ok=True)
        for kind in ("geometry", "landscape", "barrier", "soup"):
            for picture in sorted((Path(folder) / kind).glob("*.png")):
                (FIGURES / f"{kind}-{picture.name}").write_bytes(picture.read_bytes())


if __name__ == "__main__":
    main()
