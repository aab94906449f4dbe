"""Which tensors take part, and what becomes of those that do not correspond."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ._kitchen import Kitchen, Program, load, numbers, save


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())


def decisions(data: dict[str, Any]) -> dict[str, str]:
    """Tensor -> action of a result."""
    return {entry["tensor"]: entry["action"] for entry in data["decisions"]}


@pytest.mark.parametrize(
    ("arguments", "copied"),
    [
        (["--only", "norm"], {"layers.0.weight", "layers.1.weight"}),
        (["--exclude", "layers"], {"layers.0.weight", "layers.1.weight"}),
        (["--only", "layers", "--exclude", r"\.1\."], {"layers.1.weight", "norm.weight"}),
        (["--only", "norm", "--only", "layers.0"], {"layers.1.weight"}),
    ],
)
@pytest.mark.parametrize("template", [[], ["--template", "2"], ["--template", "base"]])
def test_unselected_tensors_are_copied(
    arguments: list[str], copied: set[str], template: list[str], program: Program, kitchen: Kitchen
) -> None:
    """What is not selected is the template's, byte for byte, in its own dtype, and recorded as copied."""
    data = program.does(*kitchen.stock("--json", "--dtype", "float16", *arguments, *template)).data
    assert decisions(data) == dict.fromkeys(copied, "copied")
    source = kitchen.tensors({"2": 2, "base": 0}.get(template[-1] if template else "", 1))
    found = load(kitchen.out)
    for name, tensor in source.items():
        assert found[name].dtype == (torch.float32 if name in copied else torch.float16)
        if name in copied:
            assert raw(found[name]) == raw(tensor)


def test_unselected_tensors_raise_no_errors(program: Program, kitchen: Kitchen) -> None:
    """NaN, another shape, or absence in a tensor that is not selected is no matter."""
    kitchen.everywhere(extra=numbers(2), odd=numbers(2), nan=torch.tensor([float("nan")]))
    kitchen.change(kitchen.a, extra=None)
    kitchen.change(kitchen.b, odd=numbers(3))
    data = program.does(*kitchen.stock("--json", "--exclude", "extra|odd|nan")).data
    assert set(decisions(data)) == {"extra", "odd", "nan"}
    found = load(kitchen.out)
    assert len(found) == 6
    # The second model is the first that has every name, so it is the template.
    assert found["odd"].shape == (3,)
    assert torch.equal(found["extra"], numbers(2))


def test_rename(program: Program, kitchen: Kitchen) -> None:
    """A rename of one input makes it correspond; groups of the pattern may be used."""
    save({f"model.{name}": tensor for name, tensor in kitchen.tensors(2).items()}, kitchen.b)
    program.does(*kitchen.stock("--rename", r"2:^model\.(.+)$=\1"))
    assert set(load(kitchen.out)) == set(kitchen.tensors(0))
    save(kitchen.tensors(2), kitchen.root / "c")
    program.does("merge", "--method", "model_stock", "--base", "base", "a", "c", "--out", "plain")
    for name, tensor in load(kitchen.root / "plain").items():
        assert raw(tensor) == raw(load(kitchen.out)[name])


@pytest.mark.parametrize("policy", ["base", "average", "first"])
def test_missing(policy: str, program: Program, kitchen: Kitchen) -> None:
    """A tensor that a model lacks is the base's, the mean of those that have it, or the first's: unmerged, recorded."""
    third = save({k: v for k, v in kitchen.tensors(3).items() if k != "norm.weight"}, kitchen.root / "c")
    arguments = [
        "merge",
        "--method",
        "model_stock",
        "--base",
        "base",
        third,
        "a",
        "b",
        "--out",
        "out",
        "--missing",
        policy,
    ]
    data = program.does(*arguments, "--json").data
    assert set(decisions(data)) == {"norm.weight"}
    base, a, b = (kitchen.tensors(number)["norm.weight"] for number in range(3))
    expected = {"base": base, "first": a, "average": ((a.double() + b.double()) / 2).float()}[policy]
    # The mean is rounded once from a wider sum.
    torch.testing.assert_close(load(kitchen.out)["norm.weight"], expected, rtol=2**-23, atol=1e-9)
    if policy != "average":
        assert raw(load(kitchen.out)["norm.weight"]) == raw(expected)


def test_missing_from_the_base(program: Program, kitchen: Kitchen) -> None:
    """A tensor that only the base lacks forms no ratio: the models' mean, or the first's."""
    kitchen.change(kitchen.base, norm__weight=None)
    program.does(*kitchen.stock("--missing", "average"))
    mean = (kitchen.tensors(1)["norm.weight"].double() + kitchen.tensors(2)["norm.weight"].double()) / 2
    torch.testing.assert_close(load(kitchen.out)["norm.weight"], mean.float(), rtol=2**-23, atol=1e-9)
    program.refuses(
        *kitchen.stock("--missing", "base", out=kitchen.root / "no"), kind="missing_tensor", says=["norm.weight"]
    )


@pytest.mark.parametrize("policy", ["base", "first"])
def test_mismatch_of_shapes(policy: str, program: Program, kitchen: Kitchen) -> None:
    """A tensor whose shapes differ is the base's, or the first model's, unmerged and recorded."""
    kitchen.change(kitchen.a, norm__weight=numbers(6, seed=5))
    data = program.does(*kitchen.stock("--mismatch", policy, "--json")).data
    assert set(decisions(data)) == {"norm.weight"}
    expected = {"base": kitchen.tensors(0)["norm.weight"], "first": numbers(6, seed=5)}[policy]
    assert raw(load(kitchen.out)["norm.weight"]) == raw(expected)


@pytest.mark.parametrize("policy", ["base", "first"])
def test_mismatch_of_integers(policy: str, program: Program, kitchen: Kitchen) -> None:
    """Integers that differ over the models are the base's or the first's; those that are equal are no mismatch."""
    kitchen.everywhere(equal=torch.tensor([1, 2]), differ=torch.tensor([1, 2]))
    kitchen.change(kitchen.a, equal=torch.tensor([3, 4]), differ=torch.tensor([3, 4]))
    kitchen.change(kitchen.b, equal=torch.tensor([3, 4]), differ=torch.tensor([5, 6]))
    data = program.does(*kitchen.stock("--mismatch", policy, "--json")).data
    found = load(kitchen.out)
    assert found["differ"].tolist() == {"base": [1, 2], "first": [3, 4]}[policy]
    assert found["equal"].tolist() == [3, 4]
    assert set(decisions(data)) == {"differ"}


def test_batch_norm(program: Program, kitchen: Kitchen) -> None:
    """Running statistics are plain means over the models, the counter the first model's; re-estimation is advised."""
    kitchen.everywhere(**{"bn.running_mean": torch.tensor([100.0]), "bn.num_batches_tracked": torch.tensor(9)})
    kitchen.change(kitchen.a, **{"bn.running_mean": torch.tensor([1.0]), "bn.num_batches_tracked": torch.tensor(3)})
    kitchen.change(kitchen.b, **{"bn.running_mean": torch.tensor([2.0]), "bn.num_batches_tracked": torch.tensor(4)})
    outcome = program.does(*kitchen.stock())
    found = load(kitchen.out)
    assert found["bn.running_mean"].tolist() == [1.5]
    assert found["bn.num_batches_tracked"].tolist() == 3
    assert "BatchNorm" in outcome.err


def test_template(program: Program, kitchen: Kitchen) -> None:
    """The template's side files and layout are taken; by default the first model's."""
    (kitchen.b / "only-b.txt").write_text("b")
    (kitchen.b / "custom.py").write_text("code = 1\n")
    (kitchen.b / "optimizer.pt").write_bytes(b"x")
    (kitchen.b / "README.md").write_text("old card")
    (kitchen.b / ".hidden").write_text("x")
    (kitchen.b / "linked.txt").symlink_to("only-b.txt")
    program.does(*kitchen.stock())
    assert not (kitchen.out / "only-b.txt").exists()
    program.does(*kitchen.stock("--template", "2", out=kitchen.root / "out2"))
    names = {path.name for path in (kitchen.root / "out2").iterdir()}
    assert names >= {"only-b.txt", "custom.py", "linked.txt", "config.json", "tokenizer.json"}
    assert not names & {"optimizer.pt", ".hidden"}
    assert not (kitchen.root / "out2" / "linked.txt").is_symlink()
    assert "old card" not in (kitchen.root / "out2" / "README.md").read_text()
    program.does(*kitchen.stock("--template", "base", out=kitchen.root / "out3"))
    assert (kitchen.root / "out3" / "tokenizer.json").read_bytes() == (kitchen.base / "tokenizer.json").read_bytes()
