"""CLIP models from weights of any known form: the zero-shot base, and a judge that takes on a fine-tune's weights."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor
from torch.nn import functional as F

from stockpot import engine, errors, evaluate
from stockpot.lab import _clip_names as names
from stockpot.lab._pixels import Preparation, preparation_of
from stockpot.soups import Ingredients, Running

HEAD_WIDTH = 64
"""Of one attention head, in every CLIP that OpenAI published."""


@dataclass(frozen=True)
class Base:
    """The model before fine-tuning: its weights by the names of transformers, how to build it, how it sees."""

    ref: str
    weights: Mapping[str, Tensor] = field(repr=False)
    shape: names.Shape
    config: Any = field(repr=False)
    preparation: Preparation
    folder: Path | None
    notes: tuple[str, ...] = ()

    @property
    def architecture(self) -> str | None:
        """As the papers call it, or None."""
        vision = self.config.vision_config
        return _ARCHITECTURES.get((vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size))


_ARCHITECTURES = {(768, 12, 32, 224): "ViT-B/32", (768, 12, 16, 224): "ViT-B/16", (1024, 24, 14, 224): "ViT-L/14"}


def load_base(ref: str, running: Running) -> Base:
    """Open it: a folder with its config, or a state dict alone, whose sizes then tell the config."""
    evaluate.require("transformers", "PIL")
    ingredients = Ingredients.open([ref])
    live = running.live(ingredients)
    source = ingredients.sources[ref]
    shape = names.shape_of([*source.tensors, *source.aliases], ref)
    found = names.to_transformers(live.become(live.plan(ingredients.average([0]))), shape, ref)
    folder, notes = source.folder, list(source.notes)
    if folder is not None and (folder / "config.json").is_file():
        config = evaluate.config_of(folder, ref)
        if not hasattr(config, "vision_config") or not hasattr(config, "text_config"):
            raise errors.CheckpointError(
                "no CLIP", file=str(folder / "config.json"), expected="a CLIPModel", got=config.model_type
            )
    else:
        config = config_by_sizes(found)
        notes.append(f"{ref} has no config.json: its sizes tell the config, with OpenAI's activation (quick_gelu)")
    config.vision_config.projection_dim = config.text_config.projection_dim = config.projection_dim
    preparation = preparation_of(folder, config.vision_config.image_size)
    return Base(ref, found, shape, config, preparation, folder, tuple(notes))


def config_by_sizes(weights: Mapping[str, Tensor]) -> Any:
    """The config of OpenAI's CLIP with tensors of these sizes, by the names of transformers."""
    from transformers import CLIPConfig

    patches = weights["vision_model.embeddings.patch_embedding.weight"]
    positions = len(weights["vision_model.embeddings.position_embedding.weight"]) - 1
    vision = {**_tower(weights, "vision_model", len(patches)), "patch_size": patches.shape[-1],
              "image_size": patches.shape[-1] * isqrt(positions)}  # fmt: skip
    text: dict[str, int] = {}
    embedding = weights.get("text_model.embeddings.token_embedding.weight")
    if embedding is not None:
        length = len(weights["text_model.embeddings.position_embedding.weight"])
        text = {**_tower(weights, "text_model", embedding.shape[1]), "vocab_size": len(embedding),
                "max_position_embeddings": length}  # fmt: skip
    text["eos_token_id"] = 2  # transformers then takes the greatest token for the end, as OpenAI does
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=len(weights["visual_projection.weight"]))


def _tower(weights: Mapping[str, Tensor], tower: str, width: int) -> dict[str, int]:
    blocks = {int(match[1]) for name in weights if (match := re.match(rf"{tower}\.encoder\.layers\.(\d+)\.", name))}
    inner = weights.get(f"{tower}.encoder.layers.0.mlp.fc1.weight")
    return {"hidden_size": width, "num_hidden_layers": len(blocks), "num_attention_heads": max(1, width // HEAD_WIDTH),
            "intermediate_size": 4 * width if inner is None else len(inner)}  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """What a zero-shot head is made of."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    tokenizer: Path
    notes: tuple[str, ...] = ()

    def digest(self) -> dict[str, Any]:
        """All that a head depends on beside the weights."""
        files = {path.name: engine.file_digest(str(path)) for path in sorted(self.tokenizer.glob("*"))
                 if path.name in _TOKENIZER_FILES}  # fmt: skip
        return {"classes": self.classes, "templates": self.templates, "tokenizer": files}


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


class Judge:
    """One CLIP in memory that takes on the weights of one candidate after another.

    ``texts``: for candidates without a classifier, whose own text tower then gives it.
    """

    def __init__(
        self, base: Base, shape: names.Shape, texts: Texts | None, options: evaluate.Options,
        results: evaluate.ResultCache,
    ) -> None:  # fmt: skip
        self.base, self.shape, self.texts, self.precision = base, shape, texts, options.precision
        self._device, self._results = options.device, results
        self._net: Any = None
        self._heads: dict[str, Tensor] = {}

    def content(self) -> dict[str, Any]:
        """All that its answers depend on beside the weights."""
        config = self.base.config
        kept = {
            name: getattr(config.vision_config, name)
            for name in ("hidden_act", "layer_norm_eps", "num_attention_heads")
        }
        return {
            "shape": str(self.shape), "vision": kept, "preparation": self.base.preparation.data(),
            "precision": self.precision, "transformers": evaluate.version(),
            "texts": None if self.shape.has_head or self.texts is None else self.texts.digest(),
        }  # fmt: skip

    def become(self, weights: Mapping[str, Tensor], ref: str) -> tuple[Any, Tensor, Tensor]:
        """(the model, weight of its classifier, bias), with these weights."""
        found = names.to_transformers(weights, self.shape, ref)
        head, bias = found.pop(names.HEAD_WEIGHT, None), found.pop(names.HEAD_BIAS, None)
        net = self._built(whole=head is None)
        if head is not None:
            found = {name: tensor for name, tensor in found.items() if name.startswith(("vision_", "visual_"))}
        try:
            net.load_state_dict(found)
        except RuntimeError as error:
            first = " ".join(str(error).split())
            raise errors.EvaluatorError(
                f"the weights do not fit the model of {self.base.ref} ({first:.200})",
                file=ref,
                remedy="give the base of these fine-tunes",
            ) from error
        if head is None:
            head = self._zero_shot(net, found)
        bias = torch.zeros(len(head)) if bias is None else bias
        return net, head.to(net.device, net.dtype), bias.to(net.device, net.dtype)

    def answers(self, net: Any, head: Tensor, bias: Tensor, pixels: Tensor) -> Tensor:
        """Logits of one batch of pixels, on the CPU in float32."""
        inputs = self.base.preparation.normalised(pixels, net.device, net.dtype)
        if hasattr(net, "get_image_features"):
            features = evaluate.embedding(net.get_image_features(pixel_values=inputs))
        else:
            features = net(pixel_values=inputs).image_embeds
        return F.linear(F.normalize(features, dim=-1), head, bias).float().cpu()

    def close(self) -> None:
        """Let go of the model."""
        if self._net is not None:
            evaluate.let_go(self._net)
            self._net = None

    def _built(self, *, whole: bool) -> Any:
        if self._net is None:
            from transformers import CLIPModel, CLIPVisionModelWithProjection

            config = self.base.config
            with evaluate.quietly(), torch.random.fork_rng(devices=[]):
                net = CLIPModel(config) if whole else CLIPVisionModelWithProjection(config.vision_config)
            net.train(False)
            self._net = evaluate.placed(net, self._device, self.precision or "float32")
        return self._net

    def _zero_shot(self, net: Any, weights: Mapping[str, Tensor]) -> Tensor:
        """Made once for each text tower."""
        assert self.texts is not None
        seen = xxhash.xxh3_128()
        for name in sorted(weights):
            if name.startswith("text_") or name == "logit_scale":
                seen.update(weights[name].detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        key = str(seen.hexdigest())
        if key not in self._heads:
            self._heads = {key: self._kept_head(net, self.texts, key)}
        return self._heads[key]

    def _kept_head(self, net: Any, texts: Texts, key: str) -> Tensor:
        """Taken from the cache of results, where one of the same weights and texts is kept: 80,000 texts take long.

        Made anew by other threads it might differ in its last bits, and nothing scored with it would be known again.
        """
        name = evaluate.content_key({"zero_shot": key, "precision": self.precision, **texts.digest()})
        kept = self._results.state(name)
        if kept is None:
            with torch.inference_mode():
                tokenizer = evaluate.tokenizer_of(texts.tokenizer)
                head = evaluate.zero_shot_head(net, tokenizer, texts.classes, texts.templates).cpu()
            self._results.keep_state(name, head.numpy().tobytes())
            return head
        return torch.frombuffer(bytearray(kept), dtype=torch.float32).reshape(len(texts.classes), -1)


def in_form(
    base: Base, shape: names.Shape, texts: Texts | None, device: str | None, results: evaluate.ResultCache
) -> dict[str, Tensor]:
    """The base as the fine-tunes are: by their names, with a zero-shot classifier where they have a classifier."""
    weights = dict(base.weights)
    if shape.has_head and names.HEAD_WEIGHT not in weights:
        assert texts is not None
        judge = Judge(base, names.Shape("transformers", False), texts, evaluate.Options(device=device), results)
        _, head, bias = judge.become(weights, base.ref)
        weights |= {names.HEAD_WEIGHT: head.float().cpu(), names.HEAD_BIAS: bias.float().cpu()}
    if not shape.has_head:
        weights = {name: tensor for name, tensor in weights.items() if name not in (names.HEAD_WEIGHT, names.HEAD_BIAS)}
    elif shape.form == "wrapped":
        weights = {name: own for name, own in weights.items() if not name.startswith("text_") and name != "logit_scale"}
    return names.from_transformers(weights, shape.form)


def texts_of(base: Base, classnames: Path | None, templates: Path | None, tokenizer: Path | None, count: int) -> Texts:
    """By files, else by open_clip where that is installed; said where only one template is known."""
    notes = []
    known = _open_clip()
    if classnames is not None:
        classes = _lines(classnames)
    elif known is not None:
        classes = known[0]
    else:
        raise errors.UsageError(
            "a zero-shot classifier needs the names of the classes", expected=f"{count} names in class order",
            remedy="give --classnames FILE (one a line), or pip install open_clip_torch, which has them",
        )  # fmt: skip
    if len(classes) != count:
        raise errors.InputError("another number of class names", file=str(classnames), expected=count, got=len(classes))
    if templates is not None:
        own = _lines(templates)
    elif known is not None:
        own = known[1]
    else:
        own = ("a photo of a {}.",)
        notes.append(
            "zero-shot texts: one template ('a photo of a {}.'), not the papers' 80; --templates FILE, or open_clip"
        )
    if wrong := [line for line in own if "{}" not in line]:
        raise errors.InputError(
            "a template without a place for the class", file=str(templates), expected="{}", got=wrong[0]
        )
    place = tokenizer or base.folder
    if place is None:
        raise errors.UsageError(
            "a zero-shot classifier needs a tokenizer", file=base.ref, expected="a folder with tokenizer.json",
            remedy="give --tokenizer FOLDER, or a base that is a folder with its tokenizer",
        )  # fmt: skip
    return Texts(classes, own, place, tuple(notes))


def _open_clip() -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """(class names, templates) of an installed open_clip."""
    if importlib.util.find_spec("open_clip") is None:
        return None
    try:
        open_clip: Any = importlib.import_module("open_clip")
    except Exception as error:
        raise errors.UsageError(
            f"open_clip is installed and cannot be imported ({type(error).__name__}: {error})",
            remedy="mend it, or give --classnames and --templates and uninstall it",
        ) from error
    templates: Sequence[Any] = open_clip.OPENAI_IMAGENET_TEMPLATES
    return tuple(open_clip.IMAGENET_CLASSNAMES), tuple(template("{}") for template in templates)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise errors.NotFoundError(f"the file cannot be read ({error})", file=str(path)) from None
