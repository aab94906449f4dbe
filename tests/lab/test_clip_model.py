"""CLIPs of every form against a forward pass written from the definition, and how a classifier is made of texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from stockpot import errors
from stockpot.evaluate import Options, ResultCache
from stockpot.lab import _clip_names as names
from stockpot.lab._clip_model import Judge, Texts, in_form, load_base, texts_of
from stockpot.lab._pixels import batches
from stockpot.soups import Running

from . import _clip_zoo as zoo

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "projection_dim",
         "patch_size", "image_size", "vocab_size", "max_position_embeddings")  # fmt: skip
TEXTS_WANTED = "a zero-shot classifier needs the names of the classes"


@pytest.fixture
def no_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed."""
    monkeypatch.setattr("stockpot.lab._clip_model._open_clip", lambda: None)


def judged(judge: Judge, weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """Logits of bytes."""
    with torch.inference_mode():
        return judge.answers(*judge.become(weights, "these"), pixels)


@pytest.mark.parametrize("form", ["transformers", "open_clip", "wrapped"])
def test_logits_of_every_form(form: names.Form, sets: zoo.Sets, family: zoo.Family) -> None:
    """The definition, in float64 and by OpenAI's names, gives the same logits."""
    own = dict(family.tuned_weights[1])
    weights = names.from_transformers(own, form)
    shape = names.shape_of(weights, "these")
    assert (shape.form, shape.has_head) == (form, True)
    images = torch.stack([zoo.seen(sets.image(number)) for number in range(5)])
    features = zoo.forward(names.from_transformers(own, "open_clip"), images, heads=2)
    features = features / features.norm(dim=1, keepdim=True)
    expected = features @ own[names.HEAD_WEIGHT].double().T + own[names.HEAD_BIAS].double()
    (pixels,) = batches([sets.image(number) for number in range(5)], zoo.SIDE, 5)
    found = judged(
        Judge(load_base(str(family.base), Running()), shape, None, Options(), ResultCache(None)), weights, pixels
    )
    assert found.double() == pytest.approx(expected, abs=2e-4)
    assert expected.std() > 0.5


def test_names_there_and_back(family: zoo.Family) -> None:
    """Every tensor, bit for bit; what is fused comes apart and together again."""
    own = dict(family.tuned_weights[0])
    there = names.from_transformers(own, "open_clip")
    assert "visual.transformer.resblocks.1.attn.in_proj_weight" in there
    assert len(there) == len(own) - 3 * 2 * 2  # of three blocks, two of six tensors remain
    back = names.to_transformers(there, names.shape_of(there, "these"), "these")
    assert set(back) == set(own)
    assert all(torch.equal(back[name], own[name]) for name in own)


def test_a_strange_tensor_is_refused() -> None:
    """By name; and a state dict of something else altogether."""
    weights = {"visual.conv1.weight": torch.zeros(1), "visual.extra": torch.zeros(1)}
    with pytest.raises(errors.CheckpointError, match=r"a tensor that CLIP does not have; tensor visual\.extra, file x"):
        names.to_transformers(weights, names.shape_of(weights, "x"), "x")
    with pytest.raises(errors.CheckpointError, match=r"no CLIP whose names are known.*got layer\.weight"):
        names.shape_of({"layer.weight": torch.zeros(1)}, "x")


@pytest.mark.parametrize("wrapped", [False, True])
def test_sizes_tell_the_config(wrapped: bool, family: zoo.Family, tmp_path: Path) -> None:
    """A state dict alone gives the config that the folder has."""
    path = tmp_path / "model.pt"
    own = zoo.weights_of(family.clip)
    if wrapped:
        zoo.save_wrapped(path, family.base_weights)
    else:
        torch.save(names.from_transformers(own, "open_clip"), path)
    stated, told = load_base(str(family.clip), Running()), load_base(str(path), Running())
    parts = ["vision_config"] if wrapped else ["vision_config", "text_config"]
    for part in parts:
        for name in SIZES:
            one, other = (getattr(getattr(own.config, part), name, None) for own in (stated, told))
            assert one == other, name
    assert any("its sizes tell the config" in note for note in told.notes)
    assert stated.architecture is None


def texts(family: zoo.Family) -> Texts:
    """The first twelve classes."""
    return Texts(tuple(zoo.class_names()[:12]), zoo.TEMPLATES, family.clip)


@pytest.mark.parametrize("form", ["transformers", "open_clip"])
def test_zero_shot_head(form: names.Form, family: zoo.Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per class the mean over templates of normalised texts, normalised again, times exp(logit_scale): by hand."""
    weights, results = names.from_transformers(zoo.weights_of(family.clip), form), ResultCache(tmp_path / "cache")
    judge = Judge(
        load_base(str(family.clip), Running()), names.shape_of(weights, "these"), texts(family), Options(), results
    )
    _, head, bias = judge.become(weights, "these")
    net = transformers.CLIPModel.from_pretrained(family.clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(family.clip)
    rows = []
    with torch.no_grad():
        for name in zoo.class_names()[:12]:
            own = [
                net.get_text_features(**tokenizer([template.replace("{}", name)], return_tensors="pt")).pooler_output[0]
                for template in zoo.TEMPLATES
            ]
            mean = torch.stack([row.double() / row.double().norm() for row in own]).mean(0)
            rows.append(mean / mean.norm())
        expected = torch.stack(rows) * net.logit_scale.double().exp()
    assert head.double() == pytest.approx(expected, abs=1e-4)
    assert not bias.any()
    again = judge.become(weights, "these")[1]
    assert torch.equal(again, head)
    monkeypatch.setattr("stockpot.evaluate.zero_shot_head", lambda *_: pytest.fail("it is to be known"))
    later = Judge(judge.base, judge.shape, texts(family), Options(), results)
    assert torch.equal(later.become(weights, "these")[1], head)
    monkeypatch.undo()
    other = dict(weights)
    key = next(name for name in other if name.endswith("text_projection") or name == "text_projection.weight")
    other[key] = other[key] + 0.1 * torch.randn_like(other[key])
    assert not torch.equal(judge.become(other, "these")[1], head)


@pytest.mark.parametrize("form", ["transformers", "wrapped"])
def test_the_base_in_the_form_of_its_fine_tunes(form: names.Form, family: zoo.Family) -> None:
    """It gets a classifier where they have one, the one that its texts give."""
    base = load_base(str(family.clip), Running())
    found = in_form(base, names.Shape(form, True), texts(family), None, ResultCache(None))
    assert found[names.HEAD_WEIGHT].shape == (12, 48)
    assert set(found) >= {name for name in names.from_transformers(family.base_weights, form) if "visual" in name}
    assert set(in_form(base, names.Shape("transformers", False), None, None, ResultCache(None))) == set(base.weights)


def test_words(family: zoo.Family, tmp_path: Path, no_open_clip: None) -> None:
    """Files of names and templates; what is missing or wrong is told with what to do."""
    base = load_base(str(family.clip), Running())
    classes, templates = tmp_path / "classes.txt", tmp_path / "templates.txt"
    with pytest.raises(errors.UsageError, match=f"{TEXTS_WANTED}.*--classnames FILE"):
        texts_of(base, None, None, None, 1000)
    classes.write_text("\n".join(zoo.class_names()) + "\n")
    found = texts_of(base, classes, None, None, 1000)
    assert (len(found.classes), found.templates) == (1000, ("a photo of a {}.",))
    assert any("not the papers' 80" in note for note in found.notes)
    templates.write_text("a {}\nthe thing\n")
    with pytest.raises(errors.InputError, match=r"a template without a place for the class.*got the thing"):
        texts_of(base, classes, templates, None, 1000)
    with pytest.raises(errors.InputError, match=r"another number of class names.*expected 999, got 1000"):
        texts_of(base, classes, None, None, 999)
    alone = tmp_path / "model.pt"
    torch.save(names.from_transformers(zoo.weights_of(family.clip), "open_clip"), alone)
    with pytest.raises(errors.UsageError, match=r"needs a tokenizer.*--tokenizer FOLDER"):
        texts_of(load_base(str(alone), Running()), classes, None, None, 1000)


def test_words_of_open_clip(family: zoo.Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed; where it is broken, that is told."""
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text(
        "IMAGENET_CLASSNAMES = ['tench', 'goldfish']\n"
        "OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a {c}.', lambda c: f'the {c}.')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "open_clip", raising=False)
    found = texts_of(load_base(str(family.clip), Running()), None, None, None, 2)
    assert (found.classes, found.templates, found.notes) == (("tench", "goldfish"), ("a {}.", "the {}."), ())
    monkeypatch.delitem(__import__("sys").modules, "open_clip")
    (package / "__init__.py").write_text("raise RuntimeError('broken here')  # another length than before\n")
    with pytest.raises(errors.UsageError, match=r"cannot be imported \(RuntimeError: broken here\)"):
        texts_of(load_base(str(family.clip), Running()), None, None, None, 2)


def test_another_processor_is_refused(family: zoo.Family, tmp_path: Path) -> None:
    """One for another size of image; its own mean and deviation are taken."""
    folder = tmp_path / "clip"
    shutil.copytree(family.clip, folder)
    config = {"crop_size": {"height": zoo.SIDE, "width": zoo.SIDE}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    assert load_base(str(folder), Running()).preparation.mean == (0.5, 0.5, 0.5)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": 224}))
    with pytest.raises(
        errors.InputError, match=r"image processor is for another model.*expected crop_size 32, got \[224\]"
    ):
        load_base(str(folder), Running())
