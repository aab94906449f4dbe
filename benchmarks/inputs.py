"""`python -m benchmarks.inputs`: what it costs to merge straight from other forms of checkpoint.

A base and two fine-tunes of 400 M parameters in bfloat16, Model Stock, whole processes, a warm cache. In each round the
same merge from safetensors folders, from folders of ``torch.distributed.checkpoint`` (chunks of an eighth of a
tensor's rows), and from one base with two LoRA adapters of rank 16 on every matrix (``BASE+ADAPTER``); ratios are to
the first of the same round. Results go to ``benchmarks/results/inputs/inputs.json``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.measure import run, warm

OUT = Path(__file__).with_name("results") / "inputs" / "inputs.json"
MATRICES, ROWS, COLUMNS, RANK, CHUNKS, REPEATS = 48, 2048, 4096, 16, 8, 5


def make(folder: Path) -> None:
    """Every form of every model; needs torch, and runs in a process of its own."""
    import pickle

    import torch
    from safetensors.torch import save_file
    from torch.distributed.checkpoint import metadata as meta
    from torch.distributed.checkpoint.state_dict_saver import save

    names = [f"layers.{number}.proj.weight" for number in range(MATRICES)]
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(ROWS, COLUMNS, generator=generator).mul_(0.02).bfloat16() for name in names}
    for seed in range(3):
        own = torch.Generator().manual_seed(seed)
        state = {
            name: tensor if not seed else (tensor + 0.001 * torch.randn(ROWS, COLUMNS, generator=own)).bfloat16()
            for name, tensor in base.items()
        }
        plain = folder / f"plain{seed}"
        plain.mkdir()
        save_file(state, plain / "model.safetensors", {"format": "pt"})
        # Saved in pieces under names of their own, then said to be the chunks of one tensor, as several ranks write it.
        step = ROWS // CHUNKS
        pieces = {f"{n}#{k}": t[k * step : (k + 1) * step].clone() for n, t in state.items() for k in range(CHUNKS)}
        place = folder / f"dcp{seed}"
        save(pieces, checkpoint_id=str(place), no_dist=True)
        stated = pickle.loads((place / ".metadata").read_bytes())
        tensors: dict[str, Any] = {}
        stored = {}
        for index, info in stated.storage_data.items():
            name, _, number = index.fqn.partition("#")
            offsets = torch.Size((int(number) * step, 0))
            tensor = tensors.setdefault(
                name,
                meta.TensorStorageMetadata(
                    stated.state_dict_metadata[index.fqn].properties, torch.Size((ROWS, COLUMNS)), []
                ),
            )
            tensor.chunks.append(meta.ChunkStorageMetadata(offsets, torch.Size((step, COLUMNS))))
            stored[meta.MetadataIndex(name, offsets)] = info
        (place / ".metadata").write_bytes(pickle.dumps(meta.Metadata(tensors, None, stored)))
        if seed:
            adapter = folder / f"adapter{seed}"
            adapter.mkdir()
            factors = {}
            for name in names:
                module = f"base_model.model.{name.removesuffix('.weight')}"
                factors[f"{module}.lora_A.weight"] = torch.randn(RANK, COLUMNS, generator=own) * 0.01
                factors[f"{module}.lora_B.weight"] = torch.randn(ROWS, RANK, generator=own) * 0.01
            save_file(factors, adapter / "adapter_model.safetensors")
            config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["proj"]}
            (adapter / "adapter_config.json").write_text(json.dumps(config))


def forms(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Base and models of each form."""
    plain = [str(folder / f"plain{seed}") for seed in range(3)]
    shards = [str(folder / f"dcp{seed}") for seed in range(3)]
    adapted = [f"{plain[0]}+{folder / f'adapter{seed}'}" for seed in (1, 2)]
    return {
        "safetensors": (plain[0], plain[1:]),
        "torch.distributed.checkpoint": (shards[0], shards[1:]),
        "BASE+ADAPTER": (plain[0], adapted),
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", type=Path, help="only write the models into this folder")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    if given.make is not None:
        make(given.make)
        return
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "benchmarks.inputs", "--make", name], check=True)
        out = folder / "out"
        for number in range(given.repeats + 1):
            found = {}
            for form, (base, models) in forms(folder).items():
                warm(path for path in folder.rglob("*") if path.is_file() and out not in path.parents)
                command = [str(Path(sys.executable).with_name("stockpot")), "merge", "--method", "model_stock"]
                measured = run([*command, "--base", base, *models, "--out", str(out), "-q"], outputs=[out])
                if measured.exit_code:
                    raise SystemExit(measured.stderr)
                found[form] = {"seconds": measured.wall_seconds, "peak_rss_bytes": measured.peak_rss_bytes}
            if number:  # the first round warms up
                rounds.append({"load": os.getloadavg()[0], **found})
    results = {
        form: {
            "seconds_median": statistics.median(own[form]["seconds"] for own in rounds),
            "ratio_median": statistics.median(own[form]["seconds"] / own["safetensors"]["seconds"] for own in rounds),
            "peak_rss_bytes": max(own[form]["peak_rss_bytes"] for own in rounds),
        }
        for form in forms(Path())
    }
    size = MATRICES * ROWS * COLUMNS
    shape = {"elements": size, "rank": RANK, "chunks": CHUNKS}
    content = {"machine": report.machine(), **shape, "rounds": rounds, "forms": results}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    table = Table("inputs", "seconds", "ratio", "peak MB")
    for form, one in results.items():
        seconds, ratio, peak = one["seconds_median"], one["ratio_median"], one["peak_rss_bytes"] / 1e6
        table.add_row(form, f"{seconds:.2f}", f"{ratio:.2f}", f"{peak:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
