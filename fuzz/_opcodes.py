"""Mutations of pickles by whole opcodes, so that they stay programs."""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from random import Random

from tests.checkpoint._corpus import STORAGE, TENSOR

OPCODES: Sequence[bytes] = (
    *(op.code.encode("latin-1") for op in pickletools.opcodes if op.arg is None and op.name != "STOP"),
    *(
        b"I4\n",
        b"I-1\n",
        b"I0\n",
        b"K\x04",
        b"J\xff\xff\xff\x7f",
        b"L99999999999999999999L\n",
        b"G\x7f\xf8\0\0\0\0\0\0",
    ),
    *(b"S'w'\n", b"X\x01\0\0\0a", b"U\x010", b"\x8c\x05model", b"S'state_dict'\n", b"S'storage'\n", b"S'module.w'\n"),
    *(b"q\0", b"h\0", b"q\x01", b"h\x01", b"p5\n", b"g5\n", b"j\xff\xff\xff\x03", b"r\xff\xff\xff\x03", b"\x94"),
    *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"),
    *(b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nfloat16\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch\nSize\n", b"cargparse\nNamespace\n", b"cos\nsystem\n"),
    *(b"cbuiltins\nset\n", b"ctorch.nn.parameter\nParameter\n", b"ctorch.storage\nUntypedStorage\n"),
    *(
        b"\x8c\x05posix\x8c\x06system\x93",
        b"\x82\xf0",
        b"P0\n",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"B\4\0\0\0abcd",
    ),
    *(b"(", b"(", b")", b"R", b"R", b"Q", b"t", b"s", b"u", b"b", b"}", b"(d", TENSOR, TENSOR, STORAGE),
    *(b"(S'w'\n" + TENSOR + b"u", b"(dS'w'\n" + TENSOR + b"s", b"S'model'\n(dS'w'\n" + TENSOR + b"ss"),
)
"""Whole opcodes with their arguments, and runs of them."""


def split(program: bytes) -> list[bytes]:
    """A program's opcodes, each with its argument; ValueError where it is none."""
    starts = [place for _, _, place in pickletools.genops(program) if place is not None]
    return [program[begin:end] for begin, end in zip(starts, [*starts[1:], len(program)], strict=True)]


def mutate_program(program: bytes, random: Random, more: Sequence[bytes] = ()) -> bytes | None:
    """Opcodes put in, taken out, exchanged or repeated; None where it is no program."""
    try:
        parts = split(program)
    except Exception:  # pickletools raises whatever its arguments raise
        return None
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        place = random.randrange(len(parts)) if parts else 0
        chance = random.random()
        if chance < 0.35 or not parts:
            parts.insert(place, random.choice(more if more and chance < 0.15 else OPCODES))
        elif chance < 0.5:
            del parts[place]
        elif chance < 0.7:
            parts[place] = random.choice(OPCODES)
        elif chance < 0.85:
            parts.insert(random.randrange(len(parts) + 1), parts[place])
        elif chance < 0.95:
            end = min(len(parts), place + random.randrange(1, 12))
            there = random.randrange(len(parts) + 1)
            parts[there:there] = parts[place:end]
        else:
            other = random.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
    return b"".join(parts)
