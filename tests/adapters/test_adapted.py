"""``BASE+ADAPTER`` is the model that PEFT makes of them, in wide arithmetic, without a file in between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import _oracle
from tests.models._zoo import KINDS, build, load

import stockpot
from stockpot import errors

from ._loras import CODES, LORAS, adapted_model, change, edit, merged_by_peft, save, save_adapter, values


@pytest.mark.parametrize("name", LORAS)
def test_every_tensor_is_that_of_peft(name: str, tmp_path: Path) -> None:
    """All tensors of the base, changed ones as W + s B A to float64's precision, the rest to the bit."""
    base, (adapter, _) = save(name, tmp_path)
    source = stockpot.open_checkpoint(f"{base}+{adapter}")
    expected = merged_by_peft(name, 1)
    stored = _oracle.read(base)
    assert source.tensors.keys() == stored.keys()
    changed = 0
    for tensor, info in source.tensors.items():
        want = expected[tensor]
        assert info.shape == tuple(want.shape)
        found = values(source, tensor)
        if info.dtype == "F64":
            changed += 1
            assert info.output_dtype == CODES[LORAS[name].dtype]
            size = want.abs().max()
            torch.testing.assert_close(found, want, rtol=0, atol=float(size) * 2**-45)
        else:
            assert torch.equal(found.double(), want), tensor
    assert changed


@pytest.mark.parametrize("name", LORAS)
def test_a_merge_of_two(name: str, tmp_path: Path) -> None:
    """Model Stock of base+adapter checkpoints is that of the exact models, correctly rounded into the base's dtype."""
    base, adapters = save(name, tmp_path)
    out = tmp_path / "out"
    result = stockpot.merge("model_stock", base=base, models=[f"{base}+{one}" for one in adapters], out=out)
    models = [merged_by_peft(name, seed) for seed in (1, 2)]
    stored, first = _oracle.read(out), _oracle.read(base)
    record = json.loads((out / "stockpot.json").read_text())
    wrong = 0
    for tensor, found in stored.items():
        if tensor not in record["groups"]:
            continue
        assert found.dtype == (first[tensor].dtype if name != "modules" else found.dtype)
        ratio = _oracle.ratio(first[tensor], [model[tensor] for model in models])
        group = record["groups"][tensor]
        if np.isnan(ratio):
            assert torch.equal(found, first[tensor]), tensor
            continue
        assert abs(group["ratio"] - ratio) < 1e-9, tensor
        exact = _oracle.combine(first[tensor], [model[tensor] for model in models], group["weights"][1:])
        wrong += int((_oracle.wide(found) != _oracle.rounded(exact, found.dtype)).sum())
    assert wrong == 0
    loaded = load(LORAS[name].cls, out)
    assert loaded.dtype == LORAS[name].dtype
    assert stockpot.verify(out, recompute=1.0).problems == ()
    assert result.ratio is not None
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter1", "adapter2", "out"}


def test_the_whole_of_one(tmp_path: Path) -> None:
    """``linear`` of one base+adapter writes the merged model, which gives PEFT's outputs; memory and bits hold."""
    base, (adapter, _) = save("all-linear", tmp_path)
    ref = f"{base}+{adapter}"
    outs = []
    for number, (memory, workers) in enumerate((("192MiB", 2), ("8MiB", 1))):
        outs.append(tmp_path / f"out{number}")
        stockpot.merge("linear", models=[ref], out=outs[-1], dtype="float32", memory=memory, workers=workers)
    first, second = (_oracle.read(out) for out in outs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    words = torch.arange(3, 15).reshape(1, -1)
    merged = load(LORAS["all-linear"].cls, outs[0])
    with torch.no_grad():
        ours = merged(words).logits
        theirs = adapted_model("all-linear", 1).float()(words).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_range_of_a_changed_tensor(tmp_path: Path) -> None:
    """A range, aligned to elements or not, is that part of the whole."""
    base, (adapter, _) = save("plain", tmp_path)
    source = stockpot.open_checkpoint(f"{base}+{adapter}")
    name = "model.layers.0.self_attn.q_proj.weight"
    whole = values(source, name).numpy().tobytes()
    for start in range(0, len(whole), 1001):
        for size in (1, 8, 9, 777):
            room = bytearray(min(size, len(whole) - start))
            source.read_into(source.tensors[name], start, memoryview(room))
            assert bytes(room) == whole[start : start + len(room)], (start, size)


def test_two_adapters_on_one_base(tmp_path: Path) -> None:
    """``BASE+A+B``: both products are added, exactly."""
    base, (one, two) = save("plain", tmp_path)
    both, first, second = (
        stockpot.open_checkpoint(ref) for ref in (f"{base}+{one}+{two}", f"{base}+{one}", f"{base}+{two}")
    )
    stored = _oracle.read(base)
    for name, info in both.tensors.items():
        if info.dtype == "F64":
            assert info.output_dtype == "F32"
            expected = values(first, name) + values(second, name) - stored[name].double()
            torch.testing.assert_close(values(both, name), expected, rtol=0, atol=1e-14)


def test_a_pickled_base_with_turned_weights(tmp_path: Path) -> None:
    """A base that stores a transposed view of its weights is read as what it is."""
    base, (adapter, _) = save("plain", tmp_path)
    state = {name: (t.t().contiguous().t() if t.dim() == 2 else t) for name, t in _oracle.read(base).items()}
    torch.save(state, tmp_path / "base.pt")
    plain = stockpot.open_checkpoint(f"{base}+{adapter}")
    turned = stockpot.open_checkpoint(f"{tmp_path / 'base.pt'}+{adapter}")
    for name, info in plain.tensors.items():
        if info.dtype == "F64":
            assert torch.equal(values(turned, name), values(plain, name))
    largest = max(info.nbytes for info in plain.tensors.values() if info.dtype == "F64") // 2  # of float32
    assert turned.working_bytes - plain.working_bytes == 2 * largest  # gathered whole: what lies there, and the result


def test_names_with_one_prefix_less(tmp_path: Path) -> None:
    """An adapter of a classifier on the bare encoder: names are matched, said, and the head comes with it."""
    kind = KINDS["bert-head"]
    bare = build(kind.cls, kind.config(), seed=0)
    bare.bert.save_pretrained(tmp_path / "base")
    save_adapter(bare, tmp_path / "adapter", target_modules=["query"], modules_to_save=["classifier"])
    source = stockpot.open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    assert source.tensors["encoder.layer.0.attention.self.query.weight"].dtype == "F64"
    assert source.tensors["classifier.weight"].dtype == "F32"
    assert any("names without 'bert.'" in note for note in source.notes)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"peft_type": "IA3"}, "expected peft_type LORA, got IA3"),
        ({"use_dora": True}, "DoRA is not understood"),
        ({"use_qalora": True}, "QALoRA is not understood"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters is not understood"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is not understood"),
        ({"kasa_config": {"a": 1}}, "KaSA is not understood"),
        ({"some_new_way": True}, "some_new_way is not understood"),
        ({"layer_replication": [[0, 2]]}, "layer replication is not understood"),
        ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "began as olora"),
        ({"r": 8}, "the rank of a module is not the one in the configuration"),
        ({"rank_pattern": {"(": 3}}, "a pattern of ranks cannot be read"),
        ({"r": "many"}, "cannot be read"),
        ({"peft_type": None}, "cannot be read"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(stated: dict[str, Any], says: str, tmp_path: Path) -> None:
    """Nothing is applied wrongly: each is told, with what to do."""
    base, (adapter, _) = save("plain", tmp_path, 2)
    change(adapter, **stated)
    with pytest.raises(errors.AdapterError) as caught:
        stockpot.open_checkpoint(f"{base}+{adapter}")
    assert says in caught.value.line()


Q = "model__layers__0__self_attn__q_proj"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{Q}__lora_magnitude_vector": torch.ones(32)}, "DoRA is not understood"),
        ({f"{Q}__lora_A__weight": None}, "not a pair of factors"),
        ({f"{Q}__lora_B__weight": torch.ones(32, 3)}, "do not fit each other"),
        ({f"{Q}__lora_B__weight": torch.ones(31, 4)}, "the factors do not fit the weight"),
        ({f"{Q}__lora_B__weight": torch.ones(32, 4, dtype=torch.int32)}, "a factor that is no float"),
        ({f"{Q}__lora_B__bias": torch.ones(32)}, "changes what the base lacks"),
        ({"other__lora_B__weight": torch.ones(32, 4), "other__lora_A__weight": torch.ones(4, 32)}, "base lacks"),
        ({"model__norm__weight": torch.ones(31)}, "a tensor of another shape"),
    ],
)
def test_tensors_that_do_not_fit(tensors: dict[str, torch.Tensor | None], says: str, tmp_path: Path) -> None:
    """A factor missing, of another shape or dtype, or of what the base lacks: told by its tensor."""
    base, (adapter, _) = save("plain", tmp_path)
    edit(adapter, **tensors)
    with pytest.raises(errors.AdapterError) as caught:
        stockpot.open_checkpoint(f"{base}+{adapter}")
    assert says in caught.value.line()


def test_a_tied_embedding_is_not_changed_alone(tmp_path: Path) -> None:
    """An adapter on an embedding that its base ties to the head would be tied away when it is loaded."""
    kind = KINDS["gemma"]
    build(kind.cls, kind.config(), seed=0).save_pretrained(tmp_path / "base")
    save_adapter(build(kind.cls, kind.config(), seed=0), tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(errors.AdapterError, match="ties to another"):
        stockpot.open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")


def test_what_the_plus_means(tmp_path: Path) -> None:
    """A path with a plus in it wins; what is no adapter, or is not there, is told."""
    base, (adapter, _) = save("plain", tmp_path)
    shutil.copytree(base, tmp_path / "base+adapter")
    assert stockpot.open_checkpoint(tmp_path / "base+adapter").tensors.keys() == _oracle.read(base).keys()
    with pytest.raises(errors.AdapterError, match="what follows the \\+ is no adapter"):
        stockpot.open_checkpoint(f"{base}+{base}")
    with pytest.raises(errors.NotFoundError):
        stockpot.open_checkpoint(f"{base}+{tmp_path / 'none'}")
    with pytest.raises(errors.NotFoundError):
        stockpot.open_checkpoint(f"{tmp_path / 'none'}+{adapter}")
    with pytest.raises(errors.OutputError, match="inside each other"):
        stockpot.merge("linear", models=[f"{base}+{adapter}"], out=adapter / "out")
