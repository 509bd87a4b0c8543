"""Towers in open_clip's and OpenAI's layout against plain torch, and against transformers.

1e-5 of the largest entry in fp32: the reference runs ``nn.MultiheadAttention``, bridge
transformers' attention, and the two add in another order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from support.comparisons import relative
from support.open_clip_folders import HEADS, VOCAB, plain, write
from support.reference_open_clip import HfText, OpenClip, QuickGELU, Text, Visual, scatter
from support.tiny_models import text_config, tiny_clip_tokenizer
from support.tiny_tokenizers import tiny_xlmr_tokenizer
from torch import nn
from transformers import CLIPModel, CLIPVisionConfig, XLMRobertaConfig, XLMRobertaModel

from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.towers import Layer, open_image_tower, open_text_tower
from bridge.towers.families import family_of
from bridge.towers.open_clip_config import read_files

TOLERANCE = 1e-5
TEXTS = ["two red apples left of a cat", "", "a cat! of the dog"]
LAYERS = (Layer(), Layer(-1, False), Layer(-2, False), Layer(-2, True), Layer(-4, False))


def pixels(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def agree(folder: Path, reference: OpenClip, family: str, *, side: int = 32) -> None:
    """Ids, states of the layers, pooled states, patches and scores are the reference's."""
    assert family_of(folder) == family
    text = open_text_tower(folder, device="cpu")
    image = open_image_tower(folder, device="cpu")
    batch = text.tokenize(TEXTS)
    states, pooled = reference.text(batch.ids)
    found = text.encode(batch, LAYERS)
    norm = getattr(reference.text, "ln_final", nn.Identity())
    wanted = (norm(states[-1]), states[-1], states[-2], norm(states[-2]), states[0])
    for mine, theirs in zip(found.hidden, wanted, strict=True):
        assert relative(mine, theirs) <= TOLERANCE
    assert relative(found.pooled, pooled) <= TOLERANCE
    seen, looked = image.encode(pixels(side), (-1, -2)), reference.visual(pixels(side))
    assert relative(seen.pooled, looked[1]) <= TOLERANCE
    for mine, theirs in zip(seen.patches, (looked[0][-1], looked[0][-2]), strict=True):
        assert relative(mine, theirs[:, 1:]) <= TOLERANCE
    scores = text.scores(found.pooled, seen.pooled)
    assert relative(scores, reference.logits_per_text(batch.ids, pixels(side))) <= TOLERANCE
    assert text.spec.width == states[0].shape[-1] and text.spec.pooled_width == pooled.shape[-1]
    assert (text.spec.layers, image.spec.layers) == (len(states) - 1, len(looked[0]) - 1)


@pytest.mark.parametrize("custom", [False, True])
def test_open_clip(tmp_path: Path, custom: bool) -> None:
    reference = plain(nn.GELU)
    model = {**HEADS, "custom_text": custom}
    write(tmp_path, reference.state(custom), model, tiny_clip_tokenizer("!"))
    agree(tmp_path, reference, "open_clip")


def test_open_clip_with_quick_gelu(tmp_path: Path) -> None:
    reference = plain(QuickGELU)
    model = {**HEADS, "quick_gelu": True}
    write(tmp_path, reference.state(False), model, tiny_clip_tokenizer())
    agree(tmp_path, reference, "open_clip")


def test_a_config_without_heads_has_open_clips(tmp_path: Path) -> None:
    """8 heads of any width for texts, heads of 64 for pictures, whatever the widths suggest."""
    torch.manual_seed(0)
    text = Text(VOCAB, 77, 128, 8, 3, 96, 40, nn.GELU)
    # 1280 wide: without a config that would be ViT-H's, whose heads are 80 wide.
    reference = scatter(OpenClip(text, Visual(32, 8, 1280, 20, 1, 80, 40, nn.GELU)))
    model = {"text_cfg": {"width": 128}, "vision_cfg": {"width": 1280}}
    write(tmp_path, reference.state(False), model, tiny_clip_tokenizer())
    text_tower, image = (
        open_(tmp_path, device="cpu") for open_ in (open_text_tower, open_image_tower)
    )
    batch = text_tower.tokenize(TEXTS)
    with torch.no_grad():
        assert relative(text_tower.encode(batch).pooled, reference.text(batch.ids)[1]) <= TOLERANCE
        assert relative(image.encode(pixels()).pooled, reference.visual(pixels())[1]) <= TOLERANCE


@torch.no_grad()
def test_a_side_that_the_patch_does_not_divide(tmp_path: Path) -> None:
    """Pictures are of the side that the config names; the last rows and columns go unseen."""
    reference = plain(nn.GELU)
    model = {**HEADS, "vision_cfg": {"head_width": 16, "image_size": 37}}
    write(tmp_path, reference.state(False), model, tiny_clip_tokenizer())
    image = open_image_tower(tmp_path, device="cpu")
    shown = image.pixels([Image.linear_gradient("L")])
    assert shown.shape == (1, 3, 37, 37)
    wanted = reference.visual(shown[..., :32, :32])[1]
    assert relative(image.encode(shown).pooled, wanted) <= TOLERANCE


@torch.no_grad()
def test_no_projection_is_one_that_changes_nothing(tmp_path: Path) -> None:
    reference = plain(nn.GELU)
    state = reference.state(False)
    del state["text_projection"]
    model = {**HEADS, "text_cfg": {"heads": 6, "proj_type": "none"}}
    write(tmp_path, state, model, tiny_clip_tokenizer())
    reference.text.text_projection = nn.Parameter(torch.eye(48))
    tower = open_text_tower(tmp_path, device="cpu")
    batch = tower.tokenize(TEXTS)
    assert tower.spec.pooled_width == 48
    assert relative(tower.encode(batch).pooled, reference.text(batch.ids)[1]) <= TOLERANCE


@torch.no_grad()
def test_the_norms_epsilon_and_gelu_by_tanh(tmp_path: Path) -> None:
    class Tanh(nn.GELU):
        def __init__(self) -> None:
            super().__init__("tanh")

    reference = plain(Tanh)
    for module in reference.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.01
    told = {"norm_kwargs": {"eps": 0.01}, "act_kwargs": {"approximate": "tanh"}}
    model = {side: {**HEADS[side], **told} for side in HEADS}
    write(tmp_path, reference.state(False), model, tiny_clip_tokenizer())
    agree(tmp_path, reference, "open_clip")


def test_timms_copies_of_openai_have_a_config_of_timm_beside_them(tmp_path: Path) -> None:
    reference = plain(QuickGELU)
    model = {**HEADS, "quick_gelu": True}
    write(tmp_path, reference.state(False), model, tiny_clip_tokenizer())
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch32_clip_224"}')
    assert family_of(tmp_path) == "open_clip"
    save_file({"head.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    agree(tmp_path, reference, "open_clip")


def test_openai_without_a_config_has_quick_gelu_and_heads_of_64(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = Text(VOCAB, 77, 128, 2, 3, 96, 40, QuickGELU)
    reference = scatter(OpenClip(text, Visual(32, 8, 64, 1, 4, 80, 40, QuickGELU)))
    write(tmp_path, reference.state(False), None, tiny_clip_tokenizer())
    agree(tmp_path, reference, "open_clip")


def test_long_clip_from_its_pickle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = Text(VOCAB, 248, 64, 1, 3, 96, 40, QuickGELU, twice=True)
    reference = scatter(OpenClip(text, Visual(32, 8, 64, 1, 4, 80, 40, QuickGELU)))
    torch.save(reference.state(False), tmp_path / "longclip-L.pt")
    tiny_clip_tokenizer().save_pretrained(tmp_path / "words")
    with pytest.raises(WeightsError, match="allow_pickle"):
        open_text_tower(tmp_path, device="cpu", tokenizer=tmp_path / "words")
    tower = open_text_tower(tmp_path, device="cpu", tokenizer=tmp_path / "words", allow_pickle=True)
    batch = tower.tokenize([*TEXTS, "cat " * 200])
    assert batch.ids.shape == (4, 248) and tower.spec.context == 248
    assert batch.mask.sum(-1)[-1] == 202
    with torch.no_grad():
        states, pooled = reference.text(batch.ids)
        found = tower.encode(batch, (Layer(-1, False),))
    assert relative(found.hidden[0], states[-1]) <= TOLERANCE
    assert relative(found.pooled, pooled) <= TOLERANCE


def test_coca(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = Text(VOCAB, 77, 48, 6, 3, 96, 40, nn.GELU, cls=True)
    visual = Visual(32, 8, 32, 2, 4, 80, 40, nn.GELU, queries=9, pool_heads=5)
    reference = scatter(OpenClip(text, visual))
    model = {
        "text_cfg": {"heads": 6, "embed_cls": True, "context_length": 76},
        "vision_cfg": {"head_width": 16, "attentional_pool": True, "attn_pooler_heads": 5},
        "multimodal_cfg": {"context_length": 76},
    }
    write(tmp_path, reference.state(True), model, tiny_clip_tokenizer())
    agree(tmp_path, reference, "coca")
    tower = open_text_tower(tmp_path, device="cpu")
    assert tower.spec.context == 76
    attentions = tower.encode(TEXTS, attentions=True).attentions
    assert attentions[0].shape == (3, 6, 76, 76)
    half = open_text_tower(tmp_path, device="cpu", dtype="bfloat16").encode(TEXTS)
    assert half.pooled is not None and half.pooled.dtype == torch.bfloat16
    seen = open_image_tower(tmp_path, device="cpu", dtype="bfloat16").encode(pixels())
    assert relative(seen.pooled.float(), reference.visual(pixels())[1]) < 0.05


def hf_reference(heads: int, width: int) -> OpenClip:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(tiny_xlmr_tokenizer()), hidden_size=width, num_hidden_layers=3,
        num_attention_heads=heads, intermediate_size=96, max_position_embeddings=90,
        type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5,
    )  # fmt: skip
    encoder = XLMRobertaModel(config, add_pooling_layer=False)
    visual = Visual(32, 8, 64, 1, 4, 80, 40, nn.GELU)
    return scatter(OpenClip(HfText(encoder, width, 40), visual))


def test_open_clip_over_xlm_roberta(tmp_path: Path) -> None:
    reference = hf_reference(heads=4, width=48)
    told = {"hf_model_name": "xlm-roberta-base", "hf_model_config": {"num_attention_heads": 4}}
    write(tmp_path, reference.state(True), {"text_cfg": told}, tiny_xlmr_tokenizer())
    agree(tmp_path, reference, "open_clip_hf")


@torch.no_grad()
def test_laions_xlm_roberta_has_no_config_and_is_opened_by_its_family(tmp_path: Path) -> None:
    reference = hf_reference(heads=1, width=64)
    write(tmp_path, reference.state(True), None, tiny_xlmr_tokenizer())
    tower = open_text_tower(tmp_path, device="cpu", family="open_clip_hf")
    batch = tower.tokenize(TEXTS)
    assert batch.ids.shape == (3, 77)
    assert relative(tower.encode(batch).pooled, reference.text(batch.ids)[1]) <= TOLERANCE
    image = open_image_tower(tmp_path, device="cpu", family="open_clip_hf")
    assert relative(image.encode(pixels()).pooled, reference.visual(pixels())[1]) <= TOLERANCE
    assert (
        tower.fingerprint()
        == open_text_tower(tmp_path, device="cpu", family="open_clip_hf").fingerprint()
    )


@torch.no_grad()
def test_a_text_model_that_is_not_known_is_read_by_its_own_config(tmp_path: Path) -> None:
    """Heads and epsilon: of 48 wide states by no rule, as in MiniLM (384 wide, 12 heads)."""
    reference = hf_reference(heads=3, width=48)
    for module in reference.text.transformer.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.01
    config = reference.text.transformer.config
    config.layer_norm_eps = 0.01
    base = tmp_path / "MiniLM"
    config.save_pretrained(base)
    model = {"text_cfg": {"hf_model_name": str(base)}}
    folder = write(tmp_path / "model", reference.state(True), model, tiny_xlmr_tokenizer())
    agree(folder, reference, "open_clip_hf")
    (base / "config.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"MiniLM.* num_attention_heads"):
        open_text_tower(folder, device="cpu")
    config = {"model_type": "distilbert"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="'distilbert'"):
        open_text_tower(folder, device="cpu")


class Foreign(nn.Module):
    """open_clip's wrapper of a text model that is read at its first token, or by its own pooler."""

    def __init__(self, transformer: nn.Module, width: int, pad: int, own: bool = False) -> None:
        super().__init__()
        self.transformer, self.pad, self.own = transformer, pad, own
        self.proj = nn.Linear(width, 40, bias=False)

    def forward(self, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        out = self.transformer(input_ids=ids, attention_mask=(ids != self.pad).long())
        last = out.last_hidden_state
        return last, self.proj(out.pooler_output if self.own else last[:, 0])


def foreign(kind: str) -> Foreign:
    words = len(tiny_xlmr_tokenizer())
    if kind == "nllb-200-distilled-600M":
        config = transformers.M2M100Config(
            vocab_size=words, d_model=64, encoder_layers=2, encoder_attention_heads=1,
            encoder_ffn_dim=96, decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=96,
            pad_token_id=1, max_position_embeddings=80,
        )  # fmt: skip
        return Foreign(transformers.M2M100Model(config).encoder, 64, 1)
    if kind == "mt5-base":
        config = transformers.MT5Config(
            vocab_size=words, d_model=48, d_kv=16, d_ff=96, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", pad_token_id=1,
        )  # fmt: skip
        return Foreign(transformers.MT5Model(config).encoder, 48, 1)
    config = transformers.BertConfig(
        vocab_size=words, hidden_size=64, num_hidden_layers=2, num_attention_heads=1,
        intermediate_size=96, max_position_embeddings=80, pad_token_id=1,
    )  # fmt: skip
    return Foreign(transformers.BertModel(config), 64, 1, own=True)


@pytest.mark.parametrize(
    ("kind", "pooler"),
    [
        ("nllb-200-distilled-600M", "cls_pooler"),
        ("mt5-base", "cls_last_hidden_state_pooler"),
        ("bert-base-uncased", "cls_pooler"),
    ],
)
@torch.no_grad()
def test_text_models_that_are_read_at_their_first_token(
    tmp_path: Path, kind: str, pooler: str
) -> None:
    torch.manual_seed(0)
    text = scatter(foreign(kind))
    reference = OpenClip(text, plain(nn.GELU).visual)
    told = {"hf_model_name": f"somebody/{kind}", "hf_pooler_type": pooler}
    if kind.startswith("bert"):  # its stand-in's padding is XLM-R's
        told["hf_model_config"] = {"pad_token_id": 1}
    write(tmp_path, reference.state(True), {"text_cfg": told}, tiny_xlmr_tokenizer())
    tower = open_text_tower(tmp_path, device="cpu")
    batch = tower.tokenize(TEXTS)
    last, pooled = text(batch.ids)
    found = tower.encode(batch)
    assert batch.ids.shape == (3, 77) and tower.spec.pooled_at == "first"
    assert relative(found.pooled, pooled) <= TOLERANCE
    seen = batch.mask.bool()
    assert relative(found.hidden[0][seen], last[seen]) <= TOLERANCE


def test_a_pooler_that_is_not_read(tmp_path: Path) -> None:
    told = {"hf_model_name": "roberta-base", "hf_pooler_type": "max_pooler"}
    write(tmp_path, hf_reference(1, 64).state(True), {"text_cfg": told}, tiny_xlmr_tokenizer())
    with pytest.raises(UnsupportedModelError, match=r"hf_pooler_type='max_pooler'.*cls_pooler"):
        open_text_tower(tmp_path, device="cpu")


def test_a_context_that_a_text_model_has_no_positions_for(tmp_path: Path) -> None:
    """90 positions are 88 tokens: RoBERTa's kin begin after padding's."""
    told = {"hf_model_name": "xlm-roberta-base", "context_length": 90}
    write(tmp_path, hf_reference(1, 64).state(True), {"text_cfg": told}, tiny_xlmr_tokenizer())
    tower = open_text_tower(tmp_path, device="cpu")
    assert tower.spec.context == 88
    assert tower.encode(["cat " * 200]).pooled.isfinite().all()


@pytest.mark.parametrize(
    ("heads", "told"), [(7, "7 heads"), (0, "0 heads"), ("4", "num_attention_heads.*'4'")]
)
def test_heads_that_do_not_fit_a_text_model(tmp_path: Path, heads: Any, told: str) -> None:
    text = {"hf_model_name": "roberta-base", "hf_model_config": {"num_attention_heads": heads}}
    write(tmp_path, hf_reference(1, 64).state(True), {"text_cfg": text}, tiny_xlmr_tokenizer())
    with pytest.raises(WeightsError, match=told):
        open_text_tower(tmp_path, device="cpu")


# ---------------------------------------------------------------- transformers, by an inverse


def to_open_clip(model: CLIPModel) -> dict[str, torch.Tensor]:
    """A CLIPModel's tensors in open_clip's layout: what bridge's map must undo."""
    old = model.state_dict()
    new = {"logit_scale": old["logit_scale"]}
    for theirs, mine in (("text", ""), ("vision", "visual.")):
        side = f"{theirs}_model."
        for layer in range(getattr(model.config, f"{theirs}_config").num_hidden_layers):
            a, b = f"{side}encoder.layers.{layer}.", f"{mine}transformer.resblocks.{layer}."
            for kind in ("weight", "bias"):
                parts = [old[f"{a}self_attn.{p}_proj.{kind}"] for p in "qkv"]
                new[f"{b}attn.in_proj_{kind}"] = torch.cat(parts)
                new[f"{b}attn.out_proj.{kind}"] = old[f"{a}self_attn.out_proj.{kind}"]
                new[f"{b}ln_1.{kind}"] = old[f"{a}layer_norm1.{kind}"]
                new[f"{b}ln_2.{kind}"] = old[f"{a}layer_norm2.{kind}"]
                new[f"{b}mlp.c_fc.{kind}"] = old[f"{a}mlp.fc1.{kind}"]
                new[f"{b}mlp.c_proj.{kind}"] = old[f"{a}mlp.fc2.{kind}"]
    text, vision = "text_model.embeddings.", "vision_model.embeddings."
    new["token_embedding.weight"] = old[f"{text}token_embedding.weight"]
    new["positional_embedding"] = old[f"{text}position_embedding.weight"]
    new["text_projection"] = old["text_projection.weight"].T
    new["visual.class_embedding"] = old[f"{vision}class_embedding"]
    new["visual.conv1.weight"] = old[f"{vision}patch_embedding.weight"]
    new["visual.positional_embedding"] = old[f"{vision}position_embedding.weight"]
    new["visual.proj"] = old["visual_projection.weight"].T
    for kind in ("weight", "bias"):
        new[f"ln_final.{kind}"] = old[f"text_model.final_layer_norm.{kind}"]
        new[f"visual.ln_pre.{kind}"] = old[f"vision_model.pre_layrnorm.{kind}"]
        new[f"visual.ln_post.{kind}"] = old[f"vision_model.post_layernorm.{kind}"]
    return {name: tensor.detach().clone().contiguous() for name, tensor in new.items()}


@torch.no_grad()
def test_a_clip_model_is_the_same_in_either_layout(tmp_path: Path) -> None:
    from transformers import CLIPConfig

    torch.manual_seed(2)
    tokenizer = tiny_clip_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8, hidden_act="quick_gelu",
    )  # fmt: skip
    config = CLIPConfig(
        text_config=text_config(tokenizer, eos_token_id=2).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=24,
    )
    model = scatter(CLIPModel(config))
    config_there = {"quick_gelu": True, "text_cfg": {"heads": 4}, "vision_cfg": {"head_width": 16}}
    there = write(tmp_path / "there", to_open_clip(model), config_there, tokenizer)
    model.save_pretrained(tmp_path / "here")
    tokenizer.save_pretrained(tmp_path / "here")
    (tmp_path / "here/preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32})
    )
    batch = open_text_tower(tmp_path / "here", device="cpu").tokenize(TEXTS)
    wanted = model(input_ids=batch.ids, pixel_values=pixels())
    for folder in (there, tmp_path / "here"):
        text, image = open_text_tower(folder, device="cpu"), open_image_tower(folder, device="cpu")
        states, seen = text.encode(batch), image.encode(pixels())
        assert torch.equal(states.hidden[0], wanted.text_model_output.last_hidden_state)
        assert (
            relative(text.scores(states.pooled, seen.pooled), wanted.logits_per_text) <= TOLERANCE
        )


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("side", "told"),
    [
        ("text_cfg", {"norm_kwargs": {"bias": False}}),
        ("vision_cfg", {"act_kwargs": {"approximate": "sinh"}}),
    ],
)
def test_arguments_that_are_not_read_are_refused(
    tmp_path: Path, side: str, told: dict[str, Any]
) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {side: told}}))
    with pytest.raises(UnsupportedModelError, match=rf"{side}\.{next(iter(told))}="):
        read_files(tmp_path, False, side)


@pytest.mark.parametrize(
    "model",
    [
        {
            "text_cfg": {"pool_type": "argmax", "norm_kwargs": {}, "hf_tokenizer_name": None},
            "vision_cfg": {"pool_type": "tok", "attentional_pool": False, "act_kwargs": None},
        },
        {"text_cfg": {"hf_model_name": "google/mt5-base", "hf_tokenizer_name": "google/mt5-base"}},
        {"multimodal_cfg": {}, "vision_cfg": {"attentional_pool": True}},  # coca_base leaves it out
        {"multimodal_cfg": {}, "text_cfg": {"embed_cls": True}},
    ],
)
def test_usual_configs_are_read(tmp_path: Path, model: dict[str, Any]) -> None:
    folder = write(tmp_path, {}, model, tiny_clip_tokenizer())
    assert read_files(folder, False, "text_cfg", "vision_cfg").model == model


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"text_cfg": {"rope": True}}, r"text_cfg\.rope=True"),
        ({"text_cfg": {"tokenizer_kwargs": {"clean": "whitespace"}}}, r"clean='whitespace'"),
        ({"text_cfg": {"tokenizer_kwargs": {"clean": "Lower"}}}, r"clean='Lower'"),
        ({"text_cfg": {"tokenizer_kwargs": {"reduction_mask": "simple"}}}, "reduction_mask"),
    ],
)
def test_what_is_unknown_is_refused_by_name(
    tmp_path: Path, model: dict[str, Any], named: str
) -> None:
    write(tmp_path, plain(nn.GELU).state(False), model, tiny_clip_tokenizer())
    with pytest.raises(UnsupportedModelError, match=named):
        open_text_tower(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("model", "named", "open_tower"),
    [
        ({"text_cfg": {"width": 44}}, r"text_cfg\.heads is 8", open_text_tower),
        ({"text_cfg": {"heads": "6"}}, r"text_cfg\.heads is '6'", open_text_tower),
        ({"vision_cfg": {"width": 32}}, "head_width is 0", open_image_tower),
        ({**HEADS, "vision_cfg": {"head_width": 16, "image_size": 64}}, "64", open_image_tower),
        ({"text_cfg": [6]}, r"text_cfg .* not a table", open_text_tower),
    ],
)
def test_a_config_that_does_not_fit_the_tensors(
    tmp_path: Path, model: dict[str, Any], named: str, open_tower: Any
) -> None:
    text = Text(VOCAB, 77, 44, 4, 1, 96, 40, nn.GELU)
    state = OpenClip(text, plain(nn.GELU).visual).state(False)
    write(tmp_path, state, model, tiny_clip_tokenizer())
    with pytest.raises(WeightsError, match=named):
        open_tower(tmp_path, device="cpu")


def test_pictures_of_two_sides_are_refused(tmp_path: Path) -> None:
    model = {**HEADS, "vision_cfg": {"head_width": 16, "image_size": [32, 64]}}
    write(tmp_path, plain(nn.GELU).state(False), model, tiny_clip_tokenizer())
    with pytest.raises(UnsupportedModelError, match=r"\[32, 64\].* square"):
        open_image_tower(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("gone", "open_tower"),
    [
        ("transformer.resblocks.1.attn.in_proj_weight", open_text_tower),
        ("ln_final.bias", open_text_tower),
        ("positional_embedding", open_text_tower),
        ("visual.class_embedding", open_image_tower),
        ("visual.ln_post.weight", open_image_tower),
        ("logit_scale", open_image_tower),
    ],
)
def test_a_missing_tensor_is_an_error(tmp_path: Path, gone: str, open_tower: Any) -> None:
    write(tmp_path, plain(nn.GELU).state(False), HEADS, tiny_clip_tokenizer())
    file = tmp_path / "open_clip_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if name != gone}, file)
    with pytest.raises(WeightsError, match=r"lacks|has no logit_scale"):
        open_tower(tmp_path, device="cpu")


def test_a_folder_without_weights_or_with_another_family(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"open_clip_model\.safetensors"):
        open_text_tower(tmp_path, device="cpu")
    with pytest.raises(OptionError, match="no image side"):
        open_image_tower(tmp_path, device="cpu", family="t5")
