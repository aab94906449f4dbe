"""``stockpot cache``."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot.cli import _options as opt
from stockpot.cli import _output, _signals, _studies


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Forget all results.")] = False,
    cache: opt.Cache = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Show, or forget, the results that evaluations have left.

    `stockpot cache`
    """
    with _signals.loading():
        from stockpot import report

    kept = _studies.open_cache(cache)
    forgotten = kept.clear() if clear else 0
    entries = kept.entries()
    if json:
        rows = [
            {
                "label": one.label, "evaluator": one.evaluator, "scores": report.plain_scores(one.values),
                "seconds": one.seconds, "made": one.made, "logits": one.has_logits,
            }
            for one in entries
        ]  # fmt: skip
        _output.print_object("cache", "done", [], {"file": str(kept.path), "results": rows, "forgotten": forgotten})
        return
    if entries:
        _output.print_table(report.cache_table(entries))
    what = f"{forgotten} results forgotten" if clear else f"{len(entries)} results"
    _output.say(f"stockpot: {what}; {kept.path}", quiet)
