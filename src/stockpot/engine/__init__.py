"""Recipe -> plan -> result: align names, plan passes, and the one loop that reads, computes, writes.

What executes is loaded at first use; torch only for state dicts in memory and for GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._later import later
from stockpot.engine._align import Alignment, Decision, Inputs, Slot, align
from stockpot.engine._device import choose_device
from stockpot.engine._graph import Options, carry_out, part_of_graph, plan_graph
from stockpot.engine._job import Job, resolve
from stockpot.engine._layers import layer_of
from stockpot.engine._plan import Group, Plan, Story, is_one_file, make_plan, open_inputs, with_links_told
from stockpot.engine._provenance import PROVENANCE
from stockpot.engine._side_files import differing_side_files, side_files
from stockpot.engine._statistics import with_statistics

if TYPE_CHECKING:
    from stockpot.engine._content import file_digest, memory_digest, mixture_digest
    from stockpot.engine._execute import Progress
    from stockpot.engine._fetch import fetched_sources
    from stockpot.engine._geometry import Geometry, measure_geometry
    from stockpot.engine._live import LiveModel
    from stockpot.engine._memory import MemorySink, MemorySource, to_memory
    from stockpot.engine._merge import MergeResult, check_output, check_outputs, write
    from stockpot.engine._products import plan_products, products
    from stockpot.engine._records import RatioSummary
    from stockpot.engine._verify import VerifyResult, verify

__all__ = [
    "PROVENANCE",
    "Alignment",
    "Decision",
    "Geometry",
    "Group",
    "Inputs",
    "Job",
    "LiveModel",
    "MemorySink",
    "MemorySource",
    "MergeResult",
    "Options",
    "Plan",
    "Progress",
    "RatioSummary",
    "Slot",
    "Story",
    "VerifyResult",
    "align",
    "carry_out",
    "check_output",
    "check_outputs",
    "choose_device",
    "differing_side_files",
    "fetched_sources",
    "file_digest",
    "is_one_file",
    "layer_of",
    "make_plan",
    "measure_geometry",
    "memory_digest",
    "mixture_digest",
    "open_inputs",
    "part_of_graph",
    "plan_graph",
    "plan_products",
    "products",
    "resolve",
    "side_files",
    "to_memory",
    "verify",
    "write",
    "with_links_told",
    "with_statistics",
]

_LATER = {
    "Geometry": "_geometry",
    "LiveModel": "_live",
    "fetched_sources": "_fetch",
    "file_digest": "_content",
    "memory_digest": "_content",
    "mixture_digest": "_content",
    "Progress": "_execute",
    "MemorySink": "_memory",
    "MemorySource": "_memory",
    "MergeResult": "_merge",
    "check_output": "_merge",
    "check_outputs": "_merge",
    "measure_geometry": "_geometry",
    "to_memory": "_memory",
    "write": "_merge",
    "RatioSummary": "_records",
    "plan_products": "_products",
    "products": "_products",
    "VerifyResult": "_verify",
    "verify": "_verify",
}

__getattr__ = later(__name__, _LATER)
