"""For authors of methods: the questions that every method of the catalogue must answer."""

from stockpot.testing._contract import QUESTIONS, check_method

__all__ = ["QUESTIONS", "check_method"]
