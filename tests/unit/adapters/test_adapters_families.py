"""Foreign towers of other families than CLIP: masked padding, no pooled state, other tokenizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.comparisons import relative
from support.foreign_towers import PROMPTS, UNSEEN
from support.tiny_models import tiny_sdxl_pipeline
from support.tiny_t5 import tiny_t5_encoder, tiny_t5_tokenizer
from support.tiny_tokenizers import tiny_bert_tokenizer, tiny_llama_tokenizer
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

import bridge
from bridge.adapters import label_swap
from bridge.errors import OptionError
from bridge.towers import Layer, TextTower


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny_sdxl_pipeline()


def tower_of(kind: str) -> TextTower:
    torch.manual_seed(2)
    size: dict[str, Any] = {
        "hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    if kind == "t5":
        return TextTower.from_modules(tiny_t5_encoder(), tiny_t5_tokenizer(), name=kind)
    if kind == "bert":
        bert = tiny_bert_tokenizer()
        module: Any = BertModel(
            BertConfig(vocab_size=len(bert), **size), add_pooling_layer=False
        ).eval()
        return TextTower.from_modules(module, bert, name=kind)
    llama = tiny_llama_tokenizer()
    module = LlamaModel(
        LlamaConfig(
            vocab_size=len(llama), initializer_range=0.2, max_position_embeddings=128, **size
        )
    ).eval()
    return TextTower.from_modules(module, llama, name=kind)


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_a_language_model_stands_for_both_towers(sdxl: Any, kind: str) -> None:
    tower = tower_of(kind)
    assert label_swap(tower, sdxl).label == "adapter"
    with pytest.raises(OptionError, match=r"of another kind.*bridge\.fit_adapter"):
        bridge.condition("a cat", model=sdxl, towers=tower)
    made = bridge.fit_adapter(tower, model=sdxl, prompts=PROMPTS)
    assert made.layers[0] == Layer(-1, True) and len(made.layers) == tower.spec.layers + 1
    for component in ("text_encoder", "text_encoder_2"):
        assert made.explained[component]["content"] > 0.2
    assert made.explained["text_encoder_2"]["pooled"] > 0
    mapped = bridge.condition(UNSEEN, "", model=sdxl, towers=tower, adapter=made)
    native = bridge.condition(UNSEEN, "", model=sdxl)
    assert mapped.prompt_embeds.shape == native.prompt_embeds.shape
    assert mapped.pooled_prompt_embeds is not None and native.pooled_prompt_embeds is not None
    assert mapped.pooled_prompt_embeds.shape == native.pooled_prompt_embeds.shape
    # Nearer to the native states than the mean prompt's are.
    mean = native.prompt_embeds.mean(0)
    error = (mapped.prompt_embeds - native.prompt_embeds).square().mean()
    assert error < (mean - native.prompt_embeds).square().mean()


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_prompts_neighbours_do_not_change_it(sdxl: Any, kind: str) -> None:
    # These are padded to the longest of a batch, so padding must have no say.
    tower = tower_of(kind)
    made = bridge.fit_adapter(tower, model=sdxl, prompts=PROMPTS[:40])
    options: dict[str, Any] = {"model": sdxl, "towers": tower, "adapter": made}
    alone = bridge.condition("a red cat", **options).prompt_embeds
    beside = bridge.condition(["a red cat", "two dog of the cat, " * 5], **options).prompt_embeds
    assert relative(beside[:1], alone) < 1e-3
