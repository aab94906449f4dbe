"""Choosing mixtures by evaluation, and looking at what lies between models."""

from stockpot.soups._ingredients import Correspondence, Ingredients, Model
from stockpot.soups._landscape import Grid, Landscape, Mark, landscape
from stockpot.soups._lines import Barriers, Line, barrier, plain
from stockpot.soups._running import Evaluation, Running
from stockpot.soups._scorer import Heard, Scored, Scorer

__all__ = [
    "Barriers",
    "Correspondence",
    "Evaluation",
    "Grid",
    "Heard",
    "Ingredients",
    "Landscape",
    "Line",
    "Mark",
    "Model",
    "Running",
    "Scored",
    "Scorer",
    "barrier",
    "landscape",
    "plain",
]
