"""Tiny real models with real tokenizers, trained here on the source text of Python's own library."""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import random
import shlex
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file
from tests.models._plain import seeded
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
CHAT = ["<|im_start|>", "<|im_end|>"]
Table = dict[str, NDArray[np.float64]]


@cache
def text(name: str = "textwrap") -> str:
    """Text that is on every machine."""
    return inspect.getsource({"textwrap": textwrap, "shlex": shlex, "argparse": argparse}[name])


def sentences(count: int = 30) -> list[str]:
    """Lines that the tokenizers have seen, and lines that they have not."""
    lines = [line for name in ("textwrap", "argparse") for line in text(name).splitlines() if len(line) > 20]
    return lines[:: max(1, len(lines) // count)]


@cache
def _trained(kind: str, size: int, corpus: str) -> str:
    """The ``tokenizer.json`` of a freshly trained tokenizer."""
    special: list[str | AddedToken] = list(SPECIAL)
    trainer: trainers.Trainer
    if kind == "bpe":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "wordpiece":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    elif kind == "unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        made = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    made.train_from_iterator(text(corpus).splitlines(), trainer)
    return str(made.to_str())


@cache
def _begun(size: int, corpus: str) -> str:
    """A WordPiece tokenizer with the first tokens of a large one: trained twice, it has others each time."""
    content = json.loads(_trained("wordpiece", 400, corpus))
    content["model"]["vocab"] = {token: n for token, n in content["model"]["vocab"].items() if n < size}
    return json.dumps(content)


def tokenizer(
    kind: str = "bpe", size: int = 300, corpus: str = "textwrap", added: Sequence[str] = (), **roles: str
) -> PreTrainedTokenizerFast:
    """A trained tokenizer with further tokens; special those that look so."""
    trained = _begun(size, corpus) if kind == "wordpiece" else _trained(kind, size, corpus)
    made = tokenizers.Tokenizer.from_str(trained)
    for token in added:
        made.add_tokens([AddedToken(token, special=token.startswith("<"))])
    return wrapped(made, **roles)


def wrapped(made: tokenizers.Tokenizer, **roles: str) -> PreTrainedTokenizerFast:
    """As transformers has it, with the tokens that begin and end a text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **roles}
    )


def permuted(own: PreTrainedTokenizerFast, seed: int = 5) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """The same tokenizer with its numbers dealt anew, and the old number of each new one."""
    content = json.loads(own.backend_tokenizer.to_str())
    order = list(range(len(own)))
    random.Random(seed).shuffle(order)
    new = {old: number for number, old in enumerate(order)}
    vocabulary = {token: new[number] for token, number in own.get_vocab().items()}
    content["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    for entry in content["added_tokens"]:
        entry["id"] = new[entry["id"]]
    content["added_tokens"].sort(key=lambda entry: entry["id"])
    return wrapped(tokenizers.Tokenizer.from_str(json.dumps(content))), order


CONFIGS: dict[str, Any] = {
    "llama": lambda size: transformers.LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    ),
    "gpt2": lambda size: transformers.GPT2Config(
        vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "bert": lambda size: transformers.BertConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, tie_word_embeddings=False, is_decoder=False, pad_token_id=0,
    ),
    "bart": lambda size: transformers.BartConfig(
        vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    ),
}  # fmt: skip
CLASSES = {
    "llama": transformers.LlamaForCausalLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "bert": transformers.BertForMaskedLM,
    "bart": transformers.BartForConditionalGeneration,
}
TOKEN_TENSORS = {
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": ("transformer.wte.weight",),
    "bert": (
        *("bert.embeddings.word_embeddings.weight", "cls.predictions.bias", "cls.predictions.decoder.bias"),
        "cls.predictions.decoder.weight",
    ),
    "bart": ("model.shared.weight", "final_logits_bias"),
}
"""Names of tensors, as files have them, that have a row for each token."""


def model(family: str, size: int, seed: int = 0) -> PreTrainedModel:
    """A model with so many rows of tokens; what begins as zeros or ones is given numbers of its own."""
    made = seeded(lambda: CLASSES[family](CONFIGS[family](size)), seed)
    with torch.no_grad():
        for place, value in enumerate(made.parameters()):
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1000 * seed + place))
        if "final_logits_bias" in (buffers := dict(made.named_buffers())):
            buffers["final_logits_bias"] += torch.arange(size) / size
    return made.eval()


def moved(own: PreTrainedModel, family: str, order: Sequence[int]) -> PreTrainedModel:
    """A copy of a model whose rows of tokens are dealt anew."""
    copied = copy.deepcopy(own)
    seen = set()
    with torch.no_grad():
        for name, value in copied.state_dict().items():
            if name in TOKEN_TENSORS[family] and value.data_ptr() not in seen:
                seen.add(value.data_ptr())
                value.copy_(value[:, list(order)].clone() if len(value) == 1 else value[list(order)].clone())
    return copied


def save(
    folder: Path,
    own: PreTrainedModel,
    tokens: PreTrainedTokenizerFast,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Path:
    """A folder with a model and its tokenizer."""
    copy.deepcopy(own).to(dtype).save_pretrained(folder, **options)
    tokens.save_pretrained(folder)
    return folder


def make(
    folder: Path, tokens: PreTrainedTokenizerFast, seed: int = 0, family: str = "llama", rows: int = 0, **options: Any
) -> Path:
    """A model for a tokenizer, saved with it."""
    return save(folder, model(family, rows or len(tokens), seed), tokens, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found.update(load_file(file))
    return found


def loaded(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder; nothing missing, nothing left over."""
    family = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    found, told = CLASSES[family].from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return found.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def table(folder: Path, name: str) -> Table:
    """A tensor's row of every token, by the token."""
    matrix = weights(folder)[name].to(torch.float64).numpy()
    ids = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    return {token: matrix[number].reshape(-1) for token, number in ids.items() if number < len(matrix)}
