"""ComfyUI beside bridge: states and pooled states of SD 1.5, SDXL, FLUX.1 and SD 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corpus
import pytest
import torch
from comfy_peer import Comfy, load_comfy, write_embeddings
from parity_support import Equal, same
from support.tiny_t5 import T5_WIDTH

import bridge
from bridge.errors import PromptError

ROWS = {"sd15": "SD 1.5", "sdxl": "SDXL", "flux": "FLUX.1", "sd3": "SD 3"}
COUNTS = {"sd15": 1000, "sdxl": 1000, "flux": 500, "sd3": 500}
LEAST = {"flux": 256, "sd3": 77}
NO_FILE = "ComfyUI drops an embedding that it has no file for"
NO_VECTORS = "ComfyUI counts the places of an embedding that has no vectors for T5"


@pytest.fixture(scope="module")
def comfy() -> Comfy:
    return load_comfy()


def counts_places(tokens: dict[str, Any], least: int) -> bool:
    """Whether an embedding that T5 has no vectors for moves weights behind it, or adds length.

    The peer drops its vectors and fills up with as many places at the end, but leaves the weights
    where they were.
    """
    pairs = tokens["t5xxl"][0]
    kept = [w for token, w in pairs if isinstance(token, int) or token.shape[-1] == T5_WIDTH]
    lost = len(pairs) - len(kept)
    return lost > 0 and (len(pairs) > least or [*kept, *[1.0] * lost] != [w for _, w in pairs])


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # hostile weights leave the manifold
def test_states(comfy: Comfy, kind: str, tmp_path: Path, equal: Equal) -> None:
    pipe, files = comfy.pipeline(kind), write_embeddings(tmp_path, kind)
    tokenizer, encoder = comfy.tokenizer(kind, tmp_path), comfy.encoder(kind, pipe)
    with equal(f"ComfyUI: {ROWS[kind]}") as count, torch.no_grad():
        for prompt in ["", *corpus.draw("comfy", COUNTS[kind])]:
            tokens = tokenizer.tokenize_with_weights(prompt)
            try:
                found = bridge.condition(
                    prompt, model=pipe, dialect="comfy", textual_inversions=files
                )
            except PromptError as error:
                if "No textual inversion is named" not in str(error):
                    raise
                count.differs_by(NO_FILE)
                continue
            if kind in LEAST and counts_places(tokens, LEAST[kind]):
                count.differs_by(NO_VECTORS)
                continue
            wanted, pooled = encoder.encode_token_weights(tokens)[:2]
            both = same(found.prompt_embeds, wanted[..., : found.prompt_embeds.shape[2]])
            if found.pooled_prompt_embeds is not None:
                both = both and same(found.pooled_prompt_embeds, pooled)
            count.check(both, repr(prompt))
