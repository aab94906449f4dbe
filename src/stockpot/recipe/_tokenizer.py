"""What a recipe says of tokens: whose tokenizer the output has, whose rows its tokens get, which chat template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stockpot import errors

TOKENIZER_KEYS = ("tokenizer", "tokenizer_source", "chat_template")
CHAT_TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")
"""Names that stand for a format of chats."""
AUTO = "auto"
WORDS = ("union", "base")
"""Sources of tokenizers that are no models."""
KINDS = ("model_token", "zero")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ModelToken(_Strict):
    """The row that a token has in one model, by the token or by its number."""

    kind: Literal["model_token"]
    model: str
    token: str | None = None
    token_id: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> ModelToken:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("a model_token has either token or token_id")
        return self


class ZeroToken(_Strict):
    """A row of zeros."""

    kind: Literal["zero"]


def _as_source(value: object) -> object:
    """By its kind, so that what is wrong is told of that kind alone."""
    if isinstance(value, str | ModelToken | ZeroToken):
        return value
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "model_token":
        return ModelToken.model_validate(value)
    if kind == "zero":
        return ZeroToken.model_validate(value)
    close = errors.nearest(kind, KINDS) if isinstance(kind, str) else None
    hint = f"did you mean {close}?" if close else "a model, or a map with the kind model_token or zero"
    raise ValueError(f"a token's source is not understood; {hint}")


class TokenSource(_Strict):
    """Where the row of a token comes from, for models that lack it; for all of them with ``force``."""

    source: Annotated[str | ModelToken | ZeroToken, BeforeValidator(_as_source)]
    force: bool = False

    def renamed(self, change: Callable[[str], str]) -> TokenSource:
        """The same with another name for the model."""
        if isinstance(self.source, str):
            return self.model_copy(update={"source": change(self.source)})
        if isinstance(self.source, ModelToken):
            return self.model_copy(
                update={"source": self.source.model_copy(update={"model": change(self.source.model)})}
            )
        return self


class Tokenizer(_Strict):
    """The output's tokenizer: ``union``, ``base`` or a model's, with rows of single tokens settled one by one."""

    source: Annotated[str, Field(min_length=1)] = "union"
    tokens: dict[Annotated[str, Field(min_length=1)], TokenSource] = Field(default_factory=dict)
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=1 << 20)] | None = None

    def renamed(self, change: Callable[[str], str]) -> Tokenizer:
        """The same with other names for the models."""
        tokens = {token: one.renamed(change) for token, one in self.tokens.items()}
        return self.model_copy(update={"source": renamed_source(self.source, change), "tokens": tokens})


def renamed_source(source: str, change: Callable[[str], str]) -> str:
    """Another name for a model; the words that stand for none stay."""
    return source if source in WORDS else change(source)


def _known_template(value: str) -> str:
    if value in (AUTO, *CHAT_TEMPLATES) or "{{" in value or "{%" in value:
        return value
    close = errors.nearest(value, (AUTO, *CHAT_TEMPLATES))
    hint = f"did you mean {close}?" if close else f"known: {', '.join((AUTO, *CHAT_TEMPLATES))}, or a Jinja text"
    raise ValueError(f"no chat template is called so; {hint}")


ChatTemplate = Annotated[str, AfterValidator(_known_template)]


def tokenizer_owner(path: tuple[Any, ...]) -> type[BaseModel]:
    """Whose keys are known at a place below ``tokenizer``.

    >>> tokenizer_owner(("tokenizer", "sorce")).__name__, tokenizer_owner(("tokenizer", "tokens", "<x>", "k")).__name__
    ('Tokenizer', 'TokenSource')
    """
    if len(path) <= 2:
        return Tokenizer
    return ModelToken if "source" in path[3:-1] else TokenSource
