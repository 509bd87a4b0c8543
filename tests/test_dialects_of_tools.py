"""What a dialect takes from its tool besides its marks: padding as text, T5's lengths, negatives.

tests/parity holds the same against the tools' own code.
"""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_sdxl_pipeline
from tiny_t5 import tiny_t5_pipeline

import bridge
from bridge.errors import PromptError


@pytest.mark.parametrize(
    ("dialect", "is_text"), [("a1111", True), ("comfy", True), ("compel", False), ("plain", False)]
)
def test_the_word_that_pads(dialect: str, is_text: bool) -> None:
    """SDXL's second tokenizer pads with "!", whose id is 0; as the end of a word it has another."""
    pipe = tiny_sdxl_pipeline()
    found = bridge.condition("cat!", model=pipe, dialect=dialect)
    first, second = found.plans[0]
    text = [token.piece for token in second.tokens if not token.special]
    assert text == ["cat</w>", "!</w>" if is_text else "!"]
    assert second.ids[-1] == 0
    assert (first.ids[:4] == second.ids[:4]) is is_text
    # The pipeline's own tokenizer still reads it as before.
    assert pipe.tokenizer_2("!", add_special_tokens=False)["input_ids"] == [0]


@pytest.mark.parametrize(
    ("dialect", "kind", "least", "clip"),
    [
        ("comfy", "flux", 256, 0),
        ("comfy", "sd3", 77, 77),
        ("a1111", "flux", 256, 0),
        ("a1111", "sd3", 256, 77),
    ],
)
def test_t5_of_comfy_and_a1111_grows(dialect: str, kind: str, least: int, clip: int) -> None:
    pipe = tiny_t5_pipeline(kind)
    states = bridge.condition("a cat", "", model=pipe, dialect=dialect).prompt_embeds
    assert states.shape[1] == clip + least
    long = bridge.condition("cat " * 70 + "a b c " * 200, "", model=pipe, dialect=dialect)
    t5 = long.plans[0][-1]
    assert t5.limit == t5.used > 512 and not t5.cut
    assert long.prompt_embeds.shape == long.negative_prompt_embeds.shape
    cut = bridge.condition("a cat", "", model=pipe, dialect=dialect, max_sequence_length=40)
    assert cut.prompt_embeds.shape[1] == clip + 40
    with pytest.raises(PromptError, match=r"tokens in text_encoder_.; at most"):
        bridge.condition("cat " * 9000, model=pipe, dialect=dialect, long_prompt="truncate")


def test_comfy_puts_nothing_in_the_place_of_t5() -> None:
    found = bridge.condition("a cat", "", model=tiny_t5_pipeline("sd3-no-t5"), dialect="comfy")
    assert found.prompt_embeds.shape[1] == 77


@pytest.mark.parametrize("force", [True, False])
def test_empty_negatives_of_sdxl(force: bool) -> None:
    pipe = tiny_sdxl_pipeline(force_zeros=force)

    def zero(negative: str | list[str] | None, dialect: str) -> list[bool]:
        found = bridge.condition(["a cat", "a dog"], negative, model=pipe, dialect=dialect)
        pairs = zip(found.negative_prompt_embeds, found.negative_pooled_prompt_embeds, strict=True)
        return [not torch.any(states) and not torch.any(pooled) for states, pooled in pairs]

    assert zero("", "a1111") == zero(None, "a1111") == [force, force]
    assert zero(["", "ugly"], "a1111") == [force, False]
    assert zero("", "comfy") == zero(None, "comfy") == [False, False]
    assert zero("", "plain") == [False, False]
    assert zero(None, "plain") == [force, force]
