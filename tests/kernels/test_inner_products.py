"""gram_blocks and gram_rows against exactly summed inner products."""

import numpy as np
import pytest
import torch
from tests.oracles import exact
from tests.oracles.data import FLOATS, HALVES, fine_tunes, normal

from stockpot.kernels import BLOCK, NonFiniteInputError, Row, gram_blocks, gram_rows

LENGTHS = [1, 2, 7, 2047, 2048, 2049, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 5, 3 * BLOCK]


def tolerance(views):
    """Of inner products, relative to the product of lengths: the law allows 1e-11, and 1e-6 for narrow inputs."""
    return 1e-7 if all(view.dtype in HALVES for view in views) else 1e-13


def rows_of(views):
    """Tensors as the kernels take them."""
    return [Row.of(view) for view in views]


def assert_close(gram, base, models, views):
    """Inner products agree with the oracle relative to the product of the lengths."""
    expected = exact.gram(base, models)
    lengths = np.sqrt(np.diagonal(expected))
    assert (np.abs(gram - expected) <= tolerance(views) * lengths[:, None] * lengths[None, :]).all()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_blocks_follow_the_oracle(dtype, length):
    """One matrix for each block of 65,536 elements, the last one shorter, of (w0, d_1, d_2)."""
    base, models = fine_tunes(2, length, seed=1, dtype=dtype, shared=0.1, own=0.1)
    views = [base, *models]
    grams = gram_blocks(rows_of(views))
    assert grams.dtype == np.float64
    assert grams.shape == (-(-length // BLOCK), 3, 3)
    for number, gram in enumerate(grams):
        part = slice(number * BLOCK, (number + 1) * BLOCK)
        assert_close(gram, base[part], [model[part] for model in models], views)
        assert np.array_equal(gram, gram.T)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_any_number_of_models(n):
    """The reference alone, one model, and many."""
    base, models = fine_tunes(n, 3000, seed=2)
    views = [base, *models]
    assert_close(gram_blocks(rows_of(views))[0], base, models, views)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.float16, torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32, torch.bfloat16),
    ],
    ids=lambda d: "-".join(str(x).removeprefix("torch.") for x in d),
)
def test_mixed_dtypes(dtypes):
    """Each input is taken at its own dtype, without rounding to another's."""
    base, models = fine_tunes(2, BLOCK + 100, seed=3, shared=0.3, own=0.3)
    views = [tensor.to(dtype) for tensor, dtype in zip((base, *models), dtypes, strict=True)]
    gram = gram_blocks(rows_of(views)).sum(axis=0)
    assert_close(gram, views[0], views[1:], views)


def test_empty_tensors_have_zero_inner_products():
    """Nothing sums to nothing."""
    views = [torch.empty(0)] * 3
    assert not gram_blocks(rows_of(views)).sum(axis=0).any()
    assert gram_rows(rows_of(views), 4).shape == (0, 3, 3)


@pytest.mark.parametrize("columns", [1, 3, 64, 2047, 2048, 2049, 40_000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_are_blocks_of_each_row(dtype, columns):
    """gram_rows gives for each row what gram_blocks gives for that row alone, to the law's tolerance."""
    rows = 5 if columns > 1 else 2000
    base, models = fine_tunes(2, rows * columns, seed=6, dtype=dtype, shared=0.2, own=0.2)
    views = [base, *models]
    found = gram_rows(rows_of(views), columns)
    assert found.shape == (rows, 3, 3)
    for row in range(0, rows, max(1, rows // 5)):
        parts = [view[row * columns : (row + 1) * columns] for view in views]
        assert_close(found[row], parts[0], parts[1:], views)
        alone = gram_blocks(rows_of(parts)).sum(axis=0)
        lengths = np.sqrt(np.diagonal(alone))
        assert (np.abs(found[row] - alone) <= tolerance(views) * lengths[:, None] * lengths[None, :]).all()


@pytest.mark.parametrize("scale", [2.0**-133, 2.0**-83, 2.0**-40, 2.0**40, 2.0**63, 2.0**120])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("by", ["block", "row"])
def test_tiny_and_huge_values_keep_their_digits(dtype, scale, by):
    """Squares beyond float32 neither vanish nor overflow."""
    base, models = fine_tunes(2, 500, seed=7, shared=1.0, own=1.0)
    views = [(tensor * scale).to(dtype) for tensor in (base, *models)]
    if by == "block":
        gram = gram_blocks(rows_of(views))[0]
    else:
        gram = gram_rows(rows_of(views), 500)[0]
    assert gram.any()
    assert_close(gram, views[0], views[1:], views)


@pytest.mark.parametrize("by", ["block", "row"])
def test_a_tiny_step_beside_a_large_base(by):
    """Differences of 1e-18 beside values of one keep their digits, block by block and row by row."""
    base = torch.zeros(400, dtype=torch.bfloat16)
    base[:200] = normal(200, seed=8, dtype=torch.bfloat16)
    models = [base.clone(), base.clone()]
    for i, model in enumerate(models):
        model[200:] = (normal(200, seed=9 + i) * 1e-25).bfloat16()
    views = [base, *models]
    gram = (gram_blocks(rows_of(views)) if by == "block" else gram_rows(rows_of(views), 400))[0]
    assert_close(gram, base, models, views)


@pytest.mark.parametrize("by", ["block", "row"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("source", [0, 1, 2])
@pytest.mark.parametrize("at", [5, BLOCK - 1, BLOCK])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_non_finite_input_is_named(dtype, at, source, value, by):
    """The refusal holds the input and the first index."""
    views = [torch.full((2 * BLOCK,), 1.5 + i, dtype=dtype) for i in range(3)]
    views[source][at] = value
    views[source][-1] = float("nan")
    with pytest.raises(NonFiniteInputError) as caught:
        gram_blocks(rows_of(views)) if by == "block" else gram_rows(rows_of(views), 64)
    assert (caught.value.source, caught.value.index) == (source, at)


@pytest.mark.parametrize("by", ["block", "row"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_allowed_non_finite_elements_count_as_zero(dtype, by):
    """Under allow_nonfinite a non-finite difference adds nothing to any inner product."""
    base, models = fine_tunes(2, 900, seed=12, dtype=dtype)
    bad = [base.clone(), models[0].clone(), models[1].clone()]
    bad[1][7], bad[1][13], bad[2][13] = float("nan"), float("inf"), -float("inf")
    good = [base, models[0].clone(), models[1].clone()]
    for source, at in ((1, 7), (1, 13), (2, 13)):
        good[source][at] = base[at]
    if by == "block":
        gram = gram_blocks(rows_of(bad), allow_nonfinite=True)[0]
    else:
        gram = gram_rows(rows_of(bad), 900, allow_nonfinite=True)[0]
    assert_close(gram, good[0], good[1:], good)
