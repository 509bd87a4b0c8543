"""The tokenizers that ship, and what people and captions write."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_world import scenes_at
from transformers import (
    CLIPTokenizer,
)

from bridge.vlm.train.batches import IGNORE_LABEL
from emoji_world.captions import caption
from emoji_world.concepts import CONCEPTS
from emoji_world.llava_folder import training_example
from emoji_world.questions import questions
from emoji_world.scenes import BACKGROUNDS, STYLES, TINTS
from emoji_world.train import llava
from emoji_world.train.packed_chats import as_typed

TEXTS = [
    "two red apples left of a cat, blue background, noto style",
    "Two  RED apples",
    "🍎🍎 above 🐈️, fluent",
    "cat x2, red, gray background",
    "",
    "schön, 你好, مرحبا!",
]


@pytest.mark.parametrize("number", ["", "_2"])
def test_each_shipped_clip_reads_as_its_tower_does(
    number: str, embedded: Callable[[str], Path]
) -> None:
    """The shipped pair was trained apart: each CLIPModel has its own tower's ids."""
    tower = CLIPTokenizer.from_pretrained(embedded("emoji-xl") / f"tokenizer{number}")
    clip = CLIPTokenizer.from_pretrained(embedded("emoji-clip" + number.replace("_", "-")))
    assert clip.get_vocab() == tower.get_vocab()
    assert clip(TEXTS).input_ids == tower(TEXTS).input_ids


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_shipped_names_are_short(name: str, embedded: Callable[[str], Path]) -> None:
    words = CLIPTokenizer.from_pretrained(embedded("emoji-xl") / name)

    def length(text: str) -> int:
        return len(words(text, add_special_tokens=False).input_ids)

    assert all(length(c.name) <= 3 and length(c.one) <= 3 and length(c.many) <= 3 for c in CONCEPTS)
    assert all(length(c.emoji) == 1 for c in CONCEPTS)
    assert all(length(word) == 1 for word in (*STYLES, *TINTS, *BACKGROUNDS, "background"))
    single = sum(length(c.name) == 1 for c in CONCEPTS if " " not in c.name)
    assert single == sum(" " not in c.name and "-" not in c.name for c in CONCEPTS)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_captions_survive_the_shipped_tokenizers(
    name: str, embedded: Callable[[str], Path]
) -> None:
    words = CLIPTokenizer.from_pretrained(embedded("emoji-xl") / name)
    rng = random.Random(3)
    texts = [caption(s, rng, held_out=h) for h in (False, True) for s in scenes_at(3, 150)]
    assert any(not text.isascii() for text in texts)
    for text, ids in zip(texts, words(texts).input_ids, strict=True):
        assert len(ids) <= words.model_max_length == 77
        back = words.decode(ids, skip_special_tokens=True)
        assert re.sub(r"\s", "", back) == re.sub(r"\s", "", text)
        assert words(back).input_ids == ids


def test_the_shipped_tokenizer_reads_what_people_type(embedded: Callable[[str], Path]) -> None:
    words = llava.tokenizer(embedded("emoji-llava"))
    assert len(words) == llava.VOCAB_SIZE
    rng = random.Random(5)
    for scene in scenes_at(5, 30):
        for held_out in (False, True):
            for question in questions(scene, rng, held_out=held_out):
                ids, labels = training_example(
                    words, [(as_typed(question.text, rng), question.answer)], llava.SOFT
                )
                assert words.unk_token_id not in ids and len(ids) < words.model_max_length
                taught = [label for label in labels if label != IGNORE_LABEL]
                assert words.decode(taught).strip() == question.answer + "</s>"
