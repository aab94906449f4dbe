"""Soups on small models in memory and on disk: golden cases, counts, what is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.oracles import soups as oracle

import stockpot
from stockpot import errors
from stockpot.soups import Correspondence, Rules, Running, ensemble, evaluate_models, greedy, uniform, wise_ft

from ._bowl import Bowl, flat, state

BASE = state(0)
MODELS = [state(number, BASE, 0.1) for number in range(1, 6)]


def saved(folder: Path, states: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, str]:
    """As folders with a config."""
    paths = {}
    for name, made in states.items():
        (folder / name).mkdir(parents=True)
        save_file(dict(made), folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"model_type": "bowl"}')
        paths[name] = str(folder / name)
    return paths


def test_uniform_of_copies_is_the_copy(tmp_path: Path) -> None:
    """Bit for bit."""
    paths = saved(tmp_path, {f"m{number}": MODELS[0] for number in range(3)})
    found = uniform(list(paths.values()), out=tmp_path / "out")
    assert found.out is not None
    for name, tensor in load_file(found.out / "model.safetensors").items():
        assert torch.equal(tensor, MODELS[0][name])
    assert found.weights == {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}
    assert found.metric is None


def test_the_streamed_mean_is_the_running_mean() -> None:
    """What the evaluator sees of a soup is the paper's running mean, to one rounding."""
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def look(weights: Mapping[str, torch.Tensor]) -> float:
        seen[len(seen)] = {name: tensor.clone() for name, tensor in weights.items()}
        return 0.0

    greedy(MODELS, look)
    assert len(seen) == 2 * len(MODELS) - 1
    for size in range(2, len(MODELS) + 1):
        expected = oracle.running_mean([flat(model) for model in MODELS[:size]])
        np.testing.assert_allclose(flat(seen[len(MODELS) + size - 2]), expected.astype(float), rtol=4e-16, atol=1e-17)


def test_greedy_of_one_is_that_one() -> None:
    """And asks once."""
    bowl = Bowl(BASE)
    found = greedy(MODELS[:1], bowl, select="loss:min")
    assert (found.weights, bowl.asked, len(found.steps)) == ({0: 1.0}, 1, 1)


@pytest.mark.parametrize(("ties", "members"), [(True, {0: 0.5, 1: 0.5}), (False, {0: 1.0})])
def test_a_duplicate(ties: bool, members: dict[int, float]) -> None:
    """Joins under ties, not without; nothing is evaluated twice, since the mixture is the model."""
    copy = {name: tensor.clone() for name, tensor in MODELS[0].items()}
    bowl = Bowl(BASE)
    found = greedy([MODELS[0], copy], bowl, select="loss:min", rules=Rules(accept_ties=ties))
    assert found.weights == members
    assert bowl.asked == 1


def test_greedy_finds_what_it_should_and_asks_no_more() -> None:
    """In a bowl, models around its middle average out; a far one is left out; N + (N - 1) evaluations."""
    far = state(77, BASE, 3.0)
    bowl = Bowl(BASE)
    found = greedy([far, *MODELS], bowl, select="loss:min")
    assert bowl.asked == found.evaluated == 6 + 5
    assert 0 not in found.weights
    chosen = found.chosen
    assert chosen is not None
    singles = [one.scores["loss"] for one in found.candidates if one.sort == "model"]
    assert chosen.scores["loss"] <= min(singles)
    members = sorted(found.weights)
    mean = np.mean([flat([far, *MODELS][number]) for number in members], axis=0)
    assert chosen.scores["loss"] == pytest.approx(bowl.at(mean), rel=1e-12)


def test_the_written_soup_is_a_linear_merge(tmp_path: Path) -> None:
    """The same weight bytes as ``merge --method linear`` of the chosen; the log is beside them; ``verify`` holds."""
    paths = saved(tmp_path, {f"m{number}": model for number, model in enumerate(MODELS)} | {"base": BASE})
    models = [paths[f"m{number}"] for number in range(5)]
    bowl = Bowl(MODELS[1])
    found = greedy(models, bowl, base=paths["base"], select="loss:min", out=tmp_path / "soup")
    assert found.out is not None
    members = sorted(found.weights)
    assert 1 <= len(members) < 5
    merged = stockpot.merge("linear", models=[models[number] for number in members], out=tmp_path / "merged")
    for name in ("model.safetensors", "config.json", "stockpot_recipe.yaml"):
        assert (found.out / name).read_bytes() == (merged.out / name).read_bytes()
    record = json.loads((found.out / "stockpot.json").read_text())
    assert record["chosen"] == json.loads(json.dumps(found.data()))
    assert [entry["role"] for entry in record["inputs"]] == ["model"] * len(members)
    assert stockpot.verify(found.out, recompute=1.0).problems == ()
    card = (found.out / "README.md").read_text()
    assert "Chosen by `loss` (less is better)" in card
    assert "| Model Stock |" in card


def test_one_file_holds_the_log_too(tmp_path: Path) -> None:
    """In its header."""
    paths = saved(tmp_path, {f"m{number}": model for number, model in enumerate(MODELS)})
    found = greedy(list(paths.values()), Bowl(BASE), select="loss:min", out=tmp_path / "soup.safetensors")
    assert found.out is not None
    assert stockpot.verify(found.out).problems == ()
    source = stockpot.open_checkpoint(found.out)
    assert json.loads(source.metadata["stockpot"])["chosen"]["kind"] == "greedy"


def test_model_stock_is_one_more_candidate() -> None:
    """With a base, and one evaluation more."""
    bowl = Bowl(BASE)
    found = greedy(MODELS[:3], bowl, base=BASE, select="loss:min")
    stock = stockpot.merge_state_dicts("model_stock", base=BASE, models=MODELS[:3])
    (candidate,) = [one for one in found.candidates if one.sort == "model_stock"]
    assert candidate.scores["loss"] == pytest.approx(bowl.at(flat(stock)), rel=1e-12)
    assert bowl.asked == 3 + 2 + 1


def test_why_greedy_keeps_one() -> None:
    """Two wells with a hill between: the height of the barrier, and the angle where there is a base."""
    one, other = MODELS[0], MODELS[1]
    start, step = flat(one), flat(other) - flat(one)

    def goodness(weights: Mapping[str, torch.Tensor]) -> float:
        place = float((flat(weights) - start) @ step / (step @ step))
        return 1.0 - 16.0 * place**2 * (1.0 - place) ** 2 - 0.01 * place

    found = greedy([one, other], goodness, base=BASE)
    assert found.weights == {0: 1.0}
    (note,) = found.notes
    assert "kept model 1 alone" in note
    assert "a barrier of 1 half-way" in note
    d1, d2 = start - flat(BASE), flat(other) - flat(BASE)
    angle = np.degrees(np.arccos(d1 @ d2 / np.linalg.norm(d1) / np.linalg.norm(d2)))
    assert f"{angle:.0f} degrees apart" in note


def test_pruned() -> None:
    """From all, dropping what harms."""
    far = state(77, BASE, 3.0)
    bowl = Bowl(BASE)
    found = greedy([far, *MODELS[:3]], bowl, select="loss:min", rules=Rules(prune=True))
    assert 0 not in found.weights
    assert found.steps[0].model == -1
    assert found.steps[1].model == 0
    assert found.steps[1].accepted


def test_the_test_is_asked_once_at_the_end() -> None:
    """For the soup and its rivals, after everything was chosen; it decides nothing."""
    log: list[str] = []
    bowl, other = Bowl(BASE), Bowl(state(50))

    def choosing(weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        log.append("choose")
        return bowl(weights)

    def testing(weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        log.append("test")
        return other(weights)

    found = greedy(MODELS, choosing, base=BASE, select="loss:min", test=testing)
    assert log == ["choose"] * 10 + ["test"] * 3  # the best single, the greedy soup, Model Stock
    assert {one.sort for one in found.candidates if one.tested} == {"model", "greedy", "model_stock"}
    assert found.weights == greedy(MODELS, Bowl(BASE), base=BASE, select="loss:min").weights
    chosen = found.chosen
    assert chosen is not None
    mean = np.mean([flat(MODELS[number]) for number in found.weights], axis=0)
    assert chosen.tested["loss"] == pytest.approx(other.at(mean), rel=1e-12)


def test_out_is_looked_at_before_anything_is_evaluated(tmp_path: Path) -> None:
    """A place that is taken, models that do not correspond: told at once."""
    paths = saved(tmp_path, {f"m{number}": model for number, model in enumerate(MODELS[:2])})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    bowl = Bowl(BASE)
    models = list(paths.values())
    with pytest.raises(errors.OutputExistsError):
        greedy(models, bowl, select="loss:min", out=tmp_path / "taken")
    with pytest.raises(errors.MissingTensorError):
        greedy([*models, {"other": torch.ones(2)}], bowl, select="loss:min")
    with pytest.raises(errors.UsageError, match="give --evaluate too"):
        uniform(models, test=bowl)
    assert bowl.asked == 0


def test_jobs_meet_in_the_cache(tmp_path: Path) -> None:
    """Singles are scored by other processes, each once; the choice is the same."""
    paths = saved(tmp_path / "models", {f"m{number}": model for number, model in enumerate(MODELS)})
    code = (
        "import os, pathlib\n"
        f"LOG = pathlib.Path({str(tmp_path / 'log')!r})\n"
        "def score(weights):\n"
        "    with LOG.open('a') as file: file.write(f'{os.getpid()}\\n')\n"
        "    return -sum(float((w ** 2).sum()) for w in weights.values())\n"
    )
    (tmp_path / "judge.py").write_text(code)
    running = Running(tmp_path / "cache")
    models = list(paths.values())
    found = greedy(models, f"{tmp_path}/judge.py:score", jobs=3, running=running)
    pids = (tmp_path / "log").read_text().split()
    assert len(pids) == 5 + 4
    assert len(set(pids[:5])) == 3
    assert (found.known, found.evaluated) == (5, 4)
    assert found.weights == greedy(models, f"{tmp_path}/judge.py:score", running=running).weights
    with pytest.raises(errors.UsageError, match="several jobs"):
        greedy(models, lambda weights: 0.0, jobs=2, running=running)


def test_wise_ft(tmp_path: Path) -> None:
    """The best place on the line; of equals the smaller; both ends give the inputs' bytes."""
    paths = saved(tmp_path, {"zs": BASE, "ft": MODELS[0]})
    middle = {name: 0.7 * BASE[name] + 0.3 * MODELS[0][name] for name in BASE}
    found = wise_ft(paths["zs"], paths["ft"], Bowl(middle), select="loss:min", out=tmp_path / "best")
    assert (found.best, len(found.scores)) == (0.3, 11)
    merged = stockpot.merge(
        "wise_ft", base=paths["zs"], models=[paths["ft"]], parameters={"alpha": 0.3}, out=tmp_path / "m"
    )
    assert found.out is not None
    assert (found.out / "model.safetensors").read_bytes() == (merged.out / "model.safetensors").read_bytes()
    assert wise_ft(BASE, MODELS[0], lambda weights: 1.0).best == 0.0
    for alpha, end in ((0.0, BASE), (1.0, MODELS[0])):
        out = tmp_path / f"end{alpha}"
        wise_ft(paths["zs"], paths["ft"], lambda weights: 1.0, alphas=[alpha], out=out)
        assert all(torch.equal(tensor, end[name]) for name, tensor in load_file(out / "model.safetensors").items())


def test_evaluations() -> None:
    """One each, in order."""
    bowl = Bowl(BASE)
    found = evaluate_models(MODELS[:3], bowl)
    assert [row["loss"] for row in found.scores] == [pytest.approx(bowl.at(flat(model))) for model in MODELS[:3]]


X = np.random.default_rng(2).normal(size=(60, 6))
LABELS = np.random.default_rng(3).integers(0, 5, 60)


def linear_logits(weights: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """A linear classifier of 5 classes."""
    logits = X @ weights["layer.0.weight"].numpy() + weights["layer.0.bias"].numpy()
    return {"any": 0.0, "logits": logits, "labels": LABELS}


def test_a_linear_model_s_soup_equals_its_ensemble() -> None:
    """The same accuracy and loss; the ensemble costs as many models as it has."""
    found = ensemble(MODELS, linear_logits, base=BASE)
    by_sort = {one.sort: one for one in found.predictors}
    assert by_sort["uniform"].scores["loss"] == pytest.approx(by_sort["ensemble"].scores["loss"], rel=1e-5)
    assert by_sort["uniform"].scores["accuracy"] == by_sort["ensemble"].scores["accuracy"]
    assert (by_sort["uniform"].cost, by_sort["ensemble"].cost, by_sort["model_stock"].cost) == (1, 5, 1)
    best = max(one.scores["accuracy"] for one in found.predictors if one.sort == "model")
    assert by_sort["greedy_ensemble"].scores["accuracy"] >= best
    assert found.evaluated == 5 + 2


def test_an_ensemble_follows_mean_logits() -> None:
    """Two models of which one is sure: mean logits follow it, mean probabilities would not."""
    sure, others = [[20.0, 0.0]], [[0.0, 3.0]]
    table = {1.0: sure, 2.0: others, 3.0: others}
    models = [{"w": torch.tensor([value])} for value in table]
    mean = np.mean([sure[0], others[0], others[0]], axis=0)
    assert mean.argmax() == 0
    probabilities = [np.exp(row[0]) / np.exp(row[0]).sum() for row in (sure, others, others)]
    assert np.mean(probabilities, axis=0).argmax() == 1

    def evaluate(weights: Mapping[str, torch.Tensor]) -> dict[str, object]:
        return {"x": 1.0, "logits": np.array(table.get(float(weights["w"]), others)), "labels": [0]}

    found = ensemble(models, evaluate)
    assert next(one for one in found.predictors if one.sort == "ensemble").scores["accuracy"] == 1.0


def other_count(weights: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """One example of the first model, two of others."""
    count = 1 if torch.equal(weights["layer.0.bias"], MODELS[0]["layer.0.bias"]) else 2
    return {"x": 0.5, "logits": [[1.0, 2.0]] * count, "labels": [0] * count}


@pytest.mark.parametrize(
    ("evaluate", "says"),
    [
        (lambda weights: 0.5, "returned no logits"),
        (lambda weights: {"x": 0.5, "logits": [[1.0, 2.0]]}, "returned no labels"),
        (other_count, "other examples"),
    ],
)
def test_ensembles_need_logits_and_labels_of_the_same_examples(evaluate: Callable[..., object], says: str) -> None:
    """One line each."""
    with pytest.raises(errors.EvaluatorError, match=says):
        ensemble(MODELS[:2], evaluate)


def test_functions_of_one_maker_are_two(tmp_path: Path) -> None:
    """Evaluators told apart by the name that was typed, not by how their function calls itself."""
    code = "def make(k):\n    def evaluate(weights): return float(k)\n    return evaluate\n"
    code += "held, other = make(1), make(2)\n"
    (tmp_path / "made.py").write_text(code)
    running = Running(tmp_path / "cache")
    found = greedy(MODELS[:2], f"{tmp_path}/made.py:held", test=f"{tmp_path}/made.py:other", running=running)
    assert {one.tested["score"] for one in found.candidates if one.tested} == {2.0}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_candidates_on_disk_have_the_models_form(suffix: str, tmp_path: Path) -> None:
    """Files where the models are files."""
    paths = []
    for number, model in enumerate(MODELS[:3]):
        paths.append(tmp_path / f"m{number}{suffix}")
        (torch.save if suffix == ".pt" else save_file)(model, paths[-1])
    seen: list[Path] = []

    def evaluate(checkpoint: Path) -> float:
        seen.append(checkpoint)
        state = torch.load(checkpoint, weights_only=True) if suffix == ".pt" else load_file(checkpoint)
        return -float(state["layer.0.bias"].norm())

    greedy(paths, evaluate)
    assert len(seen) == 5
    assert {path.suffix for path in seen} == {suffix}
    assert not any(path.exists() for path in seen[3:])


def test_one_place_by_two_names(tmp_path: Path) -> None:
    """A trailing slash or a detour is the same model."""
    paths = saved(tmp_path, {"a": MODELS[0], "b": MODELS[1]})
    for other in (paths["a"] + "/", f"{tmp_path}/b/../a"):
        with pytest.raises(errors.UsageError, match="twice"):
            uniform([paths["a"], other])


def test_jobs_number_models_as_the_user_does(tmp_path: Path) -> None:
    """A rename of the second model is that of the second model in every process."""
    other = {f"net.{name}": tensor for name, tensor in MODELS[1].items()}
    paths = saved(tmp_path / "models", {"a": MODELS[0], "b": other, "c": MODELS[2]})
    (tmp_path / "judge.py").write_text("def norm(weights): return -float(weights['layer.0.bias'].norm())\n")
    same = Correspondence(rename=[r"2:net\.(.*)=\1"])
    found = greedy(
        list(paths.values()),
        f"{tmp_path}/judge.py:norm",
        jobs=2,
        correspondence=same,
        running=Running(tmp_path / "cache"),
    )
    assert found.known == 3


def test_a_process_that_dies(tmp_path: Path) -> None:
    """Told as what it is."""
    paths = saved(tmp_path / "models", {"a": MODELS[0], "b": MODELS[1]})
    (tmp_path / "judge.py").write_text("import os\ndef dies(weights): os._exit(7)\n")
    with pytest.raises(errors.EvaluatorError, match="a process that scored models has died"):
        greedy(list(paths.values()), f"{tmp_path}/judge.py:dies", jobs=2, running=Running(tmp_path / "cache"))
