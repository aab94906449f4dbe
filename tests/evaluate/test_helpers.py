"""Evaluators from a DataLoader and from a Trainer, in a soup."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch.utils.data import DataLoader, Dataset, TensorDataset

from stockpot import errors
from stockpot.evaluate import with_loader, with_trainer
from stockpot.soups import greedy

from . import _zoo as zoo

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def models(count: int) -> list[dict[str, torch.Tensor]]:
    """Around the right answer."""
    drawn = torch.Generator().manual_seed(1)
    right = torch.eye(4)[:3]
    return [{"weight": right + 0.8 * torch.randn(3, 4, generator=drawn), "bias": torch.zeros(3)} for _ in range(count)]


def test_a_loader() -> None:
    """The last batch is smaller; logits come for ensembles."""
    evaluate = with_loader(torch.nn.Linear(4, 3), DataLoader(TensorDataset(X, Y), batch_size=16))
    found = greedy(models(4), evaluate, select="accuracy")
    chosen = found.chosen
    assert chosen is not None
    mean = {name: sum(models(4)[k][name] / len(found.weights) for k in found.weights) for name in ("weight", "bias")}
    expected = ((X @ mean["weight"].T + mean["bias"]).argmax(1) == Y).double().mean().item()
    assert chosen.scores["accuracy"] == pytest.approx(expected)
    assert evaluate(models(1)[0])["logits"].shape == (50, 3)


def test_a_loader_of_maps_and_an_empty_one() -> None:
    """As transformers' collators make them."""

    class Net(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    evaluate = with_loader(Net(4, 3), [{"x": X, "labels": Y}])
    plain = with_loader(torch.nn.Linear(4, 3), [(X, Y)])
    assert evaluate(models(1)[0])["loss"] == plain(models(1)[0])["loss"]
    with pytest.raises(errors.EvaluatorError, match="no batch"):
        with_loader(Net(4, 3), [])(models(1)[0])


def test_a_trainer(tmp_path: Path) -> None:
    """Its own metrics by their plain names."""
    folder = zoo.vit(tmp_path / "vit")
    model = transformers.ViTForImageClassification.from_pretrained(folder)

    class Pictures(Dataset[dict[str, object]]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, place: int) -> dict[str, object]:
            return {"pixel_values": torch.full((3, 16, 16), place / 6), "labels": place % 3}

    arguments = transformers.TrainingArguments(str(tmp_path / "out"), report_to=[], disable_tqdm=True, use_cpu=True)
    trainer = transformers.Trainer(model=model, args=arguments, eval_dataset=Pictures())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {name: tensor * 1.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    found = greedy([state, other], with_trainer(trainer), select="loss:min")
    assert found.metric == "loss"
    assert set(found.candidates[0].scores) == {"loss"}
    assert found.candidates[0].scores["loss"] != found.candidates[1].scores["loss"]
    assert set(with_trainer(trainer, Pictures())(state)) == {"loss"}
