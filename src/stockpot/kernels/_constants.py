"""The constants of reduction, part of the results: changing one changes bits. native/native.c states them too."""

from __future__ import annotations

BLOCK = 1 << 16
"""Elements per block: the most that one sum runs over before it is added to others."""
CHUNK = 1 << 9
"""Elements of a block that are summed in ``SUMS`` running sums; the sums of chunks are added in pairs."""
SUMS = 16
BATCH = 32
"""Elements whose random numbers are drawn together."""

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""What is computed with; the position is the number that the native code knows."""
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
LARGEST = {
    "bfloat16": float.fromhex("0x1.fep+127"),
    "float16": 65504.0,
    "float32": float.fromhex("0x1.fffffep+127"),
    "float64": float.fromhex("0x1.fffffffffffffp+1023"),
}
