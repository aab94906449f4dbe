"""The file that statistics are kept in: safetensors, with how they were made in ``__metadata__``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stockpot import errors
from stockpot._version import __version__
from stockpot.checkpoint import STATISTICS, OutFile, Staging, pack_file, repair, require_free, require_outside

_CODES = {torch.float64: "F64", torch.float32: "F32"}


def check_place(out: Path, inputs: list[Path], overwrite: bool) -> None:
    """OUT may be written; told before anything is read."""
    if out.suffix != ".safetensors":
        raise errors.OutputError(
            "statistics are one file", file=str(out), expected="a name that ends in .safetensors", remedy="change --out"
        )
    require_outside(out, inputs)
    repair(out)
    require_free(out, overwrite, True)


def laid_out(out: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> OutFile:
    """The file's header and places; ``about``: plain data, the same for the same call."""
    specs = [(name, _CODES[one.dtype], tuple(one.shape)) for name, one in tensors.items()]
    made = {STATISTICS: json.dumps({"stockpot": __version__, **about}, sort_keys=True)}
    return pack_file(out.name, specs, {"format": "pt", **made})


def write_statistics(out: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], *, overwrite: bool) -> int:
    """Write them whole or not at all; returns the file's size in bytes."""
    file = laid_out(out, tensors, about)
    staging = Staging(out, json.dumps(about, sort_keys=True), resume=False, overwrite=overwrite)
    try:
        staging.create(file.name, file.size, file.header)
        for name, tensor in tensors.items():
            if tensor.numel():
                staging.write(
                    file.name, file.offsets[name], tensor.contiguous().view(-1).view(torch.uint8).numpy().data
                )
        staging.commit(one_file=file.name)
    except BaseException:
        staging.discard()
        raise
    return file.size
