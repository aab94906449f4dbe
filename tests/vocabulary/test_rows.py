"""Bytes of a rearranged tensor, read from anywhere in any pieces, are those of the rows one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stockpot.checkpoint import Source, open_checkpoint
from stockpot.vocabulary._rows import MEAN, ZERO, Rows
from stockpot.vocabulary._source import rearranged

WIDTH, OWN = 3, 5
BORROWED = (((1, 2),), ((1, 0), (2, 4)), ((2, 1),))
NAME = "embed_tokens.weight"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, list[Source]]:
    """Three small matrices in each dtype."""
    found: dict[torch.dtype, list[Source]] = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        found[dtype] = []
        for seed in range(3):
            file = Path(tmp_path_factory.mktemp("rows")) / "m.safetensors"
            matrix = torch.randn(OWN, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)
            save_file({NAME: matrix, "other": torch.arange(7.0)}, file)
            found[dtype].append(open_checkpoint(str(file)))
    return found


def matrix_of(source: Source) -> np.ndarray:
    """The matrix of a source as float64."""
    data = bytearray(source.tensors[NAME].nbytes)
    source.read_into(source.tensors[NAME], 0, memoryview(data))
    dtypes = {"BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
    values = torch.frombuffer(data, dtype=dtypes[source.tensors[NAME].dtype]).double()
    return values.reshape(-1, WIDTH).numpy()


def naive(index: list[int], matrices: list[np.ndarray]) -> np.ndarray:
    """The same row by row."""
    rows = np.full((len(index), WIDTH), np.nan)
    for place, code in enumerate(index):
        if code >= 0:
            rows[place] = matrices[0][code]
        elif code == ZERO:
            rows[place] = 0
        elif code != MEAN:
            rows[place] = np.mean([matrices[number][row] for number, row in BORROWED[-3 - code]], axis=0)
    empty = np.array(index) == MEAN
    rows[empty] = rows[~empty].mean(axis=0) if (~empty).any() else 0
    return rows


CODES = st.lists(st.integers(-3 - len(BORROWED) + 1, OWN - 1), min_size=1, max_size=12)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    index=CODES, dtypes=st.tuples(*[st.sampled_from((torch.bfloat16, torch.float32, torch.float64))] * 3), cut=st.data()
)
def test_any_rows_in_any_pieces(
    sources: dict[torch.dtype, list[Source]], index: list[int], dtypes: tuple[torch.dtype, ...], cut: st.DataObject
) -> None:
    """Own rows in runs or not, zeros, borrowed rows, means, in one dtype or several; at any byte."""
    inputs = [sources[dtype][number] for number, dtype in enumerate(dtypes)]
    rows = Rows(np.array(index, np.int64), BORROWED, OWN)
    shown = rearranged(inputs, 0, rows, {NAME: {n: one.tensors[NAME] for n, one in enumerate(inputs)}})
    info = shown.tensors[NAME]
    assert info.output_dtype == inputs[0].tensors[NAME].dtype
    whole = bytearray(info.nbytes)
    shown.read_into(info, 0, memoryview(whole))
    expected = naive(index, [matrix_of(one) for one in inputs])
    found = torch.frombuffer(whole, dtype={"BF16": torch.bfloat16, "F32": torch.float32}.get(info.dtype, torch.float64))
    assert np.allclose(found.double().numpy().reshape(-1, WIDTH), expected, rtol=1e-15, atol=1e-15)
    start = cut.draw(st.integers(0, len(whole)))
    stop = cut.draw(st.integers(start, len(whole)))
    part = bytearray(stop - start)
    shown.read_into(info, start, memoryview(part))
    assert part == whole[start:stop]
    assert shown.view(info, 0, 1) is None
    other = bytearray(28)
    shown.read_into(shown.tensors["other"], 0, memoryview(other))
    assert torch.frombuffer(other, dtype=torch.float32).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
