"""bridge.condition against diffusers at the real sizes of sd15, sd21 and sdxl, random weights.

The towers are CLIP ViT-L/14, OpenCLIP ViT-H/14 (the 23 layers that Stable Diffusion 2 ships) and
OpenCLIP ViT-bigG/14 in the configs of the published checkpoints, with a vocabulary of 49,408.
Run with ``pytest -m slow -s``; it takes about 6 GB of memory and prints what it measured.

Tolerance: 1e-5 of the largest entry, in float32. Both sides run the same modules; the batch is
another, so matrix products sum in another order, and 12 to 32 layers carry that rounding on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.tiny_models import EOS, tiny_clip_tokenizer, tiny_sd_pipeline, tiny_sdxl_pipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

import bridge
from bridge.prompt import TruncationWarning

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(f"ignore::{TruncationWarning.__module__}.TruncationWarning"),
]

TOLERANCE = 1e-5
MERGES = 49_408 - 2 * 256 - 2

# The text configs of the published folders; special ids are theirs too, the old eos_token_id 2
# included, which makes transformers look for the highest id.
_SHARED = {"vocab_size": 49_408, "max_position_embeddings": 77, "eos_token_id": 2}
CLIP_L = CLIPTextConfig(
    **_SHARED,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_act="quick_gelu",
    projection_dim=768,
)
OPENCLIP_H = CLIPTextConfig(
    **_SHARED,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
    projection_dim=512,
)
OPENCLIP_BIGG = CLIPTextConfig(
    **_SHARED,
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    projection_dim=1280,
)

PROMPTS = ["babo two gukide of dibezo, 🎈 مرحبا", "gukide bazubo " * 60]
NEGATIVE = "zuzozi"


def full_size_tokenizer(pad_token: str) -> CLIPTokenizer:
    """A CLIP tokenizer of exactly 49,408 tokens, its merges made of invented words."""
    syllables = ["".join(pair) for pair in itertools.product("bdgkz", "aeiou")]
    longest = itertools.product(syllables, repeat=4)

    def words() -> Iterator[str]:
        """Words until their distinct merges are as many as CLIP's."""
        seen: set[str] = set()
        for parts in longest:
            word = "".join(parts)
            # A left-to-right merge is told by the prefix that it makes.
            fresh = [p for p in (word[:n] for n in range(2, len(word))) if p not in seen]
            if len(seen) + len(fresh) + 1 > MERGES:
                break
            seen.update(fresh, [word + "</w>"])
            yield word
        # Two-letter words fill what is left to the exact number, one merge each.
        left = MERGES - len(seen)
        yield from ("".join(p) for p in itertools.islice(itertools.product("xqwj", "xqwj"), left))

    tokenizer = tiny_clip_tokenizer(pad_token, words())
    assert len(tokenizer) == 49_408
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49_406, 49_407)
    return tokenizer


@torch.no_grad()
def random_tower(model_class: Any, config: CLIPTextConfig, seed: int) -> Any:
    """A tower with random weights, made without the slow default initialisation.

    One block of normal numbers is tiled over all parameters from changing offsets, scaled so
    that states neither die out nor blow up over 32 layers.
    """
    with torch.device("meta"):
        module = model_class(config)
    module = module.to_empty(device="cpu").eval()
    for name, buffer in module.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
    for offset, (name, parameter) in enumerate(module.named_parameters()):
        flat, values = parameter.view(-1), block.roll(997 * offset)
        for start in range(0, flat.numel(), len(values)):
            piece = flat[start : start + len(values)]
            piece.copy_(values[: len(piece)])
        if parameter.ndim == 2:
            flat.mul_(0.02 if "embedding" in name else parameter.shape[1] ** -0.5)
        else:
            # The only vectors called weight are those of layer norms.
            flat.mul_(0.1).add_(1.0 if name.endswith(".weight") else 0.0)
    return module


def count_passes(modules: list[Any]) -> list[int]:
    counts = [0] * len(modules)
    for i, module in enumerate(modules):

        def count(*_: Any, index: int = i) -> None:
            counts[index] += 1

        module.register_forward_hook(count)
    return counts


def compare(kind: str, found: Any, wanted: dict[str, torch.Tensor]) -> None:
    # The texts must be told apart, or agreement would mean little.
    assert not torch.allclose(found.prompt_embeds[0], found.prompt_embeds[1], atol=0.01)
    for name, tensor in wanted.items():
        ours, scale = getattr(found, name), tensor.abs().max().item()
        assert ours.shape == tensor.shape
        assert torch.isfinite(tensor).all()
        error = (ours - tensor).abs().max().item() / (scale or 1.0)
        print(f"{kind} {name} {tuple(tensor.shape)}: {error:.2e} of the largest entry {scale:.3g}")
        assert error <= TOLERANCE, name


@pytest.mark.parametrize(
    ("kind", "config", "pad"),
    [("sd15", CLIP_L, EOS), ("sd21", OPENCLIP_H, "!")],
    ids=["sd15", "sd21"],
)
def test_stable_diffusion_at_real_size(kind: str, config: CLIPTextConfig, pad: str) -> None:
    pipe = tiny_sd_pipeline(kind)
    pipe.text_encoder = random_tower(CLIPTextModel, config, seed=0)
    pipe.tokenizer = full_size_tokenizer(pad)
    passes = count_passes([pipe.text_encoder])
    found = bridge.condition(PROMPTS, NEGATIVE, model=pipe, dialect="plain")
    assert passes == [1]
    assert found.recipe.name == kind
    out = pipe.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=[NEGATIVE] * 2)
    names = ("prompt_embeds", "negative_prompt_embeds")
    compare(kind, found, dict(zip(names, out, strict=True)))
    assert found.prompt_embeds.shape == (2, 77, config.hidden_size)


def test_sdxl_at_real_size() -> None:
    pipe = tiny_sdxl_pipeline()
    pipe.text_encoder = random_tower(CLIPTextModel, CLIP_L, seed=0)
    pipe.text_encoder_2 = random_tower(CLIPTextModelWithProjection, OPENCLIP_BIGG, seed=1)
    pipe.tokenizer, pipe.tokenizer_2 = full_size_tokenizer(EOS), full_size_tokenizer("!")
    passes = count_passes([pipe.text_encoder, pipe.text_encoder_2])
    found = bridge.condition(PROMPTS, NEGATIVE, model=pipe, dialect="plain")
    assert passes == [1, 1]
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    out = pipe.encode_prompt(PROMPTS, negative_prompt=NEGATIVE)
    compare("sdxl", found, dict(zip(names, out, strict=True)))
    assert found.prompt_embeds.shape == (2, 77, 2048)
    assert found.pooled_prompt_embeds.shape == (2, 1280)
    assert found.add_time_ids.tolist() == [[64, 64, 0, 0, 64, 64]] * 2
