"""The towers that ship, opened by name, against transformers' own CLIPModel.

Bit for bit where the calculation is the same, else 1e-5 of the largest entry: other kernels for
attention add in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.comparisons import relative
from transformers import CLIPModel, CLIPTokenizer

from bridge.errors import (
    OptionError,
)
from bridge.towers import (
    Layer,
    count_parameters,
    join_clip,
    open_image_tower,
    open_text_tower,
    towers,
)

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
    name: str, embedded: Callable[[str], Path], pictures: list[Image.Image]
) -> None:
    folder = embedded(SHORT[name])
    whole = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    text, image = open_text_tower(name, device="cpu"), open_image_tower(name, device="cpu")
    assert text.family == image.family == "clip"
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


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(OptionError, match="has 4"):
        open_text_tower("emoji-1", device="cpu").encode(["a"], (Layer(-6),))
    with pytest.raises(OptionError, match="has 6"):
        open_image_tower("emoji-1", device="cpu").encode([Image.new("RGB", (9, 9))], (0,))


def test_drawing_and_answering_share_the_embedded_clip(embedded: Callable[[str], Path]) -> None:
    """The pipeline's text tower and the answerer's image tower are emoji-clip, loaded once, but for
    the image tower's last layer, which answering does not need."""
    from bridge.diffusion import load_pipeline
    from bridge.vlm import load_vlm

    pipe, vlm = load_pipeline(embedded("emoji-xl")), load_vlm(embedded("emoji-llava"))
    clip = join_clip(embedded("emoji-clip"), pipe.text_encoder, vlm.vision)
    both = count_parameters(pipe) + count_parameters(vlm)
    heads = sum(
        p.numel()
        for p in (clip.text_projection.weight, clip.visual_projection.weight, clip.logit_scale)
    )
    last = count_parameters(clip.vision_model.encoder.layers[-1])
    assert len(vlm.vision.encoder.layers) == len(clip.vision_model.encoder.layers) - 1  # type: ignore[union-attr, arg-type]
    assert count_parameters(pipe, vlm) == both
    assert count_parameters(pipe, vlm, clip) == both + heads + last
    assert count_parameters(clip) > 20 * heads  # what a second copy would have cost
