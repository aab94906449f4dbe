"""Trimmed sums: every program gives the same bits, and random numbers are those of the published generator."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tests.kernels.test_selection import row_of

from stockpot.kernels import Cut, OverflowedError, Part, Row, Sum, _native, random_key, trim
from stockpot.kernels._plain_trim import random_words

SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
SUMS = (Sum(True, True), Sum(True, False, 0.7), Sum(False, True), Sum(False, False, 1.3))


def parts_of(kind: str, count: int) -> list[Part]:
    """Three parts."""
    if kind == "by magnitude":
        return [
            Part(0.3, low=Cut(2.0**-10, 3_600)),
            Part(0.5, scale=1.7, low=Cut(2.0**-11, 0), high=Cut(2.0**-9, 4_000)),
            Part(-0.2),
        ]
    chances = np.random.default_rng(9).uniform(0.1, 0.9, count)
    return [
        Part(1.0, scale=2.0, chance=0.5, key=(1, 2)),
        Part(1.0, chances=chances, inverse=True, key=(3, 4)),
        Part(0.7, scale=10.0, chance=0.1, key=(9, 9)),
    ]


def results() -> bytes:
    """Of all cases, one after the other."""
    found = []
    for count in (1, 17, 512, 3_001):
        generator = np.random.default_rng(count)
        base = generator.normal(0, 0.02, count)
        noise = [np.round(generator.normal(0, 4, count)) * 2.0**-11 for _ in range(3)]
        for dtype in SIZES:
            rows = [row_of(base, dtype), *(row_of(base + one, dtype) for one in noise)]
            for kind in ("by magnitude", "at random"):
                for total in SUMS:
                    for out_dtype in SIZES:
                        out = Row(out_dtype, np.zeros(count * SIZES[out_dtype], dtype=np.uint8))
                        trim(rows, 512 * 7, parts_of(kind, count), total, out)
                        found.append(out.data.tobytes())
    return b"".join(found)


@pytest.mark.parametrize("program", ["0", "any", "avx2", "avx512"])
def test_every_program_gives_the_same_bits(program: str) -> None:
    """numpy, and C for every instruction set; a process each, since the choice is made once."""
    if _native.library() is None:
        pytest.skip("no C program was built")
    code = "import hashlib; from tests.kernels.test_trim import results; print(hashlib.sha256(results()).hexdigest())"
    digests = set()
    for one in (program, ""):
        env = {"STOCKPOT_NATIVE": one, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join([".", *sys.path])}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        digests.add(run.stdout)
    assert len(digests) == 1


def test_the_generator_is_the_published_one() -> None:
    """Known answers of Philox 4x32-10 for a counter and a key of zeros (Salmon et al., 2011)."""
    words = [int(random_words(8 * number, 1, (0, 0))[0]) for number in range(4)]
    assert [f"{word:08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_keys_differ_by_seed_name_and_model() -> None:
    """No two of them share their numbers."""
    keys = {random_key(seed, name, number) for seed in (0, 1) for name in ("a", "b") for number in (0, 1)}
    assert len(keys) == 8


def test_what_does_not_fit_is_told_with_its_place() -> None:
    """A finite result that the output cannot hold."""
    rows = [row_of(np.zeros(40), "float32"), row_of(np.where(np.arange(40) == 35, 1e5, 1.0), "float32")]
    with pytest.raises(OverflowedError) as raised:
        trim(rows, 0, [Part(1.0)], Sum(False, False), Row("float16", np.zeros(80, dtype=np.uint8)))
    assert raised.value.index == 35
