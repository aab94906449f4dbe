"""A GPU computes the bits that the CPU computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.oracles.data import FLOATS, fine_tunes, merge_one

import stockpot
from stockpot.kernels import BLOCK, Row, gram_blocks, gram_rows, mix

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
WEIGHTS = np.array([1 - 0.6180339887, 0.4142135624, 0.2038204263])


def both(dtype, length=2 * BLOCK + 77):
    """The same rows in memory and on the device."""
    base, models = fine_tunes(2, length, seed=3, dtype=dtype, shared=0.1, own=0.1)
    return [[Row.of(one.to(device)) for one in (base, *models)] for device in ("cpu", "cuda")]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_inner_products(dtype):
    """Of blocks and of rows."""
    here, there = both(dtype)
    assert np.array_equal(gram_blocks(here), gram_blocks(there))
    assert np.array_equal(gram_rows(here, 1001), gram_rows(there, 1001))


@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_combinations(dtype, out):
    """Into every dtype."""
    here, there = both(dtype)
    results = [torch.empty(len(here[0]), dtype=out, device=device) for device in ("cpu", "cuda")]
    for rows, result in zip((here, there), results, strict=True):
        mix(rows, WEIGHTS, Row.of(result))
    assert torch.equal(results[0], results[1].cpu())


@pytest.mark.parametrize("granularity", ["tensor", "row", "model"])
def test_a_merge(granularity):
    """``device="cuda"`` gives the bytes of ``device="cpu"``."""
    base, models = fine_tunes(3, 300, 1000, seed=5, dtype=torch.bfloat16, shared=0.1, own=0.1)
    merged = [merge_one("model_stock", base, models, granularity=granularity, device=d) for d in ("cpu", "cuda")]
    assert torch.equal(*merged)


@pytest.mark.parametrize(("device", "workers"), [("cuda", 1), ("cuda", 3), ("cuda:0", 2)])
def test_files(device: str, workers: int, tmp_path: Path) -> None:
    """Pinned memory, streams and several workers: the bytes of the CPU's output file."""
    base, models = fine_tunes(3, 700, 1000, seed=5, dtype=torch.bfloat16, shared=0.1, own=0.1)
    for name, value in zip(("base", "a", "b", "c"), (base, *models), strict=True):
        save_file({f"t{n}": value + n for n in range(9)}, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("a", "b", "c")]
    made = []
    for place in ("cpu", device):
        out = tmp_path / f"{place[:4]}.out" / "merged"
        stockpot.merge(
            "model_stock", base=tmp_path / "base.safetensors", models=paths, out=out, device=place, workers=workers
        )
        made.append((out / "model.safetensors").read_bytes())
    assert made[0] == made[1]
