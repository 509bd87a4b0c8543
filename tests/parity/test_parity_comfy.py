"""ComfyUI beside bridge: ids, weights, states and pooled states of SD 1.5, SDXL, FLUX.1 and SD 3.

States are compared at 1e-5 of the largest entry: the same weights in float32 through the peer's
own modules, whose attention sums in another order.
"""

from __future__ import annotations

from pathlib import Path

import corpus
import pytest
import torch
from comfy_peer import Comfy, load_comfy
from comparisons import relative
from parity_support import Equal
from safetensors.torch import save_file

import bridge
from bridge.errors import PromptError

TOLERANCE = 1e-5
ROWS = {"sd15": "SD 1.5", "sdxl": "SDXL", "flux": "FLUX.1", "sd3": "SD 3"}


EMBEDDINGS = {"cat": 1, "x-ray": 3, "two apples": 2}


@pytest.fixture(scope="module")
def comfy() -> Comfy:
    return load_comfy()


@pytest.fixture
def embeddings(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    """A folder of embeddings of several vectors, for each CLIP tower of a kind of model."""
    folder: Path = tmp_path_factory.mktemp("embeddings")
    rng = torch.Generator().manual_seed(3)
    for name, count in EMBEDDINGS.items():
        rows = {"clip_l": torch.randn(count, 32, generator=rng)}
        if kind in ("sdxl", "sd3"):
            rows["clip_g"] = torch.randn(count, 48, generator=rng)
        save_file(rows, folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # hostile weights leave the manifold
def test_states(comfy: Comfy, kind: str, embeddings: Path, equal: Equal) -> None:
    pipe = comfy.pipeline(kind)
    tokenizer, encoder = comfy.tokenizer(kind, embeddings), comfy.encoder(kind, pipe)
    files = sorted(embeddings.glob("*"))
    count_of = {"sd15": 1000, "sdxl": 1000, "flux": 500, "sd3": 500}
    with equal(f"ComfyUI: {ROWS[kind]}") as count, torch.no_grad():
        for prompt in ["", *corpus.draw("comfy", count_of[kind])]:
            wanted, pooled = encoder.encode_token_weights(tokenizer.tokenize_with_weights(prompt))[
                :2
            ]
            try:
                found = bridge.condition(
                    prompt, model=pipe, dialect="comfy", textual_inversions=files
                )
            except PromptError as error:
                if "No textual inversion is named" not in str(error):
                    raise
                count.differs_by("ComfyUI drops an embedding that it has no file for")
                continue
            if kind in ("flux", "sd3") and "embedding:" in prompt:
                # No file has vectors for T5.
                count.differs_by("ComfyUI counts an embedding of another width as a place")
                continue
            states = found.prompt_embeds
            same = states.shape[1] == wanted.shape[1]
            same = same and relative(states, wanted[..., : states.shape[2]]) <= TOLERANCE
            if found.pooled_prompt_embeds is not None:
                same = same and relative(found.pooled_prompt_embeds, pooled) <= TOLERANCE
            count.check(same, f"{prompt!r}: {tuple(states.shape)} {tuple(wanted.shape)}")
