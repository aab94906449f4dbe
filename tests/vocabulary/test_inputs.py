"""Whatever the inputs are: adapters, pickles, models that tie and models that do not, other methods."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.adapters._loras import save_adapter
from tests.cli._kitchen import Program
from tests.oracles import vocabulary as oracle

import stockpot
from stockpot.recipe import Recipe

from . import _zoo
from ._zoo import CHAT, TOKEN_TENSORS, loaded, make, save, table, tokenizer, weights
from .test_models import check, recipe, three

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft


def test_an_adapter_on_a_model_of_another_vocabulary(tmp_path: Path) -> None:
    """BASE+ADAPTER, the embedding adapted too, equals the merged model in its place."""
    base, one, _ = three(tmp_path)
    config = peft.LoraConfig(target_modules=["q_proj", "embed_tokens"], r=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(copy.deepcopy(loaded(one)[0]), config)
        with torch.no_grad():
            for place, (name, value) in enumerate(adapted.named_parameters()):
                if "lora_" in name:
                    value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(place))
        adapted.save_pretrained(tmp_path / "adapter")
    whole = adapted.merge_and_unload()
    save(tmp_path / "whole", whole, transformers.AutoTokenizer.from_pretrained(one))
    keys = {"tokenizer": {"source": "union", "pad_to_multiple_of": 32}}
    stockpot.merge(recipe([base, f"{one}+{tmp_path / 'adapter'}"], **keys), out=tmp_path / "out")  # type: ignore[list-item]
    stockpot.merge(recipe([base, tmp_path / "whole"], **keys), out=tmp_path / "expected")
    found, expected = weights(tmp_path / "out"), weights(tmp_path / "expected")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-6, atol=1e-7), (
            name
        )  # theirs is rounded to float32 in between
    assert loaded(tmp_path / "out")[0].config.vocab_size % 32 == 0


def test_pickles_with_strides(tmp_path: Path) -> None:
    """A pickled embedding that lies by columns is the same embedding."""
    base, _, two = three(tmp_path)
    shutil.copytree(two, tmp_path / "pickled")
    state = weights(two)
    (tmp_path / "pickled" / "model.safetensors").unlink()
    for name in TOKEN_TENSORS["llama"]:
        state[name] = state[name].t().contiguous().t()
    torch.save(state, tmp_path / "pickled" / "pytorch_model.bin")
    keys = {"tokenizer": {"source": "union", "pad_to_multiple_of": 50}}
    stockpot.merge(recipe([base, two], **keys), out=tmp_path / "expected")
    stockpot.merge(recipe([base, tmp_path / "pickled"], **keys), out=tmp_path / "out")
    expected = weights(tmp_path / "expected")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())


@pytest.mark.parametrize("first", ["tied", "untied"])
def test_a_model_that_ties_and_one_that_does_not(first: str, tmp_path: Path) -> None:
    """The output is untied; the head of the one that ties is its embedding, rows that it borrows too."""
    config = _zoo.CONFIGS["llama"](len(tokenizer(added=CHAT)))
    config.tie_word_embeddings = True
    tied = _zoo.seeded(lambda: transformers.LlamaForCausalLM(config), 3)
    save(tmp_path / "tied", tied, tokenizer(added=CHAT))
    make(tmp_path / "untied", tokenizer(added=["<own>"]), 4)
    folders = [tmp_path / first, tmp_path / ("untied" if first == "tied" else "tied")]
    stockpot.merge(recipe(folders, tokenizer_source="union"), out=tmp_path / "out")
    model, tokens = loaded(tmp_path / "out")
    assert model.config.tie_word_embeddings is False
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    tables = {name: table(tmp_path / "untied", name) for name in (embedding, head)}
    own = table(tmp_path / "tied", embedding)
    for name in (embedding, head):
        expected = oracle.matrices([own, tables[name]], tokens.get_vocab(), None, len(tokens))
        # The row that the tied model lacks is one row, of the other's embedding.
        expected[0][tokens.get_vocab()["<own>"]] = tables[embedding]["<own>"]
        check(weights(tmp_path / "out")[name], np.mean(expected, axis=0), torch.float32)


METHODS: dict[str, dict[str, Any]] = {
    "ties": {"weight": 0.5, "density": 0.5},
    "dare_ties": {"weight": 0.5, "density": 0.5},
    "model_stock": {},
    "multislerp": {"weight": 1.0},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method(method: str, tmp_path: Path) -> None:
    """Whatever the method computes from, it is given the same rows as from models that were rearranged by hand."""
    base, one, two = three(tmp_path)
    keys = {"merge_method": method, "parameters": METHODS[method]}
    data = {**keys, "base_model": str(base), "models": [{"model": str(one)}, {"model": str(two)}]}
    stockpot.merge(Recipe.from_data({**data, "tokenizer_source": "union"}), out=tmp_path / "out")
    model, tokens = loaded(tmp_path / "out")
    hands = []
    for folder in (base, one, two):
        state = weights(folder)
        for name in TOKEN_TENSORS["llama"]:
            tables = [table(each, name) for each in (base, one, two)]
            own = oracle.matrices(tables, tokens.get_vocab(), 0, len(tokens))[len(hands)]
            state[name] = torch.from_numpy(own)
        place = tmp_path / f"hand-{folder.name}"
        place.mkdir()
        shutil.copy(folder / "config.json", place)
        save_file(state, place / "model.safetensors", {"format": "pt"})
        hands.append(place)
    data |= {"base_model": str(hands[0]), "models": [{"model": str(hand)} for hand in hands[1:]], "dtype": "float32"}
    stockpot.merge(Recipe.from_data(data), out=tmp_path / "expected")
    expected = weights(tmp_path / "expected")
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor, expected[name]), name
    assert model.config.vocab_size == len(tokens)


def test_a_selection_leaves_rows_in_the_output_s_vocabulary(tmp_path: Path) -> None:
    """A head that is not merged is the template's, by the output's rows."""
    folders = three(tmp_path)
    chosen = recipe(folders, tokenizer_source="union", policies={"exclude": ["lm_head"]})
    stockpot.merge(chosen, out=tmp_path / "out")
    ids = loaded(tmp_path / "out")[1].get_vocab()
    tables = [table(folder, "lm_head.weight") for folder in folders]
    own = oracle.matrices(tables, ids, None, len(ids))
    check(weights(tmp_path / "out")["lm_head.weight"], own[0], torch.float32)


def test_names_that_differ(tmp_path: Path) -> None:
    """``rename`` says which tensors correspond, to those that lend rows too."""
    folders = three(tmp_path)
    keys = {"tokenizer_source": "union"}
    stockpot.merge(recipe(folders, **keys), out=tmp_path / "expected")
    renamed = {f"wrapped.{name}": tensor for name, tensor in weights(folders[1]).items()}
    save_file(renamed, folders[1] / "model.safetensors", {"format": "pt"})
    stockpot.merge(recipe(folders, policies={"rename": [r"2:^wrapped[.]="]}, **keys), out=tmp_path / "out")
    expected = weights(tmp_path / "expected")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())


def test_one_file_has_no_tokenizer(tmp_path: Path, program: Program) -> None:
    """The rows are there, and that nothing lies beside them is told."""
    folders = three(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe(folders, tokenizer_source="union").to_yaml(), "utf-8")
    said = program.does("merge", tmp_path / "recipe.yaml", "--out", tmp_path / "out.safetensors")
    assert "name a folder" in said.err
    assert len(load_file(tmp_path / "out.safetensors")["lm_head.weight"]) == 324


def test_adapters_alone_have_no_tokenizer(tmp_path: Path, program: Program) -> None:
    """Merged adapters stay adapters; a tokenizer for them is refused."""
    base, _, _ = three(tmp_path)
    for name in ("x", "y"):
        save_adapter(loaded(base)[0], tmp_path / name, target_modules=["q_proj"])
    chosen = recipe([tmp_path / "x", tmp_path / "y"], tokenizer_source="union")
    (tmp_path / "recipe.yaml").write_text(chosen.to_yaml(), "utf-8")
    out = ("--out", tmp_path / "out")
    program.refuses("merge", tmp_path / "recipe.yaml", *out, kind="usage", says=["no tokenizer"])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_inputs_of_different_dtypes(number: int, tmp_path: Path) -> None:
    """A borrowed row of a wider dtype is not rounded to the borrower's first: the merge rounds once."""
    base, one, two = three(tmp_path)
    folder = (base, one, two)[number]
    model, tokens = loaded(folder)
    save(folder, model, tokens, torch.bfloat16)
    stockpot.merge(recipe([one, two], base_model=base, tokenizer_source="union"), out=tmp_path / "out")
    ids = loaded(tmp_path / "out")[1].get_vocab()
    for name in TOKEN_TENSORS["llama"]:
        own = oracle.matrices([table(each, name) for each in (base, one, two)], ids, 0, len(ids))
        check(weights(tmp_path / "out")[name], (own[1] + own[2]) / 2, torch.float32)
