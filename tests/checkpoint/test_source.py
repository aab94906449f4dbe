"""Which part of a checkpoint a tensor belongs to."""

from __future__ import annotations

import pytest

from stockpot.checkpoint import Part, TensorInfo, by_part


def info(name: str) -> TensorInfo:
    """A tensor of that name."""
    return TensorInfo(name, "F32", (1,), 0, 0, 4)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("w", ""), ("/w", ""), ("unet.w", ""), ("unet/w", "unet"), ("unet/a/w", "unet"), ("unet/mid/w", "unet/mid"),
        ("unet/mid.w", "unet"), ("unet//w", "unet"), ("unets/w", ""), ("other/unet/w", ""),
    ],
)  # fmt: skip
def test_the_longest_prefix(name: str, folder: str) -> None:
    """A tensor belongs to the part whose folder is the longest beginning of its name, by whole folders."""
    parts = [Part(), Part("unet"), Part("unet/mid")]
    assert {part.folder: [one.name for one in own] for part, own in by_part([info(name)], parts)} == {
        part.folder: [name] * (part.folder == folder) for part in parts
    }


def test_each_part_and_tensor_is_looked_at_once() -> None:
    """The cost of many parts is the number of tensors, not their product: a part's prefix is asked for no tensor."""
    asked: list[str] = []

    class Watched(Part):
        @property
        def prefix(self) -> str:
            asked.append(self.folder)
            return super().prefix

    parts = [Watched(f"part{number}") for number in range(50)]
    infos = [info(f"part{number % 50}/{number}") for number in range(200)]
    assert [(part.folder, len(own)) for part, own in by_part(infos, parts)] == [(part.folder, 4) for part in parts]
    assert asked == []
