"""The contract suite: one function a question, asked of any method through the public verbs alone."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stockpot import _api, errors
from stockpot.methods import get_method

StateDict = dict[str, Tensor]
SHAPES: Mapping[str, tuple[int, ...]] = {
    "layer.0.weight": (96, 64),
    "layer.0.bias": (96,),
    "layer.1.conv": (8, 4, 3, 3),
    "scale": (),
    "one": (1,),
    "none": (0, 7),
    "big": (3, 70_001),
}


@dataclass(frozen=True)
class Subject:
    """A method with parameters, ready to be asked."""

    name: str
    parameters: Mapping[str, Any]
    models: int
    with_base: bool
    affine: bool
    symmetric: bool
    alone: bool = True
    """Whether each of the tensors can be merged by itself; not where files speak of some only."""
    local: bool = True
    """Whether a tensor's result is its own affair."""

    def merge(self, base: StateDict, models: list[StateDict], **options: Any) -> StateDict:
        """In memory."""
        return _api.merge_state_dicts(
            self.name, base=base if self.with_base else None, models=models, parameters=self.parameters, **options
        )


def check_method(name: str, parameters: Mapping[str, Any] | None = None, *, models: int | None = None) -> None:
    """Ask a registered method every question; AssertionError says which one it fails.

    Arguments: ``name``, as ``stockpot methods`` lists it; ``parameters``, those it needs; ``models``, how many
    fine-tunes to try it on (default: 3, or as many as it takes).

    >>> from stockpot.testing import check_method
    >>> check_method("wise_ft", {"alpha": 0.25})
    """
    method = get_method(name)
    least, most = method.models
    count = models or max(least, 3 if most is None else most)
    with_base = method.base != "unused"
    if method.base == "member":
        count = 1
    # Of one model: neither the order nor, where its share of all tensors counts, the other tensors are indifferent.
    by_place = any(method.parameters[key].of_model for key in parameters or {} if key in method.parameters)
    is_symmetric = most is None and not method.random and not by_place
    subject = Subject(
        method.name,
        parameters or {},
        count,
        with_base,
        method.affine,
        is_symmetric,
        method.statistics is None or method.statistics.streamed,
        not (by_place and method.beside is not None),
    )
    for question in QUESTIONS:
        try:
            question(subject)
        except AssertionError as error:
            asked = (question.__doc__ or question.__name__).splitlines()[0]
            raise AssertionError(f"{method.name}: {asked} {error}".rstrip()) from None


def state_dict(seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> StateDict:
    """Seeded normal tensors of every shape that matters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for name, shape in SHAPES.items()
    }


def fine_tunes(subject: Subject, base: StateDict) -> list[StateDict]:
    """Models around the base that share a part of their way, as fine-tunes of one task do."""
    shared = state_dict(1, torch.float64, 0.1)
    own = [state_dict(10 + number, torch.float64, 0.1) for number in range(subject.models)]
    return [
        {name: (base[name].double() + shared[name] + part[name]).to(base[name].dtype) for name in base} for part in own
    ]


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """Equal names, dtypes and bits."""
    assert left.keys() == right.keys(), "names differ"
    for name in left:
        assert left[name].dtype == right[name].dtype, f"dtype of {name}"
        bits = [t[name].contiguous().flatten().view(torch.uint8) for t in (left, right)]
        assert torch.equal(*bits), f"bits of {name}"


def close(left: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float) -> None:
    """Equal within a share of each tensor's largest magnitude."""
    for name in left:
        if left[name].numel():
            error = (left[name].double() - right[name].double()).abs().max()
            size = right[name].double().abs().max()
            assert error <= tolerance * size, f"{name} is off by {float(error / size):.2e}"


def identical_inputs(subject: Subject) -> None:
    """Equal inputs must give the same bits, in every dtype, negative zeros too."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        base = state_dict(0, dtype)
        base["layer.0.weight"][0, :4] = torch.tensor([0.0, -0.0, 1e-6, -1e-6])
        same(subject.merge(base, [{k: v.clone() for k, v in base.items()} for _ in range(subject.models)]), base)


def keeps_dtype_and_shape(subject: Subject) -> None:
    """Dtype and shape must be the models', for 0-d, empty and one-element tensors too."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        base = state_dict(0, dtype)
        merged = subject.merge(base, fine_tunes(subject, base))
        assert {k: (v.dtype, v.shape) for k, v in merged.items()} == {k: (v.dtype, v.shape) for k, v in base.items()}


def order_of_models(subject: Subject) -> None:
    """The order of the models must not matter (beyond the last bit)."""
    if not subject.symmetric or any(isinstance(value, list | tuple) for value in subject.parameters.values()):
        return
    base = state_dict(0, torch.float64)
    models = fine_tunes(subject, base)
    # float64 sums of a few terms in another order: some units in the last place.
    close(subject.merge(base, models[::-1]), subject.merge(base, models), 1e-14)


def moved_together(subject: Subject) -> None:
    """Moving the base and all models by one vector must move the result by it."""
    if not subject.affine:
        return
    base = state_dict(0, torch.float64)
    models = fine_tunes(subject, base)
    step = state_dict(99, torch.float64)
    moved = subject.merge({k: base[k] + step[k] for k in base}, [{k: m[k] + step[k] for k in m} for m in models])
    expected = subject.merge(base, models)
    # Storing the moved inputs rounds the differences at 2^-53 of values ten times as large.
    close(moved, {k: expected[k] + step[k] for k in expected}, 1e-13)


def scaled_together(subject: Subject) -> None:
    """Scaling all inputs by a power of two must scale every bit of the result."""
    if not get_method(subject.name).scale_free:
        return
    base = state_dict(0, torch.float32)
    models = fine_tunes(subject, base)
    expected = subject.merge(base, models)
    for factor in (2.0**-40, 2.0**40):
        scaled = subject.merge(
            {k: v * factor for k, v in base.items()}, [{k: v * factor for k, v in m.items()} for m in models]
        )
        same(scaled, {k: v * factor for k, v in expected.items()})


def memory_and_workers(subject: Subject) -> None:
    """Memory budget and number of workers must not change a bit."""
    base = state_dict(0, torch.bfloat16)
    models = fine_tunes(subject, base)
    expected = subject.merge(base, models)
    for memory, workers in (("16MiB", 1), ("64MiB", 2), ("64MiB", 8), ("4GiB", 2)):
        same(subject.merge(base, models, memory=memory, workers=workers), expected)


def unrelated_tensors(subject: Subject) -> None:
    """A tensor's bits must not depend on what else is in the checkpoint."""
    if not subject.local:
        return
    base = state_dict(0)
    models = fine_tunes(subject, base)
    expected = subject.merge(base, models)
    more = {"another.weight": torch.ones(5, 5)}
    got = subject.merge(base | more, [m | {"another.weight": torch.full((5, 5), 2.0)} for m in models])
    same({name: got[name] for name in expected}, expected)
    if not subject.alone or subject.parameters.get("granularity") in ("block", "model"):
        return  # there a tensor's own group is more than itself
    for name in expected:
        same(subject.merge({name: base[name]}, [{name: m[name]} for m in models]), {name: expected[name]})


def refuses_nan(subject: Subject) -> None:
    """NaN in an input must be refused by name."""
    base = state_dict(0)
    models = fine_tunes(subject, base)
    models[-1]["layer.0.bias"][5] = float("nan")
    try:
        subject.merge(base, models)
    except errors.NonFiniteError as error:
        refusal = error
    else:
        raise AssertionError("it was not")
    assert refusal.tensor == "layer.0.bias"
    assert "[5]" in refusal.what


def streamed(subject: Subject) -> None:
    """Files must give the bits of memory; an interrupted run, continued, those of a straight one."""
    import safetensors.torch

    base = state_dict(0, torch.bfloat16)
    models = fine_tunes(subject, base)
    expected = subject.merge(base, models)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stem, tensors in [("base", base), *((f"m{n}", m) for n, m in enumerate(models))]:
            safetensors.torch.save_file(tensors, folder / f"{stem}.safetensors")
        files = [folder / f"m{n}.safetensors" for n in range(len(models))]

        def run(out: str, progress: Callable[[int, int], None] | None = None) -> None:
            _api.merge(
                subject.name,
                base=folder / "base.safetensors" if subject.with_base else None,
                models=files,
                parameters=subject.parameters,
                out=folder / out,
                workers=1,
                memory="16MiB",
                progress=progress,
            )

        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        run("straight")
        same(safetensors.torch.load_file(folder / "straight" / "model.safetensors"), expected)
        try:
            run("resumed", interrupt)
        except KeyboardInterrupt:
            run("resumed")
        digests = {
            out: hashlib.sha256((folder / out / "model.safetensors").read_bytes()).hexdigest()
            for out in ("straight", "resumed")
        }
        assert digests["straight"] == digests["resumed"], "the resumed run differs"


QUESTIONS: tuple[Callable[[Subject], None], ...] = (
    identical_inputs,
    keeps_dtype_and_shape,
    order_of_models,
    moved_together,
    scaled_together,
    memory_and_workers,
    unrelated_tensors,
    refuses_nan,
    streamed,
)
