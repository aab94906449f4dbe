"""Tied and untied checkpoints of one architecture in one merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

import stockpot
from stockpot import errors

from . import _oracle
from ._senses import KINDS
from ._zoo import Family, build, load, outputs_are_finite, save, train

Families = Callable[..., Family]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module", params=["gemma", "llama"])
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[Path]]:
    """A base with a head of its own, and fine-tunes that tie theirs to the embedding."""
    kind = KINDS[request.param]
    root = tmp_path_factory.mktemp(f"mixed-{request.param}")
    untied = build(kind.cls, kind.config(tie_word_embeddings=False), seed=0).eval()
    with torch.no_grad():
        noise = torch.randn(untied.lm_head.weight.shape, generator=torch.Generator().manual_seed(3))
        untied.lm_head.weight.copy_(untied.model.embed_tokens.weight + 1e-3 * noise)
    base = save(untied, root / "base", torch.float32)
    tied = build(kind.cls, kind.config(tie_word_embeddings=True), seed=1)
    tied.load_state_dict({k: v for k, v in untied.state_dict().items() if k != HEAD}, strict=False)
    tied.tie_weights()
    models = [save(train(tied, kind.batch, seed=number), root / f"ft{number}", torch.float32) for number in range(3)]
    assert HEAD in _oracle.read(base)
    assert all(HEAD not in _oracle.read(folder) for folder in models)
    return request.param, base, models


def check_untied(out: Path, name: str, head: list[torch.Tensor], embedding: list[torch.Tensor]) -> None:
    """The output has a head and an embedding of its own, each by the formula, and its config says untied."""
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["tie_word_embeddings"] is False
    stored = _oracle.read(out)
    record = json.loads((out / "stockpot.json").read_text("utf-8"))
    for key, inputs in ((HEAD, head), (EMBEDDING, embedding)):
        assert abs(record["groups"][key]["ratio"] - _oracle.ratio(inputs[0], inputs[1:])) < 1e-11
        score = _oracle.Score()
        score.add(
            key, stored[key], _oracle.combine(inputs[0], inputs[1:], record["groups"][key]["weights"][1:]), inputs
        )
        score.check()
    model = load(KINDS[name].cls, out)
    own = model.state_dict()
    assert own[HEAD].data_ptr() != own[EMBEDDING].data_ptr()
    assert torch.equal(own[HEAD], stored[HEAD])
    assert torch.equal(own[EMBEDDING], stored[EMBEDDING])
    assert not torch.equal(own[HEAD], own[EMBEDDING])
    assert outputs_are_finite(model, KINDS[name])
    assert stockpot.verify(out, recompute=1.0).problems == ()


@pytest.mark.parametrize("template", [None, "1", "base"])
def test_an_untied_base_under_tied_models(
    template: str | None, mixed: tuple[str, Path, list[Path]], tmp_path: Path
) -> None:
    """Tied fine-tunes count as having their embedding as head; the output is untied and says so."""
    name, base, models = mixed
    out = tmp_path / "merged"
    stockpot.merge("model_stock", base=base, models=models, out=out, template=template)
    inputs = [_oracle.read(folder) for folder in (base, *models)]
    check_untied(
        out,
        name,
        [inputs[0][HEAD], *(model[EMBEDDING] for model in inputs[1:])],
        [every[EMBEDDING] for every in inputs],
    )


def test_the_template_of_an_untied_output(mixed: tuple[str, Path, list[Path]], tmp_path: Path) -> None:
    """A fine-tune that counts as having the head is the template before the base: its side files are the output's."""
    _, base, models = mixed
    own = tmp_path / "ft"
    own.mkdir()
    for entry in models[0].iterdir():
        (own / entry.name).write_bytes(entry.read_bytes())
    (own / "chat_template.jinja").write_text("a template of the fine-tune", "utf-8")
    stockpot.merge("model_stock", base=base, models=[own, *models[1:]], out=tmp_path / "merged")
    assert (tmp_path / "merged" / "chat_template.jinja").is_file()


def test_the_untying_is_recorded(mixed: tuple[str, Path, list[Path]], tmp_path: Path) -> None:
    """That the head was untied stands among the decisions or warnings: nothing is repaired in silence."""
    _, base, models = mixed
    result = stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "merged")
    said = [f"{d.tensor} {d.policy} {d.action}" for d in result.decisions] + list(result.warnings)
    assert any("tie" in line for line in said), said


def test_a_tied_base_under_untied_models(mixed: tuple[str, Path, list[Path]], tmp_path: Path) -> None:
    """The other way round: the base's embedding is the anchor of the models' heads."""
    name, untied, tied = mixed
    models = []
    for number in (1, 2):
        model = load(KINDS[name].cls, untied)
        models.append(save(train(model, KINDS[name].batch, seed=50 + number), tmp_path / f"ft{number}", torch.float32))
    out = tmp_path / "merged"
    stockpot.merge("model_stock", base=tied[0], models=models, out=out)
    inputs = [_oracle.read(folder) for folder in (tied[0], *models)]
    check_untied(
        out,
        name,
        [inputs[0][EMBEDDING], *(model[HEAD] for model in inputs[1:])],
        [every[EMBEDDING] for every in inputs],
    )


def test_mixed_models_without_a_base(mixed: tuple[str, Path, list[Path]], tmp_path: Path) -> None:
    """A mean over tied and untied models is untied whichever comes first."""
    name, untied, tied = mixed
    for number, models in enumerate(([untied, tied[0]], [tied[0], untied])):
        out = tmp_path / f"merged{number}"
        stockpot.merge("linear", models=models, out=out)
        assert json.loads((out / "config.json").read_text("utf-8"))["tie_word_embeddings"] is False
        first, second = _oracle.read(untied), _oracle.read(tied[0])
        stored = _oracle.read(out)
        score = _oracle.Score()
        pair = [first[HEAD], second[EMBEDDING]]
        score.add(HEAD, stored[HEAD], _oracle.combine(pair[0], pair[1:], [0.5]), pair)
        score.check()
        load(KINDS[name].cls, out)


def test_no_tie_word_in_the_config_is_a_refusal(mixed: tuple[str, Path, list[Path]], tmp_path: Path) -> None:
    """A model without a head whose config does not call it tied is refused: its head may be lost."""
    _, base, models = mixed
    folders = []
    for number, folder in enumerate(models):
        copied = tmp_path / f"ft{number}"
        copied.mkdir()
        for entry in folder.iterdir():
            (copied / entry.name).write_bytes(entry.read_bytes())
        config = json.loads((copied / "config.json").read_text("utf-8"))
        config["tie_word_embeddings"] = False
        (copied / "config.json").write_text(json.dumps(config), "utf-8")
        folders.append(copied)
    with pytest.raises(errors.MissingTensorError, match="lm_head"):
        stockpot.merge("model_stock", base=base, models=folders, out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("template", [None, "1"])
def test_a_template_whose_config_is_silent(
    template: str | None, mixed: tuple[str, Path, list[Path]], tmp_path: Path
) -> None:
    """Where the output stores a head, its config says untied even if the template left the word out.

    Gemma's library ties by default: without the word it would drop the head that the merge wrote.
    """
    name, base, models = mixed
    folders = []
    for number, folder in enumerate(models):
        copied = tmp_path / f"ft{number}"
        copied.mkdir()
        for entry in folder.iterdir():
            (copied / entry.name).write_bytes(entry.read_bytes())
        config = json.loads((copied / "config.json").read_text("utf-8"))
        del config["tie_word_embeddings"]
        (copied / "config.json").write_text(json.dumps(config), "utf-8")
        folders.append(copied)
    out = tmp_path / "merged"
    stockpot.merge("model_stock", base=base, models=folders, out=out, missing="base", template=template)
    stored = _oracle.read(out)
    assert torch.equal(stored[HEAD], _oracle.read(base)[HEAD])
    model = load(KINDS[name].cls, out)
    assert torch.equal(model.lm_head.weight, stored[HEAD])


@pytest.mark.parametrize("said", ["twice", "inside"])
def test_a_head_of_a_composite_model(said: str, tmp_path: Path) -> None:
    """A composite model's config says the word twice, outside and inside, or inside alone: the output loads untied."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
    }

    def config(tied: bool) -> transformers.LlavaConfig:
        text = KINDS["llama"].config(tie_word_embeddings=tied).to_dict()
        return transformers.LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=3, tie_word_embeddings=tied
        )

    cls = transformers.LlavaForConditionalGeneration
    base = save(build(cls, config(False), seed=0).eval(), tmp_path / "base", torch.float32)
    models = [save(build(cls, config(True), seed=n).eval(), tmp_path / f"ft{n}", torch.float32) for n in (1, 2)]
    for folder in models if said == "inside" else []:
        stated = json.loads((folder / "config.json").read_text("utf-8"))
        assert stated["text_config"]["tie_word_embeddings"] is True
        del stated["tie_word_embeddings"]
        (folder / "config.json").write_text(json.dumps(stated), "utf-8")
    (head,) = set(_oracle.read(base)) - set(_oracle.read(models[0]))
    out = tmp_path / "merged"
    stockpot.merge("linear", models=[*models, base], out=out)
    stored = _oracle.read(out)
    model = load(cls, out)
    assert head in stored
    assert torch.equal(model.get_output_embeddings().weight, stored[head])
    assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
