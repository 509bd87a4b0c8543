"""FLIP's masking on a tower of every image family that cuts pictures into patches."""

from __future__ import annotations

import re
import tempfile
from functools import partial
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
from bridge.towers import clip_relatives, open_image_tower, vision_models
from bridge.towers.families import IMAGE_FAMILIES
from bridge.towers.open_clip_modules import ResNet, ResNetShape, made
from bridge.towers.registry import ROWS

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


def _align() -> Any:
    with torch.device("meta"):
        return transformers.AlignVisionModel(transformers.AlignVisionConfig())


def _relative(kind: str) -> Any:
    relative = clip_relatives.RELATIVES[kind]
    config = getattr(transformers, f"{relative.start}VisionConfig")(**SQUARE)
    encoder = getattr(transformers, f"{relative.start}VisionModel")(config)
    return clip_relatives.Side(encoder, torch.nn.Linear(24, 12), relative)


def _vision(kind: str) -> Any:
    name = vision_models.KINDS[kind][0]
    config = getattr(transformers, name.removesuffix("Model") + "Config")
    more = {"num_register_tokens": 3} if "register" in kind or "dinov3" in kind else {}
    return getattr(transformers, name)(config(**SQUARE, **more))


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
    **{
        kind: ("clip_relatives", partial(_relative, kind), relative.prefix)
        for kind, relative in clip_relatives.RELATIVES.items()
    },
    **{
        kind: ("vision_models", partial(_vision, kind), 0 if first == 0 else 1)
        for kind, (_, first) in vision_models.KINDS.items()
    },
    "dinov2_with_registers": ("vision_models", partial(_vision, "dinov2_with_registers"), 4),
    "dinov3_vit": ("vision_models", partial(_vision, "dinov3_vit"), 4),
}


def test_no_family_is_misspelt() -> None:
    assert {family for family, *_ in TOWERS.values()} <= {*IMAGE_FAMILIES} - {"align"}


@pytest.fixture(params=TOWERS)
def tower(request: pytest.FixtureRequest) -> tuple[str, Any, int]:
    family, make, first = TOWERS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        module = make()
        # Of all these, DINOv3 alone draws at random while it trains: how much patches are turned.
        return family, module.train(request.param != "dinov3_vit"), first


def pooled(tower: tuple[str, Any, int]) -> Tensor:
    family, module, _ = tower
    given = FREE if isinstance(module, transformers.Siglip2VisionModel) else PIXELS
    found = IMAGE_FAMILIES[family].encode(module, given)
    return found.patches[0].mean(1) if found.pooled is None else found.pooled


def seen_by_the_layers(module: Any) -> list[int]:
    """Lists, from now on, how many states go through the first layer of the picture's encoder."""
    layers = next(p for p in module.modules() if isinstance(p, torch.nn.ModuleList) and len(p) > 1)
    seen: list[int] = []
    norm = next(part for part in layers[0].modules() if "Norm" in type(part).__name__)
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
        if re.search("patch_embed|position_embedding|fc1|rms_norm1", name):
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
    with pytest.raises(UnsupportedModelError, match="has no patches"), masked_patches(module, 0.5):
        pass


def test_hooks_are_gone_after_an_error() -> None:
    module = _clip()
    with pytest.raises(ZeroDivisionError), masked_patches(module, 0.5):
        1 / 0  # noqa: B018
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_turned_patches_keep_their_own_places() -> None:
    """DINOv3 knows where a patch is by its rotation alone, which has to be that of what is kept."""
    module = _vision("dinov3_vit").eval()
    whole = module.rope_embeddings(PIXELS)
    with masked_patches(module, 0.5):
        states = module.embeddings(PIXELS)[:, 4:]
        turns = module.rope_embeddings(PIXELS)
    every = module.embeddings(PIXELS)[:, 4:]
    for row in range(3):
        places = [int((every[row] == state).all(1).nonzero()) for state in states[row]]
        for some, each in zip(turns, whole, strict=True):
            assert torch.equal(some[row, 0], each[places])


def test_every_vision_transformer_of_the_registry_is_masked() -> None:
    makers = {family: make for family, make, _ in TOWERS.values()}
    makers |= {"open_clip_hf": _open_clip, "clip": _clip, "coca": _coca}
    makers |= {"open_clip": _open_clip, "blip2": _blip2, "align": _align}
    masked, refused = [], []
    for row in ROWS:
        if not row.image_width:
            continue
        try:
            with masked_patches(makers[row.family](), 0.5):
                masked.append(row.name)
        except UnsupportedModelError as error:
            assert "has no patches that can be left out" in str(error)
            refused.append(row.name)
    assert len(masked) >= 28 and refused == ["align-b"]
    resnet = made(ResNet, ResNetShape((1, 1, 1, 1), 8, 4, 32, 24))
    with (
        pytest.raises(UnsupportedModelError, match="ResNet has no patches"),
        masked_patches(resnet, 0.5),
    ):
        pass
