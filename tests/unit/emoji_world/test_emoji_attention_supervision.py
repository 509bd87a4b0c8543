"""Supervised attention: which tokens are a thing's name, and where they should look."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.tiny_world import scenes_at
from transformers import PreTrainedTokenizerFast

from bridge.vlm.train.batches import IGNORE_LABEL
from emoji_world.concepts import CONCEPTS
from emoji_world.llava_folder import training_example
from emoji_world.questions import questions
from emoji_world.train.attention_supervision import HEADS, Nouns, look_loss
from emoji_world.train.packed_chats import as_typed


@pytest.fixture(scope="module")
def words(embedded: Callable[[str], Path]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(embedded("emoji-llava"))


def named(text: str) -> list[int]:
    """The concepts a question names, in order; longest names first, whole words only."""
    by_name = {n: i for i, c in enumerate(CONCEPTS) for n in (c.one, c.many)}
    names = sorted(by_name, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)
    return [by_name[found] for found in re.findall(pattern, text)]


def test_nouns_of_questions_are_found_and_no_others(words: PreTrainedTokenizerFast) -> None:
    nouns = Nouns(words)
    rng = random.Random(3)
    found = 0
    for scene in scenes_at(6, 60):
        for held_out in (False, True):
            for question in questions(scene, rng, held_out=held_out):
                turn = (as_typed(question.text, rng), question.answer)
                ids, labels = training_example(words, [turn], 4)
                ends = nouns.ends(ids, labels)
                assert [c for c in ends if c >= 0] == named(question.text), question.text
                found += max(ends) >= 0
                for place, concept in enumerate(ends):
                    if concept >= 0:
                        told = words.decode(ids[: place + 1])
                        assert told.endswith((CONCEPTS[concept].one, CONCEPTS[concept].many))
    assert found > 300


def test_what_is_taught_is_not_told_where_to_look(words: PreTrainedTokenizerFast) -> None:
    turn = ("what is this?", f"a {CONCEPTS[7].one}")
    ids, labels = training_example(words, [turn], 4)
    nouns = Nouns(words)
    assert max(nouns.ends(ids, labels)) == -1
    assert 7 in nouns.ends(ids, [IGNORE_LABEL] * len(ids))


def test_the_loss_wants_the_thing_or_the_beginning() -> None:
    # One row: a beginning, three soft tokens (a 5, ground, a 5), and the nouns 5 and 6.
    concepts = torch.tensor([[5, 320, 5]])
    ends = torch.tensor([[-1, -1, -1, -1, 5, 6]])
    attention = torch.zeros(1, HEADS + 1, 6, 6)
    attention[0, :, 4, 1] = 0.5
    attention[0, :, 4, 3] = 0.25
    attention[0, :, 4, 2] = 0.25
    attention[0, :, 5, 0] = 0.75
    attention[0, HEADS] = 0  # nobody asks the other heads
    loss, mass = look_loss(attention, ends, concepts, first=1)
    assert mass == pytest.approx(0.75)
    assert loss.item() == pytest.approx(-math.log(0.75), rel=1e-3)
    # Looking at the ground costs; a head that looks away altogether costs a finite sum.
    attention[0, :HEADS, 4] = torch.tensor([0, 0, 1.0, 0, 0, 0])
    worse, _ = look_loss(attention, ends, concepts, first=1)
    assert loss < worse < 10
