"""Choosing mixtures by evaluation, and looking at what lies between models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._later import later
from stockpot.soups._analysis import (
    Gap,
    accuracy,
    calibration_error,
    cross_entropy,
    mcnemar,
    soup_against_ensemble,
)
from stockpot.soups._choice import Rules, Step, choose, chosen
from stockpot.soups._ensemble import Ensembles, Predictor, ensemble
from stockpot.soups._ingredients import Correspondence, Ingredients, Model
from stockpot.soups._landscape import Grid, Landscape, Mark, landscape
from stockpot.soups._lines import Barriers, Line, barrier, plain
from stockpot.soups._running import Evaluation, Running
from stockpot.soups._scorer import Heard, Scored, Scorer
from stockpot.soups._soup import Candidate, Soup, greedy, uniform
from stockpot.soups._sweep import TENTHS, Evaluations, Sweep, evaluate_models, wise_ft

if TYPE_CHECKING:
    from stockpot.soups._learned import Estimate, Learning, learned

__all__ = [
    "TENTHS",
    "Barriers",
    "Candidate",
    "Correspondence",
    "Ensembles",
    "Estimate",
    "Evaluation",
    "Evaluations",
    "Gap",
    "Grid",
    "Heard",
    "Ingredients",
    "Landscape",
    "Learning",
    "Line",
    "Mark",
    "Model",
    "Predictor",
    "Rules",
    "Running",
    "Scored",
    "Scorer",
    "Soup",
    "Step",
    "Sweep",
    "accuracy",
    "barrier",
    "calibration_error",
    "choose",
    "chosen",
    "cross_entropy",
    "ensemble",
    "evaluate_models",
    "greedy",
    "landscape",
    "learned",
    "mcnemar",
    "plain",
    "soup_against_ensemble",
    "uniform",
    "wise_ft",
]

_LATER = dict.fromkeys(("Estimate", "Learning", "learned"), "_learned")
"""They need torch at once; everything else only where it builds a model."""

__getattr__ = later(__name__, _LATER)
