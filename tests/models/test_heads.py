"""Heads that the base lacks or has in another shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import stockpot
from stockpot import errors

from . import _oracle
from ._senses import KINDS
from ._zoo import WORDS, build, load, outputs_are_finite, save, train

LABELS = {0: "good", 1: "bad", 2: "ugly"}
HEAD = ("classifier.bias", "classifier.weight")


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Path]]:
    """A pre-trained BERT with its pre-training heads, the bare encoder, and fine-tunes with a classifier."""
    root = tmp_path_factory.mktemp("headed")
    kind = KINDS["bert-head"]
    pre = build(transformers.BertForPreTraining, KINDS["bert"].config(), seed=0).eval()
    base = save(pre, root / "base", torch.float32)
    bare = save(pre.bert, root / "bare", torch.float32)
    start = build(kind.cls, kind.config(id2label=LABELS, label2id={name: n for n, name in LABELS.items()}), seed=1)
    start.bert.load_state_dict(pre.bert.state_dict())
    models = [save(train(start, kind.batch, seed=n), root / f"ft{n}", torch.float32) for n in range(3)]
    return base, bare, models


def check_averaged(out: Path, base: dict[str, torch.Tensor], models: list[Path]) -> None:
    """The classifier is the plain mean of the models, the rest the formula; the folder loads with its labels."""
    inputs = [_oracle.read(folder) for folder in models]
    stored = _oracle.read(out)
    assert stored.keys() == inputs[0].keys()
    record = json.loads((out / "stockpot.json").read_text("utf-8"))
    score = _oracle.Score()
    for name, tensor in stored.items():
        those = [model[name] for model in inputs]
        if name in HEAD:
            assert name not in record["groups"], "a ratio was formed without an anchor"
            score.add(name, tensor, _oracle.combine(those[0], those[1:], [1 / 3, 1 / 3]), those)
        else:
            steps = record["groups"][name]["weights"][1:]
            score.add(name, tensor, _oracle.combine(base[name], those, steps), [base[name], *those])
    score.check()
    model = load(KINDS["bert-head"].cls, out)
    assert model.config.num_labels == 3
    assert model.config.id2label == LABELS
    assert outputs_are_finite(model, KINDS["bert-head"])
    assert stockpot.verify(out, recompute=1.0).problems == ()


def test_a_head_without_an_anchor_is_refused(headed: tuple[Path, Path, list[Path]], tmp_path: Path) -> None:
    """Every missing tensor is listed at once, before any data is read; nothing is left behind."""
    base, _, models = headed
    with pytest.raises(errors.MissingTensorError) as caught:
        stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "merged")
    told = "\n".join(caught.value.lines())
    assert "--missing" in told
    for name in HEAD:
        assert name in told
    assert sorted(tmp_path.iterdir()) == []


def test_a_head_without_an_anchor_is_averaged_on_request(headed: tuple[Path, Path, list[Path]], tmp_path: Path) -> None:
    """``missing="average"``: the plain mean of the models, recorded; the base's own heads are left out, and said."""
    base, _, models = headed
    result = stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "merged", missing="average")
    check_averaged(tmp_path / "merged", _oracle.read(base), models)
    decided = {decision.tensor: decision for decision in result.decisions}
    for name in HEAD:
        assert decided[name].policy == "missing"
    assert any(name.startswith("cls.") for name in decided)


def test_a_bare_encoder_is_refused_with_the_rename_that_mends_it(
    headed: tuple[Path, Path, list[Path]], tmp_path: Path
) -> None:
    """A base saved without its wrapper lacks the prefix: the refusal says the very option, and that option works."""
    _, bare, models = headed
    with pytest.raises(errors.MissingTensorError) as caught:
        stockpot.merge("model_stock", base=bare, models=models, out=tmp_path / "merged")
    assert caught.value.remedy is not None
    assert "--rename 'base:^=bert.'" in caught.value.remedy
    stockpot.merge(
        "model_stock", base=bare, models=models, out=tmp_path / "merged", rename=["base:^=bert."], missing="average"
    )
    renamed = {f"bert.{name}": tensor for name, tensor in _oracle.read(bare).items()}
    check_averaged(tmp_path / "merged", renamed, models)


def test_heads_of_other_sizes(tmp_path: Path) -> None:
    """A head of another size in the base is refused by name and shape; ``mismatch="first"`` takes the first model's."""
    kind = KINDS["vit"]
    pre = build(kind.cls, kind.config(num_labels=10), seed=0)
    base = save(pre, tmp_path / "base", torch.float32)
    start = build(kind.cls, kind.config(), seed=1)
    shared = {k: v for k, v in pre.state_dict().items() if not k.startswith("classifier")}
    start.load_state_dict(shared, strict=False)
    models = [save(train(start, kind.batch, seed=n), tmp_path / f"ft{n}", torch.float32) for n in range(2)]
    with pytest.raises(errors.MismatchError) as caught:
        stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "merged")
    told = "\n".join(caught.value.lines())
    assert "classifier.weight" in told
    assert "[10, 32]" in told
    assert "[3, 32]" in told
    assert "--mismatch" in told
    stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "merged", mismatch="first")
    stored, first = _oracle.read(tmp_path / "merged"), _oracle.read(models[0])
    for name in HEAD:
        assert torch.equal(stored[name], first[name])
    model = load(kind.cls, tmp_path / "merged")
    assert model.config.num_labels == 3
    assert outputs_are_finite(model, kind)


@pytest.mark.parametrize("name", ["llama", "gemma", "bert", "t5"])
def test_a_vocabulary_extended_in_the_fine_tunes(name: str, tmp_path: Path) -> None:
    """Two tokens more in every fine-tune: refused with the remedy, which works: embeddings and head of the first."""
    kind = KINDS[name]
    pre = build(kind.cls, kind.config(), seed=0)
    base = save(pre, tmp_path / "base", torch.float32)
    models = []
    for seed in (1, 2):
        grown = train(pre, kind.batch, seed)
        grown.resize_token_embeddings(WORDS + 2, mean_resizing=False)
        models.append(save(grown, tmp_path / f"ft{seed}", torch.float32))
    with pytest.raises(errors.MismatchError) as caught:
        stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "merged")
    told = caught.value.line()
    assert "vocabularies of different sizes" in told
    assert f"expected [{WORDS}, 32] as in {base}, got [{WORDS + 2}, 32]" in told
    assert "--mismatch first" in told
    assert not (tmp_path / "merged").exists()
    stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "merged", mismatch="first")
    model = load(kind.cls, tmp_path / "merged")
    assert model.get_input_embeddings().weight.shape[0] == WORDS + 2
    first = load(kind.cls, models[0])
    assert torch.equal(model.get_input_embeddings().weight, first.get_input_embeddings().weight)
    assert outputs_are_finite(model, kind)
