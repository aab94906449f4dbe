"""Records -> people: sentences and tables; no arithmetic, no files.

Loaded at first use: who merges does not wait for what soups and pages need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._later import later

if TYPE_CHECKING:
    from stockpot.report._demo_figures import demo_pictures
    from stockpot.report._demo_page import chosen_columns, demo_cell, demo_page, rate_columns
    from stockpot.report._drawing import Picture, require_drawing, save_pictures
    from stockpot.report._geometry import geometry_findings, geometry_summary, geometry_table
    from stockpot.report._geometry_figures import geometry_pictures
    from stockpot.report._geometry_page import geometry_page
    from stockpot.report._landscape import barrier_summary, barrier_table, landscape_summary, landscape_table
    from stockpot.report._landscape_figures import barrier_pictures, landscape_pictures
    from stockpot.report._landscape_page import barrier_page, landscape_page
    from stockpot.report._names import short_names
    from stockpot.report._recipes import check_record, check_table
    from stockpot.report._soup import (
        cache_table,
        ensembles_summary,
        ensembles_table,
        evaluations_table,
        plain_scores,
        soup_summary,
        soup_table,
        sweep_summary,
        sweep_table,
    )
    from stockpot.report._soup_figures import soup_pictures
    from stockpot.report._soup_page import soup_page
    from stockpot.report._tables import methods_table, plan_table
    from stockpot.report._text import counted, human_bytes, merge_summary, method_page
    from stockpot.report._training_figures import training_pictures

__all__ = [
    "check_record",
    "check_table",
    "Picture",
    "barrier_page",
    "barrier_pictures",
    "barrier_summary",
    "barrier_table",
    "cache_table",
    "chosen_columns",
    "counted",
    "demo_cell",
    "demo_page",
    "demo_pictures",
    "ensembles_summary",
    "ensembles_table",
    "evaluations_table",
    "geometry_findings",
    "geometry_page",
    "geometry_pictures",
    "geometry_summary",
    "geometry_table",
    "human_bytes",
    "landscape_page",
    "landscape_pictures",
    "landscape_summary",
    "landscape_table",
    "merge_summary",
    "method_page",
    "methods_table",
    "plain_scores",
    "plan_table",
    "rate_columns",
    "require_drawing",
    "save_pictures",
    "short_names",
    "soup_page",
    "soup_pictures",
    "soup_summary",
    "soup_table",
    "sweep_summary",
    "sweep_table",
    "training_pictures",
]

_LATER = {
    "Picture": "_drawing",
    "barrier_page": "_landscape_page",
    "barrier_pictures": "_landscape_figures",
    "barrier_summary": "_landscape",
    "barrier_table": "_landscape",
    "cache_table": "_soup",
    "chosen_columns": "_demo_page",
    "demo_cell": "_demo_page",
    "demo_page": "_demo_page",
    "demo_pictures": "_demo_figures",
    "ensembles_summary": "_soup",
    "ensembles_table": "_soup",
    "evaluations_table": "_soup",
    "geometry_findings": "_geometry",
    "geometry_page": "_geometry_page",
    "geometry_pictures": "_geometry_figures",
    "geometry_summary": "_geometry",
    "geometry_table": "_geometry",
    "counted": "_text",
    "human_bytes": "_text",
    "landscape_page": "_landscape_page",
    "landscape_pictures": "_landscape_figures",
    "landscape_summary": "_landscape",
    "landscape_table": "_landscape",
    "merge_summary": "_text",
    "method_page": "_text",
    "check_record": "_recipes",
    "check_table": "_recipes",
    "methods_table": "_tables",
    "plain_scores": "_soup",
    "plan_table": "_tables",
    "rate_columns": "_demo_page",
    "require_drawing": "_drawing",
    "save_pictures": "_drawing",
    "short_names": "_names",
    "soup_page": "_soup_page",
    "soup_pictures": "_soup_figures",
    "soup_summary": "_soup",
    "soup_table": "_soup",
    "sweep_summary": "_soup",
    "sweep_table": "_soup",
    "training_pictures": "_training_figures",
}

__getattr__ = later(__name__, _LATER)
