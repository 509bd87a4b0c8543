"""Towers made of live modules; what their tokens know; names that are not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_models import tiny_clip_tokenizer, tiny_sd_pipeline

from bridge.errors import OptionError, PromptError, UnknownModelError, UnsupportedModelError
from bridge.towers import TextTower, fingerprint, open_image_tower, open_text_tower
from bridge.towers.tokenizer import TokenRule, tokenize


def test_a_live_text_encoder_is_a_tower() -> None:
    pipe = tiny_sd_pipeline("sd15")
    tower = TextTower.from_modules(pipe.text_encoder, pipe.tokenizer, name="mine")
    assert (tower.family, tower.spec.width, tower.name) == ("clip", 32, "mine")
    assert tower.fingerprint() == fingerprint(pipe.text_encoder)
    states = tower.encode(["a cat"])
    ids = pipe.tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(states.hidden[0], pipe.text_encoder(ids).last_hidden_state)
    with pytest.raises(OptionError, match="no scale"):
        tower.scores(states.pooled, states.pooled)
    with pytest.raises(UnsupportedModelError, match="no family"):
        TextTower.from_modules(torch.nn.Linear(2, 2), pipe.tokenizer)


# ---------------------------------------------------------------- tokens


def test_every_token_knows_its_characters() -> None:
    text = "  two red  apples, a cat"
    batch = tokenize(tiny_clip_tokenizer(), [text, "of"], TokenRule(fill=True), 77)
    spans = [span for span in batch.offsets[0] if span]
    assert [text[slice(*span)] for span in spans][-1] == "cat"
    assert "".join(text[slice(*span)] for span in spans) == text.replace(" ", "")
    assert batch.offsets[0][0] is None
    assert batch.offsets[1][1] == (0, 2) and batch.offsets[1][2:] == (None,) * 75
    assert batch.mask.sum(-1).tolist() == [len(spans) + 2, 3]
    assert batch.cut == (0, 0)


def test_what_does_not_fit_is_cut_and_counted() -> None:
    batch = tokenize(tiny_clip_tokenizer(), ["cat " * 100, "cat"], TokenRule(), 20)
    assert batch.ids.shape == (2, 20) and batch.cut == (82, 0)
    assert batch.ids[0, -1] == tiny_clip_tokenizer().eos_token_id


@pytest.mark.parametrize("wrong", ["one string", [], ["a", 3], [None]])
def test_what_is_no_list_of_texts_is_refused(wrong: Any) -> None:
    with pytest.raises(PromptError, match="texts"):
        tokenize(tiny_clip_tokenizer(), wrong, TokenRule(), 77)


# ---------------------------------------------------------------- bad input


def test_a_wrong_name_is_told_the_nearest_ones() -> None:
    with pytest.raises(UnknownModelError, match="clip-l"):
        open_text_tower("clip-ll")
    with pytest.raises(UnknownModelError, match="bridge towers"):
        open_image_tower("nothing like it")
