"""Example recipes of the field on small real models: the numbers that the format means, and models that load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.cli._kitchen import Program
from tests.oracles import recipes as oracle
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from stockpot.engine import verify

from ._shelf import state

GOOD = Path(__file__).with_name("good")
ONE = sorted(path.stem for path in GOOD.glob("*.yaml") if "\n---" not in path.read_text("utf-8"))
OTHERWISE = {"encoder", "lora", "modules", "overrides"}
"""Recipes whose numbers have a test of their own."""
LANGUAGE = ("base", "a", "b", "c", "sharded", "deep", "tied", "tied_a")
ULPS = 2.0**-22
"""Relative, of the largest number of a tensor: one rounding to float32, and one of the coefficients."""

Arrays = Mapping[str, torch.Tensor]


def data(name: str) -> Any:
    return yaml.safe_load((GOOD / f"{name}.yaml").read_text("utf-8"))


def arrays(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in state(folder).items()}


def same_numbers(found: Arrays, expected: Arrays) -> None:
    """Names, shapes and numbers."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name].shape == wanted.shape, name
        assert (found[name] - wanted).abs().max() <= ULPS * wanted.abs().max(), name


def loads(folder: Path, layers: int, cls: Any = AutoModelForCausalLM) -> torch.nn.Module:
    """The model loads with nothing missing or left over, and has so many layers."""
    model, told = cls.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(told.values()), told
    config = model.config.get_text_config()
    assert config.num_hidden_layers == layers
    assert len(config.layer_types) == layers if hasattr(config, "layer_types") else True
    return model


def run(program: Program, place: Path, name: str) -> Path:
    """Check it, merge it, derive it anew."""
    checked = program.does("check", GOOD / f"{name}.yaml")
    assert checked.out.endswith("ok\n")
    assert not (place / "out").exists()
    program.does("merge", GOOD / f"{name}.yaml", "--out", "out")
    assert verify(place / "out", recompute=1.0).problems == ()
    program.does("merge", "out/stockpot_recipe.yaml", "--out", "again", "--quiet")
    assert [*_weights(place / "again")] == [*_weights(place / "out")]
    return place / "out"


def _weights(folder: Path) -> Iterator[tuple[str, bytes]]:
    return ((file.name, file.read_bytes()) for file in sorted(folder.glob("model*")))


@pytest.mark.parametrize("name", [one for one in ONE if one not in OTHERWISE])
def test_numbers(name: str, program: Program, place: Path) -> None:
    """A recipe gives the numbers that its words mean, in float64 rounded once, and a model that loads."""
    out = run(program, place, name)
    models = {one: arrays(place / one) for one in LANGUAGE}
    expected = oracle.merged(data(name), models)
    found = arrays(out)
    same_numbers(found, expected)
    model = loads(out, len({key.split(".")[2] for key in expected if ".layers." in key}))
    with torch.no_grad():
        assert bool(torch.isfinite(model(torch.tensor([[3, 4, 5]])).logits).all())


def test_documents(program: Program, place: Path) -> None:
    """Each document's result is what the others take, wherever in the file they stand; the unnamed one is OUT."""
    out = run(program, place, "documents")
    models = {name: arrays(place / name) for name in ("a", "b", "c", "base")}
    documents = {one.get("name"): one for one in yaml.safe_load_all((GOOD / "documents.yaml").read_text("utf-8"))}
    for name in ("deeper", "half"):
        models[name] = oracle.merged(documents[name], models)
        same_numbers(arrays(place / "out.parts" / name), models[name])
        models[name] = arrays(place / "out.parts" / name)
    same_numbers(arrays(out), oracle.merged(documents[None], models))
    loads(out, 5)
    loads(place / "out.parts" / "half", 5)


def test_modules(program: Program, place: Path) -> None:
    """The text part's layers are stacked under their own names, the rest is the base's; it loads and sees."""
    out = run(program, place, "modules")
    base, other, found = arrays(place / "vlm"), arrays(place / "vlm_a"), arrays(out)
    stem = "language_model.model.layers."
    text = {
        model: {name: tensor for name, tensor in tensors.items() if name.startswith("language_model.")}
        for model, tensors in (("vlm", base), ("vlm_a", other))
    }
    module = data("modules")["modules"]["text_decoder"]
    expected = oracle.merged({"merge_method": "linear", "parameters": {"weight": 0.5}, **module}, text, stem)
    rest = {name: tensor for name, tensor in base.items() if not name.startswith("language_model.")}
    same_numbers(found, {**rest, **expected})
    model = loads(out, 4, AutoModelForImageTextToText)
    assert model.config.vision_config.num_hidden_layers == 2


def test_stacks_of_encoder_and_decoder(program: Program, place: Path) -> None:
    """Each module's layers are counted by the configuration's own key for them; the model loads, one stack deeper."""
    out = run(program, place, "encoder")
    base, found = arrays(place / "t5"), arrays(out)
    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    assert (model.config.num_layers, model.config.num_decoder_layers) == (3, 2)
    for name, tensor in found.items():
        old = name.replace("encoder.block.2.", "encoder.block.1.")
        share = 0.5 if name.startswith("decoder.") else 1.0
        assert torch.equal(tensor, share * base[old]), name


def test_lora(program: Program, place: Path) -> None:
    """A model in parts, with an adapter on it, is the base plus the adapter's product."""
    out = run(program, place, "lora")
    base, a, lora = arrays(place / "base"), arrays(place / "a"), arrays(place / "lora")
    said = json.loads((place / "lora" / "adapter_config.json").read_text("utf-8"))
    expected = {}
    for name, own in base.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        product = (
            lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"] if f"{stem}.lora_A.weight" in lora else 0.0
        )
        expected[name] = own + said["lora_alpha"] / said["r"] * product + 0.5 * (a[name] - own)
    same_numbers(arrays(out), expected)
    loads(out, 4)


def test_overrides(program: Program, place: Path) -> None:
    """The first regular expression that is found in a name wins over all other parameters."""
    out = run(program, place, "overrides")
    a, b, found = arrays(place / "a"), arrays(place / "b"), arrays(out)
    for name in a:
        share = 1.0 if "norm" in name else 0.25 if name.endswith("q_proj.weight") else 0.5
        layer = [part for part in name.split(".") if part.isdigit()]
        if "mlp" in name:
            share = int(layer[0]) / 3
        expected = (1 - share) * a[name] + share * b[name]
        assert (found[name] - expected).abs().max() <= ULPS * expected.abs().max(), name


def test_every_recipe_is_tried() -> None:
    """No example lies there untested."""
    assert set(ONE) >= OTHERWISE
    assert {path.stem for path in GOOD.glob("*.yaml")} == {*ONE, "documents"}
