"""Architectures of transformers that see or hear, alone or beside text."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from ._kinds import (
    BATCH,
    GEMMA,
    GROUPED,
    HEADS,
    INNER,
    LABELS,
    LAYERS,
    LLAMA,
    PLACED,
    SEQUENCES,
    TEXT,
    TEXT_KINDS,
    WIDTH,
    WORDS,
    Batch,
    Kind,
    classes,
    of,
    words,
)  # fmt: skip

IMAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 8,
}
WAVES = {
    **TEXT,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 4],
    "conv_stride": [5, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
PICTURE = 3
"""The word that stands for a patch of an image, in models that read both."""
START, END = 4, 5


def images(generator: torch.Generator, size: int = 16) -> torch.Tensor:
    """Coloured noise."""
    return torch.randn(BATCH, 3, size, size, generator=generator)


def pictured(size: int = 16) -> Batch:
    """Images with a class."""
    return lambda generator: {"pixel_values": images(generator, size), "labels": classes(generator)}


def painted(generator: torch.Generator) -> dict[str, Any]:
    """Images to be painted again, with the noise that chooses what is hidden."""
    return {"pixel_values": images(generator), "noise": torch.rand(BATCH, 4, generator=generator)}


def paired(generator: torch.Generator) -> dict[str, Any]:
    """Images and captions."""
    said = words(generator)
    said[:, -1] = 2
    return {"input_ids": said, "pixel_values": images(generator), "return_loss": True}


def captioned(generator: torch.Generator) -> dict[str, Any]:
    """Images, and captions to be said again."""
    said = words(generator)
    return {"input_ids": said, "pixel_values": images(generator), "labels": said}


def among_words(generator: torch.Generator) -> dict[str, Any]:
    """Sentences with an image of four patches in them."""
    said = torch.randint(END + 1, WORDS, (BATCH, 12), generator=generator)
    said[:, 1:5] = PICTURE
    return {"input_ids": said, "pixel_values": images(generator), "labels": said}


def prefixed(generator: torch.Generator) -> dict[str, Any]:
    """The same for a model that tells what was given from what it is to say."""
    return {**among_words(generator), "token_type_ids": torch.zeros(BATCH, 12, dtype=torch.long)}


def on_a_grid(generator: torch.Generator) -> dict[str, Any]:
    """The same as patches on a grid."""
    said = torch.randint(END + 1, WORDS, (BATCH, 12), generator=generator)
    said[:, 1], said[:, 2:6], said[:, 6] = START, PICTURE, END
    return {
        "input_ids": said,
        "mm_token_type_ids": (said == PICTURE).int(),
        "pixel_values": torch.randn(BATCH * 16, 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * BATCH),
        "labels": said,
    }


def spectra(generator: torch.Generator) -> dict[str, Any]:
    """Sound, and what was said."""
    return {"input_features": torch.randn(BATCH, 8, 32, generator=generator), "labels": words(generator)}


def spectra_classed(generator: torch.Generator) -> dict[str, Any]:
    """Sound with a class."""
    return {"input_values": torch.randn(BATCH, 16, 16, generator=generator), "labels": classes(generator)}


def waves(generator: torch.Generator) -> dict[str, Any]:
    """Raw sound, and what was said."""
    return {"input_values": torch.randn(BATCH, 400, generator=generator), "labels": words(generator, 3)}


def waves_classed(generator: torch.Generator) -> dict[str, Any]:
    """Raw sound with a class."""
    return {"input_values": torch.randn(BATCH, 400, generator=generator), "labels": classes(generator)}


VISION: dict[str, Kind] = {
    "vit": Kind(
        transformers.ViTForImageClassification, of(transformers.ViTConfig, IMAGE, num_labels=LABELS), pictured()
    ),
    "vit-mae": Kind(
        transformers.ViTMAEForPreTraining,
        of(
            transformers.ViTMAEConfig, IMAGE,
            decoder_num_attention_heads=4, decoder_hidden_size=16, decoder_num_hidden_layers=1,
            decoder_intermediate_size=32,
        ),
        painted,
    ),
    "swin": Kind(
        transformers.SwinForImageClassification,
        of(
            transformers.SwinConfig,
            image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4,
            num_labels=LABELS,
        ),
        pictured(32),
        shard="10KB",
    ),
    "dinov2": Kind(
        transformers.Dinov2ForImageClassification,
        of(transformers.Dinov2Config, IMAGE, num_labels=LABELS),
        pictured(),
    ),
    "beit": Kind(
        transformers.BeitForImageClassification,
        of(transformers.BeitConfig, IMAGE, num_labels=LABELS, use_relative_position_bias=True),
        pictured(),
    ),
    "segformer": Kind(
        transformers.SegformerForImageClassification,
        of(
            transformers.SegformerConfig,
            num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
            strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], num_labels=LABELS,
        ),
        pictured(),
        shard="10KB",
    ),
    "convnext": Kind(
        transformers.ConvNextForImageClassification,
        of(
            transformers.ConvNextConfig,
            hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=4, num_labels=LABELS,
        ),
        pictured(),
        shard="5KB",
    ),
    "resnet": Kind(
        transformers.ResNetForImageClassification,
        of(
            transformers.ResNetConfig,
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=LABELS,
        ),
        pictured(),
        shard="5KB",
    ),
    "mobilenet-v2": Kind(
        transformers.MobileNetV2ForImageClassification,
        of(
            transformers.MobileNetV2Config,
            depth_multiplier=0.1, min_depth=4, depth_divisible_by=4, num_labels=LABELS, image_size=32,
        ),
        pictured(32),
        shard="100KB",
    ),
}  # fmt: skip

MULTIMODAL: dict[str, Kind] = {
    "clip": Kind(
        transformers.CLIPModel,
        of(
            transformers.CLIPConfig,
            text_config={**TEXT, "max_position_embeddings": 16}, vision_config=dict(IMAGE), projection_dim=16,
        ),
        paired,
    ),
    "siglip": Kind(
        transformers.SiglipModel,
        of(
            transformers.SiglipConfig,
            text_config={**TEXT, "max_position_embeddings": 16, "projection_size": WIDTH}, vision_config=dict(IMAGE),
        ),
        paired,
    ),
    "blip": Kind(
        transformers.BlipForConditionalGeneration,
        of(
            transformers.BlipConfig,
            text_config={**PLACED, "encoder_hidden_size": WIDTH, "sep_token_id": 2}, vision_config=dict(IMAGE),
            projection_dim=16,
        ),
        captioned,
        tied=True,
    ),
    "llava": Kind(
        transformers.LlavaForConditionalGeneration,
        of(
            transformers.LlavaConfig,
            text_config={**LLAMA, "model_type": "llama"}, vision_config={**IMAGE, "model_type": "clip_vision_model"},
            image_token_index=PICTURE, vision_feature_layer=-1, tie_word_embeddings=False,
        ),
        among_words,
    ),
    "paligemma": Kind(
        transformers.PaliGemmaForConditionalGeneration,
        of(
            transformers.PaliGemmaConfig,
            text_config={**GEMMA, "model_type": "gemma"},
            vision_config={**IMAGE, "model_type": "siglip_vision_model"}, image_token_index=PICTURE,
            projection_dim=WIDTH,
        ),
        prefixed,
        tied=True,
    ),
    "qwen2-vl": Kind(
        transformers.Qwen2VLForConditionalGeneration,
        of(
            transformers.Qwen2VLConfig,
            text_config={
                **GROUPED,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            },
            vision_config={
                "depth": LAYERS, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": HEADS, "mlp_ratio": 2,
                "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
            },
            image_token_id=PICTURE, vision_start_token_id=START, vision_end_token_id=END,
        ),
        on_a_grid,
    ),
}  # fmt: skip

SOUND: dict[str, Kind] = {
    "whisper": Kind(
        transformers.WhisperForConditionalGeneration,
        of(
            transformers.WhisperConfig, SEQUENCES,
            num_mel_bins=8, max_source_positions=16, max_target_positions=32, decoder_start_token_id=1,
            suppress_tokens=None, begin_suppress_tokens=None,
        ),
        spectra,
        tied=True,
    ),
    "wav2vec2": Kind(
        transformers.Wav2Vec2ForCTC, of(transformers.Wav2Vec2Config, WAVES, ctc_loss_reduction="mean"), waves
    ),
    "hubert": Kind(
        transformers.HubertForSequenceClassification,
        of(transformers.HubertConfig, WAVES, num_labels=LABELS, classifier_proj_size=16),
        waves_classed,
    ),
    "ast": Kind(
        transformers.ASTForAudioClassification,
        of(
            transformers.ASTConfig,
            hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            patch_size=8, frequency_stride=8, time_stride=8, max_length=16, num_mel_bins=16, num_labels=LABELS,
        ),
        spectra_classed,
    ),
}  # fmt: skip

KINDS: dict[str, Kind] = TEXT_KINDS | VISION | MULTIMODAL | SOUND
