"""RegMean against its oracle, and against least squares over all data at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.collect._subjects import encoded, texts, wide
from tests.evaluate import _zoo as zoo
from tests.oracles import weighted as oracle
from tests.oracles.exact import numbers

import stockpot
from stockpot import errors

INPUTS, OUTPUTS = 9, 14
Models = list[dict[str, torch.Tensor]]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(rows: int = 30) -> tuple[Models, list[torch.Tensor]]:
    """Three layers, each with inputs of its own: some directions of them are larger than others."""
    models = [{"w": drawn(n, OUTPUTS, INPUTS), "b": drawn(20 + n, OUTPUTS)} for n in range(3)]
    return models, [drawn(10 + n, rows, INPUTS) @ drawn(40 + n, INPUTS, INPUTS) for n in range(3)]


def saved(folder: Path, grams: list[torch.Tensor], metadata: str | None = None) -> list[str]:
    """One file for each."""
    files = [str(folder / f"g{number}.safetensors") for number in range(len(grams))]
    for file, own in zip(files, grams, strict=True):
        save_file({"w": own.contiguous()}, file, {"stockpot_statistics": metadata} if metadata else None)
    return files


def merged(models: Models, files: list[str], **parameters: Any) -> dict[str, torch.Tensor]:
    """In memory."""
    return stockpot.merge_state_dicts("regmean", models=models, parameters={"grams": files, **parameters})


def gap(found: torch.Tensor, want: np.ndarray) -> float:
    """The largest difference as a share of the largest magnitude."""
    return float(np.abs(found.double().numpy() - want).max() / np.abs(want).max())


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.9, 1.0])
def test_against_the_oracle(alpha: float, scale: float, tmp_path: Path) -> None:
    """The closed formula; the scale of the inputs does not matter. All else is the mean."""
    models, rows = problem()
    grams = [scale * (x.T @ x) for x in rows]
    found = merged(models, saved(tmp_path, grams), alpha=alpha)
    want = oracle.regmean([m["w"].T.numpy() for m in models], [g.numpy() for g in grams], alpha).T
    assert gap(found["w"], want) < 1e-9  # the condition of the sum times float64's rounding
    assert gap(found["b"], sum(m["b"].numpy() for m in models) / 3) < 1e-15


def test_without_shrinkage_it_is_pooled_least_squares(tmp_path: Path) -> None:
    """Sums of Gram matrices, alpha 1: the answers nearest to all models', over all rows together."""
    models, rows = problem()
    found = merged(models, saved(tmp_path, [x.T @ x for x in rows]), alpha=1.0)
    want = oracle.pooled_least_squares([m["w"].T.numpy() for m in models], [x.numpy() for x in rows]).T
    assert gap(found["w"], want) < 1e-9
    mean = sum(m["w"].numpy() for m in models) / 3
    assert gap(torch.from_numpy(mean), want) > 0.1  # which is another matrix than the mean


def test_means_of_grams(tmp_path: Path) -> None:
    """``reduce=mean`` divides by the rows first: a model with more data counts no more."""
    models, rows = problem()
    rows[0] = rows[0].repeat(50, 1)
    files = []
    for number, x in enumerate(rows):
        (tmp_path / str(number)).mkdir()
        metadata = f'{{"kind": "inputs", "rows": {{"w": {len(x)}}}}}'
        files += saved(tmp_path / str(number), [x.T @ x], metadata)
    found = merged(models, files, alpha=1.0, reduce="mean")
    weights = [m["w"].T.numpy() for m in models]
    want = oracle.regmean(weights, [(x.T @ x).numpy() / len(x) for x in rows], 1.0).T
    assert gap(found["w"], want) < 1e-9
    assert gap(merged(models, files, alpha=1.0)["w"], want) > 1e-3
    with pytest.raises(errors.MethodError, match="rows"):
        merged(models, saved(tmp_path, [x.T @ x for x in rows]), reduce="mean")


@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_inputs_that_are_never_there(alpha: float, tmp_path: Path) -> None:
    """Along what no data has seen the result is the plain mean; along the rest it fits as before."""
    models, rows = problem()
    for x in rows:
        x[:, 4] = 0.0
    found = merged(models, saved(tmp_path, [x.T @ x for x in rows]), alpha=alpha)["w"].numpy()
    mean = sum(m["w"].numpy() for m in models) / 3
    assert np.array_equal(found[:, 4], mean[:, 4]) or np.abs(found[:, 4] - mean[:, 4]).max() < 1e-12
    seen = [n for n in range(INPUTS) if n != 4]
    grams = [(x.T @ x).numpy()[np.ix_(seen, seen)] for x in rows]
    want = oracle.regmean([m["w"].T.numpy()[seen] for m in models], grams, alpha).T
    assert gap(torch.from_numpy(found[:, seen]), want) < 1e-9


def test_fewer_rows_than_inputs(tmp_path: Path) -> None:
    """A singular sum: answers to the data are the least squares', and nothing moves that they do not ask for."""
    models, rows = problem(rows=2)
    found = merged(models, saved(tmp_path, [x.T @ x for x in rows]), alpha=1.0)["w"].numpy()
    weights = [m["w"].T.numpy() for m in models]
    fitted = oracle.pooled_least_squares(weights, [x.numpy() for x in rows]).T
    stacked = np.concatenate([x.numpy() for x in rows])
    assert np.abs((found - fitted) @ stacked.T).max() < 1e-8 * np.abs(fitted @ stacked.T).max()
    mean = sum(m["w"].numpy() for m in models) / 3
    _, _, directions = np.linalg.svd(stacked)
    unseen = directions[np.linalg.matrix_rank(stacked) :]
    assert len(unseen) == INPUTS - 6
    assert np.abs((found - mean) @ unseen.T).max() < 1e-9


@pytest.mark.parametrize(
    ("make", "kind", "layer"),
    [
        (zoo.bert, transformers.BertForSequenceClassification, "bert.encoder.layer.0.intermediate.dense.weight"),
        (zoo.gpt, transformers.GPT2LMHeadModel, "transformer.h.0.attn.c_proj.weight"),
        (zoo.gpt, transformers.GPT2LMHeadModel, "transformer.h.0.mlp.c_fc.weight"),
    ],
)
def test_real_models_with_real_data(make: Any, kind: Any, layer: str, tmp_path: Path) -> None:
    """Of collected files: pooled least squares over what hooks see; GPT-2's Conv1D lies the other way, square too."""
    folders = [make(tmp_path / f"ft{number}") for number in range(2)]
    noise = torch.Generator().manual_seed(5)
    plain = zoo.weights_of(folders[1])
    moved = {name: one + 0.1 * torch.randn(one.shape, generator=noise) for name, one in plain.items()}
    save_file(moved, folders[1] / "model.safetensors", {"format": "pt"})
    data = texts(tmp_path)
    files = [str(tmp_path / f"inputs{number}.safetensors") for number in range(2)]
    rows, weights = [], []
    for folder, file in zip(folders, files, strict=True):
        stockpot.collect_inputs(folder, data=data, out=file, dtype="float64")
        net, seen = wide(kind, folder), []
        module = net.get_submodule(layer.removesuffix(".weight"))
        module.register_forward_hook(lambda _, args, __, seen=seen: seen.append(args[0].flatten(0, -2).detach()))
        for inputs in encoded(folder):
            net(**inputs)
        rows.append(torch.cat(seen).numpy())
        own = zoo.weights_of(folder)[layer].double().numpy()
        weights.append(own if type(module).__name__ == "Conv1D" else own.T)
    parameters = {"grams": files, "alpha": 1.0}
    result = stockpot.merge("regmean", models=folders, out=tmp_path / "out", parameters=parameters, dtype="float64")
    found = load_file(result.out / "model.safetensors")[layer].numpy()
    found = found if "transformer.h" in layer else found.T
    want = oracle.pooled_least_squares(weights, rows)
    answers, fitted = ([x @ w for x in rows] for w in (found, want))
    # Few texts and many inputs: the sum may be singular, so the answers to the data are compared, not the weights.
    scale = max(np.abs(one).max() for one in fitted)
    assert max(np.abs(a - f).max() for a, f in zip(answers, fitted, strict=True)) < 1e-7 * scale
    assert any("have no grams values" in line for line in result.warnings)
    assert stockpot.verify(result.out, recompute=1.0).problems == ()


def test_the_plan_states_the_memory(tmp_path: Path) -> None:
    """Tensors and matrices in float64 come to it, whatever ``--memory``."""
    models, rows = problem()
    for number, model in enumerate(models):
        save_file(model, tmp_path / f"m{number}.safetensors")
    refs = [str(tmp_path / f"m{number}.safetensors") for number in range(3)]
    grams = saved(tmp_path, [x.T @ x for x in rows])
    entries = [{"model": ref, "parameters": {"grams": file}} for ref, file in zip(refs, grams, strict=True)]
    recipe = {"merge_method": "regmean", "models": entries}
    plan = stockpot.plan(stockpot.Recipe.from_data(recipe), out=tmp_path / "out", workers=2)
    entries = [{"model": ref, "parameters": {"weight": 1}} for ref in refs]
    mean = stockpot.Recipe.from_data({"merge_method": "linear", "models": entries})
    plain = stockpot.plan(mean, out=tmp_path / "out", workers=2)
    assert plan.peak_memory_bytes - plan.budget.total_bytes >= (
        plain.peak_memory_bytes - plain.budget.total_bytes + 2 * 8 * (4 * OUTPUTS * INPUTS + 3 * INPUTS**2)
    )


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (lambda g: g - 1e3 * torch.eye(INPUTS), errors.MethodError, "diagonal"),
        (lambda g: g + torch.triu(g.abs(), 1), errors.MethodError, "symmetric"),
        (lambda g: g[:4, :4], errors.MismatchError, "do not fit"),
        (lambda g: g * torch.nan, errors.NonFiniteError, "statistics"),
    ],
)
def test_matrices_that_cannot_be(change: Any, kind: type[Exception], says: str, tmp_path: Path) -> None:
    """What is no Gram matrix of this layer is refused."""
    models, rows = problem()
    grams = [x.T @ x for x in rows]
    grams[1] = change(grams[1])
    with pytest.raises(kind, match=says):
        merged(models, saved(tmp_path, grams))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_is_a_share(alpha: float, tmp_path: Path) -> None:
    """Outside 0 to 1 it is refused before anything is read."""
    models, rows = problem()
    with pytest.raises(errors.ParameterError, match="alpha of regmean"):
        merged(models, saved(tmp_path, [x.T @ x for x in rows]), alpha=alpha)


def test_one_model_is_itself(tmp_path: Path) -> None:
    """Bit for bit."""
    models, rows = problem()
    found = merged(models[:1], saved(tmp_path, [rows[0].T @ rows[0]]))
    assert np.array_equal(numbers(found["w"]), numbers(models[0]["w"]))
