"""Pieces from several threads on their way into the sink."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import save_file

import stockpot
from stockpot.engine._budget import STAGE_BYTES
from stockpot.engine._execute import Cancelled
from stockpot.engine._output import Output
from stockpot.engine._plan import Plan
from stockpot.engine._records import Records
from stockpot.engine._sinks import NullSink

PIECE = 1000


class SlowSink(NullSink):
    """Keeps what comes, and notices two at once."""

    def __init__(self, size: int) -> None:
        self.found = bytearray(size)
        self.finished: list[str] = []
        self.inside = threading.Lock()

    def write(self, slot: object, offset: int, data: memoryview) -> None:
        assert self.inside.acquire(blocking=False), "two writers at once"
        self.found[offset : offset + len(data)] = data
        threading.Event().wait(0.0005)
        self.inside.release()

    def finish(self, slot: object, digest: str) -> None:
        self.finished.append(digest)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """One tensor of a hundred pieces."""
    for name in ("a", "b"):
        save_file({"w": torch.randn(100 * PIECE // 4)}, tmp_path / f"{name}.safetensors")
    models = [{"model": str(tmp_path / name)} for name in ("a.safetensors", "b.safetensors")]
    recipe = stockpot.Recipe.model_validate({"merge_method": "linear", "models": models})
    return stockpot.plan(recipe, out=tmp_path / "out", workers=2)


@pytest.mark.parametrize("seed", range(3))
def test_any_order_from_any_thread(plan: Plan, seed: int) -> None:
    """One writer at a time, every byte at its place, the digest of the bytes in order, memory used again."""
    content = random.Random(seed).randbytes(100 * PIECE)
    sink, records = SlowSink(len(content)), Records()

    def pause(turn: threading.Condition) -> None:
        turn.wait(0.05)

    output = Output(plan, sink, records, pause)
    places = list(range(100))
    random.Random(seed).shuffle(places)
    stages = set()

    def work(own: list[int]) -> None:
        for place in own:
            stage = output.stage()
            stages.add(id(stage))
            part = stage.data[:PIECE]
            part[:] = np.frombuffer(content, np.uint8, PIECE, place * PIECE)
            output.put((0,), place * PIECE, part.data, stage)

    threads = [threading.Thread(target=work, args=(places[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bytes(sink.found) == content
    assert sink.finished == [xxhash.xxh3_128(content).hexdigest()] == [records.digests["w"]]
    assert len(stages) <= 4


def test_nobody_waits_for_ever(plan: Plan) -> None:
    """A stopped run ends those who wait for memory."""

    def stopped(turn: threading.Condition) -> None:
        raise Cancelled

    output = Output(plan, NullSink(), Records(), stopped)
    held = [output.stage() for _ in range(4)]
    assert all(stage.data.size == STAGE_BYTES for stage in held)
    with pytest.raises(Cancelled):
        output.stage()
