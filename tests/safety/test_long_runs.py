"""What only shows after long: hundreds of merges in one process hold no more than a few did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ._long_run import Ways, ways
from .conftest import Campaign

ROOT = Path(__file__).parents[2]
KB_EACH = (600, 48)
"""Growth allowed for each merge, by ``make test`` and by ``make soak``. A model has 2,100 KB, so that the first finds
what keeps a model of every third merge, the second what one way of fifteen keeps. Nothing of ours grows; what is seen
is the system's allocator settling (about 20 KB a merge in the first hundreds, less and less)."""


def test_nothing_leaks(tmp_path: Path, campaign: Campaign) -> None:
    """Merges of every kind, refused and interrupted ones too: memory is flat; files, threads, mappings stay as many."""
    rounds = campaign.times(3, 36)
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
    growth = float(np.polyfit(np.arange(len(settled)) * each, [one["rss_bytes"] for one in settled], 1)[0])
    first, last = settled[0], settled[-1]
    campaign.record(
        "leaks",
        merges=rounds * each,
        ways=each,
        rss_bytes=[one["rss_bytes"] for one in samples],
        rss_growth_bytes_per_merge=round(growth),
        rss_growth_bound_bytes_per_merge=KB_EACH[1] * 1024,
        **{name: [first[name], last[name]] for name in ("files", "threads", "mappings", "temporary_files")},
    )
    assert growth < KB_EACH[campaign.is_soak] * 1024
    for name in ("files", "threads", "temporary_files"):
        assert last[name] <= first[name], (name, samples)
    assert last["mappings"] <= first["mappings"] + 4, samples  # of the allocator
