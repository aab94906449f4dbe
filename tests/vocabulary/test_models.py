"""Real models of different vocabularies become one model with the rows that the definition says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.cli._kitchen import Program
from tests.oracles import vocabulary as oracle

import stockpot
from stockpot.recipe import Recipe

from . import _zoo
from ._zoo import CHAT, TOKEN_TENSORS, loaded, make, save, table, tokenizer, weights


def recipe(models: list[Path], method: str = "linear", weight: Any = 1.0, **keys: Any) -> Recipe:
    """A recipe with one weight for all, or one each."""
    each = weight if isinstance(weight, list) else [weight] * len(models)
    return Recipe.from_data(
        {
            "merge_method": method,
            "models": [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, each, strict=True)],
            **{key: str(value) if isinstance(value, Path) else value for key, value in keys.items()},
        }
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "bart"])
def test_a_model_and_its_permuted_copy_are_the_model(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Numbers dealt anew change nothing: the merge is the first model, bit for bit, and answers alike."""
    tokens = tokenizer("wordpiece" if family == "bert" else "bpe", 300 if family != "bert" else 200, added=CHAT)
    other, order = _zoo.permuted(tokens)
    model = _zoo.model(family, len(tokens))
    a = save(tmp_path / "a", model, tokens, dtype)
    b = save(tmp_path / "b", _zoo.moved(model, family, order), other, dtype)
    assert any(not weights(a)[name].equal(weights(b)[name]) for name in TOKEN_TENSORS[family] if name in weights(a))
    stockpot.merge(recipe([a, b], tokenizer_source="base"), out=tmp_path / "out")
    found, expected = weights(tmp_path / "out"), weights(a)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    merged, its = loaded(tmp_path / "out")
    whole, own = loaded(a)
    for line in _zoo.sentences(5):
        given = own(line, return_tensors="pt", truncation=True, max_length=48)
        assert (
            given["input_ids"].tolist()
            == its(line, return_tensors="pt", truncation=True, max_length=48)["input_ids"].tolist()
        )
        with torch.no_grad():
            assert torch.equal(merged(**given).logits, whole(**given).logits)


def three(root: Path, family: str = "llama", **options: Any) -> list[Path]:
    """A base with padding; two fine-tunes, one with two further tokens, one with tokens of its own as well."""
    base = make(root / "base", tokenizer(added=["<base>"]), 1, family, rows=320, **options)
    one = make(root / "one", _zoo.permuted(tokenizer(added=[*CHAT]))[0], 2, family, **options)
    two = make(root / "two", tokenizer(size=320, added=[CHAT[1], "spam"]), 3, family, **options)
    return [base, one, two]


SOURCES = {
    "union": "union",
    "base": "base",
    "a model": "one",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_rows_are_those_of_the_definition(method: str, source: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Embedding and head against rows found by token in float64, with and without the base as an ingredient."""
    base, one, two = three(tmp_path, dtype=dtype)
    wanted = str(one) if source == "a model" else source
    stockpot.merge(
        recipe([one, two], method, [0.75, 0.5], base_model=base, tokenizer_source=wanted), out=tmp_path / "out"
    )
    found, tokens = loaded(tmp_path / "out")
    ids = tokens.get_vocab()
    assert found.config.vocab_size == len(ids) == max(ids.values()) + 1
    known = [set(transformers.AutoTokenizer.from_pretrained(folder).get_vocab()) for folder in (base, one, two)]
    assert set(ids) == {"union": known[0] | known[1] | known[2], "base": known[0], "a model": known[1]}[source]
    for name in TOKEN_TENSORS["llama"]:
        own = oracle.matrices([table(folder, name) for folder in (base, one, two)], ids, 0, len(ids))
        check(weights(tmp_path / "out")[name], mixed(method, own, [0.75, 0.5]), dtype)


def mixed(method: str, own: list[Any], weight: list[float]) -> Any:
    """The method's formula on the base's rows and the models'."""
    base, *models = own
    if method == "linear":
        return sum(w * m for w, m in zip(weight, models, strict=True)) / sum(weight)
    return base + sum(w * (m - base) for w, m in zip(weight, models, strict=True))


def check(found: torch.Tensor, expected: Any, dtype: torch.dtype) -> None:
    """Every element is the oracle's, rounded once (or the neighbour, where float64 itself decides the tie)."""
    assert found.dtype == dtype
    half = 2.0 ** -{torch.float32: 24, torch.bfloat16: 8}[dtype]
    assert found.shape == expected.shape
    assert (np.abs(found.to(torch.float64).numpy() - expected) <= half * np.abs(expected) * (1 + 1e-6) + 1e-15).all()


@pytest.mark.parametrize("memory", ["192MiB", "7MiB"])
def test_every_option_of_single_tokens(memory: str, tmp_path: Path) -> None:
    """A model's row, another token's, one by number, zeros, a new token, forced or not, and padding."""
    base, one, two = three(tmp_path)
    name = "model.embed_tokens.weight"
    tables = [table(folder, name) for folder in (base, one, two)]
    raw = weights(base)[name].to(torch.float64).numpy()
    tokens: dict[str, Any] = {
        CHAT[1]: {"source": str(two)},
        CHAT[0]: {"source": {"kind": "model_token", "model": str(one), "token": CHAT[1]}},
        "spam": {"source": {"kind": "zero"}},
        "<s>": {"source": str(one), "force": True},
        "</s>": {"source": {"kind": "model_token", "model": str(base), "token_id": 310}, "force": True},
        "<new>": {"source": {"kind": "zero"}},
    }
    stated = {
        CHAT[1]: tables[2][CHAT[1]], CHAT[0]: tables[1][CHAT[1]], "spam": np.zeros(32), "<s>": tables[1]["<s>"],
        "</s>": raw[310], "<new>": np.zeros(32),
    }  # fmt: skip
    wanted = {"source": "union", "tokens": tokens, "pad_to_multiple_of": 64}
    out = tmp_path / "out"
    stockpot.merge(
        recipe([one, two], "task_arithmetic", [0.75, 0.5], base_model=base, tokenizer=wanted), out=out, memory=memory
    )
    found, its = loaded(out)
    ids = its.get_vocab()
    assert found.config.vocab_size == -(-len(ids) // 64) * 64 == len(weights(out)[name])
    own = oracle.matrices(tables, ids, 0, found.config.vocab_size, stated, ("<s>", "</s>"))
    check(weights(out)[name], mixed("task_arithmetic", own, [0.75, 0.5]), torch.float32)
    assert its.decode(its("a <new> b spam").input_ids) == "a <new> b spam"


@pytest.mark.parametrize("base", [True, False])
def test_without_a_base_the_mean_of_those_that_have_a_token(base: bool, tmp_path: Path) -> None:
    """Without base_model the first model lends its tokenizer, not its rows."""
    folders = three(tmp_path)
    keys = {"base_model": folders[0]} if base else {}
    out = tmp_path / "out"
    result = stockpot.merge(recipe(folders, tokenizer_source="union", **keys), out=out)
    assert any("no base_model" in line for line in result.warnings) is not base
    ids = loaded(out)[1].get_vocab()
    for name in TOKEN_TENSORS["llama"]:
        own = oracle.matrices([table(one, name) for one in folders], ids, 0 if base else None, len(ids))
        check(weights(out)[name], np.mean(own, axis=0), torch.float32)


def test_tied_models_stay_tied(tmp_path: Path) -> None:
    """An embedding that is the head too has one matrix in the output."""
    folders = three(tmp_path, "gpt2")
    stockpot.merge(recipe(folders, tokenizer_source="union"), out=tmp_path / "out")
    model, tokens = loaded(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    own = oracle.matrices(
        [table(one, "transformer.wte.weight") for one in folders], tokens.get_vocab(), None, len(tokens)
    )
    check(weights(tmp_path / "out")["transformer.wte.weight"], np.mean(own, axis=0), torch.float32)


def test_a_plan_tells_and_a_merge_records_it(tmp_path: Path, program: Program) -> None:
    """Rows and tokens in plan, result and provenance; verify derives it anew; another tokenizer is another job."""
    base, one, two = three(tmp_path)
    text = recipe([one, two], "task_arithmetic", 0.5, base_model=base, tokenizer_source="union", chat_template="chatml")
    (tmp_path / "recipe.yaml").write_text(text.to_yaml(), "utf-8")
    out = tmp_path / "out"
    planned = program.does("merge", tmp_path / "recipe.yaml", "--out", out, "--dry-run", "--json").data
    told = {d["tensor"]: d["action"] for d in planned["decisions"] if d["policy"] == "vocabulary"}
    assert set(told) == set(TOKEN_TENSORS["llama"])
    assert "rows" in told["lm_head.weight"]
    assert any("rows of padding are left out" in line for line in planned["warnings"])
    program.does("merge", tmp_path / "recipe.yaml", "--out", out)
    record = json.loads((out / "stockpot.json").read_text("utf-8"))["vocabulary"]
    assert record["rows"] == record["tokens"] == len(loaded(out)[1])
    assert record["ways"]["base"] > 0
    assert record["ways"]["mean"] > 0
    program.does("verify", out, "--recompute", "1")
    before = stockpot.plan(Recipe.from_file(tmp_path / "recipe.yaml"), out=tmp_path / "new").key
    config = json.loads((two / "tokenizer_config.json").read_text("utf-8"))
    (two / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 7}), "utf-8")
    assert stockpot.plan(Recipe.from_file(tmp_path / "recipe.yaml"), out=tmp_path / "new").key != before


def test_shards_budgets_and_workers_change_nothing(tmp_path: Path) -> None:
    """Sharded inputs, little memory, one worker or three: the same bytes."""
    folders = three(tmp_path)
    expected: dict[str, torch.Tensor] = {}
    for number, (memory, workers) in enumerate([("192MiB", 1), ("6MiB", 1), ("24MiB", 3)]):
        if number:
            for place, folder in enumerate(folders):
                model = loaded(folder)[0]
                for file in folder.glob("*.safetensors*"):
                    file.unlink()
                model.save_pretrained(folder, max_shard_size="30KB")
                assert len([*folder.glob("*.safetensors")]) > 1, place
        out = tmp_path / f"out{number}"
        keys = {"tokenizer": {"source": "union", "pad_to_multiple_of": 100}}
        stockpot.merge(recipe(folders, **keys), out=out, memory=memory, workers=workers)
        found = weights(out)
        expected = expected or found
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_an_earlier_run_finished_is_kept(tmp_path: Path) -> None:
    """A run that was cut off goes on, to the same bytes."""
    folders = three(tmp_path)
    whole = recipe(folders, tokenizer_source="union")
    stockpot.merge(whole, out=tmp_path / "straight")

    def cut(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stockpot.merge(whole, out=tmp_path / "out", progress=cut, workers=1)
    result = stockpot.merge(whole, out=tmp_path / "out")
    assert result.resumed > 0
    for file in sorted((tmp_path / "straight").iterdir()):
        if file.name not in ("stockpot_run.json", "SHA256SUMS", "README.md"):
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
