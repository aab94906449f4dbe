"""Averaging while training: Model Stock at every period, and the averages of one run."""

from stockpot.train._averages import EMA, LAWA, SWA, Average, decay_weights
from stockpot.train._batch_norm import reestimate_batch_norm
from stockpot.train._in_turn import InTurn, Stateful
from stockpot.train._merging import Merge, Options
from stockpot.train._periodic import PeriodicStock, Replicas
from stockpot.train._schedule import Schedule
from stockpot.train._side_by_side import SideBySide

__all__ = [
    "EMA",
    "LAWA",
    "SWA",
    "Average",
    "InTurn",
    "Merge",
    "Options",
    "PeriodicStock",
    "Replicas",
    "Schedule",
    "SideBySide",
    "Stateful",
    "decay_weights",
    "reestimate_batch_norm",
]
