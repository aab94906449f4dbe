"""Methods that choose element by element, written naively in float64 from their papers; no line of stockpot is used.

Every function takes arrays of any shape, keeps the shape, and sorts where it must: to be fast is not their task.
"""

import math
from fractions import Fraction

import numpy as np


def kept_count(density, size):
    """How many of ``size`` elements a density keeps: the nearest whole number, half to even."""
    return min(max(round(density * size), 0), size)


def largest(delta, density):
    """Mask of the largest magnitudes; among equal ones those of the lowest flat index."""
    kept = np.zeros(delta.size, dtype=bool)
    kept[np.argsort(-np.abs(delta.ravel()), kind="stable")[: kept_count(density, delta.size)]] = True
    return kept.reshape(delta.shape)


def middle(delta, density, gamma):
    """Mask of what is left without the largest ``gamma`` and so many of the smallest that ``density`` stays.

    The largest are never more than density leaves over; among equal magnitudes the lowest flat index stays.
    """
    magnitudes, size = np.abs(delta.ravel()), delta.size
    keep = kept_count(density, size)
    top = min(kept_count(gamma, size), size - keep)
    falling_last_first = np.lexsort((-np.arange(size), -magnitudes))
    left = np.ones(size, dtype=bool)
    left[falling_last_first[:top]] = False
    order = np.argsort(np.where(left, -magnitudes, np.inf), kind="stable")
    kept = np.zeros(size, dtype=bool)
    kept[order[:keep]] = True
    return kept.reshape(delta.shape)


def same_norm(delta, kept):
    """What was kept of delta, scaled so that the sum of magnitudes is that of the whole."""
    left = np.where(kept, delta, 0.0)
    total = math.fsum(np.abs(left).ravel())
    return left * (math.fsum(np.abs(delta).ravel()) / total) if total else left


def agreeing(parts):
    """Masks of the parts whose sign is that of their sum, element by element; a sum of zero counts as positive."""
    total = np.array([math.fsum(column) for column in np.stack([part.ravel() for part in parts], axis=1)])
    elected = np.where(total >= 0, 1.0, -1.0).reshape(parts[0].shape)
    return [np.sign(part) == elected for part in parts]


def added(base, deltas, weight, scale=1.0, normalize=False, elect=False, masks=None):
    """base + scale times the weighted deltas, of which sign election leaves those that agree (or masks that are given).

    Under ``normalize`` divided by the sum of the weights; after an election, of those that are left at that element
    (by one where that sum is zero).
    """
    parts = [a * delta for a, delta in zip(weight, deltas, strict=True)]
    if masks is None:
        masks = agreeing(parts) if elect else [np.ones(part.shape, dtype=bool) for part in parts]
    total = sum(np.where(mask, part, 0.0) for mask, part in zip(masks, parts, strict=True))
    if normalize:
        divisor = sum(np.where(mask, a, 0.0) for mask, a in zip(masks, weight, strict=True))
        total = total / np.where(divisor == 0, 1.0, divisor)
    return base + scale * total


def ties(base, models, weight, density, normalize=True, scale=1.0, rescale=False):
    """Trim by magnitude, elect a sign by the weighted sum, mean of what agrees: arXiv 2306.01708, algorithm 1."""
    left = []
    for model, share in zip(models, density, strict=True):
        delta = model - base
        kept = largest(delta, share)
        left.append(same_norm(delta, kept) if rescale else np.where(kept, delta, 0.0))
    return added(base, left, weight, scale, normalize, elect=True)


def dare(base, models, weight, density, masks, elect=False, normalize=False, scale=1.0, rescale=True):
    """Drop at random (masks of what stays are given), divide by the density: arXiv 2311.03099, equation 2."""
    left = []
    for model, share, kept in zip(models, density, masks, strict=True):
        left.append(np.where(kept, model - base, 0.0) / (share if rescale and share else 1.0))
    return added(base, left, weight, scale, normalize, elect)


def breadcrumbs(base, models, weight, density, gamma, elect=False, normalize=False, scale=1.0, rescale=False):
    """Without the largest and the smallest of each task vector: arXiv 2312.06795, section 3."""
    left = []
    for model, share, top in zip(models, density, gamma, strict=True):
        delta = model - base
        kept = middle(delta, share, top)
        left.append(same_norm(delta, kept) if rescale else np.where(kept, delta, 0.0))
    return added(base, left, weight, scale, normalize, elect)


def keep_probabilities(delta, density, epsilon):
    """By the rank of the magnitude in its row, from density - epsilon to density + epsilon; density 0 and 1 are that.

    A row is what one index of the first axis holds (a vector is one row); equal magnitudes rank by their place, and a
    row of one element has the density itself.
    """
    if density in (0, 1):
        return np.full(delta.shape, float(density))
    rows = np.abs(delta).reshape(1, -1) if delta.ndim < 2 else np.abs(delta).reshape(len(delta), -1)
    ranks = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1, kind="stable")
    length = rows.shape[1]
    place = ranks / (length - 1) if length > 1 else np.full(rows.shape, 0.5)
    return (density - epsilon + 2 * epsilon * place).reshape(delta.shape)


def della(base, models, weight, density, epsilon, uniforms, elect=True, normalize=True, scale=1.0, rescale=True):
    """Keep by magnitude-ranked chance (uniform numbers are given), divide by it: arXiv 2406.11617, section 3.1."""
    left = []
    for model, share, half, uniform in zip(models, density, epsilon, uniforms, strict=True):
        delta = model - base
        chance = keep_probabilities(delta, share, half)
        kept = np.where(uniform < chance, delta, 0.0)
        left.append(np.divide(kept, chance, out=np.zeros_like(delta), where=chance > 0) if rescale else kept)
    return added(base, left, weight, scale, normalize, elect)


def spreads(deltas):
    """N^2 times the variance over the models, element by element, as fractions: what is equal is equal."""
    columns = zip(*(map(Fraction, delta.ravel().tolist()) for delta in deltas), strict=True)
    return [len(column) * sum(one * one for one in column) - sum(column) ** 2 for column in columns]


def variances(deltas):
    """Over the models, times a number, exactly, and then as ranks: what rounding makes different is not."""
    found = []
    for column in np.stack([delta.ravel() for delta in deltas], axis=1):
        parts = [Fraction(float(one)) for one in column]
        found.append(len(parts) * sum(one * one for one in parts) - sum(parts) ** 2)
    ranks = {value: rank for rank, value in enumerate(sorted({Fraction(0), *found}))}
    return np.array([ranks[value] for value in found]).reshape(deltas[0].shape)


def sce(base, models, select_topk=1.0):
    """Select by variance, weigh by squares, erase what disagrees: arXiv 2408.07990, section 3.3.

    The share of positions is of those where the models differ at all; among equal variances the lowest flat index.
    Signs are elected by the plain sum.
    """
    deltas = [model - base for model in models]
    if select_topk < 1:
        spread = spreads(deltas)
        count = kept_count(select_topk, sum(one > 0 for one in spread))
        chosen = np.zeros(base.size, dtype=bool)
        chosen[sorted(range(base.size), key=lambda place: (-spread[place], place))[:count]] = True
        deltas = [np.where(chosen.reshape(base.shape), delta, 0.0) for delta in deltas]
    squares = [math.fsum((delta * delta).ravel()) for delta in deltas]
    total = math.fsum(squares)
    weight = [one / total if total else 0.0 for one in squares]
    return added(base, deltas, weight, normalize=True, masks=agreeing(deltas))


def nearswap(base, model, t):
    """Towards the model by min(1, t / |difference|), which is all the way where the two are that near."""
    delta = model - base
    return base + np.sign(delta) * np.minimum(np.abs(delta), max(t, 0.0))


def importances(base, model):
    """|difference| times the divergence KL(softmax(model) || softmax(base)) of the last axis it lies in."""

    def logarithms(values):
        top = values.max(axis=-1, keepdims=True)
        return values - top - np.log(np.exp(values - top).sum(axis=-1, keepdims=True))

    new, old = logarithms(np.atleast_1d(model)), logarithms(np.atleast_1d(base))
    return (np.abs(model - base) * (np.exp(new) * (new - old)).sum(axis=-1, keepdims=True)).reshape(model.shape)


def arcee_fusion(base, model):
    """The model's elements of an importance from median + 1.5 (third - first quartile) on; else the base's.

    Median and quartiles are the elements of rank floor(q (n - 1)), without interpolation.
    """
    scores = importances(base, model)
    ordered = np.sort(scores.ravel())
    first, median, third = (ordered[math.floor(q * (ordered.size - 1))] for q in (0.25, 0.5, 0.75))
    return np.where(scores >= median + 1.5 * (third - first), model, base)


def ram(base, models, epsilon=1e-5, r=0.0, alpha=0.0):
    """Updates of one model alone are taken, shared ones averaged: arXiv 2601.13572; over ``epsilon`` counts as updated.

    With ``r`` (RAM+, tensor by tensor) a model's own updates are scaled by 1 + r min(alpha, shared / own), with the
    numbers of its updated elements that others share and do not.
    """
    deltas = [model - base for model in models]
    masks = [np.abs(delta) > epsilon for delta in deltas]
    users = sum(mask.astype(int) for mask in masks)
    result = np.array(base)
    for delta, mask in zip(deltas, masks, strict=True):
        own, shared = mask & (users == 1), mask & (users > 1)
        scale = 1 + r * min(alpha, shared.sum() / own.sum()) if own.any() else 1.0
        result = result + np.where(own, scale * delta, 0.0) + np.where(shared, delta / np.maximum(users, 1), 0.0)
    return result
