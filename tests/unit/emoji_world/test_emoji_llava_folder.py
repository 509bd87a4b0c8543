"""The chat text, the tokenizer and the labels that training and answering share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_vlm import CORPUS, IMAGE_SIZE, PATCH_SIZE, SOFT_TOKENS, tiny_llava

from bridge.vlm.chat import CHAT_TEMPLATE, IMAGE_TOKEN, chat_messages, chat_text
from bridge.vlm.train.batches import IGNORE_LABEL
from emoji_world.llava_folder import (
    SPECIAL_TOKENS,
    build_processor,
    build_tokenizer,
    training_example,
)

ONE = [("what is on the left?", "a cat")]
TWO = [*ONE, ("how many?", "two")]


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return build_tokenizer(CORPUS, 320)


def test_chat_text_is_llavas() -> None:
    assert chat_text(ONE, True) == "USER: <image>\nwhat is on the left? ASSISTANT: a cat</s>"
    assert chat_text(ONE, False) == "USER: <image>\nwhat is on the left? ASSISTANT:"
    assert chat_text(TWO, False) == (
        "USER: <image>\nwhat is on the left? ASSISTANT: a cat</s>USER: how many? ASSISTANT:"
    )
    with pytest.raises(ValueError, match="at least one turn"):
        chat_text([], True)
    with pytest.raises(ValueError, match="at least one turn"):
        chat_messages([])


@pytest.mark.parametrize("turns", [ONE, TWO, [("a ☃?\n  b ", " c "), ("{{ x }}", "y")]])
def test_the_template_says_what_chat_text_says(tokenizer, turns) -> None:  # type: ignore[no-untyped-def]
    rendered = tokenizer.apply_chat_template(
        chat_messages(turns), tokenize=False, add_generation_prompt=True
    )
    assert rendered == chat_text(turns, with_answers=False)
    whole = chat_messages([*turns, ("x", "")])[:-1]
    assert tokenizer.apply_chat_template(whole, tokenize=False) == chat_text(turns, True)


def test_the_template_takes_plain_strings(tokenizer) -> None:  # type: ignore[no-untyped-def]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "USER: hi ASSISTANT: ho</s>"


def test_tokenizer_specials_bytes_and_bos(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    ids = tokenizer("שלום ☃ \t naïve")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "שלום ☃ \t naïve"
    assert tokenizer("a<image>b")["input_ids"].count(4) == 1
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_special_tokens_leave_no_merges() -> None:
    learnt = build_tokenizer([chat_text(ONE, True)] * 9, 400)
    odd = [token for token in learnt.get_vocab() if "imag" in token or "</" in token]
    assert set(odd) == {IMAGE_TOKEN, "</s>"}
    assert "ASSISTANT" in "".join(learnt.get_vocab())


def test_vocabulary_too_small_for_the_bytes() -> None:
    with pytest.raises(ValueError, match="261"):
        build_tokenizer(CORPUS, 200)


def test_saved_and_loaded_tokenizer_gives_the_same_ids(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    folder = tiny_llava(tmp_path)
    loaded = AutoTokenizer.from_pretrained(folder)
    text = chat_text(TWO, True)
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == CHAT_TEMPLATE


def test_labels_cover_the_answers_and_nothing_else(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids, labels = training_example(tokenizer, TWO, SOFT_TOKENS)
    assert len(ids) == len(labels)
    assert ids.count(4) == SOFT_TOKENS
    learnt = [label for label in labels if label != IGNORE_LABEL]
    assert tokenizer.decode(learnt) == " a cat</s> two</s>"
    assert all(label in (IGNORE_LABEL, token) for label, token in zip(labels, ids, strict=True))
    plain = tokenizer(chat_text(TWO, True))["input_ids"]
    assert [t for t in ids if t != 4] == [t for t in plain if t != 4]


def test_processor_is_stock_and_counts_as_the_model_does(tokenizer) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    processor = build_processor(tokenizer, IMAGE_SIZE, PATCH_SIZE)
    batch = processor(images=Image.new("RGB", (50, 20)), text=chat_text(ONE, False))
    assert batch["input_ids"][0].count(4) == SOFT_TOKENS
    assert batch["pixel_values"][0].shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    assert float(batch["pixel_values"][0].min()) == -1.0
