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
from stockpot.checkpoint._files import FileIdentity, View, is_below, require_readable
from stockpot.checkpoint._folder import ADAPTER_CONFIG, ADAPTER_STEM, CONFIG, MANIFESTS
from stockpot.checkpoint._header import NAME_CAP, SEAL, STATISTICS, TensorInfo, blank_seal
from stockpot.checkpoint._hub import cache_folder, current_commit, hub_ids
from stockpot.checkpoint._layout import (
    Layout,
    OutFile,
    Spec,
    header_bytes,
    header_of,
    is_sealed_header,
    pack_file,
    plan_layout,
    seal_header,
    weight_metadata,
)
from stockpot.checkpoint._open import Checkpoint, is_local, local_path, open_checkpoint, open_local
from stockpot.checkpoint._pickle_writer import damaged_member, is_sealed_archive, read_provenance
from stockpot.checkpoint._places import require_free, require_outside
from stockpot.checkpoint._replacing import partial_of, repair
from stockpot.checkpoint._runs import last_checkpoints
from stockpot.checkpoint._side_names import is_side_file, is_side_folder, is_weight_file
from stockpot.checkpoint._source import LastGathered, Part, Source, by_part, read_dense, together
from stockpot.checkpoint._staging import Staging
from stockpot.checkpoint._ties import CONFIG_DEPTH, EMBEDDINGS, HEADS, TIE, ties_words

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_STEM",
    "CONFIG",
    "CONFIG_DEPTH",
    "EMBEDDINGS",
    "HEADS",
    "MANIFESTS",
    "NAME_CAP",
    "MERGEABLE",
    "TORCH_NAMES",
    "Checkpoint",
    "FileIdentity",
    "LastGathered",
    "Layout",
    "OutFile",
    "Part",
    "SEAL",
    "STATISTICS",
    "Source",
    "TIE",
    "Spec",
    "Staging",
    "TensorInfo",
    "View",
    "blank_seal",
    "by_part",
    "cache_folder",
    "count",
    "current_commit",
    "damaged_member",
    "header_bytes",
    "header_of",
    "hub_ids",
    "is_below",
    "is_local",
    "is_mergeable",
    "is_sealed_archive",
    "is_sealed_header",
    "is_side_file",
    "is_side_folder",
    "is_weight_file",
    "itemsize",
    "last_checkpoints",
    "local_path",
    "nbytes",
    "open_checkpoint",
    "open_local",
    "pack_file",
    "partial_of",
    "plan_layout",
    "read_dense",
    "read_provenance",
    "repair",
    "require_free",
    "require_outside",
    "require_readable",
    "seal_header",
    "ties_words",
    "together",
    "weight_metadata",
    "widest",
]
