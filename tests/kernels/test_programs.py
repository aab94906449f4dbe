"""The same bits from every program: C for each instruction set, and torch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles import exact
from tests.oracles.data import FLOATS, normal

from stockpot.kernels import BLOCK, Row, _native, _rows, _torch, mix

ISAS = [0, 1, 2]
WEIGHTS = {
    "generic": lambda n: [0.2819660113, *[0.7180339887 / max(n - 1, 1)] * (n - 1)],
    "equal": lambda n: [1 / n] * n,
    "halves": lambda n: [0.5, *[0.5 / max(n - 1, 1)] * (n - 1)],
    "without the reference": lambda n: [0.0, *[1 / max(n - 1, 1)] * (n - 1)],
    "the reference alone": lambda n: [1.0, *[0.0] * (n - 1)],
    "beyond": lambda n: [-1.3, *[0.9] * (n - 1)],
}


@pytest.fixture
def best():
    """The best instruction set here; the others below it are asked for in its place."""
    if _native.library() is None:
        pytest.skip("the C program was not built")
    return _native.instruction_set()


@pytest.fixture(params=ISAS, ids=_native._ISAS)
def isa(request, best):
    """Each instruction set that this processor has."""
    if request.param > best:
        pytest.skip(f"this processor lacks {_native._ISAS[request.param]}")
    return request.param


def data(n, count, dtypes, scale, seed):
    """Inputs with zeros of both signs, few and many bits, and elements on which some agree."""
    base = normal(count, seed=seed, scale=scale)
    rows = []
    for i in range(n):
        own = base + normal(count, seed=seed + 1 + i, scale=0.1 * scale) * (i > 0)
        own[i::7] = base[i::7]
        own[::11] = 0.0
        own[i::13] = -0.0
        rows.append(own.to(dtypes[i % len(dtypes)]))
    return [Row.of(row) for row in rows]


def gram(program, monkeypatch, rows, span, raw, zero):
    """Inner products by a program: an instruction set, or None for torch."""
    if program is None:
        return _torch.gram(rows, span, raw, zero)
    monkeypatch.setattr(_native, "instruction_set", lambda: program)
    return _native.gram(rows, span, raw, zero)


def mixed(program, monkeypatch, rows, weights, span, dtype, passing):
    """(returned index, bytes) of a mix by a program."""
    table = np.tile(weights, (-(-len(rows[0]) // span), 1))
    totals = np.array([_rows._total(one, exact=dtype == torch.float64) for one in table.tolist()]).reshape(-1, 2)
    out = Row.of(torch.zeros(len(rows[0]), dtype=dtype))
    if program is None:
        return _torch.mix(rows, table, totals, span, out, passing), out.data.tobytes()
    monkeypatch.setattr(_native, "instruction_set", lambda: program)
    return _native.mix(rows, table, totals, span, out, passing), out.data.tobytes()


DTYPES = [*[(dtype,) for dtype in FLOATS], (torch.bfloat16, torch.float32), (torch.float16, torch.float64)]
SHAPES = [(1, 100, 100), (2, 5, 5), (3, 1000, 9), (4, 5000, 1000), (3, BLOCK + 700, BLOCK), (9, 700, 700)]


@pytest.mark.parametrize(("n", "count", "span"), SHAPES)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_inner_products(monkeypatch, best, n, count, span, dtypes):
    """Bit for bit, however the elements fall into spans."""
    for scale in (1.0, 1e-38, 1e4)[: 1 if count > BLOCK else 3]:
        rows = data(n, count, dtypes, scale, seed=n)
        for raw in (False, True):
            for zero in (False, True):
                expected = gram(None, monkeypatch, rows, span, raw, zero)
                for isa in ISAS[: best + 1]:
                    assert np.array_equal(gram(isa, monkeypatch, rows, span, raw, zero), expected), (isa, scale)


@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize(("n", "count", "span"), SHAPES)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_combinations(monkeypatch, best, n, count, span, dtypes, out):
    """Bit for bit, for every kind of coefficients and every dtype of the output."""
    few = count > BLOCK
    for scale in (1.0, 1e-38)[: 1 if few else 2]:
        rows = data(n, count, dtypes, scale, seed=n)
        for name, make in list(WEIGHTS.items())[: 2 if few else None]:
            expected = mixed(None, monkeypatch, rows, make(n), span, out, False)
            for isa in ISAS[: best + 1]:
                assert mixed(isa, monkeypatch, rows, make(n), span, out, False) == expected, (isa, name, scale)


NEAR_HALF_WAY = {
    "a small third": lambda power: (0.5, 0.5, 2.0**-power),
    "alone": lambda power: (0.5 + 2.0**-power,),
    "long weights": lambda power: (0.5 + 2.0**-power, 0.5 - 2.0**-power, 0.25),
    "thirds": lambda power: (1 / 3, 1 / 3, 1 / 3),
    "tenths": lambda power: (0.3, 0.7, 2.0**-power),
    "apart": lambda power: (2.0**power, -(2.0**power), 0.5, 0.5),
    "all but cancelling": lambda power: (0.5, 0.5, 2.0 ** (power % 5), -(2.0 ** (power % 5))),
    "nothing": lambda power: (0.0, -0.0, 0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NEAR_HALF_WAY)
def test_next_to_half_way(monkeypatch, isa, name, dtype):
    """What decides the rounding may lie a hundred bits below the sum: each element is that of fractions.

    Inputs of few bits, so that most sums are ties or next to one; some zeros, some far below the others.
    """
    drawn = np.random.default_rng(7)
    count = 64 * 8 + 37  # vectors of every width, and a rest
    first = exact.PRECISION[dtype] - 1
    for power in (1, 3, 8, 12, 14, 26, 28, 30, 40, 60) if dtype != torch.float16 else (1, 3, 8, 12):
        weights = NEAR_HALF_WAY[name](power)
        whole = drawn.integers(2**first, 2**first + 16, size=(len(weights), count)) * drawn.choice([1, -1], size=count)
        far = np.ldexp(whole, -drawn.choice([0, 0, 0, 1, 6, 9, 12, 14, 15, 16, 28, 40], size=whole.shape) - first)
        far[drawn.random(far.shape) < 0.01] = 0.0
        far[:, :64] = np.ldexp(whole[:, :64], -first)  # a whole group where nothing stands out
        halves = [2.0 ** (-30 * (np.arange(count) // width % 2 == by)) for width in (4, 8) for by in (0, 1)]
        small = [2.0**-125, 2.0**-140] if dtype != torch.float16 else [2.0**-12, 2.0**-20]
        for scale in (1.0, *small, *(halves if power % 2 == 0 else [])):
            inputs = [torch.tensor(row * scale, dtype=dtype) for row in far]
            rows = [Row.of(tensor) for tensor in inputs]
            at, found = mixed(isa, monkeypatch, rows, weights, count, dtype, False)
            columns = zip(*(tensor.tolist() for tensor in inputs), strict=True)
            expected = [exact.rounded_fraction(exact.combination_of_fractions(weights, one), dtype) for one in columns]
            values = torch.frombuffer(bytearray(found), dtype=dtype).tolist()
            assert (at, values) == (-1, expected), (power, scale)
            assert mixed(None, monkeypatch, rows, weights, count, dtype, False) == (at, found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_last_bits_of_small_terms_count(monkeypatch, isa, dtype):
    """Ties, but for two far smaller terms that cancel all but their last bits: by any distance."""
    step, weights = 2.0 ** (1 - exact.PRECISION[dtype]), (0.5, 0.5, 0.5, -0.5)
    first = 1 + 2 * step * torch.arange(60, dtype=torch.float64)
    for power in range(24):
        for sign in (1, -1):
            far = 2.0**-power * torch.ones(60, dtype=torch.float64)
            inputs = [tensor.to(dtype) for tensor in (first, first + step, far * (1 + max(sign, 0) * step))]
            inputs.append((far * (1 + max(-sign, 0) * step)).to(dtype))
            rows = [Row.of(tensor) for tensor in inputs]
            found = mixed(isa, monkeypatch, rows, weights, 60, dtype, False)[1]
            columns = zip(*(tensor.tolist() for tensor in inputs), strict=True)
            expected = [exact.rounded_fraction(exact.combination_of_fractions(weights, one), dtype) for one in columns]
            assert torch.frombuffer(bytearray(found), dtype=dtype).tolist() == expected, (power, sign)


@pytest.mark.parametrize("tilt", [-1, 0, 1])
def test_floats_all_but_half_way(monkeypatch, isa, tilt):
    """Weights whose long tails cancel but for their last bit, 2^-76 of the sum; and sums that cancel altogether."""
    tail = round(2**33 * 0.3712) * 2.0**-53
    steep = 3 * tail + tilt * 2.0**-53
    weights = (0.25 + steep, 0.25 + tail, 0.25 - steep - tail, 0.25)
    drawn = np.random.default_rng(3)
    for scale in (1.0, 2.0**-101, 2.0**-126):
        first = drawn.integers(2**23 + 8, 2**24 - 8, size=549)
        ties = [torch.tensor((first + by) * 2.0**-23 * scale, dtype=torch.float32) for by in (1, -3, 0, 0)]
        one = torch.tensor(first * 2.0**-23 * scale, dtype=torch.float32)
        for inputs, used in ((ties, weights), ([one] * 4, (0.25 + steep, 0.25 + tail, -(0.5 + steep + tail), 0.0))):
            rows = [Row.of(tensor) for tensor in inputs]
            at, found = mixed(isa, monkeypatch, rows, used, 549, torch.float32, False)
            columns = zip(*(tensor.tolist() for tensor in inputs), strict=True)
            expected = [
                exact.rounded_fraction(exact.combination_of_fractions(used, column), torch.float32)
                for column in columns
            ]
            assert (at, np.frombuffer(found, np.float32).tolist()) == (-1, expected), scale


def test_floats_at_the_edge(monkeypatch, isa):
    """The largest floats, Inf and NaN at any place: found where they are, and only they."""
    largest = torch.finfo(torch.float32).max
    for at in (0, 63, 64, 200, 512, 548):
        for value, refused in ((largest, -1), (float("inf"), at), (float("nan"), at)):
            inputs = [torch.full((549,), 1.5 + number) for number in range(3)]
            inputs[1][at] = value
            rows = [Row.of(tensor) for tensor in inputs]
            for weights in ((0.25, 0.5, 0.25), (1 / 3, 1 / 3, 1 / 3), (0.5, 0.0, 0.5)):
                found = mixed(isa, monkeypatch, rows, weights, 549, torch.float32, False)
                assert found[0] == refused
                assert refused >= 0 or found == mixed(None, monkeypatch, rows, weights, 549, torch.float32, False)
            for row in inputs:
                row[at] = value
            rows = [Row.of(tensor) for tensor in inputs]
            assert mixed(isa, monkeypatch, rows, (0.25, 0.5, 0.25), 549, torch.float32, False)[0] == refused
            too_much = mixed(isa, monkeypatch, rows, (0.5, 2.0, 0.5), 549, torch.float32, False)
            assert too_much[0] == at


@pytest.mark.parametrize("columns", [549 * 64, 64, 549, 61])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.5, 0.5), (1 / 3, 2 / 3), (0.3, 0.6)])
def test_past_the_caches(monkeypatch, isa, weights, columns):
    """An output that is not read again soon: the same bytes, at any place, for rows of any length, and no others."""
    count = 549 * 64
    for dtype in (torch.float32, torch.bfloat16):
        rows = data(2, count, [dtype], 1.0, seed=9)
        expected = mixed(None, monkeypatch, rows, weights, columns, dtype, False)[1]
        monkeypatch.setattr(_native, "instruction_set", lambda: isa)
        for shift in (0, 1, 8):
            memory = torch.full((count + 64,), 7.0, dtype=dtype)
            first = -memory.data_ptr() % 64 // memory.itemsize + shift
            out = Row.of(memory[first : first + count])
            out.far = True
            mix(rows, np.tile(weights, (count // columns, 1)), out, columns=columns)
            assert out.data.tobytes() == expected
            assert bool((memory[:first] == 7.0).all() and (memory[first + count :] == 7.0).all())


any_bits = st.integers(0, 2**16 - 1)
# Below 1e-30 products leave the range of normal doubles, where the two ways to their rounding errors part.
any_weight = st.floats(-2, 2).map(lambda weight: weight if abs(weight) > 1e-30 else 0.0)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    values=st.lists(st.tuples(any_bits, any_bits, any_bits), min_size=1, max_size=40),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    out=st.sampled_from(FLOATS),
    weights=st.tuples(any_weight, any_weight, st.sampled_from([0.0, 0.25, 1.0, 1 / 3])),
    passing=st.booleans(),
)
def test_any_bit_patterns(values, dtype, out, weights, passing):
    """Any 16-bit patterns, NaN and Inf among them: the same elements and the same refusals."""
    if _native.library() is None:
        pytest.skip("the C program was not built")
    columns = np.array(values, dtype=np.uint16).T
    rows = [Row.of(torch.from_numpy(column.copy().view(np.int16)).view(dtype)) for column in columns]
    with pytest.MonkeyPatch.context() as patch:
        best = _native.instruction_set()
        count = len(values)
        at, expected = mixed(None, patch, rows, weights, count, out, passing)
        whole = len(expected) // count * (count if at < 0 else at)
        for isa in ISAS[: best + 1]:
            found = mixed(isa, patch, rows, weights, count, out, passing)
            assert (found[0], found[1][:whole]) == (at, expected[:whole]), isa


@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("pattern", [0x7FFC, 0x7FFF, -1, 0x7E00])
def test_nan_of_every_payload_stays_nan(monkeypatch, best, pattern, out):
    """A reference without a part that is NaN, whatever its lower bits: the plain sum of the others, no zero."""
    column = [torch.full((40,), value, dtype=torch.int16).view(torch.float16) for value in (pattern, 0x3C00, 0x4200)]
    rows = [Row.of(tensor) for tensor in column]
    at, expected = mixed(None, monkeypatch, rows, (0.0, 0.5, 0.5), 40, out, True)
    assert (at, expected) == (-1, torch.full((40,), 2.0, dtype=out).view(torch.uint8).numpy().tobytes())
    for isa in ISAS[: best + 1]:
        assert mixed(isa, monkeypatch, rows, (0.0, 0.5, 0.5), 40, out, True) == (at, expected), isa


def test_the_switch():
    """STOCKPOT_NATIVE=0 leaves the C program out; the name of an instruction set takes that one."""
    code = "from stockpot.kernels import _native as n; print(n.library() is None or n.instruction_set())"
    for value, printed in (("0", "True"), ("any", "0")):
        run = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "STOCKPOT_NATIVE": value}, capture_output=True, text=True
        )
        assert run.stdout.strip() == printed or _native.library() is None, run.stderr
