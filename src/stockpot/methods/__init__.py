"""One file a family of methods: pure functions of Gram matrices, or rules for elements.

A new method: its file, one line here, its test.

Third parties register theirs by an entry point in the group ``stockpot.methods`` that names a ``Method``.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from stockpot import errors
from stockpot.methods._barycentre import karcher, multislerp
from stockpot.methods._base import (
    Method,
    Mixture,
    Parameter,
    PerModel,
    Statistics,
    check_value,
    coefficients,
    elementwise,
    repeated,
)
from stockpot.methods._breadcrumbs import breadcrumbs, breadcrumbs_ties
from stockpot.methods._dare import dare_linear, dare_ties
from stockpot.methods._della import della, della_linear
from stockpot.methods._emr import emr
from stockpot.methods._fisher import fisher
from stockpot.methods._fusion import arcee_fusion
from stockpot.methods._linear import linear, passthrough, task_arithmetic, wise_ft
from stockpot.methods._model_stock import model_stock
from stockpot.methods._nearswap import nearswap
from stockpot.methods._ram import ram, ramplus_tl
from stockpot.methods._regmean import regmean
from stockpot.methods._rule import Form, Rule, Statistic, SurveyRule, Unit
from stockpot.methods._sce import sce
from stockpot.methods._slerp import nuslerp, slerp
from stockpot.methods._ties import ties

__all__ = [
    "Form",
    "Method",
    "Mixture",
    "Parameter",
    "PerModel",
    "Rule",
    "Statistic",
    "Statistics",
    "SurveyRule",
    "Unit",
    "all_methods",
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "check_value",
    "coefficients",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "elementwise",
    "emr",
    "fisher",
    "get_method",
    "karcher",
    "linear",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "ram",
    "ramplus_tl",
    "regmean",
    "repeated",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
    "wise_ft",
]

_BUILT_IN = (
    *(arcee_fusion, breadcrumbs, breadcrumbs_ties, dare_linear, dare_ties, della, della_linear, emr, fisher, karcher),
    *(linear, model_stock, multislerp, nearswap, nuslerp, passthrough, ram, ramplus_tl, regmean, sce, slerp),
    *(task_arithmetic, ties, wise_ft),
)


@cache
def all_methods() -> dict[str, Method]:
    """Every registered method by name: the built-in ones and those of entry points (a built-in name wins)."""
    found: dict[str, Method] = {}
    for point in entry_points(group="stockpot.methods"):
        method = point.load()
        if not isinstance(method, Method):
            raise errors.UsageError(f"entry point {point.name} is no stockpot method", got=type(method).__name__)
        found[method.name] = method
    found.update({method.name: method for method in _BUILT_IN})
    return dict(sorted(found.items()))


def get_method(name: str) -> Method:
    """The method of that name (``-`` and ``_`` both accepted); UnknownNameError offers the nearest."""
    methods = all_methods()
    method = methods.get(name.replace("-", "_"))
    if method is None:
        raise errors.unknown_name("method", name, methods)
    return method
