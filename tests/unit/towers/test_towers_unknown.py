"""Unknown words keep their place in the text; what is fetched of a row of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_clip_tokenizer
from support.tiny_t5 import tiny_t5_tokenizer
from support.tiny_tokenizers import tiny_bert_tokenizer, tiny_xlmr_tokenizer

from bridge.towers import registry
from bridge.towers.registry import find_row
from bridge.towers.tokenizer import TokenRule, tokenize

TEXT = "cat 猫 dog"


@pytest.mark.parametrize("make", [tiny_bert_tokenizer, tiny_xlmr_tokenizer, tiny_t5_tokenizer])
def test_an_unknown_word_has_its_characters(make: Any) -> None:
    tokenizer = make()
    batch = tokenize(tokenizer, [TEXT], TokenRule(fill=True), 16)
    ids = batch.ids[0].tolist()
    assert tokenizer.unk_token_id in ids
    assert TEXT[slice(*(batch.offsets[0][ids.index(tokenizer.unk_token_id)] or (0, 0)))] == "猫"
    for token, span in zip(ids, batch.offsets[0], strict=True):
        if token in (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id):
            assert span is None


def test_a_word_that_padding_is_made_of_has_its_characters() -> None:
    """SD 2's and SDXL's second tokenizer pad with "!"."""
    tokenizer = tiny_clip_tokenizer("!")
    batch = tokenize(tokenizer, ["cat!", "!"], TokenRule(fill=True), 6)
    assert batch.ids[:, -1].tolist() == [tokenizer.pad_token_id] * 2
    assert batch.offsets[0] == (None, (0, 3), (3, 4), None, None, None)
    assert batch.offsets[1] == (None, (0, 1), None, None, None, None)


def test_an_unknown_token_that_also_ends_the_text_is_special() -> None:
    tokenizer = tiny_clip_tokenizer()
    assert tokenizer.unk_token_id == tokenizer.eos_token_id
    batch = tokenize(tokenizer, ["cat"], TokenRule(), 8)
    assert batch.offsets[0] == (None, (0, 3), None)


def test_a_row_with_weights_of_its_own_fetches_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def resolve(name: str, allow_patterns: Any = None) -> Path:
        asked.append(allow_patterns)
        return Path(name)

    monkeypatch.setattr(registry, "resolve", resolve)
    for name in ("clip-b32", "clip-l", "emoji-1"):
        registry.find_source(name)
    own, stock, embedded = asked
    assert "open_clip_model.safetensors" in own and "model*.safetensors" not in own
    assert {"*.json", "*.txt"} <= set(own)
    assert "model*.safetensors" in stock and embedded is None


def test_a_row_is_at_hand_if_its_own_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repo, name: "there" if name == "model.safetensors" else None,
    )
    rows = {name: find_row(name) for name in ("clip-b32", "clip-l")}
    assert {name: row and row.at_hand() for name, row in rows.items()} == {
        "clip-b32": False, "clip-l": True,
    }  # fmt: skip
