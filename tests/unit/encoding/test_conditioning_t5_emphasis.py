"""Weights on a T5 tower: the formulas act on its states as on CLIP's, as the tools have it.

ComfyUI's ``T5XXLModel`` is one of its ``SDClipModel``, so its rule goes over T5's states
(``comfy/text_encoders/flux.py``); Forge's ``T5TextProcessingEngine`` calls the webui's emphasis;
sd_embed multiplies T5's states by the weights; compel's ``CompelForFlux`` gives T5 to the same
provider as CLIP. None of them weighs the pooled state of FLUX.1's CLIP tower.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
import torch
from compel import CompelForFlux
from support.comparisons import Compared
from support.encoding import TOLERANCE, count_passes
from support.tiny_t5 import tiny_t5_pipeline

import bridge
from bridge.encoding.emphasis import EMPHASES
from bridge.errors import UnsupportedModelError

COMPEL = f"compel {version('compel')}"
LENGTH = 20
BIASES = [name for name in EMPHASES if name.endswith("attention_bias")]
OF_STATES = [name for name in EMPHASES if name not in BIASES]


@pytest.fixture(scope="module")
def flux() -> Any:
    pipe = tiny_t5_pipeline("flux")
    # compel takes the tokenizer's own length.
    pipe.tokenizer_2.model_max_length = LENGTH
    return pipe


@torch.no_grad()
def states_of(pipe: Any, words: list[str]) -> torch.Tensor:
    """T5's states of words that are tokenized one by one."""
    tokenizer = pipe.tokenizer_2
    ids = [i for word in words for i in tokenizer(word, add_special_tokens=False).input_ids]
    ids = [*ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * (LENGTH - len(ids) - 1)]
    return pipe.text_encoder_2(torch.tensor([ids])).last_hidden_state


def weights(*given: float) -> torch.Tensor:
    return torch.tensor([*given, *[1.0] * (LENGTH - len(given))])[None, :, None]


@pytest.mark.parametrize(
    "text",
    [
        "a cat",
        "two cat++ and a dog",
        "a (red cat)1.4 of the dog",
        "a red-- cat",
        "a (red cat)0.5 and (two dog)0.3 and a cat+",
    ],
)
def test_compels_weights(flux: Any, text: str, compared: Compared) -> None:
    with torch.no_grad():
        wanted = CompelForFlux(flux)(text, negative_prompt="a dog--")
    found = bridge.condition(
        text, "a dog--", model=flux, dialect="compel", max_sequence_length=LENGTH
    )
    feature = "compel's weights, FLUX.1"
    compared(feature, COMPEL, found.prompt_embeds, wanted.embeds, TOLERANCE)
    compared(feature, COMPEL, found.negative_prompt_embeds, wanted.negative_embeds, TOLERANCE)
    compared(feature, COMPEL, found.pooled_prompt_embeds, wanted.pooled_embeds, TOLERANCE)


def test_parts_whose_weights_add_up_to_nothing_have_a_mean_pooled_state(flux: Any) -> None:
    one, other = (
        bridge.condition(
            f'("a cat", "a red dog").and({weights})',
            model=flux, dialect="compel", max_sequence_length=LENGTH,
        ).pooled_prompt_embeds
        for weights in ("1, -1", "1, 1")
    )  # fmt: skip
    assert torch.equal(one, other)


def test_comfys_weights(flux: Any, compared: Compared) -> None:
    z, empty = states_of(flux, ["two", "red", "dog"]), states_of(flux, [])
    wanted = empty + (z - empty) * weights(1.0, 1.3, 0.7)
    found = bridge.condition(
        "two (red:1.3) (dog:0.7)", model=flux, dialect="comfy", max_sequence_length=LENGTH
    )
    compared("comfy weights, FLUX.1", "ComfyUI's formula", found.prompt_embeds, wanted, TOLERANCE)


def test_the_webuis_weights(flux: Any, compared: Compared) -> None:
    z = states_of(flux, ["two", "red", "dog"])
    scaled = z * weights(1.0, 1.3, 1 / 1.1)
    wanted = scaled * (z.mean() / scaled.mean())
    found = bridge.condition("two (red:1.3) [dog]", model=flux, max_sequence_length=LENGTH)
    # The mean of states of random weights is near zero, and what is divided by it less exact.
    compared(
        "a1111 weights, FLUX.1", "stable-diffusion-webui's formula", found.prompt_embeds, wanted,
        1e-4,
    )  # fmt: skip
    scaled_only = bridge.condition(
        "two (red:1.3) [dog]", model=flux, emphasis="no_norm", max_sequence_length=LENGTH
    )
    compared(
        "weights without norm, FLUX.1", "sd_embed's formula", scaled_only.prompt_embeds, scaled,
        TOLERANCE,
    )  # fmt: skip


@pytest.mark.parametrize("emphasis", OF_STATES)
def test_pooled_states_are_not_weighted_and_one_pass_is_enough(flux: Any, emphasis: str) -> None:
    text, towers, rows = "a (red:1.4) cat and (two:0.6) dogs", [], []
    towers = [flux.text_encoder, flux.text_encoder_2]
    hook = flux.text_encoder.register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    with count_passes(towers) as passes:
        found = bridge.condition(text, model=flux, emphasis=emphasis, max_sequence_length=LENGTH)
    hook.remove()
    assert passes == [1, 1]
    # CLIP's token states are not used, so it encodes the prompt and nothing beside it.
    assert rows == [1]
    plain = bridge.condition(
        "a red cat and two dogs", model=flux, dialect="plain", max_sequence_length=LENGTH
    )
    assert torch.allclose(found.pooled_prompt_embeds, plain.pooled_prompt_embeds, atol=1e-6)
    unweighted = emphasis == "none"
    assert torch.allclose(found.prompt_embeds, plain.prompt_embeds, atol=1e-6) == unweighted


@pytest.mark.parametrize("emphasis", OF_STATES)
def test_hidden_padding_goes_with_every_formula(emphasis: str) -> None:
    pipe = tiny_t5_pipeline("pixart-alpha")
    with count_passes([pipe.text_encoder]) as passes:
        both = bridge.condition(
            ["a (red:1.4) cat and (two:0.6) dogs", "a cat"], "[dog]", model=pipe, emphasis=emphasis
        )
    assert passes == [1]
    plain = bridge.condition("a cat", model=pipe, dialect="plain")
    assert torch.allclose(both.prompt_embeds[1:], plain.prompt_embeds, atol=1e-5)


@pytest.mark.parametrize("emphasis", BIASES)
def test_attention_is_not_biased_without_a_unet(flux: Any, emphasis: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{emphasis} acts"):
        bridge.condition("a (red:1.4) cat", model=flux, emphasis=emphasis)
