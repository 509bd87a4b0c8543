"""Towers of transformers' own families against transformers' whole models, on random weights.

1e-5 of the largest entry in fp32, and mostly bit for bit: the calculation is the same classes',
but a projection or a product may be taken in another order.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from support.comparisons import relative
from support.reference_open_clip import scatter
from support.tiny_models import tiny_clip_tokenizer
from support.tiny_t5 import tiny_t5_encoder, tiny_t5_tokenizer
from support.tiny_tokenizers import (
    tiny_bert_tokenizer,
    tiny_llama_tokenizer,
    tiny_siglip2_tokenizer,
    tiny_xlmr_tokenizer,
)
from torch.nn.functional import normalize

from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.towers import Layer, TextTower, open_image_tower, open_text_tower
from bridge.towers.families import family_of

TOLERANCE = 1e-5
TEXTS = ["two red apples left of a cat", "", "a dog"]
LAYERS = (Layer(), Layer(-2, False), Layer(-3, False))


def near(found: torch.Tensor | None, wanted: torch.Tensor) -> None:
    assert found is not None and found.shape == wanted.shape
    assert relative(found, wanted) <= TOLERANCE


def save(model: Any, folder: Path, tokenizer: Any, processor: dict[str, Any] | None = None) -> Any:
    """The model in evaluation, its folder written."""
    scatter(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


PICTURES = [picture(40, 60), picture(33, 50, 1)]
SQUARE = {"size": {"height": 32, "width": 32}}


def attended(tower: TextTower) -> None:
    """Attention weights come for every layer, each row a distribution, and change no state."""
    batch = tower.tokenize(TEXTS)
    plain, eager = tower.encode(batch), tower.encode(batch, attentions=True)
    assert plain.attentions == () and len(eager.attentions) == tower.spec.layers
    length = batch.ids.shape[1]
    for weights in eager.attentions:
        assert weights.shape[0] == 3 and weights.shape[-2:] == (length, length)
        near(weights.sum(-1), torch.ones(weights.shape[:-1]))
    seen = batch.mask[..., None]
    near(eager.hidden[0] * seen, plain.hidden[0] * seen)


def runs_in_bfloat16(folder: Path, image: bool = True) -> None:
    text = open_text_tower(folder, device="cpu", dtype="bfloat16").encode(TEXTS)
    assert text.hidden[0].dtype == torch.bfloat16 and text.hidden[0].isfinite().all()
    if image:
        seen = open_image_tower(folder, device="cpu", dtype="bfloat16").encode(PICTURES)
        assert seen.patches[0].isfinite().all()


# ---------------------------------------------------------------- SigLIP, SigLIP 2

TEXT_SIDE = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 16, "projection_size": 24,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
IMAGE_SIDE = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def siglip(folder: Path, two: bool) -> Any:
    torch.manual_seed(0)
    name = "Siglip2" if two else "Siglip"
    side = {k: v for k, v in IMAGE_SIDE.items() if k != "image_size"} | {"num_patches": 16}
    config = getattr(transformers, f"{name}Config")(
        text_config=dict(TEXT_SIDE), vision_config=side if two else dict(IMAGE_SIDE)
    )
    processor: dict[str, Any] = {"image_processor_type": f"{name}ImageProcessor", **SQUARE}
    if two:
        processor = {
            "image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16,
        }  # fmt: skip
    model = getattr(transformers, f"{name}Model")(config)
    tokenizer = tiny_siglip2_tokenizer() if two else tiny_t5_tokenizer()
    return save(model, folder, tokenizer, processor)


@pytest.mark.parametrize("two", [False, True])
@torch.no_grad()
def test_siglip(tmp_path: Path, two: bool) -> None:
    model = siglip(tmp_path, two)
    assert family_of(tmp_path) == "siglip"
    text, image = open_text_tower(tmp_path, device="cpu"), open_image_tower(tmp_path, device="cpu")
    batch = text.tokenize(["Two RED apples", "cat"])
    tokenizer = tiny_siglip2_tokenizer() if two else tiny_t5_tokenizer()
    padded = tokenizer(
        ["two red apples", "cat"], padding="max_length", max_length=16, return_tensors="pt"
    )
    assert torch.equal(batch.ids, padded.input_ids)
    assert (batch.ids[1] == tokenizer.pad_token_id).sum() > 10
    states = text.encode(batch, LAYERS)
    out = model.text_model(batch.ids, output_hidden_states=True)
    near(states.hidden[0], out.last_hidden_state)
    near(states.hidden[1], out.hidden_states[-2])
    near(states.hidden[2], out.hidden_states[0])
    near(states.pooled, out.pooler_output)
    pictures = [picture(40, 40), picture(50, 50)] if two else PICTURES
    inputs = image.processor(pictures, return_tensors="pt")
    seen = image.encode(pictures, (-1, -2))
    looked = model.vision_model(**inputs, output_hidden_states=True)
    near(seen.patches[0], looked.hidden_states[-1][:, :16])
    near(seen.patches[1], looked.hidden_states[-2][:, :16])
    near(seen.pooled, looked.pooler_output)
    assert seen.grid == (4, 4)
    with pytest.raises(OptionError, match="wide"):
        text.scores(states.pooled[:, :20], seen.pooled)
    whole = model(input_ids=batch.ids, **inputs)
    near(text.scores(states.pooled, seen.pooled), whole.logits_per_text)
    chances = image.scoring.probabilities(states.pooled, seen.pooled)
    near(chances, whole.logits_per_text.sigmoid())
    attended(text)
    runs_in_bfloat16(tmp_path)


def test_siglip_1_with_the_pieces_of_its_repository(tmp_path: Path) -> None:
    """spiece.model and SiglipTokenizer, with no tokenizer.json, as google/siglip-* have them."""
    import sentencepiece

    siglip(tmp_path, False)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink(missing_ok=True)
    corpus = ["two red apples left of a cat", "a dog, a key and an apple on the right"] * 4
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=made, vocab_size=30, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(made.getvalue())
    settings = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 16, "pad_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = open_text_tower(tmp_path, device="cpu").tokenize(["Two RED apples!", "a cat"]).ids
    pieces = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    for row, text in zip(ids.tolist(), ("two red apples", "a cat"), strict=True):
        wanted = [*pieces.encode(text), 1]
        assert row == wanted + [1] * (16 - len(wanted))


@torch.no_grad()
def test_siglip_2_of_free_shapes(tmp_path: Path) -> None:
    model = siglip(tmp_path, True)
    text, image = open_text_tower(tmp_path, device="cpu"), open_image_tower(tmp_path, device="cpu")
    pictures = [picture(40, 20), picture(20, 40)]
    inputs = image.processor(pictures, return_tensors="pt")
    seen = image.encode(pictures)
    whole = model(input_ids=text.tokenize(TEXTS).ids, **inputs)
    assert seen.grid is None  # the two have grids of their own
    one = image.encode(pictures[:1])
    assert one.grid is not None and one.grid[0] < one.grid[1]
    assert one.patches[0].shape[1] == one.grid[0] * one.grid[1]
    near(text.scores(text.encode(TEXTS).pooled, seen.pooled), whole.logits_per_text)


# ---------------------------------------------------------------- ALIGN


@torch.no_grad()
def test_align(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_bert_tokenizer()
    text_side = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 70,
    }  # fmt: skip
    image_side = {
        "hidden_dim": 16, "image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.4,
        "in_channels": [32, 16], "out_channels": [16, 24], "kernel_sizes": [3, 3],
        "strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 6],
        "depthwise_padding": [],
    }  # fmt: skip
    config = transformers.AlignConfig(
        text_config=text_side, vision_config=image_side, projection_dim=16
    )
    model = transformers.AlignModel(config)
    model.temperature.data.fill_(0.3)
    processor = {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": 64, "width": 64},
    }
    save(model, tmp_path, tokenizer, processor)
    text, image = open_text_tower(tmp_path, device="cpu"), open_image_tower(tmp_path, device="cpu")
    assert text.family == image.family == "align"
    batch = text.tokenize(TEXTS)
    assert batch.ids.shape == (3, 64)
    inputs = image.processor(PICTURES, return_tensors="pt")
    whole = model(input_ids=batch.ids, attention_mask=batch.mask, **inputs)
    out = model.text_model(batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    states, seen = text.encode(batch, LAYERS), image.encode(PICTURES)
    near(states.hidden[0], out.last_hidden_state)
    near(states.hidden[1], out.hidden_states[-2])
    near(normalize(states.pooled, dim=-1), whole.text_embeds)
    near(normalize(seen.pooled, dim=-1), whole.image_embeds)
    near(text.scores(states.pooled, seen.pooled), whole.logits_per_text)
    chances = image.scoring.probabilities(states.pooled, seen.pooled)
    near(chances, whole.logits_per_image.softmax(1).T)  # over the texts
    grid = whole.vision_model_output.last_hidden_state
    assert seen.grid == tuple(grid.shape[-2:])
    near(seen.patches[0][:, 1], grid.flatten(2)[:, :, 1])
    with pytest.raises(OptionError, match="layer -1"):
        image.encode(PICTURES, (-2,))
    attended(text)
    runs_in_bfloat16(tmp_path)
    assert text.fingerprint() == open_text_tower(tmp_path, device="cpu").fingerprint()


# ---------------------------------------------------------------- BLIP-2


def blip2_config(tokenizer: Any, **changes: Any) -> Any:
    qformer = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 40,
        "encoder_hidden_size": 24, "cross_attention_frequency": 2, "use_qformer_text_input": True,
    }  # fmt: skip
    vision = {**IMAGE_SIDE, "qkv_bias": True}
    language = {
        "model_type": "opt", "vocab_size": 60, "hidden_size": 16, "ffn_dim": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 16,
    }  # fmt: skip
    return transformers.Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=language,
        num_query_tokens=5, image_text_hidden_size=20, **changes,
    )  # fmt: skip


BLIP = {"image_processor_type": "BlipImageProcessor", **SQUARE}


@torch.no_grad()
def test_blip_2_for_retrieval(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_bert_tokenizer()
    model = transformers.Blip2ForImageTextRetrieval(blip2_config(tokenizer, image_token_index=None))
    model.query_tokens.data.normal_()
    save(model, tmp_path, tokenizer, BLIP)
    text, image = open_text_tower(tmp_path, device="cpu"), open_image_tower(tmp_path, device="cpu")
    assert text.family == image.family == "blip2"
    batch = text.tokenize(TEXTS)
    inputs = image.processor(PICTURES, return_tensors="pt")
    # transformers scores texts with as many pictures.
    whole = model(pixel_values=inputs.pixel_values, input_ids=batch.ids, attention_mask=batch.mask)
    states, seen = text.encode(batch, LAYERS), image.encode(PICTURES)
    assert seen.grid is None and seen.patches[0].shape == (2, 5, 32)
    near(normalize(seen.pooled, dim=-1), whole.image_embeds)
    near(normalize(states.pooled, dim=-1), whole.text_embeds)
    near(text.scores(states.pooled, seen.pooled), whole.logits_per_image.T)
    near(seen.patches[0], queries_of(model, inputs.pixel_values))
    alone = model.qformer(
        query_embeds=model.embeddings(input_ids=batch.ids), query_length=0,
        attention_mask=batch.mask, output_hidden_states=True,
    )  # fmt: skip
    near(states.hidden[0], alone.last_hidden_state)
    near(states.hidden[1], alone.hidden_states[-2])
    attended(text)


@torch.no_grad()
def test_blip_2_with_a_language_model_gives_query_tokens_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_bert_tokenizer()
    model = transformers.Blip2ForConditionalGeneration(blip2_config(tokenizer))
    model.query_tokens.data.normal_()
    save(model, tmp_path, tokenizer, BLIP)
    tower = open_image_tower(tmp_path, device="cpu")
    seen = tower.encode(PICTURES)
    inputs = tower.processor(PICTURES, return_tensors="pt")
    near(seen.patches[0], queries_of(model, inputs.pixel_values))
    assert seen.pooled is None and tower.scoring is None and tower.spec.pooled_width == 0
    assert not any("language" in name for name, _ in tower.module.named_parameters())
    with pytest.raises(UnsupportedModelError, match="reads no texts"):
        open_text_tower(tmp_path, device="cpu")


def queries_of(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    looked = model.vision_model(pixels).last_hidden_state
    tokens = model.query_tokens.expand(len(pixels), -1, -1)
    return model.qformer(query_embeds=tokens, encoder_hidden_states=looked).last_hidden_state


# ---------------------------------------------------------------- Multilingual CLIP


@pytest.mark.parametrize("base", ["xlm-roberta-large", "setu4993/LaBSE"])
@torch.no_grad()
def test_multilingual_clip(tmp_path: Path, base: str) -> None:
    torch.manual_seed(0)
    bert = "LaBSE" in base
    tokenizer = tiny_bert_tokenizer() if bert else tiny_xlmr_tokenizer()
    config = (transformers.BertConfig if bert else transformers.XLMRobertaConfig)(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=1, max_position_embeddings=40, type_vocab_size=2 if bert else 1,
        pad_token_id=0 if bert else 1, layer_norm_eps=1e-12 if bert else 1e-5,
    )  # fmt: skip
    encoder = scatter((transformers.BertModel if bert else transformers.XLMRobertaModel)(config))
    head = torch.nn.Linear(64, 20)
    state = {f"transformer.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"LinearTransformation.{k}": v for k, v in head.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    tokenizer.save_pretrained(tmp_path)
    told = {"modelBase": base, "transformerDimensions": 64, "numDims": 20, "model_type": "M-CLIP"}
    (tmp_path / "config.json").write_text(json.dumps(told))

    tower = open_text_tower(tmp_path, device="cpu")
    assert tower.family == "multilingual_clip" and not tower.feeds_cross_attention
    batch = tower.tokenize(TEXTS)
    out = encoder(batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    mean = torch.stack(
        [row[: int(mask.sum())].mean(0) for row, mask in zip(out[0], batch.mask, strict=True)]
    )
    states = tower.encode(batch, LAYERS)
    near(states.pooled, head(mean))
    near(states.hidden[0], out.last_hidden_state)
    near(states.hidden[1], out.hidden_states[-2])
    assert tower.spec.context == (40 if bert else 38)
    # A text is what it is alone, whatever it is padded to.
    near(tower.encode(["a dog"]).pooled, states.pooled[2:])
    attended(tower)
    runs_in_bfloat16(tmp_path, image=False)
    long = tower.tokenize(["cat " * 60])
    assert long.ids.shape[1] == tower.spec.context and long.cut[0] > 0
    tower.encode(long)
    with pytest.raises(OptionError, match="no scale"):
        tower.scores(states.pooled, states.pooled)


def test_multilingual_clip_without_its_map_is_refused(tmp_path: Path) -> None:
    test_multilingual_clip(tmp_path, "xlm-roberta-large")
    state = load_file(tmp_path / "model.safetensors")
    del state["LinearTransformation.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="LinearTransformation"):
        open_text_tower(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text('{"modelBase": "gpt2"}')
    save_file({**state, "LinearTransformation.weight": torch.zeros(20, 64)},
              tmp_path / "model.safetensors")  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        open_text_tower(tmp_path, device="cpu")


# ---------------------------------------------------------------- T5 and language models


@torch.no_grad()
def test_t5(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_t5_encoder().config
    model = transformers.T5ForConditionalGeneration(config)
    save(model, tmp_path, tiny_t5_tokenizer())
    tower = open_text_tower(tmp_path, device="cpu")
    assert tower.family == "t5" and type(tower.module).__name__ == "T5EncoderModel"
    batch = tower.tokenize(TEXTS)
    states = tower.encode(batch, (*LAYERS, Layer(-2, True)))
    out = model.encoder(batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    near(states.hidden[0], out.last_hidden_state)
    near(states.hidden[1], out.hidden_states[-2])
    near(states.hidden[3], model.encoder.final_layer_norm(out.hidden_states[-2]))
    assert states.pooled is None and batch.ids.shape[1] == batch.mask.sum(-1).max()
    live = TextTower.from_modules(tower.module, tower.tokenizer)
    near(live.encode(TEXTS).hidden[0], states.hidden[0])
    attended(tower)


CAUSAL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["Gemma3", "Qwen3", "Llama", "Bert"])
@torch.no_grad()
def test_language_models(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_bert_tokenizer() if kind == "Bert" else tiny_llama_tokenizer()
    values: dict[str, Any] = {**CAUSAL, "vocab_size": len(tokenizer), "pad_token_id": 0}
    name = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{name}Config")(**values)
    whole = "BertForMaskedLM" if kind == "Bert" else f"{kind}ForCausalLM"
    model = save(getattr(transformers, whole)(config), tmp_path, tokenizer)
    tower = open_text_tower(tmp_path, device="cpu")
    assert tower.family == "language_model" and tower.spec.context == 128
    batch = tower.tokenize(TEXTS)
    inner = tower.encode(batch, (Layer(), Layer(-2, False), Layer(-4, False)))
    out = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    for found, wanted in zip(inner.hidden, (-1, -2, 0), strict=True):
        seen = batch.mask[..., None].bool()
        near(found * seen, out.hidden_states[wanted] * seen)
    assert inner.pooled is None and tower.spec.width == 32 and tower.spec.layers == 3
    # What a text is does not depend on its neighbours in the batch.
    alone = tower.encode(["a dog"]).hidden[0]
    near(inner.hidden[0][2:, : alone.shape[1]], alone)
    with pytest.raises(OptionError, match="norm only"):
        tower.encode(TEXTS, (Layer(-1, False),))
    attended(tower)
    if kind == "Bert":
        with pytest.raises(OptionError, match="no norm"):
            tower.encode(TEXTS, (Layer(-2, True),))
    else:
        normed = tower.encode(batch, (Layer(-2, True),)).hidden[0]
        near(normed, model.model.norm(inner.hidden[1]))


@torch.no_grad()
def test_modern_bert_has_a_norm_of_its_own_at_the_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_bert_tokenizer()
    values = {**CAUSAL, "vocab_size": len(tokenizer), "pad_token_id": 0}
    config = transformers.ModernBertConfig(**values, attn_implementation="eager")
    model = save(transformers.ModernBertForMaskedLM(config), tmp_path, tokenizer)
    tower = open_text_tower(tmp_path, device="cpu")
    batch = tower.tokenize(TEXTS)
    found = tower.encode(batch, (Layer(), Layer(-2, False), Layer(-2, True))).hidden
    out = model.model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    seen = batch.mask[..., None].bool()
    near(found[0] * seen, out.last_hidden_state * seen)
    near(found[1] * seen, out.hidden_states[-2] * seen)
    near(found[2] * seen, model.model.final_norm(out.hidden_states[-2]) * seen)


@pytest.mark.parametrize("kind", ["XLMRoberta", "Roberta", "Camembert"])
@torch.no_grad()
def test_robertas_two_positions_of_padding_hold_no_token(tmp_path: Path, kind: str) -> None:
    tokenizer = tiny_xlmr_tokenizer()
    config = getattr(transformers, f"{kind}Config")(
        **{**CAUSAL, "vocab_size": len(tokenizer), "pad_token_id": 1}, type_vocab_size=1
    )
    config.max_position_embeddings = 34
    save(getattr(transformers, f"{kind}ForMaskedLM")(config), tmp_path, tokenizer)
    tower = open_text_tower(tmp_path, device="cpu")
    assert tower.spec.context == 32
    batch = tower.tokenize(["cat " * 60])
    assert batch.ids.shape == (1, 32) and batch.cut == (30,)
    assert tower.encode(batch).hidden[0].isfinite().all()


@pytest.mark.parametrize("open_tower", [open_text_tower, open_image_tower])
def test_a_clip_with_another_head_is_not_called_damaged(tmp_path: Path, open_tower: Any) -> None:
    side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {**side, "num_attention_heads": 1}
    config = transformers.CLIPConfig(
        text_config={**heads, "vocab_size": 600}, vision_config={**heads, "image_size": 32}
    )
    save(transformers.CLIPForImageClassification(config), tmp_path, tiny_clip_tokenizer())
    with pytest.raises(UnsupportedModelError, match=r"CLIPForImageClassification, without the"):
        open_tower(tmp_path, device="cpu")


def test_families_that_are_not_read_say_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(UnsupportedModelError, match="'resnet'"):
        open_text_tower(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text('{"model_type": "bart", "is_encoder_decoder": true}')
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        open_text_tower(tmp_path, device="cpu")
    tiny_clip_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="is missing"):
        open_text_tower(tmp_path, device="cpu")
