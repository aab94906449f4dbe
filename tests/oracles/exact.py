"""Arithmetic that is exact, or wide enough to count as exact: what every oracle is made of.

Small tensors go through fractions. Large ones go through numpy's long double, block by block, with the blocks
added by math.fsum. Nothing here shares a line with stockpot.
"""

import math
from fractions import Fraction

import numpy as np
import torch

BLOCK = 1 << 20
PRECISION = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}
LEAST_EXPONENT = {torch.float16: -14, torch.bfloat16: -126, torch.float32: -126, torch.float64: -1022}
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def numbers(tensor):
    """The values of a tensor as a flat float64 array; exact for every floating dtype up to float64."""
    return tensor.detach().reshape(-1).to(torch.float64).numpy()


def fractions(tensor):
    """The values of a tensor as a flat list of fractions."""
    return [Fraction(value) for value in numbers(tensor).tolist()]


def wide(array):
    """An array in long double."""
    return np.asarray(array, dtype=np.longdouble)


def gram_of_fractions(base, models):
    """Inner products of (w0, d_1 .. d_N) as fractions, without any rounding."""
    anchor = fractions(base)
    vectors = [anchor] + [[a - b for a, b in zip(fractions(model), anchor, strict=True)] for model in models]
    return [[sum((p * q for p, q in zip(x, y, strict=True)), Fraction(0)) for y in vectors] for x in vectors]


def gram(base, models):
    """Inner products of (w0, d_1 .. d_N) as float64, summed wide and rounded at the end."""
    flat = [numbers(tensor) for tensor in (base, *models)]
    parts = {}
    for start in range(0, max(flat[0].size, 1), BLOCK):
        pieces = [wide(array[start : start + BLOCK]) for array in flat]
        vectors = [pieces[0]] + [piece - pieces[0] for piece in pieces[1:]]
        for i, x in enumerate(vectors):
            for j in range(i + 1):
                total = (x * vectors[j]).sum()
                parts.setdefault((i, j), []).extend((float(total), float(total - np.longdouble(float(total)))))
    out = np.empty((len(flat), len(flat)))
    for (i, j), values in parts.items():
        out[i, j] = out[j, i] = math.fsum(values)
    return out


def gram_of_groups(pairs):
    """The sum of the Gram matrices of several (base, models) pairs: the Gram matrix of the group."""
    matrices = [gram(base, models) for base, models in pairs]
    size = matrices[0].shape[0]
    return np.array([[math.fsum(matrix[i, j] for matrix in matrices) for j in range(size)] for i in range(size)])


def combination(weights, tensors):
    """sum_i weights_i tensors_i as a flat long double array."""
    total = np.zeros(tensors[0].numel(), dtype=np.longdouble)
    for weight, tensor in zip(weights, tensors, strict=True):
        total += np.longdouble(float(weight)) * wide(numbers(tensor))
    return total


def combination_of_fractions(weights, values):
    """sum_i weights_i values_i for one element, without any rounding; weights and values are float64 numbers."""
    return sum((Fraction(float(a)) * Fraction(float(x)) for a, x in zip(weights, values, strict=True)), Fraction(0))


def rounded(values, dtype):
    """A long double array rounded once to a dtype, ties to even; as float64, which holds every dtype here exactly."""
    values = wide(values)
    _, exponent = np.frexp(values)
    quantum = np.maximum(exponent - 1, LEAST_EXPONENT[dtype]) - (PRECISION[dtype] - 1)
    return np.ldexp(np.rint(np.ldexp(values, -quantum)), quantum).astype(np.float64)


def rounded_fraction(value, dtype):
    """A fraction rounded once to a dtype, ties to even; as a float, which holds every dtype here exactly."""
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, LEAST_EXPONENT[dtype]) - (PRECISION[dtype] - 1))
    return float(round(value / quantum) * quantum)


def wrongly_rounded(out, weights, tensors):
    """Indices at which ``out`` is not sum_i weights_i tensors_i rounded once, ties to even.

    Long doubles decide nearly all; where they say otherwise (the sum lies next to half-way), fractions do.
    """
    found = numbers(out)
    suspects = np.flatnonzero(found != rounded(combination(weights, tensors), out.dtype))
    columns = [numbers(tensor)[suspects] for tensor in tensors]
    return [
        int(at)
        for at, values in zip(suspects, zip(*columns, strict=True), strict=True)
        if found[at] != rounded_fraction(combination_of_fractions(weights, values), out.dtype)
    ]


def bits(tensor):
    """The bit patterns of a tensor, as flat integers of its width."""
    return tensor.detach().contiguous().reshape(-1).view(BITS[tensor.dtype])


def same_bits(one, two):
    """Whether two tensors agree in dtype, shape and every bit: the sign of zero and the payload of NaN included."""
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(bits(one), bits(two))


def steps(one, two):
    """How many representable values lie between two tensors of one dtype, element by element; neighbours are 1."""
    ranks = []
    for tensor in (one, two):
        pattern = bits(tensor).to(torch.int64)
        width = tensor.element_size() * 8
        magnitude = pattern & ((1 << (width - 1)) - 1)
        ranks.append(torch.where(pattern < 0, -magnitude, magnitude))
    return (ranks[0] - ranks[1]).abs()
