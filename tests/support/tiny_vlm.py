"""A tiny random LLaVA folder, in the stock layout, for tests of every room that answers.

Random weights, real parts: a byte-level BPE tokenizer, a PIL image processor at 32 px, a
CLIP vision tower with a class token, the two-layer projector and a LLaMA language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMAGE_SIZE = 32
PATCH_SIZE = 8
SOFT_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

CORPUS = (
    "what is on the left? a cat",
    "what is on the right? a red apple",
    "how many cats are there? two",
    "which style is it? noto",
    "what is the background colour? blue",
    "is there a dog? yes. no.",
    "describe the picture. two red apples left of a cat, blue background, noto style",
)


def tiny_llava_model(*, vocab_size: int, seed: int = 0, context: int = 128, **config: Any) -> Any:
    """A LlavaForConditionalGeneration of about 50 thousand random parameters, fp32."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=24,
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        # Far wider than LLaMA's 0.02, so that attention and answers really vary.
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    settings: dict[str, Any] = {
        "image_token_index": 4,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": SOFT_TOKENS,
        **config,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, **settings)
        )
    return model.eval()


def tiny_llava(tmp_path: Path, *, seed: int = 0, context: int = 128, **config: Any) -> Path:
    """Save a tiny LLaVA below ``tmp_path`` with save_pretrained and give its folder."""
    from emoji_world.llava_folder import build_processor, build_tokenizer

    folder = Path(tmp_path) / "tiny-llava"
    tokenizer = build_tokenizer(CORPUS, 320, context=context)
    model = tiny_llava_model(vocab_size=len(tokenizer), seed=seed, context=context, **config)
    model.save_pretrained(folder)
    build_processor(tokenizer, IMAGE_SIZE, PATCH_SIZE).save_pretrained(folder)
    return folder
