"""Model Stock, written naively in float64 from the paper alone (arXiv 2403.19522); no line of stockpot is used.

gram is the matrix of inner products of the task vectors d_1 .. d_N, without the base; t the ratio; N the number of
fine-tunes.
"""

import itertools
import math

import numpy as np
from tests.oracles.exact import gram, numbers

SINGULAR = 1e-6
POLE = 1e-12


def cosine(matrix, i, j):
    """cos(d_i, d_j) = <d_i, d_j> / (|d_i| |d_j|); 0 where one of the two does not move."""
    if matrix[i][i] == 0 or matrix[j][j] == 0:
        return 0.0
    return float(matrix[i][j]) / (math.sqrt(matrix[i][i]) * math.sqrt(matrix[j][j]))


def mean_cosine(matrix):
    """The arithmetic mean of the cosines over all pairs i < j, at most 1."""
    pairs = list(itertools.combinations(range(len(matrix)), 2))
    return min(math.fsum(cosine(matrix, i, j) for i, j in pairs) / len(pairs), 1.0)


def ratio_of_cosine(c, n):
    """t = N c / (1 + (N - 1) c)."""
    return n * c / (1 + (n - 1) * c)


def ratio(matrix, negative="clamp"):
    """The ratio of a group; None where the rule refuses it."""
    c = mean_cosine(matrix)
    if c <= 0 and negative == "clamp":
        return 0.0
    if (c <= 0 and negative == "raise") or 1 + (len(matrix) - 1) * c <= POLE:
        return None
    return ratio_of_cosine(c, len(matrix))


def merge(base, models, negative="clamp"):
    """w_H = t m + (1 - t) w0 for one tensor, flat, in float64; m is the mean of the fine-tunes."""
    matrix = gram(base, models)[1:, 1:]
    t = ratio(matrix, negative) if matrix.any() else 0.0
    anchor, mean = numbers(base), sum(numbers(model) for model in models) / len(models)
    return t * mean + (1 - t) * anchor


def mean_inner_product(matrix):
    """s, the mean off-diagonal entry of the Gram matrix."""
    pairs = list(itertools.combinations(range(len(matrix)), 2))
    return math.fsum(float(matrix[i][j]) for i, j in pairs) / len(pairs)


def is_singular(matrix):
    """Whether the Gram matrix, scaled to unit diagonal, has an eigenvalue below 1e-6."""
    size = len(matrix)
    scaled = np.array([[1.0 if i == j else cosine(matrix, i, j) for j in range(size)] for i in range(size)])
    return bool(np.linalg.eigvalsh(scaled)[0] < SINGULAR)


def free_coefficients(matrix):
    """The solution a of G a = s 1, as it comes."""
    return np.linalg.solve(np.asarray(matrix, dtype=np.float64), np.full(len(matrix), mean_inner_product(matrix)))


def free_coefficients_of_two(matrix):
    """The closed form for N = 2: a1 = g12 (g22 - g12) / D, a2 = g12 (g11 - g12) / D, D = g11 g22 - g12^2."""
    (g11, g12), (_, g22) = matrix
    determinant = g11 * g22 - g12**2
    return np.array([g12 * (g22 - g12) / determinant, g12 * (g11 - g12) / determinant])


def nonnegative_coefficients(matrix):
    """The non-negative least-squares solution of G a = s 1, by trying every set of coefficients held at zero.

    Least squares as the words say: least |G a - s 1|. Zeros where s <= 0.
    """
    matrix, size = np.asarray(matrix, dtype=np.float64), len(matrix)
    s = mean_inner_product(matrix)
    best = np.zeros(size)
    if s <= 0:
        return best
    least = np.linalg.norm(np.full(size, s))
    for count in range(1, size + 1):
        for chosen in map(list, itertools.combinations(range(size), count)):
            part = np.linalg.lstsq(matrix[:, chosen], np.full(size, s), rcond=None)[0]
            rest = np.linalg.norm(matrix[:, chosen] @ part - s)
            if (part >= 0).all() and rest < least:
                best, least = np.zeros(size), rest
                best[chosen] = part
    return best
