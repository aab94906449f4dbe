"""Diagonal Fisher values of real models, against one gradient at a time in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tests.evaluate import _zoo as zoo
from tests.oracles import statistics as oracle

import stockpot

from ._subjects import CLASSES, SINGLE, TEXTS, as_saved, close, encoded, pictures, read, texts, wide, with_noise

ROUNDED = 2e-7
"""The file is float32, all else float64."""


@pytest.mark.parametrize("batch", [1, 4])
def test_given_and_exact_of_a_text_classifier(tmp_path: Path, batch: int) -> None:
    """Both are sums over single examples, whatever is worked on together."""
    model, data = zoo.bert(tmp_path / "bert"), texts(tmp_path)
    net = wide(transformers.BertForSequenceClassification, model)
    examples = encoded(model)
    answers = [torch.tensor([CLASSES[label]]) for _, label in TEXTS]
    expected = {
        "given": oracle.empirical_fisher(net, list(zip(examples, answers, strict=True))),
        "exact": oracle.exact_fisher(net, examples),
    }
    for labels, want in expected.items():
        out = tmp_path / f"{labels}.safetensors"
        stockpot.collect_fisher(model, data=data, out=out, labels=labels, batch=batch, dtype="float64")
        close(read(out)[0], want, ROUNDED)


def test_exact_of_an_image_classifier(tmp_path: Path) -> None:
    """Images come through the model's own processor; names are the checkpoint's, which are not those of the modules."""
    model, data = with_noise(zoo.vit(tmp_path / "vit")), zoo.save_images(tmp_path / "data", per_class=2)
    net = wide(transformers.ViTForImageClassification, model)
    examples, classes = pictures(model, data)
    out = tmp_path / "out.safetensors"
    stockpot.collect_fisher(model, data=data, out=out, labels="exact", dtype="float64")
    want = as_saved(oracle.exact_fisher(net, examples), net, model)
    assert set(want) == set(zoo.weights_of(model))
    close(read(out)[0], want, SINGLE)
    stockpot.collect_fisher(model, data=data, out=out, labels="given", dtype="float64", overwrite=True)
    pairs = [(inputs, torch.tensor([own])) for inputs, own in zip(examples, classes, strict=True)]
    close(read(out)[0], as_saved(oracle.empirical_fisher(net, pairs), net, model), SINGLE)


@pytest.mark.parametrize("tied", [True, False])
def test_given_of_a_language_model(tmp_path: Path, tied: bool) -> None:
    """The answers are the tokens that follow; a tied tensor stands once, under the checkpoint's name."""
    model = zoo.gpt(tmp_path / "model") if tied else zoo.llama(tmp_path / "model")
    kind = transformers.GPT2LMHeadModel if tied else transformers.LlamaForCausalLM
    net = wide(kind, model)
    examples = encoded(model)
    pairs = [(inputs, inputs["input_ids"][0, 1:]) for inputs in examples]
    out = tmp_path / "out.safetensors"
    stockpot.collect_fisher(model, data=texts(tmp_path), out=out, labels="given", dtype="float64")
    found, _ = read(out)
    close(found, oracle.empirical_fisher(net, pairs), ROUNDED if tied else SINGLE)
    assert set(found) == set(zoo.weights_of(model))


def test_sampled_answers_have_the_exact_mean(tmp_path: Path) -> None:
    """Of each parameter the sum over its elements is within 5 standard errors of the expectation; not the empirical."""
    model, data = zoo.bert(tmp_path / "bert"), texts(tmp_path)
    net = wide(transformers.BertForSequenceClassification, model)
    examples = encoded(model)
    exact = oracle.exact_fisher(net, examples)
    draws, runs = 16, []
    for seed in range(8):
        out = tmp_path / f"{seed}.safetensors"
        stockpot.collect_fisher(model, data=data, out=out, samples=draws, seed=seed, dtype="float64")
        runs.append(read(out)[0])
    for name, want in exact.items():
        sums = torch.stack([one[name].double().sum() for one in runs])
        error = float(sums.std()) / len(runs) ** 0.5
        assert abs(float(sums.mean() - want.sum())) <= 5 * error + 1e-6 * float(want.sum()) + 1e-25, name


def test_sampled_tokens_have_the_exact_mean(tmp_path: Path) -> None:
    """Answers are drawn apart at each place, so that terms of different places cancel in the mean."""
    model, data = zoo.gpt(tmp_path / "gpt"), texts(tmp_path)
    exact = oracle.exact_fisher_of_language(wide(transformers.GPT2LMHeadModel, model), encoded(model))
    runs = []
    for seed in range(8):
        out = tmp_path / f"{seed}.safetensors"
        stockpot.collect_fisher(model, data=data, out=out, samples=12, seed=seed, dtype="float64")
        runs.append(read(out)[0])
    for name, want in exact.items():
        sums = torch.stack([one[name].double().sum() for one in runs])
        error = float(sums.std()) / len(runs) ** 0.5
        assert abs(float(sums.mean() - want.sum())) <= 5 * error + 1e-6 * float(want.sum()) + 1e-25, name


def test_the_same_call_writes_the_same_bytes(tmp_path: Path) -> None:
    """Nothing of the time or of chance is in the file; another seed draws other answers."""
    model, data = zoo.bert(tmp_path / "bert"), texts(tmp_path)
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        stockpot.collect_fisher(model, data=data, out=file, seed=seed)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() != files[2].read_bytes()


def test_draws_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """An example's answers follow from the seed and its number alone."""
    model, data = zoo.bert(tmp_path / "bert"), texts(tmp_path)
    found = []
    for batch in (1, 2, 8):
        out = tmp_path / f"{batch}.safetensors"
        stockpot.collect_fisher(model, data=data, out=out, samples=3, batch=batch, dtype="float64")
        found.append(read(out)[0])
    close(found[1], found[0], ROUNDED)
    close(found[2], found[0], ROUNDED)


def test_what_the_file_says_of_itself(tmp_path: Path) -> None:
    """How it was made, in the metadata; float32 values, in the checkpoint's order."""
    model, data = zoo.bert(tmp_path / "bert"), texts(tmp_path)
    out = tmp_path / "out.safetensors"
    result = stockpot.collect_fisher(model, data=data, out=out, samples=2, seed=7, limit=4)
    found, about = read(out)
    assert {one.dtype for one in found.values()} == {torch.float32}
    assert (result.examples, result.tensors, result.bytes_written) == (4, len(found), out.stat().st_size)
    wanted = {"kind": "fisher", "labels": "sampled", "samples": 2, "seed": 7, "examples": 4, "dtype": "float32"}
    assert {name: about[name] for name in wanted} == wanted
    assert about["model"] == str(model)
    before = (about["model_digest"], about["data_digest"])
    (model / "model.safetensors").write_bytes((zoo.bert(tmp_path / "other") / "model.safetensors").read_bytes())
    data.write_text(data.read_text("utf-8") + "\n", "utf-8")
    stockpot.collect_fisher(model, data=data, out=out, samples=2, seed=7, limit=4, overwrite=True)
    after = read(out)[1]
    assert after["model_digest"] == before[0]  # the same bytes
    assert after["data_digest"] != before[1]


def test_models_that_cannot_be_taken_together_go_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are the same, and the reason is told."""
    from stockpot.collect import _fisher

    model, data = zoo.bert(tmp_path / "bert"), texts(tmp_path)
    files = [tmp_path / "together.safetensors", tmp_path / "apart.safetensors"]
    assert stockpot.collect_fisher(model, data=data, out=files[0], dtype="float64").warnings == ()

    def refusing(*_: object, **__: object) -> object:
        def raises(*_: object) -> None:
            raise RuntimeError("data-dependent control flow")

        return raises

    monkeypatch.setattr(_fisher, "vmap", refusing)
    told = stockpot.collect_fisher(model, data=data, out=files[1], dtype="float64").warnings
    assert any("one by one" in line and "data-dependent" in line for line in told)
    close(read(files[1])[0], read(files[0])[0], ROUNDED)
