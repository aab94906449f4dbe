"""``lm-eval:TASKS``: tasks of the lm-evaluation-harness. Needs lm-eval and transformers."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.evaluate import _transformers as hf
from stockpot.evaluate._base import Form, Options
from stockpot.evaluate._data import digest_of_files
from stockpot.evaluate._scores import Scores


@dataclass(frozen=True)
class HarnessEvaluator:
    """Metrics named ``task/metric``. A task is a name that the harness knows, or a ``.yaml`` file of one's own."""

    name: str
    tasks: tuple[str, ...]
    options: Options
    form: Form = "state_dict"
    uses_folder: bool = True

    @cached_property
    def content(self) -> Mapping[str, Any]:
        own = [Path(task) for task in self.tasks if task.endswith(".yaml")]
        beside = [file for path in own for file in path.parent.iterdir() if file.is_file()]
        return {
            "form": "lm-eval", "tasks": self.tasks, "data": digest_of_files(beside, Path()),
            "limit": self.options.limit, "precision": self.options.precision, "seed": self.options.seed,
            "versions": [importlib.metadata.version("lm_eval"), hf.version()],
        }  # fmt: skip

    def evaluate(self, model: dict[str, Any] | Path, folder: Path | None = None) -> Scores:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        options = self.options
        net, folder = hf.net_of(model, folder, hf.CAUSAL, options, self.name)
        tokenizer = hf.tokenizer_of(folder)
        own = {str(Path(task).resolve().parent) for task in self.tasks if task.endswith(".yaml")}
        named = [task for task in self.tasks if not task.endswith(".yaml")]
        kinds = ("random", "numpy_random", "torch_random", "fewshot_random")
        seeds = {} if options.seed is None else {f"{kind}_seed": options.seed for kind in kinds}
        try:
            manager = TaskManager(include_path=sorted(own) or None, include_defaults=bool(named))
            found = lm_eval.simple_evaluate(
                model=HFLM(pretrained=net, tokenizer=tokenizer, batch_size=options.batch or 1),
                tasks=[Path(task).stem if task.endswith(".yaml") else task for task in self.tasks],
                task_manager=manager, limit=options.limit, log_samples=False, bootstrap_iters=0, **seeds,
            )  # fmt: skip
        except Exception as error:
            raise errors.EvaluatorError(
                f"the harness failed ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
                file=self.name,
            ) from error
        hf.let_go(net)
        values = {}
        for task, metrics in found["results"].items():
            for metric, value in metrics.items():
                name = metric.removesuffix(",none")
                if isinstance(value, int | float) and not isinstance(value, bool) and "stderr" not in name:
                    values[f"{task}/{name.replace(',', '/')}"] = float(value)
        values = {name: value for name, value in values.items() if not name.endswith("sample_len")}
        if not values:
            raise errors.EvaluatorError("the harness returned no number", file=self.name)
        return Scores(values)


def load_harness(text: str, words: str, options: Options) -> HarnessEvaluator:
    """Check what can be checked before anything is evaluated."""
    hf.require("lm_eval", "transformers")
    tasks = tuple(part.strip() for part in words.split(",") if part.strip())
    if not tasks:
        raise errors.UsageError(
            "lm-eval without tasks", expected="lm-eval:TASK,TASK or lm-eval:FILE.yaml", got=repr(text)
        )
    for task in tasks:
        if task.endswith(".yaml") and not Path(task).is_file():
            raise errors.NotFoundError("no such task file", file=task)
    return HarnessEvaluator(text, tasks, options)
