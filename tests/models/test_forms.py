"""Whatever form the inputs are kept in, they merge to the same bytes, which load into the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import stockpot

from . import _oracle
from ._forms import FORMS, Families, Written
from ._plain import LONE_FORMS, loaded, same_bytes, shared
from ._senses import KINDS
from ._zoo import Family, build, load, outputs_are_finite

DTYPES = {"narrow-base": torch.float32, "narrow-models": torch.bfloat16}


def matrix() -> list[object]:
    """Every architecture in every form; each has its turn with one of them, the others are slow."""
    forms = list(FORMS)
    return [
        pytest.param(name, form, marks=() if place % len(forms) == turn else pytest.mark.slow, id=f"{name}-{form}")
        for place, name in enumerate(KINDS)
        for turn, form in enumerate(forms)
    ]


def merged(written: Written, root: Path) -> stockpot.MergeResult:
    """Model Stock of them."""
    return stockpot.merge("model_stock", base=written.base, models=written.models, out=root / written.out)


@pytest.mark.parametrize(("name", "form"), matrix())
def test_every_architecture_in_another_form(name: str, form: str, families: Families, tmp_path: Path) -> None:
    """Inputs in another form merge to the same bytes; in other dtypes, to what the formula says of those."""
    family = families(name)
    written = FORMS[form](families, name, tmp_path)
    result = merged(written, tmp_path)
    assert any("narrower" in warning for warning in result.warnings) == (form == "narrow-base")
    out = tmp_path / written.out
    if form in LONE_FORMS:
        check_file(form, out, family)
        return
    model = load(family.kind.cls, out)
    assert shared(model.state_dict()) == shared(family.base.state_dict())
    assert outputs_are_finite(model, family.kind)
    if form in DTYPES:
        assert {tensor.dtype for tensor in _oracle.read(out).values() if tensor.is_floating_point()} == {DTYPES[form]}
        _oracle.check_model_stock(out, _oracle.read(written.base), [_oracle.read(one) for one in written.models])
        return
    plain = plainly_merged(family, tmp_path)
    check_folder(_oracle.read(out), _oracle.read(plain), family)


def plainly_merged(family: Family, root: Path) -> Path:
    """The merge of the folders as their library wrote them."""
    merged(Written(family.base_folder, family.folders, "plain"), root)
    return root / "plain"


def check_folder(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], family: Family) -> None:
    """The same tensors, each under a name of its own; shards of a pickle may hold a tied one twice."""
    kept = {name: name for name in expected}
    for names in shared(family.base.state_dict()):
        kept |= {name: next(one for one in names if one in expected) for name in names if names & expected.keys()}
    assert {kept[name] for name in found} == expected.keys()
    for name, tensor in found.items():
        same_bytes(name, tensor, expected[kept[name]])


def check_file(form: str, out: Path, family: Family) -> None:
    """It loads strictly, tied as before, and holds what the library has in memory after loading the plain merge."""
    fresh, found = loaded(build(family.kind.cls, family.kind.config(), seed=9), out, form)
    assert shared(fresh.state_dict()) == shared(family.base.state_dict())
    assert outputs_are_finite(fresh, family.kind)
    expected = load(family.kind.cls, plainly_merged(family, out.parent)).state_dict()
    alone = [name for name in found if not (family.kind.fused and ".experts." in name)]
    assert len(alone) >= len(found) - 4
    for name in alone:
        same_bytes(name, found[name], expected[name])
    if out.suffix == ".safetensors":
        base, *models = (model.state_dict() for model in (family.base, *family.models))
        prefix = "model." if form == "training-state" else ""
        _oracle.check_model_stock(out, base, models, prefix=prefix)
