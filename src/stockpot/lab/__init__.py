"""The papers, reproduced: the demo that runs anywhere."""

from stockpot.lab._demo import DemoReport, run_demo
from stockpot.lab._judges import held_out_digits, unseen_digits
from stockpot.lab._network import Training
from stockpot.lab._settings import DemoSettings

__all__ = ["DemoReport", "DemoSettings", "Training", "held_out_digits", "run_demo", "unseen_digits"]
