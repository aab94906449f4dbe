"""Chat templates: by name, by text, and the one that most inputs have; read where programs look for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import stockpot
from stockpot.recipe import CHAT_TEMPLATES
from stockpot.vocabulary import TEMPLATES

from ._zoo import CHAT, loaded, make, tokenizer
from .test_models import recipe

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]
WRITTEN = {
    "alpaca": "Be brief.\n\n### Instruction:\nHello\n\n### Response:\nHi</s>\n\n### Instruction:\n"
    "Bye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi"
    "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hello\n[|assistant|]Hi[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHello [/INST] Hi</s>[INST] Bye [/INST]",
}


def pair(root: Path, *templates: str | None) -> list[Path]:
    """Models with these chat templates."""
    folders = []
    for number, template in enumerate(templates):
        tokens = tokenizer(added=CHAT)
        tokens.chat_template = template
        folders.append(make(root / f"model{number}", tokens, number))
    return folders


def merged(root: Path, folders: list[Path], **keys: Any) -> Any:
    """The tokenizer of their merge, and what was said."""
    result = stockpot.merge(recipe(folders, **keys), out=root / "out")
    return loaded(root / "out")[1], " ".join(result.warnings)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_chats_are_written_as_their_format_says(name: str, tmp_path: Path) -> None:
    """A talk in each named format, to its last character; marks that are no tokens are told."""
    found, said = merged(tmp_path, pair(tmp_path, None, None), chat_template=name, tokenizer_source="base")
    assert found.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == WRITTEN[name]
    assert found.chat_template == TEMPLATES[name]
    assert ("no tokens of the output" in said) is (name in ("exaone", "llama3"))


@pytest.mark.parametrize("tokenizer_keys", [{}, {"tokenizer_source": "union"}, {"tokenizer_source": "base"}])
def test_a_template_is_where_programs_look(tokenizer_keys: dict[str, str], tmp_path: Path) -> None:
    """In its own file, and in the configuration, with the rest of it as it was; with and without other keys."""
    text = "{% for message in messages %}{{ message.content }}!{% endfor %}"
    folders = pair(tmp_path, "{{ 1 }}", "{{ 2 }}")
    (folders[0] / "chat_template.json").write_text('{"chat_template": "{{ 3 }}"}')
    found, _ = merged(tmp_path, folders, chat_template=text, **tokenizer_keys)
    assert found.apply_chat_template(TALK[:2], tokenize=False) == "Be brief.!Hello!"
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    before = json.loads((folders[0] / "tokenizer_config.json").read_text("utf-8"))
    assert config == {**before, "chat_template": text}
    assert (tmp_path / "out" / "chat_template.jinja").read_text("utf-8") == text
    assert not (tmp_path / "out" / "chat_template.json").exists()


@pytest.mark.parametrize(
    ("templates", "expected"),
    [(("{{ 1 }}", "{{ 2 }}", "{{ 2 }}"), "{{ 2 }}"), ((None, "{{ 1 }}", "{{ 2 }}"), "{{ 1 }}"), ((None, None), None)],
)
def test_auto_is_what_most_inputs_have(templates: tuple[str | None, ...], expected: str | None, tmp_path: Path) -> None:
    """Of equally many the first; where none has one there is none, and that is told."""
    found, said = merged(tmp_path, pair(tmp_path, *templates), chat_template="auto")
    assert found.chat_template == expected
    assert ("no input has a chat template" in said) is (expected is None)


def test_a_template_in_the_configuration_counts(tmp_path: Path) -> None:
    """Older folders keep it there, alone or as one of several by name."""
    folders = pair(tmp_path, None, None)
    for folder, stated in zip(folders, ("{{ 1 }}", [{"name": "default", "template": "{{ 1 }}"}]), strict=True):
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "chat_template": stated}), "utf-8")
    found, _ = merged(tmp_path, folders, chat_template="auto")
    assert found.chat_template == "{{ 1 }}"


def test_without_the_key_the_template_comes_with_its_tokenizer(tmp_path: Path) -> None:
    """The chat template of the model whose tokenizer is taken."""
    folders = pair(tmp_path, "{{ 1 }}", "{{ 2 }}")
    found, _ = merged(tmp_path, folders, tokenizer_source=folders[1])
    assert found.chat_template == "{{ 2 }}"
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.get_vocab() == tokenizer(added=CHAT).get_vocab()
