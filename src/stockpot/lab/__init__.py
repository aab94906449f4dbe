"""The papers, reproduced: the demo that runs anywhere."""

from stockpot.lab._demo import DemoSettings, run_demo
from stockpot.lab._report import DemoReport

__all__ = ["DemoReport", "DemoSettings", "run_demo"]
