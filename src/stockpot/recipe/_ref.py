"""How a recipe names a model: as text, or part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from stockpot import errors

_PARTS = ("model", "lora")
_OF_PART = ("path", "revision")


def as_text(value: object) -> object:
    """``PATH[@REVISION][+LORA[@REVISION]]`` for a mapping of the same; ValueError says what of it is wrong.

    >>> as_text({"model": {"path": "org/base", "revision": "v1"}, "lora": {"path": "./adapter"}})
    'org/base@v1+./adapter'
    """
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("a model needs a name")
        return value
    if not isinstance(value, Mapping):
        return value
    _require_known(value, _PARTS)
    if "model" not in value:
        raise ValueError("a model in parts needs the key model")
    lora = value.get("lora")
    return _part(value["model"], "model") + ("" if lora is None else "+" + _part(lora, "lora"))


def _part(value: object, name: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be text, or {{path, revision}}")
    _require_known(value, _OF_PART)
    path, revision = value.get("path"), value.get("revision")
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{name} needs a path")
    if revision is not None and not isinstance(revision, str):
        raise ValueError(f"the revision of {path} must be text")
    return path + (f"@{revision}" if revision else "")


def _require_known(value: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    for key in value:
        if key not in known:
            close = errors.nearest(str(key), known)
            raise ValueError(
                f"unknown key {str(key)!r}; " + (f"did you mean {close}?" if close else f"known: {', '.join(known)}")
            )


ModelRef = Annotated[str, BeforeValidator(as_text)]
