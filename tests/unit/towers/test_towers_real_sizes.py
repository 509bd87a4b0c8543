"""Towers at the sizes of the table, on random weights, against their references.

Slow and big: a model of the table's size is made, saved and opened for each row. Those over about
half a billion parameters a side are left to machines with the memory (`BRIDGE_BIG=1`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.comparisons import relative
from support.reference_open_clip import HfText, OpenClip, QuickGELU, Text, Visual, scatter
from support.tiny_models import tiny_clip_tokenizer
from support.tiny_t5 import tiny_t5_tokenizer
from support.tiny_tokenizers import tiny_bert_tokenizer, tiny_llama_tokenizer, tiny_xlmr_tokenizer
from torch import nn

from bridge.towers import TowerRow, open_image_tower, open_text_tower
from bridge.towers.registry import ROWS

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
TEXTS = ["two red apples left of a cat", "a dog"]
# Heads of image towers whose heads are not 64 wide, and MLPs that are not 4 times as wide.
HEADS = {1280: 16, 1408: 16, 1664: 16, 1152: 16}
MLP = {1408: 6144, 1664: 8192, 1152: 4304}
BIG = ("-g", "-bigg", "-h", "-xl", "-so400m", "-1b", "-0.6b")


def rows(*families: str) -> list[Any]:
    return [
        pytest.param(
            row,
            id=row.name,
            marks=pytest.mark.skipif(
                row.name.endswith(BIG) and "BRIDGE_BIG" not in os.environ, reason="BRIDGE_BIG=1"
            ),
        )
        for row in ROWS
        if row.family in families and not row.name.startswith("emoji")
    ]


@pytest.fixture(autouse=True)
def cleared(tmp_path: Path) -> Iterator[None]:
    """Gigabytes go as soon as their test is over."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


def check_specs(row: TowerRow, text: Any, image: Any) -> None:
    spec = text.spec
    assert (spec.width, spec.pooled_width) == (row.text_width, row.pooled_width)
    assert (spec.context, spec.layers) == (row.context, row.layers)
    if image is not None:
        assert image.spec.width == row.image_width


def save_processor(folder: Path, kind: str, row: TowerRow) -> None:
    """A processor of the tower's size, as published folders name it: without, transformers' own
    default holds, such as SigLIP's 224, and a tower of another size is refused."""
    side = {"height": row.image_size, "width": row.image_size}
    settings = {"image_processor_type": f"{kind}ImageProcessor", "patch_size": row.patch}
    settings |= {"size": side, "crop_size": side}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def pixels(side: int) -> torch.Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("row", rows("clip", "siglip"))
@torch.no_grad()
def test_models_of_transformers(row: TowerRow, tmp_path: Path) -> None:
    torch.manual_seed(0)
    siglip = row.family == "siglip"
    naflex = row.name.endswith("naflex")
    name = "Siglip2" if naflex else "Siglip" if siglip else "CLIP"
    tokenizer = tiny_t5_tokenizer() if siglip else tiny_clip_tokenizer()
    act = "gelu_pytorch_tanh" if siglip else "gelu" if "openclip" in row.name else "quick_gelu"
    text = {
        "vocab_size": len(tokenizer), "hidden_size": row.text_width, "hidden_act": act,
        "intermediate_size": MLP.get(row.text_width, 4 * row.text_width) if siglip
        else 4 * row.text_width,
        "num_attention_heads": HEADS.get(row.text_width, row.text_width // 64) if siglip
        else row.text_width // 64,
        "num_hidden_layers": row.layers, "max_position_embeddings": row.context,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if siglip:
        text["projection_size"] = row.pooled_width
    depths = {768: 12, 1024: 24, 1280: 32, 1408: 40, 1664: 48, 1152: 27}
    vision = {
        "hidden_size": row.image_width, "patch_size": row.patch, "hidden_act": act,
        "num_hidden_layers": depths[row.image_width],
        "num_attention_heads": HEADS.get(row.image_width, row.image_width // 64),
        "intermediate_size": MLP.get(row.image_width, 4 * row.image_width),
    }  # fmt: skip
    vision["num_patches" if naflex else "image_size"] = (
        (row.image_size // row.patch) ** 2 if naflex else row.image_size
    )
    both = {"text_config": text, "vision_config": vision}
    if not siglip:
        both["projection_dim"] = row.pooled_width
    config = getattr(transformers, f"{name}Config")(**both)
    model = scatter(getattr(transformers, f"{name}Model")(config))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_processor(tmp_path, name, row)
    tower, image = open_text_tower(tmp_path, device="cpu"), open_image_tower(tmp_path, device="cpu")
    check_specs(row, tower, image)
    batch = tower.tokenize(TEXTS)
    if naflex:
        from PIL import Image

        inputs = dict(image.processor([Image.new("RGB", (90, 60))], return_tensors="pt"))
    else:
        inputs = {"pixel_values": pixels(row.image_size)}
    whole = model(input_ids=batch.ids, **inputs)
    states = tower.encode(batch)
    seen = image.encode(inputs if naflex else inputs["pixel_values"])
    last = whole.text_model_output.last_hidden_state
    assert relative(states.hidden[0], last) <= TOLERANCE
    assert relative(tower.scores(states.pooled, seen.pooled), whole.logits_per_text) <= TOLERANCE


@pytest.mark.parametrize("row", rows("open_clip", "open_clip_hf", "coca"))
@torch.no_grad()
def test_models_of_open_clip(row: TowerRow, tmp_path: Path) -> None:
    torch.manual_seed(0)
    long = row.name.startswith("longclip")
    quick = long or row.name.startswith("clip-")
    act: type[nn.Module] = QuickGELU if quick else nn.GELU
    width, pooled = row.text_width, row.pooled_width
    coca, hf = row.family == "coca", row.family == "open_clip_hf"
    tokenizer = tiny_xlmr_tokenizer() if hf else tiny_clip_tokenizer()
    text: nn.Module
    if hf:
        config = transformers.XLMRobertaConfig(
            vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=row.layers,
            num_attention_heads=width // 64, intermediate_size=4 * width, type_vocab_size=1,
            max_position_embeddings=514, pad_token_id=1, layer_norm_eps=1e-5,
        )  # fmt: skip
        encoder = transformers.XLMRobertaModel(config, add_pooling_layer=False)
        text = HfText(encoder, width, pooled)
    else:
        text = Text(
            len(tokenizer), row.context + coca, width, width // 64, row.layers, 4 * width, pooled,
            act, cls=coca, twice=long,
        )  # fmt: skip
    seen_width = row.image_width
    seen_heads = HEADS.get(seen_width, seen_width // 64)
    visual = Visual(
        row.image_size, row.patch, seen_width, seen_heads,
        {768: 12, 1024: 24, 1280: 32}[seen_width], 4 * seen_width, pooled, act,
        *((256, 8) if coca else ()),
    )  # fmt: skip
    reference = scatter(OpenClip(text, visual))
    save_file(reference.state(coca or hf), tmp_path / "open_clip_model.safetensors")
    tokenizer.save_pretrained(tmp_path)
    if not long:  # Long-CLIP's files have no config
        own = {"heads": width // 64}
        model: dict[str, Any] = {"text_cfg": {"hf_model_name": "xlm-roberta"} if hf else own}
        # ViT-H's heads are 80 wide, and open_clip's configs say so; 64 is the default.
        model["vision_cfg"] = {"head_width": seen_width // seen_heads}
        model |= {"multimodal_cfg": {}} if coca else {}
        model |= {"quick_gelu": True} if quick else {}
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    tower, image = open_text_tower(tmp_path, device="cpu"), open_image_tower(tmp_path, device="cpu")
    assert tower.family == row.family
    check_specs(row, tower, image)
    batch = tower.tokenize(TEXTS)
    states, looked = reference.text(batch.ids)
    found, seen = tower.encode(batch), image.encode(pixels(row.image_size))
    norm = getattr(reference.text, "ln_final", nn.Identity())
    assert relative(found.hidden[0], norm(states[-1])) <= TOLERANCE
    assert relative(found.pooled, looked) <= TOLERANCE
    wanted = reference.logits_per_text(batch.ids, pixels(row.image_size))
    assert relative(tower.scores(found.pooled, seen.pooled), wanted) <= TOLERANCE


@pytest.mark.parametrize("row", rows("t5", "language_model"))
@torch.no_grad()
def test_text_models(row: TowerRow, tmp_path: Path) -> None:
    torch.manual_seed(0)
    width = row.text_width
    if row.family == "t5":
        tokenizer: Any = tiny_t5_tokenizer()
        config = transformers.T5Config(
            vocab_size=80, d_model=width, d_kv=64, d_ff=4 * width, num_heads=max(8, width // 64),
            num_layers=row.layers,
        )  # fmt: skip
        model: Any = transformers.T5EncoderModel(config)
    else:
        tokenizer = tiny_llama_tokenizer()
        kind = {"gemma": "Gemma3Text", "qwen3": "Qwen3", "llama": "Llama"}[row.name.split("-")[0]]
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width,
            num_hidden_layers=row.layers, max_position_embeddings=row.context, pad_token_id=0,
            head_dim=128, num_attention_heads=8, num_key_value_heads=2,
        )  # fmt: skip
        model = getattr(transformers, f"{kind}Model")(config)
    scatter(model).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tower = open_text_tower(tmp_path, device="cpu")
    check_specs(row, tower, None)
    batch = tower.tokenize(TEXTS)
    out = model(batch.ids, attention_mask=batch.mask)
    assert relative(tower.encode(batch).hidden[0], out.last_hidden_state) <= TOLERANCE


@pytest.mark.parametrize("row", rows("multilingual_clip"))
@torch.no_grad()
def test_multilingual_clip(row: TowerRow, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = "labse" in row.name
    tokenizer = tiny_bert_tokenizer() if bert else tiny_xlmr_tokenizer()
    config = (transformers.BertConfig if bert else transformers.XLMRobertaConfig)(
        vocab_size=len(tokenizer), hidden_size=row.text_width, num_hidden_layers=row.layers,
        num_attention_heads=row.text_width // 64, intermediate_size=4 * row.text_width,
        max_position_embeddings=512 if bert else 514, type_vocab_size=2 if bert else 1,
        pad_token_id=0 if bert else 1, layer_norm_eps=1e-12 if bert else 1e-5,
    )  # fmt: skip
    encoder = scatter((transformers.BertModel if bert else transformers.XLMRobertaModel)(config))
    head = nn.Linear(row.text_width, row.pooled_width)
    state = {f"transformer.{k}": v.contiguous() for k, v in encoder.state_dict().items()}
    state |= {f"LinearTransformation.{k}": v for k, v in head.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    tokenizer.save_pretrained(tmp_path)
    base = "LaBSE" if bert else "xlm-roberta-large"
    (tmp_path / "config.json").write_text(json.dumps({"modelBase": base, "model_type": "M-CLIP"}))
    tower = open_text_tower(tmp_path, device="cpu")
    check_specs(row, tower, None)
    batch = tower.tokenize(TEXTS)
    out = encoder(batch.ids, attention_mask=batch.mask).last_hidden_state
    seen = batch.mask[..., None]
    states = tower.encode(batch)
    assert relative(states.hidden[0], out) <= TOLERANCE
    assert relative(states.pooled, head((out * seen).sum(1) / seen.sum(1))) <= TOLERANCE


@pytest.mark.parametrize("row", rows("align"))
@torch.no_grad()
def test_align(row: TowerRow, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_bert_tokenizer()
    config = transformers.AlignConfig(
        text_config={"vocab_size": len(tokenizer)},
        vision_config={"image_size": row.image_size, "hidden_dim": row.pooled_width},
        projection_dim=row.pooled_width,
    )
    model = scatter(transformers.AlignModel(config))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_processor(tmp_path, "EfficientNet", row)
    tower, image = open_text_tower(tmp_path, device="cpu"), open_image_tower(tmp_path, device="cpu")
    check_specs(row, tower, image)
    batch = tower.tokenize(TEXTS)
    whole = model(
        input_ids=batch.ids, attention_mask=batch.mask, pixel_values=pixels(row.image_size)
    )
    states, seen = tower.encode(batch), image.encode(pixels(row.image_size))
    last = whole.text_model_output.last_hidden_state
    assert relative(states.hidden[0], last) <= TOLERANCE
    assert relative(tower.scores(states.pooled, seen.pooled), whole.logits_per_text) <= TOLERANCE


@pytest.mark.skipif("BRIDGE_BIG" not in os.environ, reason="a billion parameters: BRIDGE_BIG=1")
@torch.no_grad()
def test_blip2_itm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    row = next(row for row in ROWS if row.name == "blip2-itm")
    tokenizer = tiny_bert_tokenizer()
    config = transformers.Blip2Config(
        qformer_config={"vocab_size": len(tokenizer), "use_qformer_text_input": True},
        image_token_index=None,
    )
    model = scatter(transformers.Blip2ForImageTextRetrieval(config))
    model.query_tokens.data.normal_()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_processor(tmp_path, "Blip", row)
    tower, image = open_text_tower(tmp_path, device="cpu"), open_image_tower(tmp_path, device="cpu")
    check_specs(row, tower, image)
    batch = tower.tokenize(TEXTS)
    whole = model(
        pixel_values=pixels(row.image_size).expand(2, -1, -1, -1), input_ids=batch.ids,
        attention_mask=batch.mask,
    )  # fmt: skip
    states, seen = tower.encode(batch), image.encode(pixels(row.image_size))
    assert seen.patches[0].shape == (1, 32, 768)
    scores = tower.scores(states.pooled, seen.pooled)
    assert relative(scores[:, 0], whole.logits_per_image[0]) <= TOLERANCE
