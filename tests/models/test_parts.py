"""Checkpoints of several parts: a diffusers pipeline and a sentence-transformers model, through their own libraries."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

import stockpot
from stockpot import errors

from . import _oracle

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sentence_transformers
    from sentence_transformers.sentence_transformer import modules

STEPS = 3


def pipeline() -> diffusers.StableDiffusionPipeline:
    """A tiny Stable Diffusion: UNet, VAE and text encoder."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, cross_attention_dim=16, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4)
    text = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=transformers.CLIPTextModel(text), tokenizer=transformers.CLIPTokenizer(),
        scheduler=diffusers.DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def noise(pipe: diffusers.StableDiffusionPipeline, generator: torch.Generator) -> torch.Tensor:
    """What every part makes together: image and words in, predicted noise out."""
    words = torch.randint(0, 64, (4, 8), generator=generator)
    images = torch.randn(4, 3, 8, 8, generator=generator)
    latents = pipe.vae.encode(images).latent_dist.mean
    steps = torch.randint(0, 1000, (4,), generator=generator)
    return pipe.unet(latents, steps, pipe.text_encoder(words)[0]).sample


def tuned_pipeline(base: diffusers.StableDiffusionPipeline, seed: int) -> diffusers.StableDiffusionPipeline:
    """A copy of the pipeline, all parts of it trained for a few steps."""
    pipe = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    optimizer = torch.optim.AdamW([p for part in parts for p in part.parameters()], lr=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (noise(pipe, generator) - 1).square().mean().backward()
        optimizer.step()
    return pipe


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base pipeline and two fine-tunes, saved by diffusers."""
    root = tmp_path_factory.mktemp("pipelines")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        base = pipeline()
        for number, pipe in enumerate((base, tuned_pipeline(base, 1), tuned_pipeline(base, 2))):
            pipe.save_pretrained(root / str(number), max_shard_size="20KB" if number == 1 else "5GB")
    return [root / str(number) for number in range(3)]


def check_parts(out: Path, inputs: Iterable[Path], parts: Iterable[str]) -> None:
    """Every part by the formula, each with its own files."""
    found = 0
    for part in parts:
        base, *models = (_oracle.read(folder / part) for folder in inputs)
        assert _oracle.read(out / part).keys() == models[0].keys(), part
        assert _oracle.check_model_stock(out, base, models, part) > 0, part
        found += len(models[0])
    assert found == len(json.loads((out / "stockpot.json").read_text("utf-8"))["tensors"])
    assert stockpot.verify(out, recompute=1.0).problems == ()


def test_a_pipeline_of_parts(pipelines: list[Path], tmp_path: Path) -> None:
    """UNet, VAE and text encoder are merged each in its own folder, as the first fine-tune has them."""
    out = tmp_path / "out"
    stockpot.merge("model_stock", base=pipelines[0], models=pipelines[1:], out=out)
    check_parts(out, pipelines, ("unet", "vae", "text_encoder"))
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    own = {str(file.relative_to(pipelines[1])) for file in pipelines[1].rglob("*") if file.is_file()}
    assert own <= files
    assert "unet/diffusion_pytorch_model.safetensors.index.json" in own
    assert {name for name in files - own if "/" in name} == set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            out, local_files_only=True, requires_safety_checker=False
        )
    for part, model in (("unet", pipe.unet), ("vae", pipe.vae), ("text_encoder", pipe.text_encoder)):
        stored, loaded = _oracle.read(out / part), model.state_dict()
        assert stored.keys() <= loaded.keys(), part
        assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items()), part
        _, told = type(model).from_pretrained(out / part, output_loading_info=True, local_files_only=True)
        assert not any(told.values()), (part, told)
        model.save_pretrained(tmp_path / "again" / part)
        again = _oracle.read(tmp_path / "again" / part)
        assert again.keys() == stored.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in stored.items()), part
    with torch.no_grad():
        assert torch.isfinite(noise(pipe, torch.Generator().manual_seed(5))).all()
    assert "library_name: diffusers" in (out / "README.md").read_text("utf-8")


def test_a_pipeline_of_pickles_and_of_another_dtype(pipelines: list[Path], tmp_path: Path) -> None:
    """Parts saved as ``.bin`` give the bytes of safetensors, and come out as such; bf16 inputs give bf16 parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, folder in enumerate(pipelines):
            pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
            pipe.save_pretrained(tmp_path / f"bin{number}", safe_serialization=False)
            pipe.to(torch.bfloat16).save_pretrained(tmp_path / f"bf16-{number}")
    assert len(list(tmp_path.glob("bin0/*/diffusion_pytorch_model.bin"))) == 2  # transformers writes safetensors only
    stockpot.merge("model_stock", base=pipelines[0], models=pipelines[1:], out=tmp_path / "plain")
    for form, out in (("bin{}", "out"), ("bf16-{}", "narrow")):
        base, *models = (tmp_path / form.format(number) for number in range(3))
        stockpot.merge("model_stock", base=base, models=models, out=tmp_path / out)
    for part in ("unet", "vae", "text_encoder"):
        found, expected = _oracle.read(tmp_path / "out" / part), _oracle.read(tmp_path / "plain" / part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert {t.dtype for t in _oracle.read(tmp_path / "narrow" / part).values()} <= {torch.bfloat16, torch.int64}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    with torch.no_grad():
        assert torch.isfinite(noise(pipe, torch.Generator().manual_seed(5))).all()


def test_one_part_alone_is_a_checkpoint_too(pipelines: list[Path], tmp_path: Path) -> None:
    """The UNet's folder merges to the same bytes as within the pipeline."""
    stockpot.merge("model_stock", base=pipelines[0], models=pipelines[1:], out=tmp_path / "all")
    stockpot.merge(
        "model_stock", base=pipelines[0] / "unet", models=[p / "unet" for p in pipelines[1:]], out=tmp_path / "unet"
    )
    whole, alone = _oracle.read(tmp_path / "all" / "unet"), _oracle.read(tmp_path / "unet")
    assert whole.keys() == alone.keys()
    assert all(torch.equal(whole[name], alone[name]) for name in alone)


def test_parts_of_another_dtype(pipelines: list[Path], tmp_path: Path) -> None:
    """``dtype`` reaches every part and every part's ``config.json``."""
    out = tmp_path / "out"
    stockpot.merge("linear", models=pipelines[1:], out=out, dtype="bfloat16", shard_size="1MB")
    for part in ("unet", "vae", "text_encoder"):
        assert {tensor.dtype for tensor in _oracle.read(out / part).values()} <= {torch.bfloat16, torch.int64}
    assert json.loads((out / "text_encoder" / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"


def test_a_policy_names_a_part(pipelines: list[Path], tmp_path: Path) -> None:
    """``--exclude '^vae/'`` copies the VAE from the template, byte for byte."""
    out = tmp_path / "out"
    stockpot.merge("linear", models=pipelines[1:], out=out, exclude=["^vae/"])
    first, stored = _oracle.read(pipelines[1] / "vae"), _oracle.read(out / "vae")
    assert all(torch.equal(stored[name], tensor) for name, tensor in first.items())


def test_parts_into_one_file_are_refused(pipelines: list[Path], tmp_path: Path) -> None:
    """One file cannot hold a pipeline: no library would read it."""
    with pytest.raises(errors.OutputError, match="several parts"):
        stockpot.merge("linear", models=pipelines[1:], out=tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_an_input_lacks(pipelines: list[Path], tmp_path: Path) -> None:
    """A pipeline without its text encoder is refused by the names that it lacks."""
    import shutil

    shutil.copytree(pipelines[2], tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "text_encoder")
    with pytest.raises(errors.MissingTensorError, match="text_encoder/"):
        stockpot.merge("linear", models=[pipelines[1], tmp_path / "cut"], out=tmp_path / "out")


def test_a_symlinked_part_is_refused(pipelines: list[Path], tmp_path: Path) -> None:
    """A symlinked folder inside a checkpoint is told, not followed."""
    (tmp_path / "in").mkdir()
    for entry in pipelines[1].iterdir():
        (tmp_path / "in" / entry.name).symlink_to(entry)
    with pytest.raises(errors.CheckpointError, match="symlinked folder"):
        stockpot.merge("linear", models=[tmp_path / "in", pipelines[2]], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def encoder(root: Path) -> sentence_transformers.SentenceTransformer:
    """BERT, mean pooling and a dense layer, made from a configuration and a list of words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(40))]
    (root / "vocab.txt").write_text("\n".join(words), "utf-8")
    tokenizer = transformers.BertTokenizerFast(str(root / "vocab.txt"))
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(root / "bert")
    tokenizer.save_pretrained(root / "bert")
    bert = modules.Transformer(str(root / "bert"))
    pooling = modules.Pooling(16)
    return sentence_transformers.SentenceTransformer(modules=[bert, pooling, modules.Dense(16, 8)], device="cpu")


def tuned_encoder(base: sentence_transformers.SentenceTransformer, seed: int) -> Any:
    """A copy after a few steps towards one direction, and away from it for other words."""
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        numbers = torch.randint(0, 40, (4, 5), generator=generator).tolist()
        batch = model.preprocess([" ".join(f"w{n}" for n in row) for row in numbers])
        (model(batch)["sentence_embedding"] - 1).square().mean().backward()
        optimizer.step()
    return model


def test_a_sentence_encoder(tmp_path: Path) -> None:
    """``modules.json``: the transformer in the root, ``2_Dense`` beside it, pooling's settings copied; it embeds."""
    (tmp_path / "made").mkdir()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        base = encoder(tmp_path / "made")
        folders = [tmp_path / f"in{number}" for number in range(3)]
        for number, folder in enumerate(folders):
            (base if number == 0 else tuned_encoder(base, number)).save_pretrained(str(folder))
        out = tmp_path / "out"
        stockpot.merge("model_stock", base=folders[0], models=folders[1:], out=out)
        check_parts(out, folders, ("", "2_Dense"))
        assert (out / "1_Pooling" / "config.json").read_bytes() == (
            folders[1] / "1_Pooling" / "config.json"
        ).read_bytes()
        model = sentence_transformers.SentenceTransformer(str(out), device="cpu", local_files_only=True)
        loaded = model.state_dict()
        stored = {**_oracle.read(out), **_oracle.read(out / "2_Dense")}
        for name, tensor in stored.items():
            (own,) = [key for key in loaded if key.endswith(f".{name}")]
            assert torch.equal(loaded[own], tensor), name
        assert torch.isfinite(model.encode(["w1 w2 w3"], convert_to_tensor=True)).all()
    assert "library_name: sentence-transformers" in (out / "README.md").read_text("utf-8")
