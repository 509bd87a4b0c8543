"""sd_embed and the community pipeline lpw_stable_diffusion beside bridge, on SD 1.5.

Both write CLIP's own ids, so the tower has CLIP's vocabulary, whose files Forge's clone holds.
States are compared at 2e-3 of the largest entry, for sd_embed keeps its weights in half precision.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from parity_support import Equal
from peers import clone, on_path
from support.comparisons import relative
from support.tiny_models import text_config, tiny_sd_pipeline
from transformers import CLIPTextModel, CLIPTokenizer

import bridge
from bridge.prompt import LongPrompt

TOLERANCE = 2e-3
CLIP = "backend/huggingface/runwayml/stable-diffusion-v1-5/tokenizer"
SHORT = ("a cat", "a (red:1.3) cat", "a (red:0.5) [cat] dog", "((two)) apples (left:1.1) of it")
PLAIN_LONG = "two apples, left of the dog " * 30
WEIGHED_LONG = "(a red cat:1.2) " * 30


@pytest.fixture(scope="module")
def sd() -> Any:
    pipe: Any = tiny_sd_pipeline("sd15")
    tokenizer = CLIPTokenizer.from_pretrained(clone("forge") / CLIP)
    torch.manual_seed(0)
    encoder = CLIPTextModel(text_config(tokenizer, eos_token_id=2)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    # transformers before 5.6 has the layers one module deeper.
    encoder.__dict__.setdefault("text_model", encoder)
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer)
    return pipe


def same(found: Any, wanted: tuple[torch.Tensor, torch.Tensor]) -> bool:
    pairs = zip((found.prompt_embeds, found.negative_prompt_embeds), wanted, strict=True)
    return all(a.shape == b.shape and relative(a, b) <= TOLERANCE for a, b in pairs)


def test_sd_embed(sd: Any, equal: Equal) -> None:
    """With ``pad_last_block``, which its SDXL has by default: without, windows are cut short."""
    with on_path(clone("sd_embed") / "src"):
        peer = importlib.import_module("sd_embed.embedding_funcs")
    options: dict[str, Any] = {"emphasis": "no_norm", "long_prompt": "sd_embed", "align": "empty"}
    with equal("sd_embed: SD 1.5, padded") as count, torch.no_grad():
        for prompt in (*SHORT, PLAIN_LONG, WEIGHED_LONG):
            wanted = peer.get_weighted_text_embeddings_sd15(sd, prompt, "ugly", pad_last_block=True)
            count.check(same(bridge.condition(prompt, "ugly", model=sd, **options), wanted), prompt)
        short, _ = peer.get_weighted_text_embeddings_sd15(sd, "a cat", "ugly")
        assert short.shape[1] == 4


@pytest.mark.parametrize(
    ("middle", "long_prompt"), [(True, "lpw"), (False, LongPrompt("hard"))], ids=["lpw", "default"]
)
def test_lpw(sd: Any, middle: bool, long_prompt: Any, equal: Equal) -> None:
    with on_path(clone("diffusers") / "examples" / "community"):
        peer = importlib.import_module("lpw_stable_diffusion").get_weighted_text_embeddings
    how = f"no_boseos_middle={middle}"
    options: dict[str, Any] = {"model": sd, "long_prompt": long_prompt, "align": "empty"}
    with equal(f"lpw_stable_diffusion: {how}") as count, torch.no_grad():
        for prompt in (*SHORT, PLAIN_LONG, ""):
            wanted = peer(sd, prompt, "ugly", no_boseos_middle=middle)
            count.check(same(bridge.condition(prompt, "ugly", **options), wanted), prompt)
        # It restores the mean over all windows together, the webui and bridge over each.
        whole = peer(sd, WEIGHED_LONG, "ugly", no_boseos_middle=middle)
        assert not same(bridge.condition(WEIGHED_LONG, "ugly", **options), whole)
        count.differs_by("the mean of long weighted prompts")
