"""Built-in evaluators on tiny real models, against the library's own classes used by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from stockpot import errors
from stockpot.evaluate import Options, Scores, load_evaluator

from . import _zoo as zoo


def scored(text: str, folder: Path, **options: Any) -> Scores:
    """From weights in memory and the folder's config."""
    return load_evaluator(text, Options(**options)).evaluate(zoo.weights_of(folder), folder)


def test_images(tmp_path: Path) -> None:
    """Accuracy, loss and logits of an image classifier, whatever the batch."""
    model, data = zoo.vit(tmp_path / "vit"), zoo.save_images(tmp_path / "data")
    found = scored(f"images:{data}", model)
    net = transformers.ViTForImageClassification.from_pretrained(model).eval()
    processor = transformers.ViTImageProcessorPil.from_pretrained(model)
    files = sorted(data.rglob("*.png"))
    pixels = processor(images=[Image.open(file).convert("RGB") for file in files], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = net(pixel_values=pixels).logits
    labels = [zoo.CLASSES.index(file.parent.name) for file in files]
    assert found.logits == pytest.approx(logits.numpy(), abs=1e-5)
    assert found.labels is not None
    assert found.labels.tolist() == labels
    assert found.values["accuracy"] == (logits.argmax(1) == torch.tensor(labels)).double().mean().item()
    assert found.values["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).item(), abs=1e-5
    )
    again = scored(f"images:{data}", model, batch=5)
    assert again.logits == pytest.approx(found.logits, abs=1e-5)


def test_images_with_a_limit_come_from_all_classes(tmp_path: Path) -> None:
    """Evenly, and the same ones each time."""
    model, data = zoo.vit(tmp_path / "vit"), zoo.save_images(tmp_path / "data")
    found = scored(f"images:{data}", model, limit=7)
    assert found.labels is not None
    assert np.bincount(found.labels).tolist() == [3, 2, 2]


def test_labels_by_order_and_by_number(tmp_path: Path) -> None:
    """A config without names takes folders in sorted order; folders of numbers are numbers."""
    data = zoo.save_images(tmp_path / "data")
    unnamed = zoo.vit(tmp_path / "unnamed", labels=["LABEL_0", "LABEL_1", "LABEL_2"])
    labels = scored(f"images:{data}", unnamed).labels
    assert labels is not None
    assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    numbers = zoo.save_images(tmp_path / "numbers", classes=["2", "0"], per_class=2)
    labels = scored(f"images:{numbers}", unnamed).labels
    assert labels is not None
    assert labels.tolist() == [0, 0, 2, 2]
    with pytest.raises(errors.EvaluatorError, match=r"labels that the model does not know.*expected blue.*got cyan"):
        scored(f"images:{zoo.save_images(tmp_path / 'odd', classes=['cyan', 'red'])}", zoo.vit(tmp_path / "vit"))


def test_clip_zero_shot(tmp_path: Path) -> None:
    """Per class the mean over templates of normalised text embeddings, normalised again, times exp(logit_scale)."""
    model, data = zoo.clip(tmp_path / "clip"), zoo.save_images(tmp_path / "data")
    templates = ["a bright photo of a {} .", "the dark {} thing"]
    (data / "templates.txt").write_text("\n".join(templates) + "\n")
    found = scored(f"images:{data}", model)
    net = transformers.CLIPModel.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(model)
    with torch.no_grad():
        head = []
        for name in zoo.CLASSES:
            tokens = tokenizer([one.replace("{}", name) for one in templates], return_tensors="pt", padding=True)
            rows = net.get_text_features(**tokens).pooler_output.double()
            mean = (rows / rows.norm(dim=1, keepdim=True)).mean(0)
            head.append(mean / mean.norm())
        images = [Image.open(file).convert("RGB") for file in sorted(data.rglob("*.png"))]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        seen = net.get_image_features(pixel_values=pixels).pooler_output.double()
        expected = net.logit_scale.exp().double() * (seen / seen.norm(dim=1, keepdim=True)) @ torch.stack(head).T
    assert found.logits == pytest.approx(expected.numpy(), abs=1e-3)
    changed = load_evaluator(f"images:{data}").content
    (data / "templates.txt").write_text("a {}\n")
    assert load_evaluator(f"images:{data}").content != changed


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize("pairs", [False, True])
def test_text(ending: str, pairs: bool, tmp_path: Path) -> None:
    """A sequence classifier over JSONL and CSV, single texts and pairs."""
    model = zoo.bert(tmp_path / "bert")
    rows = [{"text": f"the {name} thing", "label": name} for name in (*zoo.CLASSES, "red")]
    if pairs:
        rows = [{**row, "text_pair": "a dark photo of a thing ."} for row in rows]
    path = tmp_path / f"data.{ending}"
    if ending == "jsonl":
        zoo.write_lines(path, rows)
    else:
        path.write_text(",".join(rows[0]) + "\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    found = scored(f"text:{path}", model, batch=3)
    net = transformers.BertForSequenceClassification.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    texts = [[row["text"] for row in rows], *([[row["text_pair"] for row in rows]] if pairs else [])]
    with torch.no_grad():
        logits = net(**tokenizer(*texts, padding=True, return_tensors="pt")).logits
    assert found.logits == pytest.approx(logits.numpy(), abs=1e-5)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 2]


def test_perplexity(tmp_path: Path) -> None:
    """Windows of what the model sees, each token but the first predicted; the rest of the text counts too."""
    model = zoo.gpt(tmp_path / "gpt")
    text = " ".join(["the red thing . a photo of green"] * 6)
    (tmp_path / "text.txt").write_text(text)
    found = scored(f"perplexity:{tmp_path / 'text.txt'}", model)
    net = transformers.GPT2LMHeadModel.from_pretrained(model).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(model)(text, return_tensors="pt")["input_ids"][0]
    assert len(tokens) == 48
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(tokens), 16):
            window = tokens[start : start + 16]
            rows = net(input_ids=window[None]).logits[0].double().log_softmax(dim=-1)
            for place in range(1, len(window)):
                total -= rows[place - 1, window[place]].item()
                count += 1
    assert found.values["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found.values["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert scored(f"perplexity:{tmp_path / 'text.txt'}", model, limit=1).values != found.values


def test_the_harness(tmp_path: Path) -> None:
    """A task of one's own, offline: the harness's numbers by ``task/metric``."""
    model = zoo.gpt(tmp_path / "gpt")
    rows = [
        {"question": f"the {name} thing", "choices": list(zoo.CLASSES), "answer": n}
        for n, name in enumerate(zoo.CLASSES)
    ]
    data = zoo.write_lines(tmp_path / "questions.jsonl", rows * 3)
    (tmp_path / "colours.yaml").write_text(
        "task: colours\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(data))}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: choices\n"
        "doc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    found = scored(f"lm-eval:{tmp_path / 'colours.yaml'}", model, limit=6, seed=1)
    assert set(found.values) == {"colours/acc"}
    net = transformers.GPT2LMHeadModel.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    right = 0
    for row in (rows * 3)[:6]:
        scores = []
        for choice in row["choices"]:
            tokens = tokenizer(f"{row['question']} {choice}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                scores.append(net(input_ids=tokens).logits[0, -2].log_softmax(0)[tokens[0, -1]].item())
        right += int(np.argmax(scores) == row["answer"])
    assert found.values["colours/acc"] == pytest.approx(right / 6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision(precision: str, tmp_path: Path) -> None:
    """Arithmetic in fewer bits gives nearly the same."""
    model, data = zoo.vit(tmp_path / "vit"), zoo.save_images(tmp_path / "data")
    full, less = scored(f"images:{data}", model), scored(f"images:{data}", model, precision=precision)
    assert less.values["loss"] == pytest.approx(full.values["loss"], abs=0.05)
    assert less.values["loss"] != full.values["loss"]


def test_contents(tmp_path: Path) -> None:
    """Data, precision and limit count; batch and device do not."""
    data = zoo.save_images(tmp_path / "data")
    first = load_evaluator(f"images:{data}").content
    assert load_evaluator(f"images:{data}", Options(batch=3)).content == first
    assert load_evaluator(f"images:{data}", Options(limit=3)).content != first
    assert load_evaluator(f"images:{data}", Options(precision="bfloat16")).content != first
    (data / "red" / "0.png").write_bytes((data / "blue" / "0.png").read_bytes())
    assert load_evaluator(f"images:{data}").content != first


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("images:nowhere", errors.NotFoundError, "there are no images"),
        ("text:nowhere.jsonl", errors.NotFoundError, "no such data file"),
        ("text:bad.jsonl", errors.InputError, "row 2 has no label"),
        ("text:bad.csv", errors.InputError, "row 1 has no text"),
        ("text:broken.jsonl", errors.InputError, "data cannot be read"),
        ("text:empty.jsonl", errors.InputError, "data are empty"),
        ("perplexity:nowhere.txt", errors.NotFoundError, "no such data file"),
        ("lm-eval:nowhere.yaml", errors.NotFoundError, "no such task file"),
        ("lm-eval: ,", errors.UsageError, "without tasks"),
        ("images:", errors.UsageError, "cannot be read"),
    ],
)
def test_data_that_cannot_be_used(
    text: str, kind: type[errors.StockpotError], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before anything is evaluated, exit 2."""
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"text": "a", "label": "red"}\n{"text": "b"}\n')
    Path("bad.csv").write_text("words,label\na,red\n")
    Path("broken.jsonl").write_text("{\n")
    Path("empty.jsonl").write_text("\n")
    with pytest.raises(kind, match=says) as caught:
        load_evaluator(text)
    assert caught.value.exit_code == 2


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    """Another kind of model; weights that lack some; no config; no processor: one line each."""
    data = zoo.save_images(tmp_path / "data")
    with pytest.raises(errors.EvaluatorError, match=r"images does not score this kind.*BertForSequenceClassification"):
        scored(f"images:{data}", zoo.bert(tmp_path / "bert"))
    model = zoo.vit(tmp_path / "vit")
    weights = zoo.weights_of(model)
    del weights["classifier.weight"]
    evaluator = load_evaluator(f"images:{data}")
    with pytest.raises(errors.EvaluatorError, match=r"missing keys; tensor classifier.weight"):
        evaluator.evaluate(weights, model)
    with pytest.raises(errors.EvaluatorError, match=r"no config.json"):
        evaluator.evaluate(weights, None)
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(errors.EvaluatorError, match=r"image processor cannot be used"):
        load_evaluator(f"images:{data}").evaluate(zoo.weights_of(model), model)
    (data / "red" / "0.png").write_bytes(b"no picture")
    with pytest.raises(errors.InputError, match=r"image cannot be read"):
        load_evaluator(f"images:{data}").evaluate(zoo.weights_of(zoo.vit(tmp_path / "other")), tmp_path / "other")
    with pytest.raises(errors.UnknownNameError, match=r"unknown precision 'float8'"):
        scored(f"images:{data}", tmp_path / "other", precision="float8")
