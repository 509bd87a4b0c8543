"""A tiny random Gemma 3 and an image tower with the emoji world's 8x8 grid, as folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, Gemma3ForCausalLM, Gemma3TextConfig

from bridge.vlm.views import pil_clip_processor
from support.tiny_pairs import plain_tokenizer


@dataclass(frozen=True)
class Parts:
    """Folders that `load_vision` and `load_llm` open."""

    tower: Path
    llm: Path


def tiny_gemma3(vocab_size: int = 300) -> Gemma3ForCausalLM:
    """Two layers, one of either kind of attention, width 32."""
    config = Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=512,
        max_position_embeddings=1024,
        initializer_range=0.3,  # far wider than 0.02, so that attention and answers really vary
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Gemma3ForCausalLM(config).eval()


def tiny_parts(folder: Path) -> Parts:
    """Both parts written below ``folder``, the same in every call."""
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=128,
        patch_size=16,
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = CLIPVisionModel(vision)
    parts = Parts(folder / "tower", folder / "llm")
    tower.save_pretrained(parts.tower)
    square = {"height": 128, "width": 128}
    half = [0.5, 0.5, 0.5]
    pil_clip_processor(
        size=square, do_center_crop=False, crop_size=square, image_mean=half, image_std=half
    ).save_pretrained(parts.tower)
    tiny_gemma3().save_pretrained(parts.llm)
    plain_tokenizer().save_pretrained(parts.llm)
    return parts
