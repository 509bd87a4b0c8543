"""LLaVA 1.6's tiles on bridge's own road, against stock LlavaNext."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.tiny_checkpoints import PINPOINTS, next_processor, tiny_next
from support.tiny_vlm import IMAGE_SIZE, PATCH_SIZE

from bridge.errors import UnsupportedModelError
from bridge.vlm import describe, load_vlm
from bridge.vlm.model import BridgeVLM
from bridge.vlm.views import (
    AnyRes,
    OneView,
    best_pinpoint,
    mean_colour,
    pad_to_square,
    pil_clip_processor,
    unpadded,
    view_pixels,
)

# Width and height: plain, thin, flat, thinner than a token, square, odd, and one pixel.
SIZES = [(50, 40), (20, 90), (200, 20), (3, 300), (200, 1), (64, 64), (33, 97), (1, 1)]
REAL_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
QUESTION = "what is on the left?"
# fp32, the same operations in another batch shape: rounding only.
TOLERANCE = 1e-5


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_next(tmp_path_factory.mktemp("next") / "tiny-next")


@pytest.fixture(scope="module")
def vlm(folder: Path) -> BridgeVLM:
    return load_vlm(folder, device="cpu")


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    from transformers import LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(vlm: BridgeVLM) -> Any:
    return next_processor(vlm.tokenizer, IMAGE_SIZE, PATCH_SIZE, PINPOINTS)


def batch_of(processor: Any, vlm: BridgeVLM, images: list[Image.Image]) -> Any:
    texts = [vlm.prompt_text([(QUESTION, "")])] * len(images)
    # The chat text begins without <s>, which the tokenizer adds.
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("size", SIZES)
def test_pixels_ids_and_logits_equal_stock(
    vlm: BridgeVLM, stock: Any, processor: Any, size: tuple[int, int]
) -> None:
    image = picture(size)
    batch = batch_of(processor, vlm, [image])
    views = view_pixels(vlm.image_processor, vlm.aspect, [image])
    assert torch.equal(views.pixel_values, batch["pixel_values"][0])
    soft = vlm.n_soft_tokens(IMAGE_SIZE, IMAGE_SIZE, (size[1], size[0]))
    assert vlm.prompt_ids([(QUESTION, "")], soft) == batch["input_ids"][0].tolist()
    with torch.inference_mode():
        want = stock(**batch).logits
    assert relative(vlm.logits([image], [[(QUESTION, "")]]), want) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES[:5])
def test_greedy_tokens_equal_stock(
    vlm: BridgeVLM, stock: Any, processor: Any, size: tuple[int, int]
) -> None:
    image = picture(size, 1)
    batch = batch_of(processor, vlm, [image])
    want = stock.generate(**batch, max_new_tokens=16, do_sample=False)
    want = want[0, batch["input_ids"].shape[1] :].tolist()
    got = vlm._generate(vlm.inputs([image], [[(QUESTION, "")]]), 16)[0].tolist()
    assert got == want
    assert len(set(got)) > 3, "an answer of one token repeated proves little"


def test_a_batch_of_ragged_pictures_equals_stock_and_single_calls(
    vlm: BridgeVLM, stock: Any, processor: Any
) -> None:
    images = [picture(size) for size in SIZES[:4]]
    batch = batch_of(processor, vlm, images)
    with torch.inference_mode():
        want = stock(**batch).logits[batch["attention_mask"] == 1]
    got = vlm.logits(images, [[(QUESTION, "")]] * 4)[batch["attention_mask"] == 1]
    assert relative(got, want) <= TOLERANCE
    answers = vlm.answers(images, [QUESTION] * 4, max_new_tokens=8)
    assert answers == [vlm.answer(image, QUESTION, max_new_tokens=8) for image in images]


def test_describe_and_the_count_beforehand(folder: Path, vlm: BridgeVLM) -> None:
    assert describe(picture((9, 90)), QUESTION, model=folder, max_new_tokens=4) == vlm.answer(
        picture((9, 90)), QUESTION, max_new_tokens=4
    )
    for size in SIZES:
        views = view_pixels(vlm.image_processor, vlm.aspect, [picture(size)])
        counted = vlm.n_soft_tokens(IMAGE_SIZE, IMAGE_SIZE, (size[1], size[0]))
        with torch.inference_mode():
            assert len(vlm.picture_tokens(views)[0]) == counted


# -- it can fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"select_layer": -1},
        {"select_layer": -3},
        {"newline": 0.0},
        {"pinpoints": ((32, 96),)},
    ],
)
def test_the_exactness_test_can_fail(
    vlm: BridgeVLM, stock: Any, processor: Any, change: dict[str, Any]
) -> None:
    image = picture((60, 35))
    with torch.inference_mode():
        want = stock(**batch_of(processor, vlm, [image])).logits
    if "select_layer" in change:
        broken = replace(vlm, **change)
    elif "newline" in change:
        aspect: Any = vlm.aspect
        broken = replace(vlm, aspect=replace(aspect, newline=torch.zeros_like(aspect.newline)))
    else:
        broken = replace(vlm, aspect=replace(vlm.aspect, **change))  # type: ignore[type-var]
    got = broken.logits([image], [[(QUESTION, "")]])
    assert got.shape != want.shape or relative(got, want) > 1e-2


def test_positions_that_skip_the_picture_are_noticed(
    vlm: BridgeVLM, stock: Any, processor: Any
) -> None:
    image = picture((50, 40))
    batch = batch_of(processor, vlm, [image])
    with torch.inference_mode():
        want = stock(**batch).logits
        rows = vlm.inputs([image], [[(QUESTION, "")]])
        is_word = (batch["input_ids"] != vlm.image_token_id).long()
        for positions, wrong in ((rows.position_ids, False), (is_word.cumsum(-1) - 1, True)):
            got = vlm.llm(inputs_embeds=rows.inputs_embeds, position_ids=positions).logits
            assert (relative(got, want) > 1e-2) is wrong


def test_a_class_token_in_the_grid_is_refused(vlm: BridgeVLM) -> None:
    with pytest.raises(UnsupportedModelError, match="square grid"):
        replace(vlm, select_feature="cls_patch").answer(picture((50, 40)), QUESTION)


# -- the geometry -------------------------------------------------------------------------

sides = st.integers(1, 3000)


@given(sides, sides)
@settings(max_examples=300, deadline=None)
def test_geometry_equals_transformers(height: int, width: int) -> None:
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    size = (height, width)
    best = best_pinpoint(size, REAL_PINPOINTS)
    assert best == select_best_resolution(size, list(REAL_PINPOINTS))
    down, across = best[0] // 14, best[1] // 14
    plane = torch.arange(down * across).view(1, down, across)
    rows, columns = unpadded((down, across), size)
    assert torch.equal(plane[:, rows, columns], unpad_image(plane, size))
    aspect = AnyRes(REAL_PINPOINTS, 336, torch.full((1,), -1.0))
    tiles = best[0] // 336 * (best[1] // 336)
    soft = torch.zeros(1 + tiles, 576, 1)
    packed = aspect.pack(soft, size)
    assert len(packed) == aspect.n_soft_tokens(576, size)
    assert int((packed == -1).sum()) == rows.stop - rows.start


def test_of_equal_pinpoints_the_first_is_taken() -> None:
    assert best_pinpoint((100, 100), [(336, 672), (672, 336)]) == (336, 672)
    assert best_pinpoint((100, 100), [(672, 336), (336, 672)]) == (672, 336)


# -- padding to the mean colour -----------------------------------------------------------


@pytest.mark.parametrize("size", [(50, 40), (40, 51), (7, 200), (32, 32)])
def test_padding_equals_transformers(size: tuple[int, int]) -> None:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    options = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    stock = LlavaImageProcessorPil(do_pad=True, **options)
    clip = pil_clip_processor(**options)
    padded = OneView(mean_colour(stock.image_mean))
    assert padded.pad_colour == (122, 116, 104)  # as LLaVA's own conversation.py has it
    want = stock(picture(size), return_tensors="pt")["pixel_values"]
    assert torch.equal(view_pixels(clip, padded, [picture(size)]).pixel_values, want)


def test_a_padded_picture_keeps_every_pixel() -> None:
    padded = pad_to_square(picture((10, 5)), (1, 2, 3))
    assert padded.size == (10, 10)
    assert np.array_equal(np.asarray(padded)[2:7], np.asarray(picture((10, 5))))
    assert padded.getpixel((0, 0)) == padded.getpixel((9, 9)) == (1, 2, 3)
