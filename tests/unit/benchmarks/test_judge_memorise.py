"""The memorisation test tells a training scene from a held-out composition."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tiny_world import synthetic_sprites

import bridge.diffusion
from benchmarks import draw, memorise
from benchmarks.compositional import main
from benchmarks.drawn import Source, keep_pictures, kept_pictures, pictures_file, weights_of
from benchmarks.memorise import (
    COMBINED,
    Distances,
    as_seen,
    edits,
    make_gallery,
    memorise_rows,
    nearest_of,
)
from benchmarks.tasks import Task, make_tasks
from bridge.embedded import weights_dir
from bridge.errors import OptionError
from emoji_world.judge import ObjectMatch, PictureContent
from emoji_world.render import render_scene
from emoji_world.scenes import Scene, is_held_out


def _seen(scene: Scene) -> PictureContent:
    things = tuple(
        ObjectMatch(o.concept, scene.style, o.size, o.tint, o.x, o.y, o.side, 1.0, 1.0)
        for o in scene.objects
    )
    return PictureContent(scene.background, scene.style, things, 0)


def test_pictures_are_measured_with_what_they_were_drawn_with(tmp_path: Path) -> None:
    source = Source("a" * 16, 200, 0, 20, 3.0)
    path, picture = tmp_path / "new" / "drawn.npz", np.full((4, 4, 3), 7, dtype=np.uint8)
    with pytest.raises(OptionError, match="run the draw command first"):
        kept_pictures(path, source)
    keep_pictures(path, source, ["a cat"], [picture])
    prompts, pictures = kept_pictures(path, source)
    assert prompts == ["a cat"] and np.array_equal(pictures, [picture])
    others = {"weights": "b" * 16, "n": 5, "seed": 1, "steps": 4, "guidance": 1.5}
    for name, other in others.items():
        with pytest.raises(OptionError, match=f"{name} .*, not {other}: run the draw.* again"):
            kept_pictures(path, replace(source, **{name: other}))
    np.savez(path, pictures=[picture], prompts=["a cat"])  # as it was kept without a source
    with pytest.raises(OptionError, match="weights unknown"):
        kept_pictures(path, source)


@pytest.mark.models
def test_folders_of_one_name_have_pictures_of_their_own(tmp_path: Path) -> None:
    one, other = tmp_path / "one" / "model", tmp_path / "other" / "model"
    for folder in (one, other):
        (folder / "unet").mkdir(parents=True)
        (folder / "unet" / "weights.safetensors").write_bytes(b"weights")
    assert weights_of(str(one)) == weights_of(str(other)) != weights_of("emoji-xl")
    assert pictures_file(str(one), 0) != pictures_file(str(other), 0)
    assert pictures_file(str(one), 0) == pictures_file(f"{one}/../model/", 0)
    assert pictures_file("emoji-xl", 0) == pictures_file(str(weights_dir() / "emoji-xl"), 0)
    (other / "unet" / "weights.safetensors").write_bytes(b"trained")
    assert weights_of(str(one)) != weights_of(str(other))


def test_nothing_measured_is_an_error_and_no_empty_table() -> None:
    wrong = Distances(None, None, 20.0)
    for measured in ([], [wrong, wrong]):
        with pytest.raises(OptionError, match=f"none of {len(measured)} pictures"):
            memorise_rows(measured)
    rows = {row.name: row for row in memorise_rows([wrong, Distances(3.0, 9.0, 20.0)])}
    assert rows["memorise/copies_among_right"].n == 1
    assert rows["memorise/near_duplicates_among_all"].n == 2


def test_a_training_scene_is_found_in_the_gallery() -> None:
    sprites = synthetic_sprites()
    gallery = make_gallery(50, sprites)
    assert not any(is_held_out(scene) for scene in gallery.scenes)
    # As the painter learns them: half of all scenes, but few of its own, are on white.
    assert sum(scene.background == "white" for scene in gallery.scenes) < 16
    copy = render_scene(gallery.scenes[17], sprites)
    assert nearest_of(copy, gallery, sprites) == 0
    assert nearest_of(255 - copy, gallery, sprites) > 1


def test_the_truth_is_rebuilt_from_what_was_seen() -> None:
    for task in make_tasks("position", 20) + make_tasks("counting", 20):
        rebuilt = as_seen(task, _seen(task.scene))
        assert rebuilt is not None
        assert rebuilt.objects == task.scene.objects
        assert is_held_out(rebuilt)


def test_pictures_with_other_things_have_no_truth() -> None:
    task = make_tasks("two_objects", 1)[0]
    stranger = ObjectMatch(
        task.scene.groups[0].concept + 1, "noto", "normal", None, 0, 0, 48, 1.0, 1.0
    )
    seen = _seen(task.scene)
    assert as_seen(task, replace(seen, objects=(*seen.objects, stranger))) is None
    assert as_seen(task, replace(seen, style=None)) is None


def test_edits_are_training_scenes_that_differ_in_one_thing() -> None:
    for task in make_tasks("binding", 5) + make_tasks("counting", 5) + make_tasks("colour", 5):
        found = list(edits(task.scene, random.Random(0)))
        assert len(found) > 20
        for scene in found:
            assert not is_held_out(scene)
            shared = set(scene.objects) & set(task.scene.objects)
            assert len(shared) == len(task.scene.objects) - 1


def test_a_copy_is_nearer_to_a_training_scene_than_to_its_truth() -> None:
    assert not Distances(truth=3.0, possible=9.0, random=20.0).copy
    assert Distances(truth=3.0, possible=2.0, random=20.0).copy
    assert Distances(truth=3.0, possible=9.0, random=1.0).copy


def test_the_nearest_possible_copy_of_a_rendered_truth_is_another_picture() -> None:
    sprites = synthetic_sprites()
    truth = make_tasks("binding", 1)[0].scene
    picture = render_scene(truth, sprites).astype(float)
    for scene in edits(truth, random.Random(0)):
        assert np.abs(render_scene(scene, sprites) - picture).max() > 0


@pytest.mark.models
def test_draw_then_memorise_with_the_same_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A painter that draws the truth, and a judge that knows its pictures."""
    sprites, known = synthetic_sprites(), {}

    def paint(pipe: Any, tasks: Sequence[Task], **how: Any) -> Iterator[tuple[Task, Image.Image]]:
        for task in tasks:
            pixels = render_scene(task.scene, sprites)
            known[pixels.tobytes()] = _seen(task.scene)
            yield task, Image.fromarray(pixels)

    judge = SimpleNamespace(
        look=lambda pixels: known[pixels.tobytes()], bank=SimpleNamespace(sprites=sprites)
    )
    monkeypatch.setenv("BRIDGE_CACHE", str(tmp_path / "cache"))
    pipe = SimpleNamespace(device="cpu")
    monkeypatch.setattr(bridge.diffusion, "load_pipeline", lambda *_, **__: pipe)
    monkeypatch.setattr(draw, "paint", paint)
    for module in (draw, memorise):
        monkeypatch.setattr(module, "Judge", lambda: judge)
    out = tmp_path / "out"
    options = ["--n", "2", "--gallery", "20", "--out", str(out)]
    assert main(["draw", *options]) == 0
    assert main(["memorise", *options]) == 0
    table = json.loads((out / "memorise.json").read_text())
    assert table["command"].endswith(
        "memorise --model emoji-xl --n 2 --steps 20 --guidance 3 --seed 0 --gallery 20"
    )
    rows = {row["name"]: row for row in table["rows"]}
    assert rows["memorise/distance_to_truth"]["value"] == 0
    assert rows["memorise/copies_among_right"]["n"] == 2 * len(COMBINED)
    (out / "memorise.json").unlink()
    assert main(["memorise", *options, "--steps", "9"]) == 1
    assert "steps 20, not 9: run the draw command again" in capsys.readouterr().err
    assert not (out / "memorise.json").exists()
