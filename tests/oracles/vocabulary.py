"""Rows of tokens by their definition, with dictionaries and float64 alone; no line of stockpot is used."""

import numpy as np


def rows(tables, token, base, stated=None, force=False):
    """The row of a token for each input.

    ``tables``: for each input, token -> row. An input that has the token keeps its row; where it lacks it, the stated
    row counts, else the base's, else the mean over those that have it. A forced one is everybody's.
    """
    having = [table[token] for table in tables if token in table]
    if stated is not None:
        default = stated
    elif base is not None and token in tables[base]:
        default = tables[base][token]
    else:
        default = np.mean(having, axis=0)
    return [default if force or token not in table else table[token] for table in tables]


def matrices(tables, ids, base, size, stated=None, forced=()):
    """The matrix of every input in the output's vocabulary; what no token has is the mean of all rows."""
    stated = stated or {}
    width = len(next(iter(tables[0].values())))
    found = [np.full((size, width), np.nan) for _ in tables]
    for token, number in ids.items():
        for matrix, row in zip(found, rows(tables, token, base, stated.get(token), token in forced), strict=True):
            matrix[number] = row
    for matrix in found:
        empty = np.isnan(matrix).any(axis=1)
        matrix[empty] = matrix[~empty].mean(axis=0)
    return found
