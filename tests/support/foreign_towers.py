"""A tower that no pipeline here has, and prompts to fit an adapter on."""

from __future__ import annotations

import itertools

import torch
from transformers import CLIPTextModel

from bridge.towers import TextTower
from support.tiny_models import text_config, tiny_clip_tokenizer

_COLOURS = ("red", "two", "left", "photo")

_THINGS = ("cat", "dog", "apple", "apples", "an apple", "the cat")

_JOINS = ("of", "in", "of the", "and", ",", "left of")

ALL = [
    f"{colour} {thing} {join} {other}"
    for colour, thing, join, other in itertools.product(_COLOURS, _THINGS, _JOINS, _THINGS)
]

PROMPTS = ALL[::7]  # 124, and what is between them was not seen

UNSEEN = [
    "two dog left of the cat",
    "photo apples, an apple",
    "red cat in dog",
    "two an apple of cat",
]


def foreign_tower(width: int = 48, seed: int = 7) -> TextTower:
    """A tower with another vocabulary, activation and width."""
    torch.manual_seed(seed)
    tokenizer = tiny_clip_tokenizer(words=("ca", "do", "app", "photo", "le", "of"))
    module = CLIPTextModel(text_config(tokenizer, hidden_size=width)).eval()
    return TextTower.from_modules(module, tokenizer, name="foreign")
