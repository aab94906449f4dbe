"""Chat templates: the formats that have a name, and the one that most inputs share."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Sequence

from stockpot import errors
from stockpot.recipe import AUTO
from stockpot.vocabulary._union import as_json

_ALPACA = """\
{% for message in messages %}
{% if message['role'] == 'system' %}
{{ message['content'] + '\n\n' }}
{%- elif message['role'] == 'user' %}
{{ '### Instruction:\n' + message['content'] + '\n\n' }}
{%- else %}
{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}
"""
_CHATML = """\
{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
_EXAONE = """\
{% if messages and messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\n' }}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ '[|user|]' + message['content'] + '\n' }}
{%- else %}{{ '[|' + message['role'] + '|]' + message['content'] + '[|endofturn|]\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}
"""
_LLAMA3 = """\
{{ bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""
_MISTRAL = """\
{{ bos_token }}
{%- set told = namespace(system='') %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{% set told.system = message['content'] + '\n\n' %}
{%- elif message['role'] == 'user' %}
{{- '[INST] ' + told.system + message['content'] + ' [/INST]' }}{% set told.system = '' %}
{%- else %}{{ ' ' + message['content'] + eos_token }}{% endif %}
{%- endfor %}
"""
TEMPLATES = {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}
"""Each format as Jinja, as chats are written where it comes from."""
_MARK = re.compile(r"<\|[a-z_]+\|>|\[\|[a-z]+\|\]")


def chosen_template(wanted: str, found: Sequence[str | None]) -> tuple[str | None, str]:
    """The chat template of the output and what is said of it: by name, as a text, or the one that most inputs have.

    ``found``: those of the inputs, in order; of equally many the first is taken.

    >>> chosen_template("auto", ["a", None, "b", "b"])[0], chosen_template("{{ x }}", [])[0]
    ('b', '{{ x }}')
    """
    if wanted != AUTO:
        return TEMPLATES.get(wanted, wanted), ""
    counted = Counter(one for one in found if one is not None)
    if not counted:
        return None, "chat_template: auto: no input has a chat template, and none is written"
    best, count = max(counted.items(), key=lambda item: item[1])
    others = len(counted) - 1
    return best, f"chat_template: auto: that of {count} inputs, of {others + 1} different ones" if others else ""


def missing_marks(wanted: str, ids: Container[str]) -> list[str]:
    """Marks of a named format that are no tokens of a vocabulary.

    >>> missing_marks("chatml", {"<|im_start|>"}), missing_marks("alpaca", {})
    (['<|im_end|>'], [])
    """
    return [mark for mark in dict.fromkeys(_MARK.findall(TEMPLATES.get(wanted, ""))) if mark not in ids]


def with_template(config: bytes | None, template: str) -> bytes:
    """``tokenizer_config.json`` with a chat template, for programs that look for it there."""
    try:
        found = json.loads(config.decode("utf-8")) if config is not None else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise errors.TokenizerError("tokenizer_config.json is no JSON object, and gets no chat template")
    return as_json({**found, "chat_template": template})
