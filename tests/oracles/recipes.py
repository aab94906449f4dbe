"""What a recipe means, in float64, from the format's page alone; no line of stockpot is used.

Models are state dicts of float64 tensors whose layers are called ``model.layers.N`` (or as ``stem`` says); a recipe is
the plain data of its YAML.
"""

import math
import re

import numpy as np
import torch
from tests.oracles.exact import numbers
from tests.oracles.linear import linear, slerp, task_arithmetic


def value(setting, name, t):
    """The scalar that a setting gives a tensor, or None."""
    cases = setting if isinstance(setting, list) and isinstance(setting[0], dict) else [setting]
    for case in cases:
        part, found = (case.get("filter", "*"), case["value"]) if isinstance(case, dict) else ("*", case)
        if part != "*" and part not in name:
            continue
        if not isinstance(found, list):
            return found
        x = t * (len(found) - 1)
        if isinstance(found[0], bool | str):
            return found[int(x)]
        low = math.floor(x)
        high = math.ceil(x)
        return found[low] + (x - low) * (found[high] - found[low])
    return None


def chosen(key, levels, name, t, default=None):
    """By precedence."""
    for level in levels:
        if key in level and (found := value(level[key], name, t)) is not None:
            return found
    return default


def ties(base, tensors, weight, density, normalize):
    """The largest parts of each task vector; the sign that their weighted sum has; the mean of what has it; flat."""
    anchor = numbers(base)
    parts = []
    for tensor, share in zip(tensors, density, strict=True):
        delta = numbers(tensor) - anchor
        kept = np.argsort(-np.abs(delta), kind="stable")[: round(share * delta.size)]
        parts.append(np.zeros_like(delta))
        parts[-1][kept] = delta[kept]
    weighted = np.array([a * part for a, part in zip(weight, parts, strict=True)])
    sign = np.where(weighted.sum(axis=0) >= 0, 1.0, -1.0)
    agrees = (weighted != 0) & (np.sign(weighted) == sign)
    total = (weighted * agrees).sum(axis=0)
    by = (np.array(weight)[:, None] * agrees).sum(axis=0)
    return anchor + (np.divide(total, by, out=np.zeros_like(total), where=by != 0) if normalize else total)


def combined(method, base, tensors, asked):
    """One tensor by a method; ``asked(key, index, default)`` gives parameters, index None for those of all models."""
    weight = [asked("weight", n, None) for n in range(len(tensors))]
    if method == "linear":
        return linear(tensors, weight, asked("normalize", None, True))
    if method == "task_arithmetic":
        normalize = asked("normalize", None, False)
        return task_arithmetic(base, tensors, weight, asked("lambda", None, 1.0), normalize)
    if method == "ties":
        density = [asked("density", n, 1.0) for n in range(len(tensors))]
        return ties(base, tensors, weight, density, asked("normalize", None, True))
    if method == "slerp":
        return slerp(base, tensors[0], asked("t", None, None))
    if method == "passthrough":
        return asked("scale", 0, 1.0) * tensors[0]
    raise AssertionError(method)


def merged(recipe, models, stem="model.layers."):
    """The state dict of a recipe of models or slices."""
    whole = re.compile(re.escape(stem) + r"(\d+)(.*)")

    def layers(name):
        return 1 + max(int(found[1]) for key in models[name] if (found := whole.fullmatch(key)))

    top = recipe.get("parameters", {})
    slices = recipe.get("slices")
    if slices is None:
        sources = [dict(one, layer_range=[0, layers(one["model"])]) for one in recipe["models"]]
        base = recipe.get("base_model")
        if base is not None and all(one["model"] != base for one in sources):
            sources.append({"model": base, "layer_range": [0, layers(base)]})
        slices = [{"sources": sources}]
    result, offset = {}, 0
    for number, piece in enumerate(slices):
        base = piece.get("base_model", recipe.get("base_model"))
        base = base["model"]["path"] if isinstance(base, dict) else base
        own = next((one for one in piece["sources"] if one["model"] == base), None)
        rest = [one for one in piece["sources"] if one is not own or recipe["merge_method"] == "linear"]
        length = piece["sources"][0]["layer_range"][1] - piece["sources"][0]["layer_range"][0]

        def make(new, t, names, base=base, own=own, rest=rest, piece=piece):
            """``names(source)`` is what a source calls the tensor."""

            def asked(parameter, index, default):
                levels = [piece.get("parameters", {}), top]
                if index is None:
                    return chosen(parameter, levels, new, t, default)
                mine = rest[index].get("parameters", {})
                return chosen(parameter, [mine, *levels], names(rest[index]), t, default)

            anchor = None if own is None else models[base][names(own)]
            tensors = [models[one["model"]][names(one)] for one in rest]
            shape = tensors[0].shape
            found = combined(recipe["merge_method"], anchor, tensors, asked)
            result[new] = torch.as_tensor(np.asarray(found)).reshape(shape)

        first = piece["sources"][0]
        for key in models[first["model"]]:
            found = whole.fullmatch(key)
            if found is None:
                before = "embed" in key
                if (before and number == 0) or (not before and number == len(slices) - 1):
                    make(key, 0.0, lambda one, key=key: key)
                continue
            step = int(found[1]) - first["layer_range"][0]
            if 0 <= step < length:
                t = step / (length - 1) if length > 1 else 1.0
                make(
                    f"{stem}{offset + step}{found[2]}",
                    t,
                    lambda one, step=step, rest=found[2]: f"{stem}{one['layer_range'][0] + step}{rest}",
                )
        offset += length
    return result
