"""The ComfyUI nodes, called as ComfyUI calls them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline
from support.tiny_t5 import tiny_t5_pipeline

import bridge
from bridge.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, pairs_of
from bridge.encoding import save_conditioning
from bridge.errors import BridgeError, OptionError


def call(name: str, **given: Any) -> Any:
    """Run a node as ComfyUI does: defaults filled in, its FUNCTION called by name."""
    kind = NODE_CLASS_MAPPINGS[name]
    inputs = kind.INPUT_TYPES()["required"]
    assert set(given) <= set(inputs)
    values = {key: _default(*spec) for key, spec in inputs.items()} | given
    outputs = getattr(kind(), kind.FUNCTION)(**values)
    assert len(outputs) == len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES)
    return outputs


def _default(kind: Any, options: dict[str, Any] | None = None) -> Any:
    if options and "default" in options:
        return options["default"]
    return kind[0] if isinstance(kind, list) else ""


def test_every_node_has_what_comfyui_reads() -> None:
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    for kind in NODE_CLASS_MAPPINGS.values():
        assert kind.CATEGORY and callable(getattr(kind, kind.FUNCTION))


def test_the_sdxl_shape_comes_with_pooled_states_and_sizes(
    embedded: Callable[[str], Path],
) -> None:
    folder = str(embedded("emoji-xl"))
    positive, negative, report = call(
        "BridgeTextEncode", model=folder, prompt="a (cat:1.3)", negative_prompt="a dog",
        width=128, height=64,
    )  # fmt: skip
    same = bridge.condition(
        "a (cat:1.3)", "a dog", model=folder, dialect="comfy", width=128, height=64
    )
    ((states, extra),) = positive
    assert torch.equal(states, same.prompt_embeds)
    assert torch.equal(extra["pooled_output"], same.pooled_prompt_embeds)
    # comfy/model_base.py reads these names for SDXL.
    sizes = {key: value for key, value in extra.items() if key != "pooled_output"}
    assert sizes == {
        "width": 128, "height": 64, "crop_w": 0, "crop_h": 0,
        "target_width": 128, "target_height": 64,
    }  # fmt: skip
    ((states, extra),) = negative
    assert torch.equal(states, same.negative_prompt_embeds)
    assert torch.equal(extra["pooled_output"], same.negative_pooled_prompt_embeds)
    assert "cat:1.3" in report


def test_crops_and_sizes_that_differ_keep_their_sides() -> None:
    cond = bridge.condition(
        "a cat", "", model=tiny_sdxl_pipeline(),
        original_size=(10, 20), crops_coords_top_left=(3, 4), target_size=(50, 60),
    )  # fmt: skip
    for ((_, extra),) in pairs_of(cond):
        assert {key: value for key, value in extra.items() if key != "pooled_output"} == {
            "height": 10, "width": 20, "crop_h": 3, "crop_w": 4,
            "target_height": 50, "target_width": 60,
        }  # fmt: skip


def test_a_model_without_pooled_states_has_none(tmp_path: Path) -> None:
    tiny_sd_pipeline().save_pretrained(tmp_path)
    positive, negative, _ = call("BridgeTextEncode", model=str(tmp_path), prompt="a cat")
    assert positive[0][1] == negative[0][1] == {}


def test_a_saved_conditioning_is_read_back(embedded: Callable[[str], Path], tmp_path: Path) -> None:
    cond = bridge.condition("a cat", "a dog", model=str(embedded("emoji-xl")))
    path = save_conditioning(cond, tmp_path / "cat.safetensors")
    positive, negative, report = call("BridgeLoadConditioning", path=str(path))
    assert torch.equal(positive[0][0], cond.prompt_embeds)
    assert torch.equal(negative[0][0], cond.negative_prompt_embeds)
    assert "cat" in report


def test_a_wrong_prompt_is_told_as_everywhere() -> None:
    with pytest.raises(BridgeError, match="weight"):
        call("BridgeTextEncode", model="emoji-xl", prompt="a (cat:nan)")


def test_what_a_graph_cannot_hold_is_refused(tmp_path: Path) -> None:
    tiny_sd_pipeline().save_pretrained(tmp_path)
    kinds = NODE_CLASS_MAPPINGS["BridgeTextEncode"].INPUT_TYPES()
    assert "unet_attention_bias" not in kinds["required"]["emphasis"][0]
    biased = bridge.condition("a (cat:1.8)", model=str(tmp_path), emphasis="unet_attention_bias")
    path = save_conditioning(biased, tmp_path / "biased.safetensors")
    with pytest.raises(OptionError, match="another emphasis"):
        call("BridgeLoadConditioning", path=str(path))
    alone = bridge.condition("a cat", model=tiny_t5_pipeline("flux"), max_sequence_length=16)
    path = save_conditioning(alone, tmp_path / "flux.safetensors")
    with pytest.raises(OptionError, match="flux has no negative"):
        call("BridgeLoadConditioning", path=str(path))
