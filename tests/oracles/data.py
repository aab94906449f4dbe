"""Seeded tensors that tests share, and a merge to disk that hands back what was recorded."""

import functools
import json
import math

import numpy as np
import safetensors.torch
import torch

import stockpot

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def normal(*shape, seed, dtype=torch.float64, scale=1.0):
    """Standard normal numbers times scale, drawn in float64 and rounded to the dtype."""
    return (_drawn(shape, seed) * scale).to(dtype)


@functools.lru_cache(maxsize=24)
def _drawn(shape, seed):
    """The numbers themselves; read only, and kept since drawing costs more than what is done with them."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fine_tunes(count, *shape, seed, dtype=torch.float64, shared=1.0, own=1.0, around=1.0):
    """(base, models): the models are the base plus one shared step plus a step of their own, rounded to the dtype."""
    base = normal(*shape, seed=seed, dtype=dtype, scale=around)
    centre = base.double() + normal(*shape, seed=seed + 1, scale=shared)
    return base, [(centre + normal(*shape, seed=seed + 2 + i, scale=own)).to(dtype) for i in range(count)]


def gram_of_cosines(cosines, lengths=None):
    """The Gram matrix of task vectors with these pairwise cosines (pairs 01, 02, .., 12, ..) and lengths."""
    size = (1 + math.isqrt(1 + 8 * len(cosines))) // 2
    matrix = np.eye(size)
    rows, columns = np.triu_indices(size, k=1)
    matrix[rows, columns] = matrix[columns, rows] = cosines
    lengths = np.ones(size) if lengths is None else np.asarray(lengths, dtype=np.float64)
    return matrix * lengths[:, None] * lengths[None, :]


def with_anchor(matrix, square=0.0):
    """A Gram matrix over (w0, d_1 .. d_N) from one over the task vectors; the anchor's products with them are zero."""
    size = len(matrix)
    full = np.zeros((size + 1, size + 1))
    full[0, 0] = square
    full[1:, 1:] = matrix
    return full


def vectors_of_gram(matrix, dimension, seed):
    """Vectors of that dimension with that Gram matrix: Cholesky rows in a random orthonormal frame."""
    frame, _ = np.linalg.qr(normal(dimension, len(matrix), seed=seed).numpy())
    return np.linalg.cholesky(matrix) @ frame.T


def merge_one(method, base, models, **options):
    """Merge single tensors in memory."""
    maps = [{"weight": model} for model in models]
    return stockpot.merge_state_dicts(method, base=None if base is None else {"weight": base}, models=maps, **options)[
        "weight"
    ]


def merge_to_disk(folder, method, base, models, **options):
    """Merge maps of tensors through files; (tensors of the output, its stockpot.json, MergeResult)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, tensors in enumerate(([] if base is None else [base]) + list(models)):
        paths.append(folder / f"input{number}.safetensors")
        safetensors.torch.save_file({name: tensor.clone() for name, tensor in tensors.items()}, paths[-1])
    result = stockpot.merge(
        method,
        base=None if base is None else paths[0],
        models=paths if base is None else paths[1:],
        out=folder / "out",
        **options,
    )
    record = json.loads((folder / "out" / "stockpot.json").read_text())
    tensors = {}
    for path in sorted((folder / "out").glob("*.safetensors")):
        if path.name != "stockpot_geometry.safetensors":
            tensors.update(safetensors.torch.load_file(path))
    return tensors, record, result
