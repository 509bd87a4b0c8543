"""Rendering: grounds are exact, opaque sprite pixels are exact, tints keep shape and shading."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from support.judge_world import sample_sprites
from support.tiny_world import SEEDS, STEADY, scenes_at, synthetic_sprites

from emoji_world.render import TINT_RGB, render_scene, tinted
from emoji_world.scenes import BACKGROUNDS, CANVAS, SIZES, STYLES, TINTS, PlacedObject, Scene


def lightness(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


def one_thing(**changes: object) -> Scene:
    values: dict[str, object] = {"concept": 5, "tint": None, "size": "normal", "x": 32, "y": 48}
    return Scene("noto", "blue", (), None, (PlacedObject(**(values | changes)),))  # type: ignore[arg-type]


@given(SEEDS)
@STEADY
def test_every_pixel_is_ground_sprite_or_their_blend(seed: int) -> None:
    sprites = synthetic_sprites()
    for scene in scenes_at(seed, 2, held_out=None):
        picture = render_scene(scene, sprites)
        assert picture.shape == (CANVAS, CANVAS, 3) and picture.dtype == np.uint8
        ground = np.array(BACKGROUNDS[scene.background])
        expected = np.broadcast_to(ground, picture.shape).astype(np.float64)
        clear = np.ones((CANVAS, CANVAS), dtype=bool)
        for thing in scene.objects:
            sprite = sprites.images[thing.size][STYLES.index(scene.style), thing.concept]
            sprite = tinted(sprite, thing.tint)
            rows, columns = (
                slice(thing.y, thing.y + thing.side),
                slice(thing.x, thing.x + thing.side),
            )
            alpha = sprite[..., 3:] / 255
            blend = alpha * sprite[..., :3] + (1 - alpha) * ground
            expected[rows, columns] = blend
            clear[rows, columns] = sprite[..., 3] == 0
            opaque = sprite[..., 3] == 255
            assert opaque.any()
            assert (picture[rows, columns][opaque] == sprite[..., :3][opaque]).all()
        assert (picture[clear] == ground).all()
        assert abs(picture - expected).max() <= 0.51


def test_an_empty_scene_is_its_ground() -> None:
    for name, colour in BACKGROUNDS.items():
        picture = render_scene(Scene("noto", name, (), None, ()), synthetic_sprites())
        assert (picture == np.array(colour)).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_thing_covers_its_box_only(size: str) -> None:
    scene = one_thing(size=size)
    picture = render_scene(scene, synthetic_sprites())
    rows, columns = np.nonzero((picture != BACKGROUNDS["blue"]).any(-1))
    assert rows.min() >= 48 and rows.max() < 48 + SIZES[size]
    assert columns.min() >= 32 and columns.max() < 32 + SIZES[size]


def test_style_concept_and_size_choose_the_sprite() -> None:
    sprites = synthetic_sprites()
    for style in STYLES:
        for size, side in SIZES.items():
            sprite = sprites.get(style, 7, size)
            assert sprite.shape == (side, side, 4)
            assert (sprite == sprites.images[size][STYLES.index(style), 7]).all()


def test_rendering_leaves_the_sprites_as_they_are() -> None:
    sprites = synthetic_sprites()
    before = sprites.get("noto", 5, "normal").copy()
    render_scene(one_thing(tint="red"), sprites)
    assert (sprites.get("noto", 5, "normal") == before).all()


@pytest.mark.parametrize("tint", TINTS)
def test_tints_keep_alpha_and_the_order_of_lightness(tint: str) -> None:
    grey = np.arange(256, dtype=np.uint8)[:, None, None]
    sprite = np.broadcast_to(grey, (256, 3, 4)).copy()
    sprite[..., 3] = np.array([0, 128, 255])
    dyed = tinted(sprite, tint)
    assert dyed.shape == sprite.shape and dyed.dtype == np.uint8
    assert (dyed[..., 3] == sprite[..., 3]).all()
    rising = lightness(dyed[:, 0, :3])
    assert (np.diff(rising) >= 0).all() and rising[-1] > rising[0] + 60
    assert all((np.diff(dyed[:, 0, c].astype(int)) >= 0).all() for c in range(3))


@pytest.mark.parametrize("tint", TINTS)
def test_a_middle_grey_takes_the_tint_itself(tint: str) -> None:
    sprite = np.full((1, 1, 4), 153, dtype=np.uint8)  # the ramp's own colour stands at 0.6
    assert abs(tinted(sprite, tint)[0, 0, :3].astype(int) - TINT_RGB[tint]).max() <= 1


def test_natural_colours_are_untouched() -> None:
    sprite = synthetic_sprites().get("fluent", 3, "small")
    assert tinted(sprite, None) is sprite


def test_tints_differ_from_each_other_and_from_every_ground() -> None:
    colours = {**{f"tint {k}": v for k, v in TINT_RGB.items()}, **BACKGROUNDS}
    assert set(TINT_RGB) == set(TINTS)
    values = [np.array(v) for v in colours.values()]
    for i, a in enumerate(values):
        for b in values[i + 1 :]:
            assert np.abs(a - b).max() >= 20


# ---------------------------------------------------------------- on some of the real artwork


def test_real_sprites_fill_their_boxes() -> None:
    for by_style in sample_sprites().images.values():
        images = by_style.reshape(-1, *by_style.shape[2:])
        side = images.shape[1]
        rim = np.ones((side, side), dtype=bool)
        rim[1:-1, 1:-1] = False
        assert (images[:, rim, 3] == 0).all()
        for image in images:
            rows, columns = np.nonzero(image[..., 3] > 64)
            extent = max(np.ptp(rows), np.ptp(columns)) + 1
            assert extent >= side - 5
            assert abs((rows.min() + rows.max()) / 2 - (side - 1) / 2) <= 2
            assert abs((columns.min() + columns.max()) / 2 - (side - 1) / 2) <= 2
            assert (image[..., 3] == 255).mean() > 0.01


def test_real_sprites_dyed_look_like_their_tint() -> None:
    """The mean colour of a dyed sprite is nearest to its own tint among the six."""
    names = list(TINT_RGB)
    palette = np.array([TINT_RGB[name] for name in names], dtype=np.float64)
    hues = palette - palette.mean(1, keepdims=True)
    hues /= np.linalg.norm(hues, axis=1, keepdims=True)
    for images in sample_sprites().images["big"]:
        for image in images:
            opaque = image[..., 3] == 255
            for i, name in enumerate(names):
                dyed = tinted(image, name)
                assert (dyed[..., 3] == image[..., 3]).all()
                mean = dyed[opaque][:, :3].mean(0)
                assert np.argmax(hues @ (mean - mean.mean())) == i
                # What was lighter stays lighter, to the rounding of one level.
                order = np.argsort(lightness(image[opaque][:, :3]))
                assert (np.diff(lightness(dyed[opaque][:, :3])[order]) > -2.5).all()
