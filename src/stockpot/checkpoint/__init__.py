"""Bytes <-> named tensors; no arithmetic."""

from stockpot.checkpoint._dtypes import (
    MERGEABLE,
    TORCH_NAMES,
    count,
    is_mergeable,
    itemsize,
    nbytes,
    widest,
)
from stockpot.checkpoint._files import FileIdentity
from stockpot.checkpoint._header import TensorInfo
from stockpot.checkpoint._layout import Layout, OutFile, Spec, header_bytes, pack_file, plan_layout
from stockpot.checkpoint._open import Checkpoint, is_weight_file, local_path, open_checkpoint
from stockpot.checkpoint._pickle_writer import read_provenance
from stockpot.checkpoint._source import Source
from stockpot.checkpoint._staging import Staging, partial_of, repair, require_free, require_outside

__all__ = [
    "MERGEABLE",
    "TORCH_NAMES",
    "Checkpoint",
    "FileIdentity",
    "Layout",
    "OutFile",
    "Source",
    "Spec",
    "Staging",
    "TensorInfo",
    "count",
    "header_bytes",
    "is_mergeable",
    "is_weight_file",
    "itemsize",
    "local_path",
    "nbytes",
    "open_checkpoint",
    "pack_file",
    "partial_of",
    "plan_layout",
    "read_provenance",
    "repair",
    "require_free",
    "require_outside",
    "widest",
]
