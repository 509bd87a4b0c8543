"""Sides of open_clip's models that CLIP has otherwise, by what open_clip itself computes.

``tests/data/open_clip_sides.json.gz`` holds what open_clip 3.3 made of tiny towers whose weights
are drawn by their names (``tests/parity/write_open_clip_sides.py``); it is not installed here. Its
whole list of models is compared in ``tests/parity``.
"""

from __future__ import annotations

import builtins
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.comparisons import relative
from support.open_clip_folders import HEADS, drawn, drawn_pixels, plain, write
from support.places import DATA
from support.tiny_models import tiny_clip_tokenizer
from support.tiny_tokenizers import tiny_bert_tokenizer
from torch import nn

from bridge.errors import (
    BridgeError,
    MissingDependencyError,
    OptionError,
    UnsupportedModelError,
    WeightsError,
)
from bridge.towers import ImageTower, Layer, TextTower, open_image_tower, open_text_tower
from bridge.towers.families import family_of
from bridge.towers.open_clip import encode_text, pool_text, text_parts
from bridge.towers.open_clip_config import read_files
from bridge.towers.tower import eager_attention

SAID = json.loads(gzip.decompress((DATA / "open_clip_sides.json.gz").read_bytes()))
# Of the largest entry: open_clip runs nn.MultiheadAttention, and the file has seven digits.
TOLERANCE = 1e-5


def folder_of(folder: Path, side: str, told: dict[str, Any]) -> Path:
    """One side of a case as a checkpoint, whose other side nobody could read."""
    start, other = ("text.", "vision_cfg") if side == "text_cfg" else ("visual.", "text_cfg")
    state = {start + name: drawn(name, shape) for name, shape in told["shapes"].items()}
    save_file({**state, "logit_scale": torch.tensor(2.0)}, folder / "open_clip_model.safetensors")
    model = {"embed_dim": SAID["pooled"], side: told["config"], other: {"pool_type": "dice"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    return folder


def same(found: torch.Tensor, wanted: list[float]) -> bool:
    return relative(found.flatten(), torch.tensor(wanted)) <= TOLERANCE


@pytest.mark.parametrize("name", SAID["texts"])
@torch.no_grad()
def test_a_text_side_is_open_clips(tmp_path: Path, name: str) -> None:
    told = SAID["texts"][name]
    files = read_files(folder_of(tmp_path, "text_cfg", told), False, "text_cfg")
    parts = text_parts(files, torch.float32, torch.device("cpu"))
    ids = torch.tensor(SAID["ids"])
    found = encode_text(parts.module, ids, (Layer(-1, False), Layer(-1)), torch.ones_like(ids))
    assert same(found.hidden[0], told["states"]) and same(found.pooled, told["pooled"])
    # The same by the shorter way.
    assert same(pool_text(parts.module, ids, (ids != 0).long()), told["pooled"])
    assert parts.spec.context == 6 and parts.spec.pooled_width == found.pooled.shape[-1]
    # What is shown of attention is what is computed with.
    with eager_attention(parts.module):
        shown = encode_text(parts.module, ids, (Layer(-1, False),), torch.ones_like(ids), True)
    assert relative(shown.hidden[0], found.hidden[0]) <= TOLERANCE
    assert len(shown.attentions) == 2 and shown.attentions[0].shape == (3, 2, 6, 6)


@pytest.mark.parametrize("name", SAID["pictures"])
def test_an_image_side_is_open_clips(tmp_path: Path, name: str) -> None:
    told = SAID["pictures"][name]
    tower = open_image_tower(folder_of(tmp_path, "vision_cfg", told), device="cpu")
    found = tower.encode(drawn_pixels(told["config"]["image_size"]))
    height, width = found.grid or (0, 0)
    assert same(found.patches[0].mT.unflatten(-1, (height, width)), told["states"])
    assert same(found.pooled, told["pooled"])
    assert same(tower.pool(drawn_pixels(told["config"]["image_size"])), told["pooled"])
    assert tower.spec.width == found.patches[0].shape[-1]
    assert tower.spec.pooled_width == found.pooled.shape[-1] == SAID["pooled"]
    assert len(tower.fingerprint()) == 16


def siglip(folder: Path, tokenizer: Any, **told: Any) -> TextTower:
    case = SAID["texts"]["SigLIP"]
    config = {**case["config"], "hf_tokenizer_name": "somebody/words", **told}
    shapes = {**case["shapes"], "token_embedding.weight": [len(tokenizer), 16]}
    tokenizer.save_pretrained(folder)
    folder_of(folder, "text_cfg", {"config": config, "shapes": shapes})
    return open_text_tower(folder, device="cpu")


def test_words_of_transformers_are_cleaned_and_filled_as_open_clip_does(tmp_path: Path) -> None:
    tower = siglip(tmp_path, tiny_bert_tokenizer(), tokenizer_kwargs={"clean": "canonicalize"})
    assert tower.family == family_of(tmp_path) == "open_clip_words"
    batch = tower.tokenize(["A cat!", "a  cat &amp; dog " * 4])
    cut, pad = tower.tokenizer.sep_token_id, tower.tokenizer.pad_token_id
    assert batch.ids.shape == (2, 6) and batch.ids[0, 3:].tolist() == [cut, pad, pad]
    assert batch.ids[1, -1] == cut and batch.cut[1] > 0
    assert tower.spec.pooled_at == "end"
    assert tower.encode(batch).pooled.shape == (2, SAID["pooled"])


def test_clipas_words_have_0_for_their_separator(tmp_path: Path) -> None:
    tokenizer = tiny_bert_tokenizer()
    tower = siglip(tmp_path, tokenizer, tokenizer_kwargs={"strip_sep_token": True})
    batch = tower.tokenize(["a cat", "a dog of the cat and of the dog"])
    assert tokenizer.sep_token_id not in batch.ids and batch.ids[1, -1] == 0
    assert batch.mask[0].tolist() == [1, 1, 1, 1, 0, 0]


def test_the_embeddings_and_inner_layers_of_a_side(tmp_path: Path) -> None:
    told = SAID["pictures"]["CLIPA"]
    tower = open_image_tower(folder_of(tmp_path, "vision_cfg", told), device="cpu")
    found = tower.encode(drawn_pixels(12), (-3, -1, -2))
    assert [each.shape for each in found.patches] == [(2, 9, 16)] * 3
    assert not torch.equal(found.patches[0], found.patches[2])


def resnet(folder: Path) -> ImageTower:
    told = SAID["pictures"]["ResNet"]
    return open_image_tower(folder_of(folder, "vision_cfg", told), device="cpu")


def test_openais_resnet_has_no_config(tmp_path: Path) -> None:
    """Blocks, width and the picture's side are those of the tensors, heads are of 64."""
    told = SAID["pictures"]["ResNet"]
    folder_of(tmp_path, "vision_cfg", told)
    (tmp_path / "open_clip_config.json").unlink()
    tower = open_image_tower(tmp_path, device="cpu")
    assert tower.module.config.layers == (1, 2, 1, 1) and tower.module.config.image_size == 64
    assert tower.module.config.heads == 2
    assert tower.encode(drawn_pixels(64)).pooled.shape == (2, SAID["pooled"])


def test_a_resnets_inner_stages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="ask for layer -1"):
        resnet(tmp_path).encode(drawn_pixels(64), (-2,))


# ---------------------------------------------------------------- bad input


def test_a_network_of_timm_without_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"config": {"timm_model_name": "vit_tiny_patch16_224"}, "shapes": {}}
    folder_of(tmp_path, "vision_cfg", told)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    known = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'")
        return known(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"vit_tiny.* pip install 'bridge\[timm\]'"):
        open_image_tower(tmp_path, device="cpu")


def changed(folder: Path, side: str, name: str, **changes: Any) -> Path:
    """A case with another config."""
    told = SAID["texts" if side == "text_cfg" else "pictures"][name]
    return folder_of(folder, side, {**told, "config": {**told["config"], **changes}})


@pytest.mark.parametrize(
    ("side", "name", "changes"),
    [
        ("text_cfg", "SigLIP", {"rope": True}),
        ("text_cfg", "SigLIP", {"rope": False}),
        ("vision_cfg", "CLIPA", {"registers": 0}),
        ("vision_cfg", "CLIPA", {"input_patchnorm": True}),
        ("vision_cfg", "CLIPA", {"global_average_pool": True}),
        ("vision_cfg", "CoCa", {"attentional_pool": "parallel"}),
        ("vision_cfg", "CLIPA", {"pool_type": "none"}),
        ("vision_cfg", "CLIPA", {"pos_embed_type": "rope"}),
        ("text_cfg", "SigLIP", {"pool_type": "none"}),
        ("text_cfg", "SigLIP", {"scaled_cosine_attn": True}),
        ("text_cfg", "SigLIP", {"tokenizer_mode": "clips"}),
        ("text_cfg", "SigLIP", {"proj_type": "mlp"}),
    ],
)
def test_what_is_unknown_is_one_error_with_its_name(
    tmp_path: Path, side: str, name: str, changes: dict[str, Any]
) -> None:
    ((field, value),) = changes.items()
    changed(tmp_path, side, name, **changes)
    open_side = open_text_tower if side == "text_cfg" else open_image_tower
    with pytest.raises(UnsupportedModelError) as caught:
        open_side(tmp_path, device="cpu")
    assert f"{side}.{field}={value!r}" in str(caught.value)


def test_an_unknown_field_beside_both_sides(tmp_path: Path) -> None:
    folder = write(
        tmp_path, plain(nn.GELU).state(False), {**HEADS, "moe": 4}, tiny_clip_tokenizer()
    )
    for open_side in (open_text_tower, open_image_tower):
        with pytest.raises(UnsupportedModelError, match=r"model_cfg\.moe=4"):
            open_side(folder, device="cpu")


@pytest.mark.parametrize(
    ("side", "name", "changes", "named"),
    [
        ("text_cfg", "layer scale", {"ls_init_value": None}, r"ls_1\.gamma"),
        ("text_cfg", "SigLIP", {"proj_bias": False}, "text_projection"),
        ("text_cfg", "SigLIP", {"layers": 3}, r"text_cfg\.layers is 3.*2 blocks"),
        ("text_cfg", "CoCa", {"embed_cls": False}, "cls_emb"),
        ("text_cfg", "CoCa", {"pad_id": "x"}, r"pad_id is 'x'"),
        ("vision_cfg", "CLIPA", {"no_ln_pre": False}, r"ln_pre"),
        ("vision_cfg", "CoCa", {"attentional_pool": False}, r"attn_pool"),
        ("vision_cfg", "CoCa", {"attn_pooler_heads": 5}, r"attn_pooler_heads is 5"),
        ("vision_cfg", "ResNet", {"layers": [1, 1, 1, 1]}, r"\[1, 2, 1, 1\]"),
        ("vision_cfg", "ResNet", {"image_size": 96}, r"image_size is 96"),
        ("vision_cfg", "CLIPA", {"image_size": "12"}, r"image_size is '12'"),
    ],
)
def test_a_config_that_is_not_its_tensors(
    tmp_path: Path, side: str, name: str, changes: dict[str, Any], named: str
) -> None:
    """Each would run with other numbers; each is refused."""
    changed(tmp_path, side, name, **changes)
    with pytest.raises(BridgeError, match=named) as caught:
        if side == "text_cfg":
            text_parts(read_files(tmp_path, False, side), torch.float32, torch.device("cpu"))
        else:
            open_image_tower(tmp_path, device="cpu")
    assert isinstance(caught.value, WeightsError | UnsupportedModelError)
