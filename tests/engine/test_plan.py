"""A plan is data: passes, bytes, groups, layout, memory and identity, all decided before a weight is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import stockpot
from stockpot import errors
from stockpot.measure import GRANULARITIES

from ._checkpoints import SMALL, buffers, folder, tensors

MIB = 1 << 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three fine-tunes of every kind of tensor, in two shards."""
    root = tmp_path_factory.mktemp("inputs")
    big = {"encoder.layer.2.big.weight": ((1500, 2000), torch.float32)}
    return [folder(root / f"m{n}", {**tensors(big, n), **buffers(n)}, tensors(SMALL, n)) for n in range(4)]


def recipe(inputs: list[Path], method: str = "model_stock", **more: Any) -> stockpot.Recipe:
    """A recipe over these inputs, the first of them the base."""
    return stockpot.Recipe.from_data(
        {
            "merge_method": method,
            "base_model": str(inputs[0]),
            "models": [{"model": str(path)} for path in inputs[1:]],
            **more,
        }
    )


def total_bytes(paths: list[Path]) -> int:
    """Bytes of all tensors of these inputs."""
    return sum(stockpot.open_checkpoint(path).total_bytes for path in paths)


class TestPasses:
    """How often each byte is read."""

    def test_once_where_it_fits(self, inputs: list[Path], tmp_path: Path) -> None:
        """With room for a tensor of all inputs, each input is read once; the plan's bytes are those of the run."""
        made = stockpot.plan(recipe(inputs), out=tmp_path / "out", memory="1GiB")
        assert made.passes == 1
        # The base's buffers, and its counters and integers, take no part.
        unread = sum(t.numel() * t.element_size() for t in buffers(0).values())
        counters = 8 * (len(inputs) - 2)
        assert made.bytes_read == total_bytes(inputs) - unread - counters
        result = stockpot.merge(recipe(inputs), out=tmp_path / "out", memory="1GiB")
        assert result.bytes_read == made.bytes_read

    @pytest.mark.parametrize("memory", ["24MiB", "64MiB", "192MiB"])
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_the_plan_counts_what_is_read(
        self, granularity: str, memory: str, inputs: list[Path], tmp_path: Path
    ) -> None:
        """Bytes read and written are those foreseen, in one pass or two."""
        given = recipe(inputs, granularity=granularity)
        made = stockpot.plan(given, out=tmp_path / "out", memory=memory, workers=1)
        result = stockpot.merge(given, out=tmp_path / "out", memory=memory, workers=1)
        assert result.bytes_read == made.bytes_read
        files = (tmp_path / "out").glob("model*.safetensors")
        assert made.bytes_written == sum(file.stat().st_size for file in files)
        assert made.passes == (1 if granularity == "row" else 2 if granularity in ("block", "model") else made.passes)

    def test_twice_where_it_does_not(self, inputs: list[Path], tmp_path: Path) -> None:
        """A tensor of four inputs above the budget is read twice, and no other."""
        made = stockpot.plan(recipe(inputs), out=tmp_path / "out", memory="24MiB", workers=1)
        assert made.passes == 2
        whole = stockpot.plan(recipe(inputs), out=tmp_path / "out", memory="1GiB", workers=1)
        assert made.bytes_read == whole.bytes_read + len(inputs) * 1500 * 2000 * 4

    def test_a_method_without_inner_products_reads_once(self, inputs: list[Path], tmp_path: Path) -> None:
        """``linear`` needs one pass whatever the memory, and does not read its template-only base."""
        made = stockpot.plan(recipe(inputs, "linear"), out=tmp_path / "out", memory="24MiB", workers=1)
        assert made.passes == 1
        assert made.bytes_read == total_bytes(inputs[1:]) - 8 * (len(inputs) - 2)
        assert any("template only" in warning for warning in made.warnings)


class TestGroups:
    """What shares coefficients."""

    def groups(self, inputs: list[Path], tmp_path: Path, **more: Any) -> dict[str, list[str]]:
        """Group -> its tensors."""
        made = stockpot.plan(recipe(inputs, **more), out=tmp_path / "out")
        return {group.name: sorted(made.slots[n].name for n in group.slots) for group in made.groups}

    def test_tensor_and_row(self, inputs: list[Path], tmp_path: Path) -> None:
        """A group each, for merged tensors with elements; rows are dim 0, and one for 0-d and 1-D tensors."""
        merged = {name for name, (shape, _) in SMALL.items() if 0 not in shape} | {"encoder.layer.2.big.weight"}
        found = self.groups(inputs, tmp_path)
        assert found == {name: [name] for name in merged}
        made = stockpot.plan(recipe(inputs, granularity="row"), out=tmp_path / "out")
        rows = {group.name: group.rows for group in made.groups}
        assert rows == {
            name: shape[0] if len(shape) > 1 else 1
            for name, (shape, _) in {**SMALL, "encoder.layer.2.big.weight": ((1500, 2000), None)}.items()
            if 0 not in shape
        }

    def test_block(self, inputs: list[Path], tmp_path: Path) -> None:
        """The name up to the first integer after a word; a tensor without one is its own group."""
        found = self.groups(inputs, tmp_path, granularity="block")
        assert found.keys() == {
            "encoder.layer.0",
            "encoder.layer.1",
            "encoder.layer.2",
            "embed.weight",
            "norm.scale",
        }
        assert found["encoder.layer.0"] == [
            "encoder.layer.0.attention.bias",
            "encoder.layer.0.attention.weight",
            "encoder.layer.0.conv.weight",
        ]

    def test_block_by_a_regex_of_the_user(self, inputs: list[Path], tmp_path: Path) -> None:
        """``block_regex`` replaces the rule."""
        found = self.groups(inputs, tmp_path, granularity="block", parameters={"block_regex": r"^[a-z]+"})
        assert found.keys() == {"encoder", "embed", "norm"}

    def test_model(self, inputs: list[Path], tmp_path: Path) -> None:
        """One group for all that is merged; buffers, copies and empty tensors are in none."""
        found = self.groups(inputs, tmp_path, granularity="model")
        assert len(found) == 1
        (names,) = found.values()
        assert not {"empty.weight", "position_ids", "mask", "bn.running_mean", "bn.num_batches_tracked"} & set(names)

    def test_a_method_without_granularity_refuses_it(self, inputs: list[Path], tmp_path: Path) -> None:
        """``linear`` has nothing to share."""
        with pytest.raises(errors.UsageError, match="granularity"):
            stockpot.plan(recipe(inputs, "linear", granularity="row"), out=tmp_path / "out")

    def test_an_unknown_granularity(self, inputs: list[Path], tmp_path: Path) -> None:
        """The nearest known word is offered."""
        with pytest.raises(errors.UnknownNameError, match="tensor"):
            stockpot.plan(recipe(inputs, granularity="tensors"), out=tmp_path / "out")


class TestIdentity:
    """What makes two plans the same job."""

    def key(self, inputs: list[Path], out: Path, **more: Any) -> str:
        """The key of a plan."""
        run = {name: more.pop(name) for name in ("memory", "workers") if name in more}
        return stockpot.plan(recipe(inputs, **more), out=out, **run).key

    def test_memory_and_workers_are_no_part_of_it(self, inputs: list[Path], tmp_path: Path) -> None:
        """Nor is where the output goes."""
        key = self.key(inputs, tmp_path / "out")
        assert self.key(inputs, tmp_path / "out", memory="64MiB", workers=1) == key
        assert self.key(inputs, tmp_path / "out", memory="1GiB", workers=7) == key
        assert self.key(inputs, tmp_path / "other") == key

    @pytest.mark.parametrize(
        "more",
        [
            {"granularity": "row"},
            {"dtype": "bfloat16"},
            {"shard_size": "1MB"},
            {"seed": 1},
            {"allow_nonfinite": True},
            {"parameters": {"negative": "allow"}},
            {"policies": {"missing": "average"}},
            {"policies": {"exclude": ["norm"]}},
            {"policies": {"template": "2"}},
        ],
        ids=lambda more: "-".join(more),
    )
    def test_what_is_part_of_it(self, more: dict[str, Any], inputs: list[Path], tmp_path: Path) -> None:
        """Everything that may change a byte of the output."""
        assert self.key(inputs, tmp_path / "out", **more) != self.key(inputs, tmp_path / "out")

    def test_the_inputs_and_their_order(self, inputs: list[Path], tmp_path: Path) -> None:
        """Other inputs, another order, or one file against a folder: another job."""
        key = self.key(inputs, tmp_path / "out")
        assert self.key([inputs[0], inputs[2], inputs[1], inputs[3]], tmp_path / "out") != key
        assert self.key(inputs[:3], tmp_path / "out") != key
        assert self.key(inputs, tmp_path / "out.safetensors") != key

    def test_a_touched_input(self, tmp_path: Path) -> None:
        """An input whose time has changed is another input."""
        files = [tmp_path / f"m{n}.safetensors" for n in range(3)]
        for n, file in enumerate(files):
            save_file({"w": torch.full((3,), float(n))}, file)
        key = self.key(files, tmp_path / "out")
        found = files[1].stat()
        os.utime(files[1], ns=(found.st_atime_ns, found.st_mtime_ns + 1))
        assert self.key(files, tmp_path / "out") != key


class TestBudget:
    """Memory and workers."""

    def test_too_little_is_refused_with_what_is_enough(self, inputs: list[Path], tmp_path: Path) -> None:
        """The error says how much would do, and that much does."""
        with pytest.raises(errors.ParameterError, match="--memory") as caught:
            stockpot.plan(recipe(inputs), out=tmp_path / "out", memory="1MiB")
        enough = (caught.value.expected or "").removeprefix("at least ")
        made = stockpot.plan(recipe(inputs), out=tmp_path / "out", memory=enough)
        assert made.budget.workers == 1
        result = stockpot.merge(recipe(inputs), out=tmp_path / "out", memory=enough)
        assert result.tensors == len(made.slots)

    @pytest.mark.parametrize("memory", ["24MiB", "64MiB", "192MiB", "1GiB"])
    @pytest.mark.parametrize("workers", [None, 1, 3, 64])
    def test_the_buffers_stay_within_it(
        self, workers: int | None, memory: str, inputs: list[Path], tmp_path: Path
    ) -> None:
        """All buffers of all workers together are at most ``--memory``; workers are at most those asked for."""
        made = stockpot.plan(recipe(inputs), out=tmp_path / "out", memory=memory, workers=workers)
        assert made.budget.total_bytes <= int(memory[:-3]) * (MIB if memory.endswith("MiB") else 1024 * MIB)
        assert 1 <= made.budget.workers <= (workers or 8)
        assert made.peak_memory_bytes > made.budget.total_bytes

    @pytest.mark.parametrize("workers", [0, -1])
    def test_no_workers(self, workers: int, inputs: list[Path], tmp_path: Path) -> None:
        """At least one must work."""
        with pytest.raises(errors.ParameterError, match="--workers"):
            stockpot.plan(recipe(inputs), out=tmp_path / "out", workers=workers)


class TestRecord:
    """What ``--dry-run --json`` prints."""

    def test_keys(self, inputs: list[Path], tmp_path: Path) -> None:
        """The promised keys, plain values, and nothing on the disk."""
        made = stockpot.plan(recipe(inputs), out=tmp_path / "out", workers=1)
        record = json.loads(json.dumps(made.record()))
        promised = {
            "bytes_read",
            "bytes_written",
            "passes",
            "peak_memory_bytes",
            "disk_needed_bytes",
            "disk_free_bytes",
            "decisions",
        }
        assert promised <= record.keys()
        assert record["template"] == str(inputs[1])
        assert record["disk_needed_bytes"] >= record["bytes_written"]
        assert {entry["tensor"]: (entry["policy"], entry["action"]) for entry in record["decisions"]} == {
            "bn.running_mean": ("statistics", "mean"),
            "bn.running_var": ("statistics", "mean"),
            "bn.num_batches_tracked": ("counter", "first"),
        }
        assert list(tmp_path.iterdir()) == []

    def test_disk_needed_is_enough(self, inputs: list[Path], tmp_path: Path) -> None:
        """What is foreseen covers everything that is written, side files and inner products too."""
        for granularity in GRANULARITIES:
            given = recipe(inputs, granularity=granularity)
            needed = stockpot.plan(given, out=tmp_path / granularity).record()["disk_needed_bytes"]
            stockpot.merge(given, out=tmp_path / granularity)
            written = sum(file.stat().st_size for file in (tmp_path / granularity).iterdir())
            assert isinstance(needed, int)
            assert needed >= written, granularity


SIDE = 16384
CHILD = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, *sys.argv[1:]])
_, status, usage = os.wait4(child.pid, 0)
print("PEAK", usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status), file=sys.stderr)
"""
"""A small process between: a child's peak is counted from its parent's size on."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Three inputs of a single tensor of 512 MiB in bfloat16, as one file and as many rows; no two blocks equal."""
    root = tmp_path_factory.mktemp("large")
    found = []
    block = torch.randn(SIDE * 64, generator=torch.Generator().manual_seed(0))
    for number in range(3):
        path = root / f"m{number}.safetensors"
        noise = 0.05 * torch.randn(block.shape, generator=torch.Generator().manual_seed(number))
        tensor = (block + (noise + 0.02 if number else 0.0)).to(torch.bfloat16)
        data = tensor.view(torch.uint8).numpy().tobytes()
        entry = {"dtype": "BF16", "shape": [SIDE, SIDE], "data_offsets": [0, 2 * SIDE * SIDE]}
        header = json.dumps({"huge.weight": entry}).encode()
        header += b" " * (-len(header) % 8)
        with path.open("wb") as handle:
            handle.write(len(header).to_bytes(8, "little") + header)
            for _ in range(2 * SIDE * SIDE // len(data)):
                handle.write(data)
        found.append(path)
    yield found
    for path in found:
        path.unlink()


def foreseen_and_real(*words: str) -> tuple[int, int, int]:
    """Peak memory of a merge as planned, as the system counted it, and as the merge told it."""
    arguments = ["-m", "stockpot", "merge", *words, "--json"]
    planned = subprocess.run([sys.executable, *arguments, "--dry-run"], capture_output=True, text=True, check=True)
    ran = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
    _, peak, code = next(line for line in ran.stderr.splitlines() if line.startswith("PEAK")).split()
    assert int(code) == 0, ran.stderr
    return (
        json.loads(planned.stdout)["peak_memory_bytes"],
        int(peak),
        json.loads(ran.stdout)["peak_memory_bytes"],
    )


def test_peak_memory_counts_torch_where_it_is_loaded(tmp_path: Path) -> None:
    """An archive of torch.save is laid out by torch: the plan foresees what that takes."""
    for number, name in enumerate(("base", "a", "b")):
        save_file({"w": torch.full((50, 60), 1.0 + number)}, tmp_path / f"{name}.safetensors")
    inputs = [str(tmp_path / f"{name}.safetensors") for name in ("base", "a", "b")]
    foreseen, real, _ = foreseen_and_real(
        "--method", "model_stock", "--base", *inputs, "--out", str(tmp_path / "out.pt")
    )
    assert real <= foreseen, f"{real / MIB:.0f} MiB, foreseen {foreseen / MIB:.0f} MiB"


@pytest.mark.parametrize(("granularity", "memory"), [("tensor", "64MiB"), ("tensor", "192MiB"), ("row", "64MiB")])
def test_peak_memory_is_honest(granularity: str, memory: str, large: list[Path], tmp_path: Path) -> None:
    """A real process that merges tensors of 512 MiB stays under the plan's peak, which is far below the inputs."""
    words = ["--method", "model_stock", "--base", *map(str, large), "--out", str(tmp_path / "out.safetensors")]
    default = [] if memory == "192MiB" else ["--memory", memory]
    foreseen, real, told = foreseen_and_real(*words, "--granularity", granularity, *default)
    (tmp_path / "out.safetensors").unlink()
    assert real <= foreseen, f"{real / MIB:.0f} MiB, foreseen {foreseen / MIB:.0f} MiB"
    assert foreseen < 600 * MIB
    assert abs(told - real) <= 0.02 * real


@pytest.mark.parametrize(("method", "count"), [("della", 1), ("della_linear", 3), ("arcee_fusion", 1)])
def test_peak_memory_is_honest_for_a_long_vector(method: str, count: int, tmp_path: Path) -> None:
    """A rule that sees whole rows sees all of a vector at once: the plan counts what that takes."""
    for number in range(count + 1):
        vector = torch.randn(8_000_000, generator=torch.Generator().manual_seed(number)).to(torch.bfloat16)
        save_file({"w": vector}, tmp_path / f"m{number}.safetensors")
    inputs = [str(tmp_path / f"m{number}.safetensors") for number in range(count + 1)]
    more = [] if method == "arcee_fusion" else ["--set", "density=0.5", "--set", "epsilon=0.2"]
    words = ["--method", method, "--base", *inputs, *more, "--out", str(tmp_path / "out.safetensors")]
    foreseen, real, _ = foreseen_and_real(*words)
    assert real <= foreseen, f"{real / MIB:.0f} MiB, foreseen {foreseen / MIB:.0f} MiB"
    assert foreseen < 3 * real


def test_peak_memory_is_honest_for_a_transposed_pickle(tmp_path: Path) -> None:
    """The same for pickled tensors that are not dense: they are not gathered whole behind the plan's back."""
    side = 4096  # 64 MiB in float32
    plain = torch.ones(side, side)
    files = [tmp_path / f"m{n}.pt" for n in range(2)]
    for file in files:
        torch.save({"w": plain.t()}, file)
    del plain
    out = str(tmp_path / "out.safetensors")
    foreseen, real, _ = foreseen_and_real("--method", "linear", *map(str, files), "--out", out, "--memory", "64MiB")
    assert real <= foreseen, f"{real / MIB:.0f} MiB, foreseen {foreseen / MIB:.0f} MiB"


def test_the_told_peak_is_not_the_parents(tmp_path: Path) -> None:
    """The peak that a merge tells is its own, whatever the size of the process that started it."""
    files = [tmp_path / f"m{n}.safetensors" for n in range(2)]
    for n, file in enumerate(files):
        save_file({"w": torch.full((3,), float(n))}, file)
    words = ["-m", "stockpot", "merge", "--method", "linear", *map(str, files), "--out", str(tmp_path / "o"), "--json"]
    ballast = bytearray(os.urandom(MIB)) * 1500
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    assert len(ballast) == 1500 * MIB
    assert json.loads(ran.stdout)["peak_memory_bytes"] < 1000 * MIB
