"""Layers of published checkpoints' real shapes, random and few, against stock: 1e-4 in fp32.

CLIP-L/14 at 336 px with a 7B LLaMA (LLaVA 1.5 and 1.6), and EVA-g at 224 px with OPT 2.7B
(BLIP-2). A few GiB of memory each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_checkpoints import next_model, next_processor, text_config, tokenizer_with_image

from bridge.vlm import from_blip2, from_llava
from bridge.vlm.model import BridgeVLM
from bridge.vlm.views import pil_clip_processor

pytestmark = pytest.mark.slow

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
QUESTION = "what is on the left?"
TOLERANCE = 1e-4


def picture(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def clip_l() -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=3,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def llama_7b() -> Any:
    return text_config(
        32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        initializer_range=0.02,
    )


def clip_processor() -> Any:
    return pil_clip_processor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})


def compare(vlm: BridgeVLM, model: Any, batch: Any, image: Image.Image) -> None:
    with torch.inference_mode():
        want = model(**batch).logits
    got = vlm.logits([image], [[(QUESTION, "")]])
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= TOLERANCE
    assert float(want.std()) > 0.1, "logits all near zero would prove nothing"
    tokens = model.generate(**batch, max_new_tokens=3, do_sample=False)[0]
    ours = vlm._generate(vlm.inputs([image], [[(QUESTION, "")]]), 3)[0]
    assert ours.tolist() == tokens[batch["input_ids"].shape[1] :].tolist()


def test_llava_15() -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    torch.manual_seed(0)
    config = LlavaConfig(vision_config=clip_l(), text_config=llama_7b(), image_token_index=4)
    model = LlavaForConditionalGeneration(config).eval()
    processor = LlavaProcessor(
        image_processor=clip_processor(),
        tokenizer=tokenizer_with_image(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    vlm = from_llava(model, processor.tokenizer, processor.image_processor)
    assert vlm.n_soft_tokens(336, 336) == 576
    image = picture((640, 480))
    text = vlm.prompt_text([(QUESTION, "")])
    compare(vlm, model, processor(images=image, text=text, return_tensors="pt"), image)


@pytest.fixture(scope="module")
def following() -> tuple[Any, Any]:
    model = next_model(clip_l(), llama_7b(), PINPOINTS)
    return model, next_processor(tokenizer_with_image(), 336, 14, PINPOINTS)


@pytest.mark.parametrize("size", [(640, 480), (300, 1200), (1000, 20)])
def test_llava_16(following: tuple[Any, Any], size: tuple[int, int]) -> None:
    model, processor = following
    vlm = from_llava(model, processor.tokenizer, clip_processor())
    text = vlm.prompt_text([(QUESTION, "")])
    batch = processor(images=picture(size), text=text, return_tensors="pt")
    compare(vlm, model, batch, picture(size))


def test_blip2() -> None:
    from support.tiny_checkpoints import plain_tokenizer
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = plain_tokenizer()
    text = OPTConfig(
        vocab_size=50304,
        hidden_size=2560,
        num_hidden_layers=1,
        ffn_dim=10240,
        num_attention_heads=32,
        word_embed_proj_dim=2560,
        bos_token_id=1,
        pad_token_id=3,
    )
    config = Blip2Config(
        # The default spread of 1e-10 would leave a tower of zeros.
        vision_config=Blip2VisionConfig(num_hidden_layers=2, initializer_range=0.02),
        qformer_config=Blip2QFormerConfig(num_hidden_layers=2),
        text_config=text,
        image_token_index=320,
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.query_tokens)
    images = BlipImageProcessorPil(size={"height": 224, "width": 224})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=32)
    vlm = from_blip2(model, tokenizer, images)
    image = picture((640, 480))
    asked = f"Question: {QUESTION} Answer:"
    compare(vlm, model, processor(images=image, text=asked, return_tensors="pt"), image)
