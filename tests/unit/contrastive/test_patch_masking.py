"""FLIP's masking on a tower of every image family that cuts pictures into patches."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.tiny_coca import write_coca
from support.tiny_folders import KINDS
from torch import Tensor

from bridge.contrastive.patch_masking import masked_patches
from bridge.errors import OptionError, UnsupportedModelError
from bridge.towers import open_image_tower
from bridge.towers.families import IMAGE_FAMILIES

SIDE = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}
SQUARE = {**SIDE, "image_size": 32}
PATCHES = 16
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# Two pictures of 12 and 8 patches, padded to 16, as the processor of free shapes gives them.
FREE = {
    "pixel_values": torch.randn(2, 16, 192, generator=torch.Generator().manual_seed(1)),
    "pixel_attention_mask": (torch.arange(16) < torch.tensor([[12], [8]])).int(),
    "spatial_shapes": torch.tensor([[3, 4], [4, 2]]),
}


def _clip() -> Any:
    config = transformers.CLIPVisionConfig(**SQUARE, projection_dim=12)
    return transformers.CLIPVisionModelWithProjection(config)


def _coca() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        write_coca(Path(folder))
        return open_image_tower(folder, device="cpu").module.requires_grad_(True)


def _open_clip() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        KINDS["open_clip"].make(Path(folder) / "tower")
        tower = open_image_tower(Path(folder) / "tower", device="cpu")
        return tower.module.requires_grad_(True)


def _siglip2() -> Any:
    config = transformers.Siglip2VisionConfig(**SIDE, num_patches=PATCHES)
    return transformers.Siglip2VisionModel(config)


def _blip2() -> Any:
    former = {**SIDE, "encoder_hidden_size": 24, "vocab_size": 20, "max_position_embeddings": 8}
    former.pop("patch_size")
    former |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.Blip2Config(
        vision_config={**SQUARE, "qkv_bias": True},
        qformer_config=former,
        num_query_tokens=3,
        image_text_hidden_size=12,
    )
    module = transformers.Blip2VisionModelWithProjection(config)
    module.query_tokens.data.normal_()
    for parameter in module.parameters():  # or pictures hardly matter to the queries
        parameter.data.mul_(4)
    return module


TOWERS: dict[str, tuple[str, Any, int]] = {
    "clip": ("clip", _clip, 1),
    "open_clip": ("open_clip", _open_clip, 1),
    "coca": ("coca", _coca, 1),
    "siglip": (
        "siglip",
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SQUARE)),
        0,
    ),
    "siglip2": ("siglip", _siglip2, 0),
    "blip2": ("blip2", _blip2, 1),
}


def test_no_family_is_misspelt() -> None:
    assert {family for family, *_ in TOWERS.values()} <= {*IMAGE_FAMILIES} - {"align"}


@pytest.fixture(params=TOWERS)
def tower(request: pytest.FixtureRequest) -> tuple[str, Any, int]:
    family, make, first = TOWERS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return family, make().train(), first


def pooled(tower: tuple[str, Any, int]) -> Tensor:
    family, module, _ = tower
    given = FREE if isinstance(module, transformers.Siglip2VisionModel) else PIXELS
    found = IMAGE_FAMILIES[family].encode(module, given).pooled
    assert found is not None
    return found


def seen_by_the_layers(module: Any) -> list[int]:
    """Lists, from now on, how many states go through the first layer of the picture's encoder."""
    names = ("encoder.layers", "transformer.resblocks")
    layers = next(p for n, p in module.named_modules() if n.endswith(names))
    seen: list[int] = []
    norm = getattr(layers[0], "layer_norm1", None) or layers[0].ln_1
    norm.register_forward_hook(lambda _, args, out: seen.append(out.shape[1]))
    return seen


def test_nothing_masked_is_the_whole_pass(tower: tuple[str, Any, int]) -> None:
    want = pooled(tower)
    with masked_patches(tower[1], 0):
        assert torch.equal(pooled(tower), want)


@pytest.mark.parametrize(("share", "left"), [(0.5, 8), (0.75, 4), (0.99, 1)])
def test_what_is_masked_is_not_computed(
    tower: tuple[str, Any, int], share: float, left: int
) -> None:
    _, module, first = tower
    if isinstance(module, transformers.Siglip2VisionModel):
        left = {8: 6, 4: 3, 1: 1}[left]  # of the larger picture's 12
    want, seen = pooled(tower), seen_by_the_layers(module)
    torch.manual_seed(6)
    with masked_patches(module, share):
        found = pooled(tower)
    assert seen == [left + first]
    assert not torch.equal(found, want)
    found.sum().backward()
    for name, parameter in module.named_parameters():
        if "patch_embedding" in name or "position_embedding" in name or "fc1" in name:
            assert parameter.grad is not None and parameter.grad.any(), name
    assert torch.equal(pooled(tower), want)  # the hooks are gone


def test_each_picture_and_each_pass_draws_its_own_and_a_seed_draws_it_again() -> None:
    module = _clip()
    same = PIXELS[:1].expand(3, -1, -1, -1)

    def once(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with masked_patches(module, 0.5), torch.no_grad():
            return module(same).image_embeds

    one, again, other = once(1), once(1), once(2)
    assert torch.equal(one, again) and not torch.allclose(one, other)
    assert not torch.allclose(one[0], one[1])


def test_the_short_way_to_the_pooled_state_is_masked_too() -> None:
    module = _clip()
    whole = IMAGE_FAMILIES["clip"]
    assert whole.pool is not None
    found = []
    for way in (lambda: whole.pool(module, PIXELS), lambda: whole.encode(module, PIXELS).pooled):
        torch.manual_seed(4)
        with masked_patches(module, 0.5), torch.no_grad():
            found.append(way())
    assert torch.allclose(*found, atol=1e-5)


def test_kept_patches_have_their_own_positions() -> None:
    """With a share that keeps all but one, the states that go in are those of the whole pass."""
    module = _clip()
    vision = getattr(module, "vision_model", module)
    whole = vision.embeddings(PIXELS)
    with masked_patches(module, 1 / PATCHES):
        kept = vision.embeddings(PIXELS)
    for row, some in zip(whole, kept, strict=True):
        places = [int((row == state).all(1).nonzero()) for state in some]
        assert len(places) == PATCHES and places == sorted(set(places)) and places[0] == 0


def test_free_shapes_lose_padding_first() -> None:
    module = _siglip2()
    masks: list[Tensor] = []
    module.head.register_forward_hook(
        lambda _, args, kwargs, out: masks.append(args[1]), with_kwargs=True
    )
    with masked_patches(module, 0.5), torch.no_grad():
        pooled(("siglip", module, 0))
    assert masks[0].sum(1).tolist() == [6, 4]


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan"), None, True])
def test_a_share_out_of_range_is_told(share: Any) -> None:
    with pytest.raises(OptionError, match="patch_masking"), masked_patches(_clip(), share):
        pass


def test_what_has_no_patches_is_told() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(UnsupportedModelError, match="into patches"), masked_patches(module, 0.5):
        pass


def test_hooks_are_gone_after_an_error() -> None:
    module = _clip()
    with pytest.raises(ZeroDivisionError), masked_patches(module, 0.5):
        1 / 0  # noqa: B018
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
