"""Where a prompt ends and what stands after it: the EOS rule of old and new configs, and "!".

Configs of before transformers 4.30 say ``eos_token_id: 2``; CLIP's pooled state is then that of
the *highest* id, which added tokens mislead (transformers#24650, diffusers#10754). Newer ones
name the real id, and the first match is taken. bridge changes neither, so that its pooled state is
diffusers' own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.comparisons import relative
from support.encoding import NAMES, TOLERANCE, expected_of
from support.tiny_models import EOS, text_config, tiny_clip_tokenizer, tiny_sdxl_pipeline
from support.tiny_t5 import tiny_t5_pipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import bridge
from bridge.towers import TEXT_TOWERS, Layer

TEXTS = ["a cat", "two red apples left of a cat", ""]


@pytest.mark.parametrize("pad", [EOS, "!"])
@pytest.mark.parametrize("old", [True, False], ids=["old config", "new config"])
@pytest.mark.parametrize("architecture", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@torch.no_grad()
def test_pooled_is_the_state_of_the_first_eos(architecture: str, old: bool, pad: str) -> None:
    tokenizer = tiny_clip_tokenizer(pad)
    changes = {"eos_token_id": 2} if old else {}
    kinds = {c.__name__: c for c in (CLIPTextModel, CLIPTextModelWithProjection)}
    module = kinds[architecture](text_config(tokenizer, projection_dim=24, **changes)).eval()
    ids = tokenizer(TEXTS, padding="max_length", return_tensors="pt").input_ids
    assert ids[0, -1] == (0 if pad == "!" else tokenizer.eos_token_id)
    states = TEXT_TOWERS[architecture](module, ids, (Layer(),))
    ends = (ids == tokenizer.eos_token_id).int().argmax(-1)
    wanted = states.hidden[0][torch.arange(3), ends]
    if architecture.endswith("Projection"):
        wanted = wanted @ module.text_projection.weight.T
    torch.testing.assert_close(states.pooled, wanted)


@pytest.mark.parametrize("old", [True, False], ids=["old config", "new config"])
def test_an_added_word_misleads_old_configs_as_in_diffusers(old: bool) -> None:
    pipe = tiny_t5_pipeline("flux")
    if not old:
        config = pipe.text_encoder.config
        getattr(
            pipe.text_encoder, "text_model", pipe.text_encoder
        ).eos_token_id = pipe.tokenizer.eos_token_id
        config.eos_token_id = pipe.tokenizer.eos_token_id
    pipe.load_textual_inversion(
        torch.randn(1, 32, generator=torch.Generator().manual_seed(0)),
        token="<toy>", tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder,
    )  # fmt: skip
    text = "a <toy> and a cat"
    found = bridge.condition(text, model=pipe, max_sequence_length=24, long_prompt="truncate")
    _, wanted, _ = pipe.encode_prompt(text, max_sequence_length=24)
    assert relative(found.pooled_prompt_embeds, wanted.detach()) <= TOLERANCE
    ids = torch.tensor([found.plans[0][0].ids])
    with torch.no_grad():
        last = pipe.text_encoder(ids).last_hidden_state[0]
    place = ids[0].argmax() if old else (ids[0] == pipe.tokenizer.eos_token_id).int().argmax()
    assert relative(found.pooled_prompt_embeds[0], last[place]) <= TOLERANCE
    # The added word is the third token; the prompt ends further on.
    assert (place == 2) == old


def test_the_second_tokenizer_of_sdxl_pads_with_an_exclamation_mark() -> None:
    pipe = tiny_sdxl_pipeline(force_zeros=False)
    text, negative = "a cat! two dogs !!", "!"
    found = bridge.condition(text, negative, model=pipe, dialect="plain")
    first, second = found.plans[0]
    assert (first.ids[-1], second.ids[-1]) == (pipe.tokenizer.eos_token_id, 0)
    assert pipe.tokenizer_2.convert_ids_to_tokens(0) == "!"
    for name, wanted in expected_of(pipe, text, negative, None).items():
        assert relative(getattr(found, name), wanted.detach()) <= TOLERANCE, name
    # Padded with its own EOS, the second tower would give other states: sd_embed's trap.
    pipe.tokenizer_2.pad_token = EOS
    other: Any = bridge.condition(text, negative, model=pipe, dialect="plain")
    assert not torch.allclose(other.prompt_embeds, found.prompt_embeds)
    assert set(NAMES) == set(found.kwargs())
