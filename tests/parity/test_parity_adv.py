"""ComfyUI_ADV_CLIP_emb on ComfyUI beside the comfy dialect: each token normalisation with each
weight interpretation that bridge has, of SD 1.5 and SDXL, the models that its nodes encode.
"""

from __future__ import annotations

from itertools import cycle, product
from pathlib import Path

import corpus
import pytest
import torch
from comfy_peer import Comfy, load_comfy, write_embeddings
from parity_support import Equal, same

import bridge
from bridge.errors import PromptError
from bridge.prompt import NORMALISATIONS

ROWS = {"sd15": "SD 1.5", "sdxl": "SDXL"}
EMPHASES = {"comfy": "comfy", "comfy++": "comfy++", "down_weight": "down_weight", "A1111": "a1111"}
MEANS = "ADV_CLIP_emb's A1111 restores the mean over all windows at once"


@pytest.fixture(scope="module")
def comfy() -> Comfy:
    return load_comfy(adv=True)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.filterwarnings("ignore")  # hostile weights leave the manifold; NumPy's empty means
def test_states(comfy: Comfy, kind: str, tmp_path: Path, equal: Equal) -> None:
    pipe, files = comfy.pipeline(kind), write_embeddings(tmp_path, kind)
    tokenizer, encoder = comfy.tokenizer(kind, tmp_path), comfy.encoder(kind, pipe)
    ways = cycle(product(EMPHASES, NORMALISATIONS))
    prompts = corpus.draw("comfy", 640 if kind == "sd15" else 320)
    with equal(f"ADV_CLIP_emb: {ROWS[kind]}") as count, torch.no_grad():
        for prompt, (theirs, normalisation) in zip(prompts, ways, strict=False):
            try:
                found = bridge.condition(
                    prompt,
                    model=pipe,
                    dialect="comfy",
                    emphasis=EMPHASES[theirs],
                    token_normalization=normalisation,
                    textual_inversions=files,
                )
            except PromptError as error:
                if "No textual inversion is named" not in str(error):
                    raise
                count.differs_by("ComfyUI drops an embedding that it has no file for")
                continue
            if theirs == "A1111" and len(found.plans[0][0].windows) > 1:
                count.differs_by(MEANS)
                continue
            states, pooled = comfy.advanced(tokenizer, encoder, prompt, normalisation, theirs)
            both = same(found.prompt_embeds, states)
            if pooled is not None:
                both = both and same(found.pooled_prompt_embeds, pooled)
            count.check(both, f"{theirs}, {normalisation}: {prompt!r}")
