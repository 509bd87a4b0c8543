"""What the verbs keep from one call to the next, and how a caller gets its memory back."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from support.lora_files import random_deltas, write_lora
from transformers import PreTrainedTokenizerBase

import bridge
from bridge.diffusion import drawing
from bridge.embedded import DRAWING
from bridge.encoding import model as text_models
from bridge.kept import kept
from bridge.vlm import answering


def _alive() -> list[Any]:
    """All modules with weights and all tokenizers."""
    gc.collect()
    kinds = (torch.nn.Module, PreTrainedTokenizerBase)
    found = [each for each in gc.get_objects() if issubclass(type(each), kinds)]
    return [
        each
        for each in found
        if not isinstance(each, torch.nn.Module) or next(each.parameters(), None) is not None
    ]


def test_release_frees_what_the_verbs_keep(tmp_path: Path) -> None:
    bridge.release()
    before = {id(each) for each in _alive()}
    tower = text_models.open_model(DRAWING).load().modules[0]
    lora = write_lora(
        tmp_path / "style.safetensors", "kohya", {"text_encoder": random_deltas(tower, 2, 0)}
    )
    del tower
    bridge.condition("a red apple", loras=lora)
    bridge.condition("a red apple", towers="emoji-1")
    bridge.generate("a red apple", steps=1, seed=0)
    bridge.describe(Image.new("RGB", (128, 128)), max_new_tokens=1)
    made = weakref.WeakSet(each for each in _alive() if id(each) not in before)
    names = {type(each).__name__ for each in made}
    # Else nothing was kept, and the test would say nothing.
    assert {"UNet2DConditionModel", "CLIPTextModel", "CLIPTokenizer"} <= names, names
    assert any(name.endswith("ForCausalLM") for name in names), names
    bridge.release()
    assert not [type(each).__name__ for each in made]


def test_a_verb_works_after_release_and_loads_anew() -> None:
    before = bridge.condition("a red apple").prompt_embeds
    towers = text_models.open_model(DRAWING).load().modules
    bridge.release()
    after = bridge.condition("a red apple").prompt_embeds
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert text_models.open_model(DRAWING).load().modules[0] is not towers[0]


def test_what_a_caller_holds_stays() -> None:
    with bridge.Encoder(DRAWING) as encoder:
        before = encoder("a red apple").prompt_embeds
        modules = encoder._source.model().load().modules  # type: ignore[union-attr]
        bridge.release()
        again = encoder._source.model().load().modules  # type: ignore[union-attr]
        assert all(a is b for a, b in zip(modules, again, strict=True))
        torch.testing.assert_close(encoder("a red apple").prompt_embeds, before, rtol=0, atol=0)


def test_the_least_recently_used_goes_first() -> None:
    made: list[int] = []

    @kept(2)
    def make(key: int) -> int:
        made.append(key)
        return key

    for key in (1, 2, 1, 3, 1, 2):
        assert make(key) == key
    assert made == [1, 2, 3, 2]
    bridge.release()
    assert make(1) == 1
    assert made == [1, 2, 3, 2, 1]


def test_every_verb_s_keeper_is_emptied() -> None:
    bridge.release()
    assert drawing._loaded.cache_info().currsize == 0
    assert answering._loaded.cache_info().currsize == 0
