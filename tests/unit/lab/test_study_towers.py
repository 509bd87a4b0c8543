"""Towers of a study beside a model: how they are labelled, opened, refused and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.open_clip_folders import VOCAB, write
from support.reference_open_clip import OpenClip, Text, Visual, scatter
from support.tiny_models import (
    text_config,
    tiny_clip_tokenizer,
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
)
from torch import nn
from transformers import CLIPTextModelWithProjection

import bridge
from bridge.adapters import label_swap, swap
from bridge.encoding import open_model
from bridge.errors import OptionError
from bridge.lab.cache import Cache
from bridge.lab.picture_tables import tower_distances
from bridge.lab.readings import read_rollouts, read_weighted
from bridge.towers import TextTower, open_text_tower


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = tiny_sdxl_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def tower_of(module: Any, tokenizer: Any, name: str = "new") -> TextTower:
    return TextTower.from_modules(module, tokenizer, name=name)


def saved_tower(folder: Path, seed: int = 1) -> Path:
    other = tiny_sd_pipeline(seed=seed)
    other.text_encoder.save_pretrained(folder)
    other.tokenizer.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- labels


@pytest.mark.models
def test_an_embedded_tower_is_the_models_own_whatever_its_class() -> None:
    # emoji-1 has a projection, and the text_encoder of emoji-xl has none.
    assert label_swap("emoji-1", "emoji-xl").label == "native"
    assert label_swap("emoji-1", "emoji-xl").components == ("text_encoder",)


@pytest.mark.parametrize("narrow", ["tower", "model"])
def test_a_tower_is_itself_in_every_precision(narrow: str) -> None:
    full, half = tiny_sd_pipeline(), tiny_sd_pipeline()
    half.text_encoder.to(torch.bfloat16)
    mine, model = (half, full) if narrow == "tower" else (full, half)
    assert label_swap(tower_of(mine.text_encoder, mine.tokenizer), model).label == "native"
    other = tiny_sd_pipeline(seed=1)
    assert label_swap(tower_of(other.text_encoder, other.tokenizer), model).label == "same-width"


def test_a_projection_counts_where_the_model_takes_the_pooled_state(pipe: Any) -> None:
    module = CLIPTextModelWithProjection(pipe.text_encoder_2.config).eval()
    module.load_state_dict(pipe.text_encoder_2.state_dict())
    tower = tower_of(module, pipe.tokenizer_2)
    assert label_swap(tower, pipe).label == "native"
    with torch.no_grad():
        module.text_projection.weight.mul_(2)
    assert label_swap(tower, pipe).label == "same-width"


def test_the_same_weights_under_another_activation_are_another_tower() -> None:
    own = tiny_sd_pipeline()
    module = type(own.text_encoder)(text_config(own.tokenizer, eos_token_id=2, hidden_act="gelu"))
    module.load_state_dict(own.text_encoder.state_dict())
    assert label_swap(tower_of(module, own.tokenizer), own).label == "same-width"


# ---------------------------------------------------------------- opening


def test_towers_open_as_precise_as_the_model(tmp_path: Path) -> None:
    made = tiny_sd_pipeline().to(torch.bfloat16)
    made.set_progress_bar_config(disable=True)
    folder = str(saved_tower(tmp_path))
    found = bridge.study(
        "a cat", towers=folder, variants="case", model=made, choices=[folder], steps=1, heat=False
    )
    assert list(found.pictures.choice.unique()) == [folder]


def test_a_tower_by_name_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def noted(source: str, **options: Any) -> TextTower:
        calls.append(options)
        return open_text_tower(source, **options)

    monkeypatch.setattr(swap, "open_text_tower", noted)
    bridge.release()
    half = tiny_sd_pipeline()
    half.to(torch.bfloat16)
    cond = bridge.condition("a cat", model=half, towers=saved_tower(tmp_path))
    assert cond.prompt_embeds.dtype == torch.bfloat16
    assert [call["dtype"] for call in calls] == [torch.bfloat16]


def test_an_adapter_is_fitted_in_full_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is opened without a wish is in half precision, as a large tower on a GPU is.
    monkeypatch.setattr(
        "bridge.towers.tower.resolve_dtype", lambda dtype, *_: dtype or torch.bfloat16
    )
    bridge.release()
    prompts = [f"{number} {thing}" for number in range(20) for thing in ("cat", "dog")]
    made = bridge.fit_adapter(saved_tower(tmp_path), model=tiny_sd_pipeline(), prompts=prompts)
    made.check_foreign(open_text_tower(tmp_path, device="cpu", dtype=torch.float32))
    assert made.hash is made.hash  # worked out once
    bridge.release()


def test_a_model_that_is_open_is_not_opened_again(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = tower_of(pipe.text_encoder, pipe.tokenizer)
    wanted = label_swap(tower, pipe)
    opened_model = open_model(pipe)

    def refuse(model: Any) -> None:
        raise AssertionError(f"{type(model).__name__} is opened anew")

    monkeypatch.setattr("bridge.adapters.swap.open_model", refuse)
    assert label_swap(tower, opened_model) == wanted
    study = bridge.study("a cat", towers=[tower], variants=["case"], model=pipe, steps=1)
    assert study.towers.swap.tolist() == [wanted.label]
    with pytest.raises(AssertionError, match="opened anew"):  # the check can fail
        label_swap(tower, pipe)


# ---------------------------------------------------------------- bad input


class NotLoaded:
    """A model's name that must not be opened."""

    def __fspath__(self) -> str:
        raise AssertionError("a model was opened before the input was checked")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"towers": 5}, r"not int \(5\)"),
        ({"towers": [None, "emoji-2"]}, "not NoneType"),
        ({"towers": [["emoji-1"]]}, "not list"),
        ({"towers": {"text_encoder": "emoji-1"}}, "not dict"),
        ({"adapters": {"misspelt": "a.safetensors"}}, "'misspelt'.*emoji-1"),
        ({"adapters": {"emoji-1": 5}}, "not int"),
        ({"adapters": {"emoji-1": "a"}, "towers": None}, "the model's own"),
        ({"dtype": "int3"}, "int3"),
    ],
)
def test_bad_towers_and_adapters_are_one_clear_error(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        bridge.study("a cat", **{"model": NotLoaded(), "towers": ["emoji-1"], **options})


def test_sizes_are_checked_against_the_model(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="height 63 is no multiple of 8; 64 would do"):
        bridge.study("a cat", variants="case", model=pipe, height=63)
    pipe.save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()  # so it is the size, and not the weights, that is looked at first
    with pytest.raises(OptionError, match="width 65"):
        bridge.study("a cat", variants="case", model=tmp_path, width=65)


# ---------------------------------------------------------------- reading


def coca(folder: Path, width: int) -> TextTower:
    torch.manual_seed(0)
    text = Text(VOCAB, 77, width, 4, 3, 64, width, nn.GELU, cls=True)
    visual = Visual(32, 8, 32, 2, 4, 80, width, nn.GELU, queries=9, pool_heads=4)
    model = {
        "text_cfg": {"heads": 4, "embed_cls": True, "context_length": 76},
        "vision_cfg": {"head_width": 16, "attentional_pool": True, "attn_pooler_heads": 4},
        "multimodal_cfg": {"context_length": 76},
    }
    state = scatter(OpenClip(text, visual)).state(True)
    return open_text_tower(write(folder, state, model, tiny_clip_tokenizer()), device="cpu")


def test_coca_is_no_clip(tmp_path: Path) -> None:
    tower = coca(tmp_path, 32)
    # Its pooled state is a class token's, so it is not read at EOS as CLIP's is.
    assert read_weighted(tower, [("a (cat:1.5)", "a1111")], Cache(None), "") == {}
    swap = label_swap(tower, tiny_sd_pipeline())
    assert swap.label == "adapter" and "another kind" in swap.reason


def test_many_texts_and_pictures_go_in_batches_of_32(pipe: Any) -> None:
    sizes: list[int] = []
    tower = tower_of(pipe.text_encoder, pipe.tokenizer)
    texts = [f"{number} cat" for number in range(40)]
    handle = pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(args[0] if args else kwargs["input_ids"])),
        with_kwargs=True,
    )
    try:
        found = read_rollouts(tower, texts, Cache(None), "")
    finally:
        handle.remove()
    assert sizes == [32, 8] and list(found) == texts

    class Eye:
        """Its pooled state is the mean colour."""

        name = "eye"

        def encode(self, pictures: Any) -> Any:
            from types import SimpleNamespace

            import numpy as np

            sizes.append(len(pictures))
            colours = [torch.from_numpy(np.asarray(p, dtype="f4")).mean((0, 1)) for p in pictures]
            return SimpleNamespace(pooled=torch.stack(colours))

    from PIL import Image

    sizes.clear()
    pictures = [Image.new("RGB", (4, 4), (number, 100, 0)) for number in range(40)]
    far = tower_distances(Eye(), pictures, pictures[::-1])  # type: ignore[arg-type]
    assert sizes == [32, 8] and far[0] == pytest.approx(far[-1]) and far[0] > 10 * abs(far[19])


def test_settings_and_own_are_public() -> None:
    from bridge.lab import Settings, own

    assert Settings(seed=3).seed == 3
    assert [each.text for each in own(["a cat"])] == ["a cat"]
