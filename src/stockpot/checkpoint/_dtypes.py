"""The dtypes of the safetensors format: one table; everything else is derived from it. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence

BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits per element of every dtype of the format."""

TORCH_NAMES: dict[str, str] = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
"""torch's name (without ``torch.``) of each dtype that torch can hold."""

CODES: dict[str, str] = {name: code for code, name in TORCH_NAMES.items()}

MERGEABLE: tuple[str, ...] = ("BF16", "F16", "F32", "F64")
"""The floating dtypes that methods compute on, narrowest first; all others are copied."""

MAX_ELEMENTS = 1 << 62


def is_mergeable(dtype: str) -> bool:
    """Whether methods compute on this dtype (FP8, packed, integer, bool and complex are only ever copied)."""
    return dtype in MERGEABLE


def widest(dtypes: Sequence[str]) -> str:
    """The widest of some mergeable dtypes; BF16 and F16 together need F32."""
    found = set(dtypes)
    if {"BF16", "F16"} <= found and not found & {"F32", "F64"}:
        return "F32"
    return max(found, key=MERGEABLE.index)


def count(shape: Sequence[int]) -> int:
    """Elements of a shape; 1 for 0-d."""
    return math.prod(shape)


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a dense tensor; sub-byte dtypes must fill whole bytes (ValueError otherwise)."""
    bits = BITS[dtype] * count(shape)
    if bits % 8:
        raise ValueError(f"{dtype} of shape {tuple(shape)} does not fill whole bytes")
    return bits // 8


def itemsize(dtype: str) -> int:
    """Bytes per element of a dtype of at least 8 bits."""
    return BITS[dtype] // 8
