"""compel prompts as compel's own code reads and encodes them, from tests/data/compel.json."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support.places import DATA
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.errors import PromptError
from bridge.prompt import parse
from bridge.prompt.prompt import first_step

SAID = json.loads((DATA / "compel.json").read_text(encoding="utf-8"))
PLACES = (0, 5, 30, -1)


@pytest.mark.filterwarnings("ignore:Of a .swap")
def test_texts_and_weights() -> None:
    assert len(SAID["read"]) > 20
    for prompt, wanted in SAID["read"].items():
        if wanted is None:
            with pytest.raises(PromptError):
                parse(prompt, "compel")
            continue
        flat = first_step(parse(prompt, "compel"))
        found = []
        for part in flat.parts:
            pieces: list[list[Any]] = []
            for span in part.spans:
                if pieces and span.joined:
                    pieces[-1][0] += span.text
                else:
                    pieces.append([span.text, round(span.weight, 9)])
            found.append([part.weight, pieces])
        assert [flat.kind, found] == wanted, prompt


def test_ids() -> None:
    for prompt, ids in SAID["ids"].items():
        (row,) = bridge.condition(prompt, model=tiny_sd_pipeline("sd15"), dialect="compel").plans
        assert list(row[0].ids) == ids


@pytest.mark.filterwarnings("ignore::UserWarning")  # a swap
@pytest.mark.parametrize("prompt", SAID["encoded"])
def test_states(prompt: str) -> None:
    wanted = SAID["encoded"][prompt]
    sd, sdxl = (
        bridge.condition(prompt, "a dog", model=pipe, dialect="compel")
        for pipe in (tiny_sd_pipeline("sd15"), tiny_sdxl_pipeline())
    )
    assert sd.prompt_embeds.shape[1] == wanted["length"]
    for name, states in (
        ("sd15", sd.prompt_embeds),
        ("negative", sd.negative_prompt_embeds),
        ("sdxl", sdxl.prompt_embeds),
    ):
        assert_near(torch.stack([states[0, at, :3] for at in PLACES]), wanted[name])
    assert_near(sdxl.pooled_prompt_embeds[0, :6], wanted["pooled"])


def assert_near(found: torch.Tensor, wanted: Any) -> None:
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float32), atol=1e-4)
