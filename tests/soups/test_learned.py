"""Learned soups: gradients against autograd through the whole mixture, and what descent must reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import stockpot
from stockpot import errors
from stockpot.soups import Correspondence, Ingredients, Learning, Running, learned
from stockpot.soups._learned import _Descent

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(96, 6, generator=GENERATOR)
TEACHER = torch.randn(6, 4, generator=GENERATOR)
Y = (X @ TEACHER + 0.5 * torch.randn(96, 4, generator=GENERATOR)).argmax(1)
State = Mapping[str, Tensor]


class Task:
    """A small network (or a linear one) on fixed examples."""

    def __init__(self, linear: bool = False, batch: int = 32) -> None:
        self.linear = linear
        self.batch = batch
        self.backwards = 0

    @property
    def content(self) -> Mapping[str, str] | None:
        """Nobody knows."""
        return None

    def batches(self, epoch: int, folder: Path | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Always in order."""
        yield from zip(X.split(self.batch), Y.split(self.batch), strict=True)

    def logits(self, weights: State, inputs: Tensor, folder: Path | None = None) -> Tensor:
        """Two layers, or one."""
        self.backwards += 1
        inputs = inputs.to(weights["head.weight"].dtype)
        if self.linear:
            return inputs @ weights["head.weight"]
        return torch.tanh(inputs @ weights["hidden.weight"] + weights["hidden.bias"]) @ weights["head.weight"]

    def evaluate(self, weights: State) -> float:
        """Minus the loss."""
        with torch.no_grad():
            return -F.cross_entropy(self.logits(weights, X).double(), Y).item()


def states(
    count: int, linear: bool = False, spread: float = 0.7, dtype: torch.dtype = torch.float32
) -> list[dict[str, Tensor]]:
    """Models around a teacher, each off its own way."""
    drawn = torch.Generator().manual_seed(5)
    shapes = (
        {"head.weight": (6, 4)} if linear else {"hidden.weight": (6, 8), "hidden.bias": (8,), "head.weight": (8, 4)}
    )
    found = []
    for _ in range(count):
        state = {name: spread * torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
        if linear:
            state["head.weight"] = state["head.weight"] + TEACHER
        found.append({name: tensor.to(dtype) for name, tensor in state.items()})
    return found


def mixture_by_autograd(
    models: list[dict[str, Tensor]], raw: Tensor, free: bool, task: Task, temperature: Tensor
) -> Tensor:
    """The loss as one expression of raw, in float64, rows of raw being tensors in sorted order (or one row)."""
    alpha = raw if free else raw.softmax(dim=1)
    names = sorted(models[0])
    weights = {
        name: sum(alpha[place if len(alpha) > 1 else 0, k] * models[k][name].double() for k in range(len(models)))
        for place, name in enumerate(names)
    }
    return F.cross_entropy(temperature * task.logits(weights, X), Y)


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_autograd_s(by_layer: bool, free: bool, dtype: torch.dtype) -> None:
    """dL / d raw by streamed products equals autograd through the full mixture, to 1e-5; so does the temperature's."""
    models, task = states(4, dtype=dtype), Task()
    descent = _Descent(Ingredients.open(models), task, Learning(by_layer=by_layer, free=free), Running())
    descent.raw += 0.3 * torch.randn(descent.raw.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    raw = descent.raw.clone().requires_grad_()
    temperature = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    expected = mixture_by_autograd(models, raw, free, task, temperature)
    expected.backward()
    descent._mixed()
    loss = descent._backward(list(task.batches(0)))
    found = descent.gradient(descent._products())
    assert raw.grad is not None
    assert temperature.grad is not None
    # The live model is float32: 1e-5 of the largest is what its forward pass allows.
    scale = float(raw.grad.abs().max())
    np.testing.assert_allclose(found, raw.grad.numpy(), atol=1e-5 * scale)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert descent.temperature.grad is not None
    assert descent.temperature.grad.item() == pytest.approx(temperature.grad.item(), rel=1e-4, abs=1e-6)
    # A second time, in the same memory.
    descent._mixed()
    descent._backward(list(task.batches(0)))
    np.testing.assert_array_equal(descent.gradient(descent._products()), found)


def test_accumulated_batches_are_one_batch() -> None:
    """Three batches of 32 give the gradient of one of 96."""
    models = states(3)
    found = []
    for batch in (32, 96):
        task = Task(batch=batch)
        descent = _Descent(Ingredients.open(models), task, Learning(), Running())
        descent._mixed()
        descent._backward(list(task.batches(0)))
        found.append(descent.gradient(descent._products()))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-8)


def test_step_0_is_the_uniform_soup() -> None:
    """With equal coefficients and temperature 1, both free and as a mixture."""
    models = states(4)
    for free in (False, True):
        descent = _Descent(Ingredients.open(models), Task(), Learning(free=free), Running())
        assert descent.weights().tolist() == [[0.25] * 4]
        assert descent.temperature.item() == 1.0


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_convex_model_ends_no_worse_than_any_vertex(by_layer: bool) -> None:
    """Within 1e-3 of, or below, the loss of every single model and of the uniform soup."""
    models, task = states(4, linear=True), Task(linear=True)
    how = Learning(by_layer=by_layer, epochs=150, accumulate=3, temperature=False)
    found = learned(models, task.evaluate, learn=task, learning=how)
    chosen = found.chosen
    assert chosen is not None
    for one in found.candidates:
        assert chosen.scores["score"] >= one.scores["score"] - 1e-3, one.label
    assert sum(found.weights.values()) == pytest.approx(1.0)
    assert found.metric == "score"


def test_by_layer_reaches_what_one_set_cannot() -> None:
    """Where each layer is best in another model: coefficients by tensor find it, and the output holds them."""
    good, bad = states(2, spread=1.0)
    models = [
        {**bad, "hidden.weight": good["hidden.weight"], "hidden.bias": good["hidden.bias"]},
        {**bad, "head.weight": good["head.weight"]},
    ]
    with torch.no_grad():
        labels = Task().logits(good, X).argmax(1)

    class Own(Task):
        def batches(self, epoch: int, folder: Path | None = None) -> Iterator[tuple[Tensor, Tensor]]:
            yield X, labels

    how = Learning(epochs=60, accumulate=1, temperature=False)
    whole = _Descent(Ingredients.open(models), Own(), how, Running()).run()
    layers = _Descent(Ingredients.open(models), Own(), replace(how, by_layer=True), Running()).run()
    assert layers.losses[-1] < 0.8 * whole.losses[-1]
    assert layers.names == ("head.weight", "hidden.bias", "hidden.weight")
    # The head of the second model, the hidden layer of the first.
    assert layers.weights[0, 1] > 0.85
    assert layers.weights[2, 0] > 0.85


def saved(folder: Path, models: list[dict[str, Tensor]]) -> list[str]:
    """As folders."""
    paths = []
    for number, model in enumerate(models):
        (folder / f"m{number}").mkdir(parents=True)
        save_file(model, folder / f"m{number}" / "model.safetensors")
        paths.append(str(folder / f"m{number}"))
    return paths


def test_the_output_is_the_recipe_s(tmp_path: Path) -> None:
    """Coefficients by tensor stand in the recorded recipe; ``verify`` derives every tensor anew from it."""
    paths, task = saved(tmp_path, states(3, dtype=torch.bfloat16)), Task()
    how = Learning(by_layer=True, epochs=3, accumulate=3)
    found = learned(paths, task.evaluate, learn=task, learning=how, out=tmp_path / "out")
    assert found.out is not None
    assert stockpot.verify(found.out, recompute=1.0).problems == ()
    again = stockpot.merge(found.out / "stockpot_recipe.yaml", out=tmp_path / "again")
    assert (again.out / "model.safetensors").read_bytes() == (found.out / "model.safetensors").read_bytes()
    entries = stockpot.Recipe.from_file(found.out / "stockpot_recipe.yaml").models
    for name in ("head.weight", "hidden.bias", "hidden.weight"):
        assert sum(entry.tensor_weights[name] for entry in entries) == pytest.approx(1.0, abs=1e-12)
    assert stockpot.open_checkpoint(found.out).tensors["head.weight"].dtype == "BF16"


def test_a_stopped_search_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Killed after some steps and started again: the same coefficients, and no step twice."""
    paths = saved(tmp_path, states(3))

    class Kept(Task):
        @property
        def content(self) -> Mapping[str, str]:
            return {"task": "kept"}

    def descent(task: Task) -> _Descent:
        how = Learning(by_layer=True, epochs=4, accumulate=1)
        return _Descent(Ingredients.open(paths), task, how, Running(tmp_path / "cache"))

    straight_running = Running(tmp_path / "other")
    straight = _Descent(
        Ingredients.open(paths), Kept(), Learning(by_layer=True, epochs=4, accumulate=1), straight_running
    ).run()

    class Fails(Kept):
        def logits(self, weights: State, inputs: Tensor, folder: Path | None = None) -> Tensor:
            if self.backwards == 2 + 5:  # two of the estimate, five steps
                raise KeyboardInterrupt
            return super().logits(weights, inputs, folder)

    with pytest.raises(KeyboardInterrupt):
        descent(Fails()).run()
    task = Kept()
    found = descent(task).run()
    assert task.backwards == 12 - 5
    assert found.losses == straight.losses
    assert found.weights.tobytes() == straight.weights.tobytes()
    assert found.temperature == straight.temperature


def test_the_cost_is_told_and_reading_bounded() -> None:
    """Before the first step; with slow reading many batches are accumulated, never more than an epoch has."""
    told: list[str] = []
    task = Task(batch=4)
    running = Running(told=told.append)
    descent = _Descent(Ingredients.open(states(3)), task, Learning(epochs=1), running)
    descent.run()
    (line,) = told
    assert "each reading" in line
    assert descent.accumulate is not None
    assert 1 <= descent.accumulate <= 24


def test_what_cannot_be_learned(tmp_path: Path) -> None:
    """Evaluators without gradients, settings that make no sense, losses that are not finite, no batch."""
    models = states(2)
    with pytest.raises(errors.UsageError, match="needs gradients"):
        learned(models, lambda weights: 0.0)
    with pytest.raises(errors.UsageError, match="command: gives no gradients"):
        learned(models, "command:true {checkpoint}")
    for wrong in ({"epochs": 0}, {"rate": -1.0}, {"rate": float("inf")}, {"accumulate": 0}):
        with pytest.raises(errors.ParameterError):
            Learning(**wrong)  # type: ignore[arg-type]  # values of several types

    class Bad(Task):
        def logits(self, weights: State, inputs: Tensor, folder: Path | None = None) -> Tensor:
            return super().logits(weights, inputs, folder) * float("inf")

    with pytest.raises(errors.EvaluatorError, match="loss of the mixture is not finite"):
        learned(models, Task().evaluate, learn=Bad())

    class Detached(Task):
        def logits(self, weights: State, inputs: Tensor, folder: Path | None = None) -> Tensor:
            return super().logits({name: tensor.detach() for name, tensor in weights.items()}, inputs, folder)

    with pytest.raises(errors.EvaluatorError, match="no gradient reaches the weights"):
        learned(models, Task().evaluate, learn=Detached())

    class Raises(Task):
        def logits(self, weights: State, inputs: Tensor, folder: Path | None = None) -> Tensor:
            raise KeyError("pixels")

    with pytest.raises(errors.EvaluatorError, match=r"task to learn on failed .KeyError: 'pixels'"):
        learned(models, Task().evaluate, learn=Raises())

    class Empty(Task):
        def batches(self, epoch: int, folder: Path | None = None) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(())

    with pytest.raises(errors.EvaluatorError, match="no batch"):
        learned(models, Task().evaluate, learn=Empty())


def test_what_is_left_out_has_no_coefficients() -> None:
    """An excluded head is the first model's, and the gradient of the rest is exact with it there."""
    models, task = states(3), Task()
    same = Correspondence(exclude=["head"])
    descent = _Descent(Ingredients.open(models, None, same), task, Learning(by_layer=True), Running())
    assert descent.names == ("hidden.bias", "hidden.weight")
    descent._mixed()
    descent._backward(list(task.batches(0)))
    found = descent.gradient(descent._products())
    raw = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    alpha = raw.softmax(dim=1)
    weights = {
        name: sum(alpha[row, k] * models[k][name].double() for k in range(3))
        for row, name in enumerate(("hidden.bias", "hidden.weight"))
    }
    weights["head.weight"] = models[0]["head.weight"].double()
    F.cross_entropy(task.logits(weights, X), Y).backward()
    assert raw.grad is not None
    np.testing.assert_allclose(found, raw.grad.numpy(), atol=1e-5 * float(raw.grad.abs().max()))
