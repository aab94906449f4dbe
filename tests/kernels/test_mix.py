"""mix: weighted sums rounded once, copies where nothing is to be computed, refusals by index."""

import jaxtyping
import numpy as np
import pytest
import torch
from tests.oracles import exact
from tests.oracles.data import FLOATS, fine_tunes, normal

from stockpot.kernels import BLOCK, NonFiniteInputError, OverflowedError, Row, mix

WEIGHTS = np.array([1 - 0.6180339887, 0.4142135624, 0.2038204263])


def run(views, weights, dtype=None, **options):
    """Mix into a fresh tensor filled with a value that no test expects."""
    out = torch.full((views[0].numel(),), 77.0, dtype=dtype or views[0].dtype)
    mix([Row.of(view) for view in views], np.asarray(weights), Row.of(out), **options)
    return out


def assert_rounded(out, weights, views):
    """Every element is the correctly rounded one."""
    assert exact.wrongly_rounded(out, weights, views) == []


@pytest.mark.parametrize("length", [0, 1, 2, 1001, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 13])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_set_of_weights(dtype, length):
    """out = sum_i weights_i w_i."""
    base, models = fine_tunes(2, length, seed=1, dtype=dtype, shared=0.1, own=0.1)
    views = [base, *models]
    out = run(views, WEIGHTS)
    if dtype == torch.float64:
        # Five roundings of terms of size up to ten.
        assert np.abs(exact.numbers(out) - exact.combination(WEIGHTS, views)).max(initial=0) <= 1e-14
    else:
        assert_rounded(out, WEIGHTS, views)


@pytest.mark.parametrize("columns", [1, 3, 64, 2049, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_weights_of_rows(dtype, columns):
    """Row by row, each with its own weights."""
    rows = 3 if columns > 1 else 3000
    base, models = fine_tunes(2, rows * columns, seed=2, dtype=dtype, shared=0.1, own=0.1)
    views = [base, *models]
    steps = normal(rows, 2, seed=3).numpy()
    weights = np.concatenate([1 - steps.sum(axis=1, keepdims=True), steps], axis=1)
    out = run(views, weights, columns=columns)
    for row in range(0, rows, max(1, rows // 3)):
        part = slice(row * columns, (row + 1) * columns)
        assert_rounded(out[part], weights[row], [view[part] for view in views])


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("in_dtype", FLOATS, ids=str)
def test_output_of_another_dtype(in_dtype, out_dtype):
    """The sum is rounded once, straight into the output's dtype."""
    base, models = fine_tunes(2, 30_000, seed=4, dtype=in_dtype, shared=0.1, own=0.1)
    assert_rounded(run([base, *models], WEIGHTS, dtype=out_dtype), WEIGHTS, [base, *models])


@pytest.mark.parametrize("columns", [0, 50, BLOCK + 1])
@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_hot_weights_copy_bytes(dtype, kept, columns):
    """Weight one for one input: its bytes, signed zeros and subnormals included."""
    tiny = torch.finfo(dtype).tiny / 8
    length = 2 * columns or 100
    views = [normal(length, seed=5 + i, dtype=dtype, scale=100.0**i) for i in range(3)]
    views[kept][:4] = torch.tensor([0.0, -0.0, tiny, -tiny], dtype=torch.float64).to(dtype)
    weights = np.eye(3)[kept] if not columns else np.tile(np.eye(3)[kept], (2, 1))
    assert exact.same_bits(run(views, weights, columns=columns), views[kept])


@pytest.mark.parametrize("columns", [0, 50, BLOCK + 1])
@pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (-1.5, 2.0, 0.5), (4.0, -1.75, -1.25), (1.5, -0.25, -0.25)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_elements_on_which_all_agree_keep_their_bits(dtype, weights, columns):
    """x in every input gives x, the sign of zero and subnormals included, though its neighbours differ."""
    finfo = torch.finfo(dtype)
    special = torch.tensor(
        [0.0, -0.0, finfo.tiny / 8, -finfo.tiny / 8, finfo.tiny, finfo.max, finfo.min, 1 / 3], dtype=torch.float64
    ).to(dtype)
    length = 2 * columns or 100
    views = [normal(length, seed=8 + i, dtype=dtype) for i in range(3)]
    for view in views:
        view[10:18] = special
        view[-8:] = special
    table = np.array(weights) if not columns else np.tile(weights, (2, 1))
    out = run(views, table, columns=columns)
    assert exact.same_bits(out[10:18], special)
    assert exact.same_bits(out[-8:], special)


@pytest.mark.parametrize("weights", [(0.0, 0.5, 0.5), (0.0, 0.75, 0.25), (0.2, 0.4, 0.4)])
def test_equal_inputs_copy_bytes(weights):
    """Inputs with a part in the sum that are bitwise equal: their bytes."""
    shared = normal(BLOCK + 100, seed=11, dtype=torch.bfloat16)
    shared[3] = -0.0
    views = [normal(BLOCK + 100, seed=12, dtype=torch.bfloat16, scale=1e6) if not weights[0] else shared.clone()]
    views += [shared.clone(), shared.clone()]
    assert exact.same_bits(run(views, weights), shared)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_weights_need_not_sum_to_one(dtype):
    """The sum is that of the weights as given: from 0 to 3."""
    base, models = fine_tunes(2, 1000, seed=13, dtype=dtype)
    for weights in (WEIGHTS * 0.537, WEIGHTS * 2.91, [0.5, 0.25, -0.75], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]):
        assert_rounded(run([base, *models], weights), weights, [base, *models])


def test_inputs_are_not_written_to():
    """The views are read only."""
    views = [normal(500, seed=14 + i, dtype=torch.float32) for i in range(3)]
    kept = [view.clone() for view in views]
    run(views, WEIGHTS)
    run(views, np.tile(WEIGHTS, (5, 1)), columns=100)
    assert all(exact.same_bits(view, copy) for view, copy in zip(views, kept, strict=True))


@pytest.mark.parametrize("weights", [WEIGHTS, [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], ids=str)
@pytest.mark.parametrize("source", [0, 1, 2])
@pytest.mark.parametrize("at", [9, BLOCK + 5])
@pytest.mark.parametrize("rows", [False, True])
def test_non_finite_input_is_named(at, source, weights, rows):
    """Input and first index, even where that input has no part in the sum."""
    views = [torch.full((2 * BLOCK,), 1.5 + i, dtype=torch.bfloat16) for i in range(3)]
    views[source][at] = float("inf")
    views[source][-1] = float("nan")
    table = np.tile(weights, (2 * BLOCK // 256, 1)) if rows else weights
    with pytest.raises(NonFiniteInputError) as caught:
        run(views, table, columns=256 if rows else 0)
    assert (caught.value.source, caught.value.index) == (source, at)


@pytest.mark.parametrize("at", [0, 123, BLOCK + 5])
def test_overflow_is_named(at):
    """A finite sum beyond float16 is refused with its index."""
    views = [torch.zeros(2 * BLOCK, dtype=torch.float16), torch.ones(2 * BLOCK, dtype=torch.float16)]
    views[1][at] = 60_000.0
    with pytest.raises(OverflowedError) as caught:
        run(views, [-1.0, 2.0])
    assert caught.value.index == at


def test_what_rounds_to_the_largest_is_no_overflow():
    """65,519.9 is 65,504 in float16; 65,520 is not."""
    views = [torch.zeros(4, dtype=torch.float32), torch.full((4,), 65_519.9, dtype=torch.float32)]
    assert run(views, [0.0, 1.0], dtype=torch.float16).tolist() == [65_504.0] * 4
    with pytest.raises(OverflowedError):
        run([views[0], torch.full((4,), 65_520.0)], [0.0, 1.0], dtype=torch.float16)


@pytest.mark.parametrize("rows", [False, True])
def test_non_finite_elements_pass_where_they_may(rows):
    """pass_nonfinite: NaN there and nowhere else."""
    views = [normal(1000, seed=23 + i, dtype=torch.float32) for i in range(3)]
    table = np.tile(WEIGHTS, (10, 1)) if rows else WEIGHTS
    options = {"columns": 100 if rows else 0}
    expected = run(views, table, **options)
    views[1][137] = float("nan")
    out = run(views, table, pass_nonfinite=True, **options)
    assert torch.isnan(out).nonzero().flatten().tolist() == [137]
    out[137] = expected[137]
    assert exact.same_bits(out, expected)


def test_shapes_are_checked_while_tests_run():
    """The annotation of the weights is no comment: float32 is refused."""
    rows = [Row.of(torch.ones(4)), Row.of(torch.ones(4))]
    with pytest.raises(jaxtyping.TypeCheckError):
        mix(rows, np.ones(2, dtype=np.float32), Row.of(torch.empty(4)))
