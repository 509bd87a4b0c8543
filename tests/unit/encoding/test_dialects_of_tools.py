"""What a dialect takes from its tool besides its marks: padding as text, T5's lengths, negatives.

tests/parity holds the same against the tools' own code.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_models import tiny_sdxl_pipeline
from support.tiny_t5 import tiny_t5_pipeline

import bridge
from bridge.errors import PromptError, WeightsError


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


def test_embeddings_of_t5_stand_in_the_place_of_their_words(tmp_path: Path) -> None:
    """A file whose vectors are those of known tokens reads as these do, in each tower it names."""
    pipe = tiny_t5_pipeline("flux")
    dog = pipe.tokenizer_2("dog", add_special_tokens=False)["input_ids"]
    vectors = pipe.text_encoder_2.get_input_embeddings().weight[torch.tensor(dog)].detach()
    save_file({"t5xxl": vectors.clone()}, tmp_path / "hound.safetensors")
    files = tmp_path / "hound.safetensors"
    for dialect, prompt in (("comfy", "a embedding:hound"), ("a1111", "a hound")):
        found = bridge.condition(prompt, model=pipe, dialect=dialect, textual_inversions=files)
        wanted = bridge.condition("a dog", model=pipe, dialect=dialect)
        assert torch.allclose(found.prompt_embeds, wanted.prompt_embeds, atol=1e-5), dialect


def test_embeddings_without_vectors_for_t5_leave_weights_on_their_words(tmp_path: Path) -> None:
    """ComfyUI keeps their places, so the weights behind them move to other tokens there."""
    pipe = tiny_t5_pipeline("flux")
    files = tmp_path / "hound.safetensors"
    save_file({"clip_l": torch.ones(3, 32), "clip_g": torch.ones(3, 48)}, files)
    found, wanted = (
        bridge.condition(prompt, model=pipe, dialect="comfy", textual_inversions=files)
        for prompt in ("embedding:hound (cat:1.5)", "(cat:1.5)")
    )
    t5 = found.plans[0][1].tokens
    assert {token.weight for token in t5 if not token.special} == {1.5}
    assert torch.equal(found.prompt_embeds, wanted.prompt_embeds)
    assert not torch.equal(found.pooled_prompt_embeds, wanted.pooled_prompt_embeds)


def test_a_file_for_a_tower_that_the_model_lacks(tmp_path: Path) -> None:
    files = tmp_path / "hound.safetensors"
    save_file({"clip_g": torch.ones(1, 48)}, files)
    with pytest.raises(WeightsError, match=r"for clip_g, but .* \(flux\) has clip_l, t5xxl\."):
        bridge.condition("a", model=tiny_t5_pipeline("flux"), textual_inversions=files)
