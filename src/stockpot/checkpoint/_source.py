"""The seam between the engine and what it reads from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from stockpot.checkpoint._files import FileIdentity, View
from stockpot.checkpoint._header import TensorInfo


class Source(Protocol):
    """Named tensors that can be read by range: files on disk, or a state dict in memory."""

    @property
    def ref(self) -> str:
        """What the user calls it."""

    @property
    def files(self) -> tuple[FileIdentity, ...]:
        """Its files; none in memory."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Places of the tensors, in order."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of the same bytes."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """``__metadata__`` of its files."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was unwrapped on the way."""

    @property
    def folder(self) -> Path | None:
        """Where its side files are."""

    @property
    def is_pickle(self) -> bool:
        """Whether it came from pickled files."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its ``config.json``."""

    def read_into(self, info: TensorInfo, start: int, out: memoryview) -> None:
        """Fill ``out`` with bytes of a tensor's range, from its byte ``start`` on."""

    def view(self, info: TensorInfo, start: int, size: int) -> View | None:
        """Bytes of a dense tensor where they are, without a copy; None where they must be read."""

    def close(self) -> None:
        """Close what is open; it is opened again where it is needed."""

    def drop_views(self, infos: Sequence[TensorInfo]) -> None:
        """What was viewed of these tensors is not needed for now, and need not stay in this process's memory."""
