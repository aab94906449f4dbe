"""Parts of models of several parts, by the names that recipes give them."""

from __future__ import annotations

from collections.abc import Collection

WHOLE = "default"
"""The module that is all of a model."""
_HEAD = "lm_head."
_PREFIXES: dict[str, tuple[tuple[str, ...], ...]] = {
    "text_decoder": (
        ("model.language_model.", _HEAD),
        ("language_model.",),
        ("model.text_model.", _HEAD),
        ("text_model.",),
        ("model.decoder.", "decoder."),
    ),
    "vision_tower": (
        ("model.vision_tower.",),
        ("vision_tower.",),
        ("model.visual.",),
        ("visual.",),
        ("model.vision_model.",),
        ("vision_model.",),
    ),
    "audio_tower": (("model.audio_tower.",), ("audio_tower.",), ("audio_model.",)),
    "multi_modal_projector": (
        ("model.multi_modal_projector.",),
        ("multi_modal_projector.",),
        ("model.connector.",),
        ("connector.",),
    ),
}
"""As libraries of today write them, newest first."""


def prefixes_of(module: str | None, names: Collection[str]) -> tuple[str, ...]:
    """What the names of a module's tensors begin with, of a model with these names; nothing where there are none.

    >>> prefixes_of("text_decoder", ["language_model.model.norm.weight"]), prefixes_of("encoder", ["encoder.w"])
    (('language_model.',), ('encoder.',))
    """
    if module is None or module == WHOLE:
        return ("",)
    own = module if module.endswith(".") else f"{module}."
    for found in (*_PREFIXES.get(module, ()), (own,), (f"model.{own}",)):
        if any(name.startswith(found[0]) for name in names):
            return found
    return ()
