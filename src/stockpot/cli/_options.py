"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks with errors.")]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Warn of what nobody knows in a recipe, instead of refusing it.")
]
Memory = Annotated[str, typer.Option("--memory", metavar="SIZE", help="Bound on the buffers.")]
Workers = Annotated[int | None, typer.Option("--workers", metavar="N", help="Threads.")]
JsonOut = Annotated[Path | None, typer.Option("--json-out", metavar="FILE", help="All numbers as JSON.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="A report with pictures.")]
Figures = Annotated[
    Path | None, typer.Option("--figures", metavar="DIR", help="The pictures as PNG, SVG, PDF, with their data.")
]

# which tensors correspond
Only = Annotated[list[str] | None, typer.Option("--only", metavar="REGEX", help="These tensors alone.")]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", metavar="REGEX", help="Not these.")]
Rename = Annotated[
    list[str] | None, typer.Option("--rename", metavar="[base:|N:]REGEX=REPL", help="Change names of inputs.")
]
MissingTensors = Annotated[
    str | None, typer.Option("--missing", metavar="error|base|average|first", help="A tensor that some lack.")
]
MismatchedTensors = Annotated[
    str | None, typer.Option("--mismatch", metavar="error|base|first", help="Shapes that differ.")
]

# evaluation
Evaluate = Annotated[
    str, typer.Option("--evaluate", metavar="EVAL", help="What scores a model: module:function or file.py:function.")
]
EvaluateOptional = Annotated[
    str | None, typer.Option("--evaluate", metavar="EVAL", help="What scores a model, on held-out data.")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", metavar="bfloat16|float16|float32|float64", help="Dtype of the output.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of stockpot.")]
Select = Annotated[
    str | None, typer.Option("--select", metavar="NAME[:max|:min]", help="The number that decides (default: max).")
]
Cache = Annotated[
    str | None,
    typer.Option("--cache", metavar="FILE|none", help="Where results are kept (default: the user's cache folder)."),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Tell the evaluator: this many at most.")]
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", help="Tell the evaluator: so many at once.")]
EvaluatorDevice = Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="Tell the evaluator: where.")]
Precision = Annotated[
    str | None, typer.Option("--precision", metavar="DTYPE", help="Tell the evaluator: in this arithmetic.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Tell the evaluator: its seed.")]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Bound on one evaluation.")]
CheckEvaluator = Annotated[
    bool, typer.Option("--check-evaluator", help="Evaluate the first model twice: are the numbers equal?")
]
