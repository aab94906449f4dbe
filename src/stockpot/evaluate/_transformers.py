"""Models of ``transformers`` from weights in memory and the folder of their config. Needs transformers."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stockpot import errors
from stockpot.evaluate._base import Options

CAUSAL = ("ForCausalLM", "LMHeadModel")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def require(*packages: str) -> None:
    """MissingExtraError where one is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            extra = "lm-eval" if package == "lm_eval" else "eval"
            raise errors.MissingExtraError({"lm_eval": "lm-eval", "PIL": "pillow"}.get(package, package), extra)


def version() -> str:
    """Of transformers: another one may score otherwise."""
    return importlib.metadata.version("transformers")


def config_of(folder: Path | None, evaluator: str) -> Any:
    """The model's config; EvaluatorError where there is none."""
    require("transformers")
    from transformers import AutoConfig

    if folder is None or not (folder / "config.json").is_file():
        raise errors.EvaluatorError(
            "there is no config.json to build the model from", file=None if folder is None else str(folder),
            expected="a folder as transformers writes it", got=evaluator,
        )  # fmt: skip
    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _unusable("config.json", folder, error) from error


def model_of(config: Any, weights: Mapping[str, Any], endings: tuple[str, ...], evaluator: str) -> Any:
    """The model of the config's own class, its weights those in memory; EvaluatorError where they do not fit.

    ``endings``: how the class may be called, such as ``ForImageClassification``.
    """
    import transformers

    names = [name for name in getattr(config, "architectures", None) or () if name.endswith(endings)]
    kind = getattr(transformers, names[0], None) if names else None
    if kind is None:
        raise errors.EvaluatorError(
            f"{evaluator.split(':')[0]} does not score this kind of model", expected=" or ".join(endings),
            got=", ".join(getattr(config, "architectures", None) or ()) or "no architecture in config.json",
        )  # fmt: skip
    with quietly():
        try:
            model, found = kind.from_pretrained(None, config=config, state_dict=dict(weights), output_loading_info=True)
        except (RuntimeError, ValueError, OSError) as error:
            raise errors.EvaluatorError(
                f"the weights do not fit {names[0]} ({str(error).splitlines()[0]:.200})",
                remedy="compare config.json with the weights",
            ) from error
    for sort in ("missing_keys", "mismatched_keys"):
        if found[sort]:
            names = sorted(map(str, found[sort]))
            raise errors.EvaluatorError(
                f"the weights do not fit the model: {sort.replace('_', ' ')}", tensor=names[0], problems=names[1:],
                remedy="compare config.json with the weights",
            )  # fmt: skip
    return model.eval()


def net_of(
    weights: object, folder: Path | None, endings: tuple[str, ...], options: Options, evaluator: str
) -> tuple[Any, Path]:
    """The model of the folder's config with these weights, where and in what the options say; and the folder."""
    assert isinstance(weights, Mapping)
    config = config_of(folder, evaluator)
    assert folder is not None  # or there would be no config
    return placed(model_of(config, weights, endings, evaluator), options.device, options.precision), folder


def placed(model: Any, device: str | None, precision: str | None) -> Any:
    """On a device, in the arithmetic that was asked for."""
    if precision is not None:
        if precision not in PRECISIONS:
            raise errors.unknown_name("precision", precision, PRECISIONS)
        model = model.to(PRECISIONS[precision])
    try:
        return model.to(device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise errors.UsageError(
            f"the device cannot be used ({str(error).splitlines()[0]:.120})", got=device, remedy="--device cpu"
        ) from None


def checkpoint_names(model: Any, weights: Mapping[str, torch.Tensor], remedy: str | None = None) -> dict[str, str]:
    """Each parameter's name among the weights that the model was built from, told by where it lies.

    Of several names of one tensor the first; EvaluatorError, with the remedy, where the library made another of it.
    """
    places: dict[int, str] = {}
    for name, tensor in weights.items():
        if tensor.numel():
            places.setdefault(tensor.data_ptr(), name)
    found = {}
    for name, parameter in model.named_parameters():
        own = places.get(parameter.data_ptr())
        if own is None or weights[own].shape != parameter.shape:
            raise errors.EvaluatorError(
                "the library changes this model's weights as it loads them: their gradient is not known here",
                tensor=name,
                remedy=remedy,
            )
        found[name] = own
    return found


def let_go(model: Any) -> None:
    """It holds its weights no longer: modules refer to each other, and would wait for the collector."""
    for module in model.modules():
        module._parameters.clear()
        module._buffers.clear()


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer beside the weights."""
    from transformers import AutoTokenizer

    try:
        with quietly():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _unusable("tokenizer", folder, error) from error


def rows_of(path: Path, wanted: Sequence[str], evaluator: str) -> list[dict[str, Any]]:
    """Lines of a JSONL or CSV file as maps that have the wanted columns."""
    import csv

    if not path.is_file():
        raise errors.NotFoundError("no such data file", file=str(path), got=evaluator)
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            if path.suffix == ".csv":
                rows = list(csv.DictReader(stream))
            else:
                rows = [json.loads(line) for line in stream if line.strip()]
    except (ValueError, csv.Error) as error:
        raise errors.InputError(
            f"the data cannot be read ({error})",
            file=str(path),
            expected="JSONL (one map a line), or CSV with a heading",
        ) from None
    for place, row in enumerate(rows):
        lacking = [name for name in wanted if not isinstance(row, dict) or row.get(name) in (None, "")]
        if lacking:
            raise errors.InputError(
                f"row {place + 1} has no {lacking[0]}", file=str(path), expected=", ".join(wanted),
                got=", ".join(row) if isinstance(row, dict) else type(row).__name__,
            )  # fmt: skip
    if not rows:
        raise errors.InputError("the data are empty", file=str(path))
    return rows


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Neither bars nor reports of the library meanwhile."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _unusable(what: str, folder: Path, error: Exception) -> errors.EvaluatorError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return errors.EvaluatorError(f"{what} cannot be used ({text:.200})", file=str(folder))
