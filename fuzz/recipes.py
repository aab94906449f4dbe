"""Recipes: YAML, its meaning, and what a method makes of it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import ModuleType

import atheris
import yaml
from tests.cli import test_bad_recipe as corpus

from fuzz._guard import Finding
from fuzz._target import Run, Target
from stockpot.engine import _job, _parameters, _sections
from stockpot.methods import _base
from stockpot.recipe import Graph, Recipe, _documents, _recipe, _settings, _tokenizer, _yaml

PARTS: Sequence[str] = (
    *("merge_method: linear", "merge_method: slerp", "merge_method: task_arithmetic", "base_model: base", "models:"),
    *(
        "  - model: a",
        "  - model: b",
        "    parameters: {weight: 0.5}",
        "parameters: {negative: clamp}",
        "dtype: float32",
    ),
    *(
        "parameters: {t: 0.5}",
        "granularity: row",
        "policies: {only: [a], rename: ['^x=y']}",
        "shard_size: 5GB",
        "seed: 3",
    ),
    *("models: [{model: a, parameters: {weight: 1}}, {model: b}]", "out_dtype: torch.bfloat16", "rank: 4", "? [a]"),
    *("tensor_weights: {w: 1}", "parameters: {<<: *a}", "parameters: &a {x: 1}", "seed: !!python/name:os.system"),
    *("seed: 2001-01-01", "seed: 1_000", "seed: 0x1F", "seed: .inf", "seed: 1:2:3", "---", "%YAML 1.2", "...", "\t"),
    *("policies: {missing: average, mismatch: first, template: '1'}", "allow_nonfinite: yes", "slices: []"),
    *(
        "slices:",
        "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]",
        "    base_model: b",
    ),
    *("modules: {text_decoder: {models: [{model: a}]}}", "name: x", "name: y", "base_model: x", "  - model: x+y"),
    *("parameters: {t: [0, 0.5, 1]}", "parameters: {t: [{filter: mlp, value: [0, 1]}, {value: 0.5}]}"),
    *("overrides: [{match: norm, parameters: {weight: 1}}]", "  - model: {model: {path: a, revision: b}, lora: c}"),
)
WORDS = (
    *(
        "!!python/object/apply:os.system",
        "!!binary",
        "!!set",
        "!!omap",
        "!!pairs",
        "!!timestamp",
        "!!float",
        "<<",
        "&a",
    ),
    *("*a", "|", ">-", "- ", ": ", "? ", "{", "}", "[", "]", '"', "'", "#", "\\x", "\\u", "~", "null", ".nan", "1e999"),
    *("weight", "model", "merge_method", "base_model", "parameters", "policies", "model_stock", "(a+)+$", "\u2028"),
)

LENIENT = 5
"""Of so many inputs one is read leniently."""
WRITTEN_AGAIN = 8
"""Of so many inputs one is written and read again: that takes twice as long as to read it."""


NODES = 2_000
"""In place of the reader's own cap, so that an endless recipe takes a hundredth of the time to be refused."""


def _prepare(folder: Path) -> Run:
    _yaml.NODES_CAP = NODES

    def run(data: bytes) -> None:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            return  # told by whoever reads the file
        for found in Graph.from_yaml(text, lenient=zlib.crc32(data) % LENIENT == 0).recipes:
            job = _job.resolve(found, from_file=True)
            if zlib.crc32(data) % WRITTEN_AGAIN == 0:
                if Recipe.from_yaml(found.to_yaml()) != found:
                    raise Finding(f"what is recorded is another recipe: {found.to_yaml()!r}")
                _job.resolve(job.recipe)

    return run


def _seeds() -> list[bytes]:
    bad = [text for text, _ in corpus.RECIPES.values() if len(text) < 1000]
    code = [corpus.GOOD + f"seed: {text}\n" for text in corpus.CODE.values()]
    bombs = [corpus.bomb(4, 3), corpus.map_bomb(4, 3), corpus.merge_bomb(4, 3)]
    good = corpus.GOOD + "parameters: {negative: clamp}\npolicies: {only: [a, b], missing: first}\n"
    return [text.encode() for text in (good, *bad, *code, *bombs)]


def _mutate(data: bytes, most: int, random: Random) -> bytes:
    """Whole lines put in, taken out, exchanged, or one of them changed."""
    if random.random() < 0.4:
        return bytes(atheris.Mutate(data, most))
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 3))):
        place, chance = random.randrange(len(lines)), random.random()
        if chance < 0.4:
            lines.insert(place, random.choice(PARTS).encode())
        elif chance < 0.55 and len(lines) > 1:
            del lines[place]
        elif chance < 0.7:
            lines.insert(random.randrange(len(lines) + 1), lines[place])
        elif chance < 0.8:
            lines[place] = b"  " * random.randrange(1, 4) + lines[place]
        else:
            cut = random.randrange(len(lines[place]) + 1)
            lines[place] = lines[place][:cut] + random.choice(WORDS).encode() + lines[place][cut:]
    return b"\n".join(lines)


WATCHED: Sequence[ModuleType] = (
    *(_recipe, _settings, _documents, _tokenizer, _yaml, _job, _sections, _parameters, _base),
    *(yaml.composer, yaml.constructor),
)
"""Not what looks at every character or token of a text: watching that takes four times as long."""
TARGET = Target("recipe", _prepare, _seeds, WATCHED, _mutate, tuple(word.encode() for word in WORDS), max_bytes=2048)
