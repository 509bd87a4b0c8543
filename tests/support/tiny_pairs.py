"""Tiny random towers and language models of many families, from configs alone, and a tokenizer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from bridge.vlm import BridgeVLM, pair
from support.tiny_vlm import CORPUS

SIDE, PATCH = 32, 8

_TOWER = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}
_SQUARE = {**_TOWER, "intermediate_size": 48, "image_size": SIDE}
# name -> model class, config class, settings, states beside patches
TOWERS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", _SQUARE, 1),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", _SQUARE, 0),
    "siglip2": (
        "Siglip2VisionModel",
        "Siglip2VisionConfig",
        {**_TOWER, "intermediate_size": 48, "num_patches": 16},
        0,
    ),
    "dinov2": ("Dinov2Model", "Dinov2Config", {**_TOWER, "image_size": SIDE, "mlp_ratio": 2}, 1),
    "dinov2_registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {**_TOWER, "image_size": SIDE, "mlp_ratio": 2, "num_register_tokens": 4},
        5,
    ),
}

_LLM = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    # Far wider than 0.02, so that attention and answers really vary.
    "initializer_range": 0.3,
}
# GPT-2 and OPT add learned positions, BLOOM (ALiBi) has no positions and no limit.
LLMS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", _LLM),
    "Qwen2": ("Qwen2Config", _LLM),
    "Gemma": ("GemmaConfig", {**_LLM, "head_dim": 8}),
    "GPT2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 160}),
    "OPT": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 160,
        },
    ),
    "Bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
}


def tiny_tower(name: str, seed: int = 0) -> Any:
    """A tower of three layers for 32x32 pixels in 4x4 patches."""
    model, config, settings, _ = TOWERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
        for parameter in tower.parameters():  # fresh class tokens and registers are all zero
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    return tower


def tiny_llm(name: str, vocab_size: int, seed: int = 0) -> Any:
    """A causal language model of two layers and width 32, with 160 positions."""
    config, settings = LLMS[name]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    made = {"initializer_range": 0.3, **settings, "vocab_size": vocab_size, **ids}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = getattr(transformers, config)(**made)
        return transformers.AutoModelForCausalLM.from_config(kind).eval()


@lru_cache
def _backend() -> str:
    from emoji_world.llava_folder import build_tokenizer

    return build_tokenizer(CORPUS, 300).backend_tokenizer.to_str()


def plain_tokenizer(chat_template: str | None = None, image_token: bool = False) -> Any:
    """A tokenizer of a text-only model: byte-level, `<s> </s> <pad>`, and no `<image>`."""
    import json

    from tokenizers import Tokenizer

    state = json.loads(_backend())
    if not image_token:
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] != "<image>"]
        vocabulary = state["model"]["vocab"]
        vocabulary["unused"] = vocabulary.pop("<image>")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=chat_template,
    )


# As ChatML models have it: contents are texts.
TEXT_TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

# As Llama 2's chat and LLaVA's Mistral have it: a space before the token that ends an answer.
SPACED_END_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)

# The published template of llava-hf's LLaVA 1.5: pictures first, and no token after an answer.
LLAVA_HF_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

LATER = [("what is it?", "a cat"), ("is there a dog?", "")]
INSIDE = [("<image> was before, <image> is after: what changed?", "")]


def picture(seed: int = 0, size: tuple[int, int] = (50, 40)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def tiny_pair(tower: str = "clip", llm: str = "Llama", **options: Any) -> BridgeVLM:
    tokenizer = options.pop("tokenizer", None) or plain_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        vlm = pair(tiny_tower(tower), tiny_llm(llm, 300), tokenizer, **options)
        for name, parameter in vlm.projector.named_parameters():  # type: ignore[union-attr]
            # Soft tokens as large as words, or pictures would not tell.
            if parameter.ndim > 1 and "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return vlm
