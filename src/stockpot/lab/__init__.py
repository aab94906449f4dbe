"""The papers, reproduced: the demo that runs anywhere."""

from stockpot.lab._demo import DemoSettings, run_demo
from stockpot.lab._network import Training
from stockpot.lab._report import DemoReport

__all__ = ["DemoReport", "DemoSettings", "Training", "run_demo"]
