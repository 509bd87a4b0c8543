"""Towers opened by name and folder, against transformers' own CLIPModel on the same folder.

Bit for bit where the calculation is the same, else 1e-5 of the largest entry: other kernels for
attention add in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.comparisons import relative
from support.tiny_models import tiny_clip_tokenizer, tiny_sd_pipeline
from transformers import CLIPModel, CLIPTokenizer

from bridge.errors import OptionError, PromptError, UnknownModelError, UnsupportedModelError
from bridge.towers import Layer, TextTower, fingerprint, open_image_tower, open_text_tower, towers
from bridge.towers.tokenizer import TokenRule, tokenize

Embedded = Callable[[str], Path]
TEXTS = ["two red apples left of a cat", "", "a cat"]
TOLERANCE = 1e-5
SHORT = {"emoji-1": "emoji-clip", "emoji-2": "emoji-clip-2"}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 90, 140, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in noise]


@pytest.mark.parametrize("name", SHORT)
@torch.no_grad()
def test_an_embedded_tower_is_transformers_clip_model(
    name: str, embedded: Embedded, pictures: list[Image.Image]
) -> None:
    folder = embedded(SHORT[name])
    whole = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    text, image = open_text_tower(name, device="cpu"), open_image_tower(name, device="cpu")
    batch = text.tokenize(TEXTS)
    wanted_ids = tokenizer(TEXTS, padding="max_length", max_length=77, return_tensors="pt")
    assert torch.equal(batch.ids, wanted_ids.input_ids)
    assert torch.equal(batch.mask, wanted_ids.attention_mask)
    states = text.encode(batch, (Layer(), Layer(-2, False), Layer(-5, False)))
    inside = whole.text_model(batch.ids, output_hidden_states=True)
    assert torch.equal(states.hidden[0], inside.last_hidden_state)
    assert torch.equal(states.hidden[1], inside.hidden_states[-2])
    assert torch.equal(states.hidden[2], inside.hidden_states[0])
    seen = image.encode(pictures)
    out = whole(
        input_ids=batch.ids,
        pixel_values=image.processor(pictures, return_tensors="pt").pixel_values,
    )
    assert relative(states.pooled, whole.text_projection(inside.pooler_output)) <= TOLERANCE
    assert relative(torch.nn.functional.normalize(seen.pooled), out.image_embeds) <= TOLERANCE
    assert relative(text.scores(states.pooled, seen.pooled), out.logits_per_text) <= TOLERANCE
    assert seen.patches[0].shape == (2, 64, 192) and seen.grid == (8, 8)
    spec = text.spec
    row = next(row for row in towers() if row["name"] == name)
    assert row["at_hand"]
    assert (spec.width, spec.pooled_width, spec.context, spec.layers) == (
        row["text_width"], row["pooled_width"], row["context"], row["layers"],
    )  # fmt: skip
    assert (image.spec.width, image.module.config.patch_size, image.module.config.image_size) == (
        row["image_width"], row["patch"], row["image_size"],
    )  # fmt: skip


@torch.no_grad()
def test_attentions_are_those_of_eager_attention_and_leave_the_tower_as_it_was() -> None:
    tower = open_text_tower("emoji-1", device="cpu")
    before = tower.module.config._attn_implementation
    states = tower.encode(TEXTS, attentions=True)
    assert tower.module.config._attn_implementation == before
    assert len(states.attentions) == 4 and states.attentions[0].shape == (3, 6, 77, 77)
    assert relative(states.attentions[1].sum(-1), torch.ones(3, 6, 77)) <= TOLERANCE
    assert states.attentions[2].triu(1).abs().max() == 0
    plain = tower.encode(TEXTS)
    assert plain.attentions == ()
    assert relative(states.hidden[0], plain.hidden[0]) <= TOLERANCE


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


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(OptionError, match="has 4"):
        open_text_tower("emoji-1", device="cpu").encode(["a"], (Layer(-6),))
    with pytest.raises(OptionError, match="has 6"):
        open_image_tower("emoji-1", device="cpu").encode([Image.new("RGB", (9, 9))], (0,))
