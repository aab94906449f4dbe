"""Soups from the papers alone; calibration and significance as textbooks say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product

import numpy as np


def greedy(scores: Sequence[float], score_of: Callable[[frozenset[int]], float], ties: bool) -> frozenset[int]:
    """Recipe 1 of the paper: sort by held-out score, add each if the average is at least as good."""
    ranked = sorted(range(len(scores)), key=lambda i: scores[i], reverse=True)  # stable under reverse too
    soup = {ranked[0]}
    for model in ranked[1:]:
        new, old = score_of(frozenset(soup | {model})), score_of(frozenset(soup))
        if new > old or (ties and new == old):
            soup |= {model}
    return frozenset(soup)


def running_mean(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """soup * n / (n + 1) + new / (n + 1)."""
    soup = np.asarray(vectors[0], dtype=np.longdouble)
    for n, new in enumerate(vectors[1:], start=1):
        soup = soup * n / (n + 1) + np.asarray(new, dtype=np.longdouble) / (n + 1)
    return soup


def mcnemar(b: int, c: int) -> Fraction:
    """Two-sided exact p by listing every outcome of b + c fair coins; the sum of both tails as far out, at most 1."""
    if b + c == 0:
        return Fraction(1)
    least = min(b, c)
    count = sum(sum(coins) <= least for coins in product((0, 1), repeat=b + c))
    return min(Fraction(1), 2 * Fraction(count, 2 ** (b + c)))


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Sort by confidence, cut into equal parts, weigh each part's gap by its size."""
    pairs = zip(probabilities, labels, strict=True)
    rows = sorted((float(max(row)), float(np.argmax(row) == label)) for row, label in pairs)
    size = len(rows) // bins
    total = 0.0
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        total += abs(sum(c for c, _ in part) - sum(r for _, r in part))
    return total / len(rows)
