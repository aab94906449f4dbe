"""The papers, reproduced: the demo that runs anywhere, and the CLIP tables for those who have the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._later import later

if TYPE_CHECKING:
    from stockpot.lab._clip_bench import ClipData, ClipWords, clip_bench
    from stockpot.lab._clip_rows import ClipRow, ClipTable
    from stockpot.lab._clip_table import clip_summary, clip_table
    from stockpot.lab._demo import DemoReport, run_demo
    from stockpot.lab._judges import held_out_digits, unseen_digits
    from stockpot.lab._network import Training
    from stockpot.lab._settings import DemoSettings

__all__ = [
    "ClipData",
    "ClipRow",
    "ClipTable",
    "ClipWords",
    "DemoReport",
    "DemoSettings",
    "Training",
    "clip_bench",
    "clip_summary",
    "clip_table",
    "held_out_digits",
    "run_demo",
    "unseen_digits",
]

_LATER = {
    **dict.fromkeys(("ClipData", "ClipWords", "clip_bench"), "_clip_bench"),
    **dict.fromkeys(("ClipRow", "ClipTable"), "_clip_rows"),
    **dict.fromkeys(("clip_summary", "clip_table"), "_clip_table"),
    **dict.fromkeys(("DemoReport", "run_demo"), "_demo"),
    **dict.fromkeys(("held_out_digits", "unseen_digits"), "_judges"),
    "Training": "_network",
    "DemoSettings": "_settings",
}

__getattr__ = later(__name__, _LATER)
