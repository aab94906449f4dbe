"""What PEFT writes of a LoRA adapter: ``adapter_config.json`` and the names of its tensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stockpot import errors
from stockpot._pattern_ways import require_bounded_on
from stockpot.checkpoint import ADAPTER_CONFIG as CONFIG
from stockpot.checkpoint import ADAPTER_STEM as STEM
from stockpot.checkpoint import Source, TensorInfo, count, is_mergeable

_ROOT = "base_model.model."
_NAME = re.compile(
    r"(?P<module>.*)[.](?P<role>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))"
    r"(?:[.]default)?(?:[.](?P<leaf>weight|bias))?"
)
_BASE_LAYER = re.compile(r"(?P<module>.*)[.]base_layer[.](?P<leaf>weight|bias)")
_WRAPPED = re.compile(r"(?P<module>.*)[.](?P<copy>modules_to_save|original_module)(?:[.]default)?[.](?P<leaf>[^.]+)")
_REBASED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that take something out of the base: the adapter then fits no base that anybody has."""
_NAMES = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
}
_HARMLESS = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "lora_dropout", "r", "lora_alpha", "use_rslora", "rank_pattern"),
    *("alpha_pattern", "fan_in_fan_out", "bias", "lora_bias", "target_modules", "exclude_modules", "modules_to_save"),
    *("layers_to_transform", "layers_pattern", "ensure_weight_tying", "init_lora_weights", "megatron_core"),
    *("qalora_group_size", "corda_config", "eva_config", "loftq_config", "lora_ga_config", "velora_config"),
}
"""What is served, says how training began or went, or where modules are. Anything else that is set may change the
weights in a way that we do not know."""


PATTERN_CAP = 1000
"""Characters of one pattern of ranks or alphas."""


class AdapterConfig(BaseModel):
    """What the numbers depend on."""

    model_config = ConfigDict(extra="ignore")

    peft_type: str
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    init_lora_weights: bool | str | None = True

    def scale(self, module: str, rank: int) -> float:
        """What the product is multiplied with: alpha / r, with rank-stabilised LoRA alpha / sqrt(r)."""
        alpha = _patterned(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, module: str) -> int:
        """The rank that is stated for a module."""
        return int(_patterned(self.rank_pattern, module, self.r))


def _patterned(patterns: Mapping[str, float] | None, module: str, otherwise: float) -> float:
    """The value of the first pattern that matches the end of a module's name, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        if len(pattern) > PATTERN_CAP:
            raise errors.AdapterError("a pattern of ranks is absurdly long", got=f"{len(pattern)} characters")
        whole = rf"(.*\.)?({pattern})$"
        try:
            require_bounded_on(whole, module)
            if re.match(whole, module):
                return value
        except (re.error, RecursionError, OverflowError) as error:
            raise errors.AdapterError(f"a pattern of ranks cannot be read ({error})", got=repr(pattern)) from None
    return otherwise


@dataclass(frozen=True, slots=True)
class LowRank:
    """A weight's change: ``scale * B A``, B of shape (out, rank), A of (rank, in); ``embedding``: of its transpose."""

    module: str
    b: TensorInfo
    a: TensorInfo
    scale: float
    embedding: bool

    @property
    def rank(self) -> int:
        """Columns of B, rows of A."""
        return self.a.shape[0]


@dataclass(frozen=True)
class Adapter:
    """An adapter, by its headers: which weights it changes by products, adds to, or has anew.

    ``products`` and ``added`` (a bias beside a product, and its factor) by the name of the weight they change;
    ``replaced``: tensors of its own, in place of the base's.
    """

    source: Source
    config: AdapterConfig
    stated: Mapping[str, Any]
    products: Mapping[str, LowRank]
    added: Mapping[str, tuple[TensorInfo, float]]
    replaced: Mapping[str, TensorInfo]


def is_adapter(source: Source) -> bool:
    """Whether a checkpoint is an adapter as PEFT saves it."""
    stated = source.folder is not None and (source.folder / CONFIG).is_file()
    return stated and source.parts[0].stem == STEM


def read_adapter(source: Source) -> Adapter:
    """Understand an adapter, or refuse it by the name of what is not understood; raises AdapterError."""
    stated, config = _read_config(source)
    pairs: dict[str, dict[str, TensorInfo]] = {}
    replaced: dict[str, TensorInfo] = {}
    for full, info in source.tensors.items():
        name = full.removeprefix(_ROOT)
        if match := _WRAPPED.fullmatch(name):  # under bias="all" PEFT writes what wraps a whole module, too
            if match["copy"] == "modules_to_save":
                replaced.setdefault(f"{match['module']}.{match['leaf']}", info)
            continue
        if match := _NAME.fullmatch(name):
            role = match["role"] + (".bias" if match["leaf"] == "bias" else "")
            if role in (roles := pairs.setdefault(match["module"], {})):
                raise errors.AdapterError(
                    "two tensors for one factor", tensor=full, file=source.ref, got=roles[role].name
                )
            roles[role] = info
        elif match := _BASE_LAYER.fullmatch(name):
            replaced[f"{match['module']}.{match['leaf']}"] = info
        elif ".lora_" in name:
            raise errors.AdapterError("a tensor of the adapter is not understood", tensor=full, file=source.ref)
        else:
            replaced[name] = info
    for alias, kept in source.aliases.items():
        replaced[alias.removeprefix(_ROOT)] = source.tensors[kept]
    products: dict[str, LowRank] = {}
    added: dict[str, tuple[TensorInfo, float]] = {}
    for module, roles in pairs.items():
        product = _product(source, config, module, roles)
        products[f"{module}.weight"] = product
        if "lora_B.bias" in roles:
            added[f"{module}.bias"] = (roles["lora_B.bias"], product.scale)
    return Adapter(source, config, stated, products, added, replaced)


def _read_config(source: Source) -> tuple[dict[str, Any], AdapterConfig]:
    assert source.folder is not None
    path = source.folder / CONFIG
    try:
        stated = json.loads(path.read_text("utf-8"))
        config = AdapterConfig.model_validate(stated)
    except (ValueError, OSError, RecursionError, ValidationError) as error:
        said = str(error).splitlines()[0]
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"[:200]
        raise errors.AdapterError(f"the adapter's configuration cannot be read ({said})", file=str(path)) from None
    if config.peft_type != "LORA":
        raise errors.AdapterError(
            "an adapter of another kind", file=str(path), expected="peft_type LORA", got=config.peft_type,
            remedy="merge it into its base where it was made (merge_and_unload), and give that",
        )  # fmt: skip
    for key, value in stated.items():
        if value and key not in _HARMLESS:
            raise errors.AdapterError(
                f"{_NAMES.get(key, key)} is not understood", file=str(path), got=f"{key}: {value!r}"[:80],
                remedy="merge it into its base where it was made (merge_and_unload), and give that",
            )  # fmt: skip
    numbers = [config.lora_alpha, *(config.alpha_pattern or {}).values()]
    if not all(map(math.isfinite, numbers)):
        raise errors.AdapterError("a scale that is no number", file=str(path), got=numbers)
    began = str(config.init_lora_weights).lower()
    if began.startswith(_REBASED):
        raise errors.AdapterError(
            f"the adapter began as {config.init_lora_weights}, which takes a part out of the base", file=str(path),
            remedy="merge it where it was made, or (not LoftQ) save it with path_initial_model_for_weight_conversion",
        )  # fmt: skip
    return stated, config


def _product(source: Source, config: AdapterConfig, module: str, roles: Mapping[str, TensorInfo]) -> LowRank:
    """The two factors of a module; they must fit each other and what the configuration says."""
    embedding = "lora_embedding_A" in roles
    a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if "lora_magnitude_vector" in roles:
        raise errors.AdapterError("DoRA is not understood", tensor=roles["lora_magnitude_vector"].name, file=source.ref)
    if a not in roles or b not in roles or set(roles) - {a, b, "lora_B.bias"}:
        raise errors.AdapterError(
            "a module of the adapter is not a pair of factors", tensor=module, file=source.ref,
            expected=f"{a} and {b}", got=", ".join(sorted(roles)),
        )  # fmt: skip
    left, right = roles[b], roles[a]
    fits = len(left.shape) > 1 and len(right.shape) > 1 and left.shape[1] == right.shape[0] > 0
    if not fits or count(left.shape[2:]) != 1:
        raise errors.AdapterError(
            "the factors of a module do not fit each other", tensor=module, file=source.ref,
            expected="(out, rank) and (rank, in)", got=f"{list(left.shape)} and {list(right.shape)}",
        )  # fmt: skip
    rank = right.shape[0]
    if rank != config.rank(module):
        raise errors.AdapterError(
            "the rank of a module is not the one in the configuration", tensor=module, file=source.ref,
            expected=config.rank(module), got=rank,
        )  # fmt: skip
    for info in (left, right):
        if not is_mergeable(info.dtype):
            raise errors.AdapterError("a factor that is no float", tensor=info.name, file=source.ref, got=info.dtype)
    return LowRank(module, left, right, config.scale(module, rank), embedding)
