"""BLIP-2's parts against the stock model: logits, greedy tokens, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_checkpoints import tiny_blip2
from torch import nn

from bridge.errors import UnsupportedModelError
from bridge.vlm import describe, from_blip2, load_vlm, save_vlm, train_vlm
from bridge.vlm.model import BridgeVLM

QUESTIONS = ["what is on the left?", "how many cats are there in the picture?"]
TOLERANCE = 1e-5


def picture(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip2(tmp_path_factory.mktemp("blip2") / "tiny-blip2")


@pytest.fixture(scope="module")
def vlm(folder: Path) -> BridgeVLM:
    return load_vlm(folder, device="cpu")


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    from transformers import Blip2ForConditionalGeneration

    return Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(vlm: BridgeVLM) -> Any:
    from transformers import Blip2Processor

    return Blip2Processor(vlm.image_processor, vlm.tokenizer, num_query_tokens=6)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def batch_of(processor: Any, questions: list[str], seeds: list[int]) -> Any:
    texts = [f"Question: {question} Answer:" for question in questions]
    images = [picture(seed) for seed in seeds]
    return processor(images=images, text=texts, return_tensors="pt")


@pytest.mark.parametrize("question", QUESTIONS)
def test_logits_equal_stock(vlm: BridgeVLM, stock: Any, processor: Any, question: str) -> None:
    batch = batch_of(processor, [question], [0])
    assert vlm.prompt_ids([(question, "")], 6) == batch["input_ids"][0].tolist()
    with torch.inference_mode():
        want = stock(**batch).logits
    assert relative(vlm.logits([picture()], [[(question, "")]]), want) <= TOLERANCE


@pytest.mark.parametrize("seed", range(3))
def test_greedy_tokens_equal_stock(vlm: BridgeVLM, stock: Any, processor: Any, seed: int) -> None:
    batch = batch_of(processor, QUESTIONS[:1], [seed])
    want = stock.generate(**batch, max_new_tokens=12, do_sample=False)[0].tolist()
    got = vlm._generate(vlm.inputs([picture(seed)], [[(QUESTIONS[0], "")]]), 12)[0]
    # With ids beside the embeddings, generate gives the prompt back too.
    assert got.tolist() == want[batch["input_ids"].shape[1] :]
    assert len(set(got.tolist())) > 1  # how many, torch's release decides: the weights are random
    answer = describe(picture(seed), QUESTIONS[0], model=vlm, max_new_tokens=12)
    assert answer == vlm.tokenizer.decode(got, skip_special_tokens=True).strip()


def test_a_ragged_batch_equals_single_calls(vlm: BridgeVLM) -> None:
    """OPT's positions are absolute, so padding on the left must not count."""
    images = [picture(0), picture(1)]
    both = vlm.logits(images, [[(question, "")] for question in QUESTIONS])
    for row, (image, question) in enumerate(zip(images, QUESTIONS, strict=True)):
        single = vlm.logits([image], [[(question, "")]])[0]
        assert relative(both[row, -len(single) :], single) <= TOLERANCE
    rows = vlm.inputs(images, [[(question, "")] for question in QUESTIONS])
    counted = torch.arange(rows.inputs_embeds.shape[1]).expand(2, -1)  # padding counted
    with torch.inference_mode():
        broken = vlm.llm(
            inputs_embeds=rows.inputs_embeds,
            attention_mask=rows.attention_mask,
            position_ids=counted,
        ).logits
    assert relative(broken[0, -5:], both[0, -5:]) > 1e-2


def test_turns_are_questions_and_answers(vlm: BridgeVLM) -> None:
    assert vlm.prompt_text([("why?", "so"), ("how?", "")]) == (
        "<image></s>Question: why? Answer: so. Question: how? Answer:"
    )
    with_history = vlm.answer(picture(), "how?", history=[("why?", "so")], max_new_tokens=6)
    assert with_history != vlm.answer(picture(), "how?", max_new_tokens=6)


@pytest.mark.parametrize("feature", ["patch"])
def test_the_exactness_test_can_fail(
    vlm: BridgeVLM, stock: Any, processor: Any, feature: Any
) -> None:
    with torch.inference_mode():
        want = stock(**batch_of(processor, QUESTIONS[:1], [0])).logits
    broken = replace(vlm, select_feature=feature)
    assert relative(broken.logits([picture()], [[(QUESTIONS[0], "")]]), want) > 1e-3
    tower: Any = vlm.vision
    norm = tower.tower.post_layernorm
    tower.tower.post_layernorm = nn.Identity()  # the last hidden state, as of other towers
    try:
        got = vlm.logits([picture()], [[(QUESTIONS[0], "")]])
    finally:
        tower.tower.post_layernorm = norm
    assert relative(got, want) > 1e-3


def test_parameters_are_shared_not_copied(stock: Any, vlm: BridgeVLM) -> None:
    other: Any = from_blip2(stock, vlm.tokenizer, vlm.image_processor)
    parts = (other.vision, other.projector, other.llm)
    ours = {id(p) for part in parts for p in part.parameters()}
    assert ours == {id(p) for p in stock.parameters()}


def test_half_precision_keeps_the_qformer_whole(folder: Path) -> None:
    """In fp16 only: in bf16, whose range is fp32's, transformers halves all of it."""
    half: Any = load_vlm(folder, device="cpu", dtype="float16")
    assert half.projector.query_tokens.dtype == torch.float32
    assert half.llm.dtype == torch.float16
    assert isinstance(half.answer(picture(), "what?", max_new_tokens=3), str)


def test_a_picture_of_a_message_stands_where_the_layout_has_it(vlm: BridgeVLM) -> None:
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": "what?"}]
    for content in (parts, parts[::-1]):
        chatted = vlm.chat([{"role": "user", "content": content}], max_new_tokens=6)
        assert chatted == vlm.answer(picture(), "what?", max_new_tokens=6)


# -- what is refused ----------------------------------------------------------------------


def with_config(folder: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_the_encoder_decoder_kind_is_refused_by_its_config(folder: Path, tmp_path: Path) -> None:
    other = with_config(folder, tmp_path / "t5", text_config={"model_type": "t5"})
    with pytest.raises(UnsupportedModelError, match=r"encoder-decoder.*'t5'.*OPT"):
        load_vlm(other)


@pytest.mark.parametrize("named", [{}, {"vision": "a-blip-2"}])
def test_it_is_not_saved(vlm: BridgeVLM, tmp_path: Path, named: dict[str, str]) -> None:
    """Not by the tower's name either: what is loaded by it would be read without the norm."""
    with pytest.raises(UnsupportedModelError, match=r"Blip2Tower.*bridge\.vlm\.pair"):
        save_vlm(vlm, tmp_path / "saved", **named)
    assert not (tmp_path / "saved").exists()


def test_what_cannot_be_saved_is_not_trained(vlm: BridgeVLM, tmp_path: Path) -> None:
    rows = [{"image": picture(), "text": "a cat"}]
    with pytest.raises(UnsupportedModelError, match="Blip2Tower"):
        train_vlm(vlm, rows, tmp_path / "out", steps=1, progress=False)
    assert not (tmp_path / "out" / "log.json").exists()


def test_a_checkpoint_without_the_image_token(folder: Path, vlm: BridgeVLM, stock: Any) -> None:
    known = stock.config.image_token_index
    try:
        stock.config.image_token_index = None
        with pytest.raises(UnsupportedModelError, match="image_token_index"):
            from_blip2(stock, vlm.tokenizer, vlm.image_processor)
        stock.config.image_token_index = 7
        with pytest.raises(UnsupportedModelError, match="image token 7"):
            from_blip2(stock, vlm.tokenizer, vlm.image_processor)
    finally:
        stock.config.image_token_index = known
