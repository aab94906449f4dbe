"""Same inputs, same bytes: whatever the workers, the memory, an interruption, or what else is in the checkpoint."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import stockpot
from stockpot.measure import GRANULARITIES
from stockpot.methods import all_methods, get_method

from ._checkpoints import SMALL, buffers, contents, folder, tensors
from ._statistics import statistics_of

# One worker in 64 MiB holds two inputs of this tensor at once but not four; 4 GiB hold all of them.
BIG = {"encoder.layer.2.big.weight": ((2300, 3000), torch.float32)}
NEEDED: dict[str, dict[str, Any]] = {
    "linear": {"weight": [0.5, 1.5, 2.0]},
    "task_arithmetic": {"weight": [0.3, -0.2, 0.5], "lambda": 0.9},
    "nearswap": {"t": 0.3},
    "slerp": {"t": 0.3},
    "wise_ft": {"alpha": 0.3},
}
"""Parameters that a method needs, or without which it would be another's."""
RUNS = [(workers, memory) for memory in ("64MiB", "4GiB") for workers in (1, 2, 8)]


def cases() -> list[Any]:
    """(method, granularity) for every registered method."""
    return [
        pytest.param(name, granularity, id=f"{name}-{granularity}" if granularity else name)
        for name, method in all_methods().items()
        for granularity in (GRANULARITIES if method.granularity else (None,))
    ]


def options(name: str, granularity: str | None, models: list[Any]) -> dict[str, Any]:
    """The arguments of a method on these models, as many as it takes."""
    most = get_method(name).models[1]
    most = 1 if get_method(name).base == "member" else most
    return {
        "models": models[:most],
        "parameters": NEEDED.get(name, {}) | statistics_of(name, models[:most]),
        "granularity": granularity,
    }


def place(name: str, path: Path) -> Path:
    """One file; a folder for a method that writes another file beside the model."""
    return path if get_method(name).beside else path.with_suffix(".safetensors")


def weights(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of an output."""
    files = [out] if out.is_file() else sorted(out.glob("model*.safetensors"))
    return {name: one for file in files for name, one in load_file(file).items()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three fine-tunes in two shards; one tensor is larger than a budget of 64 MiB."""
    root = tmp_path_factory.mktemp("inputs")
    return [
        folder(root / f"m{n}", {**tensors(BIG, n), **buffers(n)}, tensors(SMALL, n), config={"dtype": "float32"})
        for n in range(4)
    ]


class StopError(Exception):
    """The interruption."""


def interrupted(method: str, out: Path, after: float, **given: Any) -> bool:
    """Start a merge and break it off after that share of its bytes; whether a partial is left to resume."""

    def stop(done: int, total: int) -> None:
        if after * total <= done < total:
            raise StopError

    with contextlib.suppress(StopError):
        stockpot.merge(method, out=out, progress=stop, **given)
    return not out.exists()


@pytest.mark.parametrize(("name", "granularity"), cases())
def test_workers_and_memory_change_no_byte(
    name: str, granularity: str | None, inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of an output is the same for 1, 2 and 8 workers in 64 MiB and in 4 GiB, and after a resume."""
    given = {"base": inputs[0], **options(name, granularity, inputs[1:])}
    expected: dict[str, bytes] = {}
    for workers, memory in RUNS:
        out = tmp_path / f"{workers}-{memory}" / "merged"
        stockpot.merge(name, out=out, workers=workers, memory=memory, **given)
        found = contents(out)
        expected = expected or found
        differing = [file for file in expected if found.get(file) != expected[file]]
        assert found == expected, f"{workers} workers, {memory}: {differing} differ"
        shutil.rmtree(out)
    assert {"stockpot.json", "stockpot_recipe.yaml", "README.md", "model.safetensors.index.json"} <= expected.keys()
    assert ("stockpot_geometry.safetensors" in expected) == get_method(name).uses_gram
    monkeypatch.setattr("stockpot.engine._execute.POLL_SECONDS", 0.002)  # so that progress is told often enough
    for after in (0.2, 0.6):
        out = tmp_path / f"resumed-{after}" / "merged"
        assert interrupted(name, out, after, workers=2, memory="64MiB", **given), "it was through before it was stopped"
        result = stockpot.merge(name, out=out, workers=1, memory="4GiB", **given)
        # A method that looks at all tensors first has none finished as early as that.
        assert result.resumed > 0 or (after < 0.5 and get_method(name).beside)
        found = contents(out)
        differing = [file for file in expected if found.get(file) != expected[file]]
        assert found == expected, f"resumed after {after}: {differing} differ"
        shutil.rmtree(out)


@pytest.mark.parametrize(("name", "granularity"), [case for case in cases() if not str(case.id).endswith("-model")])
def test_unrelated_tensors_change_no_byte(
    name: str, granularity: str | None, inputs: list[Path], tmp_path: Path
) -> None:
    """A tensor's bytes are its own affair: unrelated tensors before, behind and beside it change none of them."""
    small = [folder(tmp_path / f"small{n}", tensors(SMALL, n)) for n in range(4)]
    given = options(name, granularity, small[1:])
    alone = weights(stockpot.merge(name, base=small[0], out=place(name, tmp_path / "alone"), **given).out)
    given = options(name, granularity, inputs[1:])
    beside = weights(stockpot.merge(name, base=inputs[0], out=place(name, tmp_path / "beside"), **given).out)
    assert alone.keys() < beside.keys()
    for tensor, value in alone.items():
        assert torch.equal(value, beside[tensor]), tensor


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float64"])
@pytest.mark.parametrize(("name", "granularity"), cases())
def test_memory_is_disk(name: str, granularity: str | None, dtype: str | None, tmp_path: Path) -> None:
    """``merge_state_dicts`` gives the tensors of ``merge``, bit by bit, whatever the output's dtype."""
    spec = SMALL | {"odd.weight": ((257, 1031), torch.float32)}
    dicts = [{**tensors(spec, n), **buffers(n)} for n in range(4)]
    files = [tmp_path / f"m{n}.safetensors" for n in range(4)]
    for file, state in zip(files, dicts, strict=True):
        save_file(state, file)
    out = place(name, tmp_path / "out")
    stockpot.merge(name, base=files[0], out=out, dtype=dtype, **options(name, granularity, files[1:]))
    found = stockpot.merge_state_dicts(name, base=dicts[0], dtype=dtype, **options(name, granularity, dicts[1:]))
    expected = weights(out)
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        assert found[tensor].dtype == value.dtype, tensor
        assert found[tensor].shape == value.shape, tensor
        assert torch.equal(found[tensor].view(-1).view(torch.uint8), value.view(-1).view(torch.uint8)), tensor


def test_memory_is_disk_for_a_large_tensor(inputs: list[Path]) -> None:
    """The same for a tensor that is merged in pieces on one side and at once on the other."""
    files = [next(path.glob("model-00001*.safetensors")) for path in inputs]
    dicts = [load_file(file) for file in files]
    straight = stockpot.merge_state_dicts("model_stock", base=dicts[0], models=dicts[1:], memory="4GiB", workers=1)
    pieces = stockpot.merge_state_dicts("model_stock", base=dicts[0], models=dicts[1:], memory="64MiB", workers=2)
    assert straight.keys() == pieces.keys()
    assert all(torch.equal(straight[name], pieces[name]) for name in straight)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's own thread count, given back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_parents_threads_change_no_bit(granularity: str, tmp_path: Path) -> None:
    """torch's thread count in the calling process is neither used nor lost."""
    spec = SMALL | {"wide.weight": ((700, 900), torch.float32)}
    dicts = [tensors(spec, n) for n in range(4)]
    files = [tmp_path / f"m{n}.safetensors" for n in range(4)]
    for file, state in zip(files, dicts, strict=True):
        save_file(state, file)
    found = []
    for threads in (1, 2, 7):
        with torch_threads(threads):
            out = tmp_path / f"{threads}" / "merged"
            stockpot.merge("model_stock", base=files[0], models=files[1:], granularity=granularity, out=out)
            assert torch.get_num_threads() == threads
            found.append(contents(out))
    assert found[0] == found[1] == found[2]


def test_order_is_the_users(tmp_path: Path) -> None:
    """Names in another order within the files change no tensor's bytes; the layout stays the template's."""
    dicts = [tensors(SMALL, n) for n in range(4)]
    outs = []
    for label, order in (("as-is", list(SMALL)), ("reversed", list(SMALL)[::-1])):
        files = [
            folder(tmp_path / label / f"m{n}", {name: state[name] for name in order}) for n, state in enumerate(dicts)
        ]
        out = tmp_path / label / "merged"
        stockpot.merge("model_stock", base=files[0], models=files[1:], granularity="block", out=out)
        outs.append(load_file(out / "model.safetensors"))
    assert outs[0].keys() == outs[1].keys()
    for name, value in outs[0].items():
        assert torch.equal(value, outs[1][name]), name


def test_the_record_of_two_runs_differs_in_time_alone(inputs: list[Path], tmp_path: Path) -> None:
    """What may differ between two runs lies in ``stockpot_run.json`` and nowhere else."""
    runs = []
    for number in (1, 2):
        out = tmp_path / f"{number}" / "merged"
        stockpot.merge("linear", models=inputs[1:], out=out, workers=number)
        runs.append(json.loads((out / "stockpot_run.json").read_text("utf-8")))
        texts = [path for path in out.iterdir() if path.suffix in (".json", ".md", ".yaml")]
        text = b"".join(path.read_bytes() for path in texts if path.name != "stockpot_run.json")
        assert runs[-1]["host"].encode() not in text
        assert runs[-1]["started"].encode() not in text
    assert runs[0].keys() == runs[1].keys()
