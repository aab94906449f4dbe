"""What only shows after long: hundreds of merges in one process hold no more than a few did."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ._long_run import Ways, ways
from .conftest import Campaign

ROOT = Path(__file__).parents[2]
BOUNDS = {"rss_bytes": (math.inf, 50_000), "malloc_bytes": (20_000, 1_000), "python_blocks": (100, 10)}
"""Growth allowed for each merge, by ``make test`` and by ``make soak``. A model has 2,100,000 bytes, so that what one
way of fifteen keeps of it would show. The C library's count of what was not freed is sharp; resident memory also holds
what was freed and lies between, and goes on settling for hundreds of merges: over a few it tells nothing."""


def test_nothing_leaks(tmp_path: Path, campaign: Campaign) -> None:
    """Merges of every kind, refused and interrupted ones too: memory is flat; files, threads, mappings stay as many."""
    rounds = campaign.times(3, 24)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": paths, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-m", "tests.safety._long_run", str(tmp_path / "work"), str(rounds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    samples = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(samples) == rounds
    each = len(ways(Ways(tmp_path / "names")))
    settled = samples[rounds // 3 :]
    steps = np.arange(len(settled)) * each
    growth = {name: round(float(np.polyfit(steps, [one[name] for one in settled], 1)[0])) for name in BOUNDS}
    first, last = settled[0], settled[-1]
    campaign.record(
        "leaks",
        merges=rounds * each,
        ways=each,
        rss_bytes=[one["rss_bytes"] for one in samples],
        malloc_bytes=[one["malloc_bytes"] for one in samples],
        growth_per_merge=growth,
        bound_per_merge={name: bounds[1] for name, bounds in BOUNDS.items()},
        **{name: [first[name], last[name]] for name in ("files", "threads", "mappings", "temporary_files")},
    )
    for name, bounds in BOUNDS.items():
        assert growth[name] < bounds[campaign.is_soak], (name, growth, samples)
    for name in ("files", "threads", "temporary_files"):
        assert last[name] <= first[name], (name, samples)
    assert last["mappings"] <= first["mappings"] + 4, samples  # of the allocator
