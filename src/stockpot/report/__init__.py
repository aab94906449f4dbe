"""Records -> people: sentences and tables; no arithmetic, no files."""

from stockpot.report._drawing import Picture, require_drawing, save_pictures
from stockpot.report._geometry import geometry_findings, geometry_summary, geometry_table
from stockpot.report._geometry_figures import geometry_pictures
from stockpot.report._geometry_page import geometry_page
from stockpot.report._landscape import barrier_summary, barrier_table, landscape_summary, landscape_table
from stockpot.report._landscape_figures import barrier_pictures, landscape_pictures
from stockpot.report._landscape_page import barrier_page, landscape_page
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
from stockpot.report._text import human_bytes, merge_summary, method_page

__all__ = [
    "Picture",
    "barrier_page",
    "cache_table",
    "plain_scores",
    "barrier_pictures",
    "barrier_summary",
    "barrier_table",
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
    "plan_table",
    "require_drawing",
    "save_pictures",
    "soup_page",
    "soup_pictures",
    "soup_summary",
    "soup_table",
    "sweep_summary",
    "sweep_table",
]
