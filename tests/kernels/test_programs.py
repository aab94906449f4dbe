"""The same bits from every program: C for each instruction set, and torch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.data import FLOATS, normal

from stockpot.kernels import BLOCK, Row, _native, _rows, _torch

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
