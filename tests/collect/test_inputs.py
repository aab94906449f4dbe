"""Gram matrices of what real models' layers are given, against single examples and hooks of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tests.evaluate import _zoo as zoo
from tests.oracles import statistics as oracle

import stockpot

from ._subjects import SINGLE, as_saved, close, encoded, pictures, read, texts, wide, with_noise


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (zoo.bert, transformers.BertForSequenceClassification),
        (zoo.gpt, transformers.GPT2LMHeadModel),
        (zoo.llama, transformers.LlamaForCausalLM),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_of_texts(tmp_path: Path, make: object, kind: type[transformers.PreTrainedModel], batch: int) -> None:
    """X^T X pooled over all rows of the data, and no row more: nothing is padded."""
    model = make(tmp_path / "model")  # type: ignore[operator]
    net = wide(kind, model)
    want, rows = oracle.layer_grams(net, ("Linear", "Conv1D"), encoded(model))
    out = tmp_path / "out.safetensors"
    result = stockpot.collect_inputs(model, data=texts(tmp_path), out=out, batch=batch, dtype="float64")
    if net.config.tie_word_embeddings and "lm_head.weight" in want:  # its weight is the embedding
        del want["lm_head.weight"], rows["lm_head.weight"]
        assert "tied" in result.left_out["transformer.wte.weight"]
    found, about = read(out)
    assert {one.dtype for one in found.values()} == {torch.float64}
    # Elsewhere float64 on both sides, added in another order.
    close(found, want, SINGLE if kind is transformers.LlamaForCausalLM else 1e-12)
    assert about["rows"] == rows
    transposed = {f"{n}.weight" for n, m in net.named_modules() if type(m).__name__ == "Conv1D"}
    assert set(about["transposed"]) == transposed


def test_of_images(tmp_path: Path) -> None:
    """A vision transformer's layers; its convolution is left out, and that is told."""
    model, data = with_noise(zoo.vit(tmp_path / "vit")), zoo.save_images(tmp_path / "data", per_class=2)
    net = wide(transformers.ViTForImageClassification, model)
    want = as_saved(oracle.layer_grams(net, ("Linear",), pictures(model, data)[0])[0], net, model)
    out = tmp_path / "out.safetensors"
    result = stockpot.collect_inputs(model, data=data, out=out, dtype="float64")
    close(read(out)[0], want, SINGLE)
    large = {name for name, one in zoo.weights_of(model).items() if one.dim() > 1}
    assert set(result.left_out) | set(want) == large
    assert "convolution" in result.left_out["vit.embeddings.patch_embeddings.projection.weight"]


def test_sums_pool_over_data(tmp_path: Path) -> None:
    """The sum over two files is the sum of their sums, and so are the rows."""
    model = zoo.llama(tmp_path / "model")
    lines = texts(tmp_path).read_text("utf-8").splitlines(keepends=True)
    parts = {"first": lines[:2], "second": lines[2:], "both": lines}
    found, rows = {}, {}
    for name, own in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(own), "utf-8")
        out = tmp_path / f"{name}.safetensors"
        stockpot.collect_inputs(model, data=tmp_path / f"{name}.jsonl", out=out, dtype="float64")
        found[name], about = read(out)
        rows[name] = about["rows"]
    close(found["both"], {name: one + found["second"][name] for name, one in found["first"].items()}, 1e-12)
    assert rows["both"] == {name: one + rows["second"][name] for name, one in rows["first"].items()}


def test_the_same_call_writes_the_same_bytes(tmp_path: Path) -> None:
    """Nothing of the time is in the file."""
    model, data = zoo.gpt(tmp_path / "gpt"), texts(tmp_path)
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file in files:
        stockpot.collect_inputs(model, data=data, out=file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_plain_text_is_cut_into_windows(tmp_path: Path) -> None:
    """Windows side by side, as long as what the model sees; the last one is shorter."""
    model = zoo.gpt(tmp_path / "gpt")
    (tmp_path / "text.txt").write_text("the red thing . " * 10, "utf-8")
    out = tmp_path / "out.safetensors"
    result = stockpot.collect_inputs(model, data=tmp_path / "text.txt", out=out)
    assert result.examples == 3  # 40 tokens, 16 at a time
    assert set(read(out)[1]["rows"].values()) == {40}


def test_long_texts_are_cut_and_that_is_told(tmp_path: Path) -> None:
    """Nothing is repaired in silence."""
    model = zoo.gpt(tmp_path / "gpt")
    data = zoo.write_lines(tmp_path / "long.jsonl", [{"text": "red " * 30}, {"text": "a thing"}, {"text": "red"}])
    out = tmp_path / "out.safetensors"
    result = stockpot.collect_inputs(model, data=data, out=out)
    assert result.examples == 2
    told = "\n".join(result.warnings)
    assert "1 of 3 texts are longer than 16 tokens" in told
    assert "1 of 3 examples have fewer than two tokens" in told
