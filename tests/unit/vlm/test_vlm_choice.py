"""Choosing among allowed answers: the same log-probabilities as one answer at a time, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_pairs import (
    INSIDE,
    LATER,
    LLAVA_HF_TEMPLATE,
    SPACED_END_TEMPLATE,
    TEXT_TEMPLATE,
    picture,
    plain_tokenizer,
    tiny_pair,
)

from bridge.errors import OptionError, PromptError
from bridge.vlm import BridgeVLM, Choice
from bridge.vlm.chat import chat_text

CHOICES = ["yes", "no", "two red apples", "two"]
QUESTION = LATER[1][0]


@pytest.fixture(scope="module", params=["Llama", "GPT2", "Bloom"])
def vlm(request: pytest.FixtureRequest) -> BridgeVLM:
    return tiny_pair("siglip", request.param)


@torch.inference_mode()
def sum_by_hand(vlm: BridgeVLM, text: str, answer_ids: list[int]) -> float:
    """One answer alone, token after token, each from a forward pass over all before it."""
    soft = vlm.soft_tokens(
        vlm.image_processor(images=[picture()], return_tensors="pt")["pixel_values"]
    )[0]
    before, after = text.split("<image>")
    embed = vlm.llm.get_input_embeddings()
    first, second = (
        embed(torch.tensor(vlm.tokenizer(piece, add_special_tokens=bos)["input_ids"]))
        for piece, bos in ((before, True), (after, False))
    )
    chat = torch.cat([first, soft, second])
    total = 0.0
    for token in answer_ids:
        logits = vlm.llm(inputs_embeds=chat[None]).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
        chat = torch.cat([chat, embed(torch.tensor([token]))])
    return total


def ids(vlm: BridgeVLM, text: str) -> list[int]:
    return list(vlm.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_sums_equal_one_answer_at_a_time(vlm: BridgeVLM) -> None:
    chosen = vlm.choose(picture(), QUESTION, CHOICES, history=LATER[:1])
    text = chat_text(LATER, with_answers=False)
    want = [sum_by_hand(vlm, text, [*ids(vlm, f" {choice}"), 2]) for choice in CHOICES]
    assert chosen.log_probs == pytest.approx(want, abs=1e-4)  # of 5 to 60; fp32 sums
    assert chosen.scores == chosen.log_probs
    assert chosen.answer == CHOICES[max(range(4), key=want.__getitem__)]
    assert sum(chosen.probabilities) == pytest.approx(1)
    assert max(chosen.probabilities) == chosen.probabilities[CHOICES.index(chosen.answer)]


def test_normalising(vlm: BridgeVLM) -> None:
    plain = vlm.choose(picture(), QUESTION, CHOICES)
    tokens = vlm.choose(picture(), QUESTION, CHOICES, normalise="tokens")
    size = vlm.choose(picture(), QUESTION, CHOICES, normalise="bytes")
    lengths = [len(ids(vlm, f" {choice}")) + 1 for choice in CHOICES]
    assert tokens.log_probs == size.log_probs == plain.log_probs
    wanted = [total / n for total, n in zip(plain.log_probs, lengths, strict=True)]
    assert tokens.scores == pytest.approx(wanted)
    wanted = [total / len(c) for total, c in zip(plain.log_probs, CHOICES, strict=True)]
    assert size.scores == pytest.approx(wanted)


def test_each_choice_is_scored_as_in_any_other_company(vlm: BridgeVLM) -> None:
    whole = vlm.choose(picture(), QUESTION, CHOICES)
    turned = vlm.choose(picture(), QUESTION, CHOICES[::-1])
    pair = vlm.choose(picture(), QUESTION, CHOICES[:2])
    assert turned.answer == whole.answer
    assert turned.log_probs[::-1] == pytest.approx(whole.log_probs, abs=1e-4)
    assert pair.log_probs == pytest.approx(whole.log_probs[:2], abs=1e-4)


def test_several_pictures_and_none() -> None:
    vlm = tiny_pair()
    two = vlm.choose([picture(1), picture(2)], INSIDE[0][0], ["yes", "no"])
    swapped = vlm.choose([picture(2), picture(1)], INSIDE[0][0], ["yes", "no"])
    none = vlm.choose(None, QUESTION, ["yes", "no"])
    assert two.log_probs != swapped.log_probs != none.log_probs


def test_a_template_says_what_stands_around_the_answer() -> None:
    vlm = tiny_pair("siglip", tokenizer=plain_tokenizer(TEXT_TEMPLATE))
    text = f"[user]<image>\n{QUESTION}</s>[assistant]"
    chosen = vlm.choose(picture(), QUESTION, ["yes", "no"])
    want = [sum_by_hand(vlm, text, [*ids(vlm, choice), 2]) for choice in ("yes", "no")]
    assert chosen.log_probs == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(
    ("template", "prompt", "told"),
    [
        (SPACED_END_TEMPLATE, "[INST] <image>\n{} [/INST]", " {} </s>"),
        (LLAVA_HF_TEMPLATE, "USER: <image>\n{} ASSISTANT:", " {}</s>"),
    ],
)
def test_a_choice_is_closed_so_its_beginning_has_no_advantage(
    template: str, prompt: str, told: str
) -> None:
    """Where the layout puts a space before the end token, and where it has none."""
    vlm = tiny_pair("siglip", tokenizer=plain_tokenizer(template))
    choices = ["two red apples", "two"]
    chosen = vlm.choose(picture(), QUESTION, choices)
    text = prompt.format(QUESTION)
    want = [sum_by_hand(vlm, text, ids(vlm, told.format(choice))) for choice in choices]
    assert chosen.log_probs == pytest.approx(want, abs=1e-4)


def test_the_tower_runs_once_for_all_choices() -> None:
    vlm = tiny_pair()
    runs: list[int] = []
    vlm.vision.register_forward_pre_hook(lambda *_: runs.append(1))  # type: ignore[union-attr]
    assert isinstance(vlm.choose(picture(), QUESTION, CHOICES), Choice)
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("choices", "match"),
    [
        ("yes", "list of texts"),
        (None, "NoneType"),
        ([], "at least two"),
        (["yes"], "at least two"),
        (["yes", " yes "], "all different"),
        (["yes", ""], "''"),
        (["yes", 3], "3"),
    ],
)
def test_bad_choices(choices: Any, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        tiny_pair().choose(picture(), QUESTION, choices)


def test_bad_options() -> None:
    vlm = tiny_pair()
    normalise: Any = "length"
    with pytest.raises(OptionError, match="none, tokens, bytes"):
        vlm.choose(picture(), QUESTION, CHOICES, normalise=normalise)
    with pytest.raises(PromptError, match="control token"):
        vlm.choose(picture(), QUESTION, ["yes</s>", "no"])
    with pytest.raises(PromptError, match="empty"):
        vlm.choose(picture(), " ", CHOICES)
