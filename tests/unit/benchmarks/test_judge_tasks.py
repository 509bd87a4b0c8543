"""Tasks come from held-out combinations and phrasings, and are scored by the written rules."""

from __future__ import annotations

import pytest

from benchmarks.tasks import KINDS, Task, interleaved, judge_task, make_tasks
from emoji_world.judge import ObjectMatch, PictureContent
from emoji_world.scenes import Group, Scene, held_out_count, held_out_pair, held_out_tint


def _found(concept: int, x: int = 0, y: int = 0, tint: str | None = None) -> ObjectMatch:
    return ObjectMatch(concept, "noto", "normal", tint, x, y, 48, 1.0, 1.0)


def _seen(
    *objects: ObjectMatch, background: str = "white", style: str | None = "noto"
) -> PictureContent:
    return PictureContent(background, style, objects, 0)


def _task(kind: str, *groups: Group, relation: str | None = None, says_style: bool = True) -> Task:
    return Task(kind, "", Scene("noto", "white", groups, relation, ()), says_style, 0)


def _right(task: Task, *objects: ObjectMatch) -> bool:
    return judge_task(task, _seen(*objects)).right


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_are_repeatable_different_and_held_out(kind: str) -> None:
    tasks = make_tasks(kind, 200)
    assert tasks == make_tasks(kind, 200)
    assert len({task.prompt for task in tasks}) == 200
    assert tasks != make_tasks(kind, 200, seed=1)
    for task in tasks:
        groups = task.scene.groups
        if kind in ("two_objects", "position", "binding"):
            assert held_out_pair(groups[0].concept, groups[1].concept)
        if kind == "counting":
            assert held_out_count(groups[0].concept, groups[0].count)
        if kind == "colour":
            assert held_out_tint(groups[0].concept, groups[0].tint)
        if kind == "binding":
            assert groups[0].tint != groups[1].tint and None not in {g.tint for g in groups}
        if kind == "single_object":
            assert len(groups) == 1 and groups[0].count == 1
        assert task.says_style == (task.scene.style in task.prompt)


def test_position_prompts_name_the_relation() -> None:
    words = {"left": ("left", "right"), "above": ("top", "bottom")}
    for task in make_tasks("position", 100):
        assert task.scene.relation is not None
        assert any(word in task.prompt for word in words[task.scene.relation])


def test_interleaving_gives_as_many_of_each_in_every_prefix() -> None:
    tasks = interleaved(4)
    assert [task.kind for task in tasks[:6]] == list(KINDS)
    assert len(tasks) == 24


def test_single_object_must_be_there_exactly_once() -> None:
    task = _task("single_object", Group(3))
    assert _right(task, _found(3))
    assert not _right(task, _found(3), _found(3, 64))
    assert not _right(task, _found(4))
    assert not _right(task)


def test_two_objects_must_both_be_there() -> None:
    task = _task("two_objects", Group(3), Group(4))
    assert _right(task, _found(3), _found(4))
    assert not _right(task, _found(3), _found(3))


def test_counting_is_exact() -> None:
    task = _task("counting", Group(3, 3))
    assert _right(task, _found(3), _found(3), _found(3))
    assert not _right(task, _found(3), _found(3))
    assert not _right(task, _found(3), _found(3), _found(3), _found(3))


def test_colour_must_be_on_every_one() -> None:
    task = _task("colour", Group(3, tint="red"))
    assert _right(task, _found(3, tint="red"))
    assert not _right(task, _found(3))
    assert not _right(task, _found(3, tint="red"), _found(3, tint="blue"))
    assert not _right(task, _found(4, tint="red"))


@pytest.mark.parametrize(("relation", "axis"), [("left", "x"), ("above", "y")])
def test_position_follows_the_relation(relation: str, axis: str) -> None:
    task = _task("position", Group(3), Group(4), relation=relation)
    near, far = {axis: 0}, {axis: 64}
    assert _right(task, _found(3, **near), _found(4, **far))
    assert not _right(task, _found(4, **near), _found(3, **far))
    assert not _right(task, _found(3, **near), _found(4, **{axis: 15}))
    assert not _right(task, _found(3, **near))


def test_binding_wants_each_tint_on_its_own_thing() -> None:
    task = _task("binding", Group(3, tint="red"), Group(4, tint="blue"))
    assert _right(task, _found(3, tint="red"), _found(4, tint="blue"))
    assert not _right(task, _found(3, tint="blue"), _found(4, tint="red"))
    assert not _right(task, _found(3, tint="red"), _found(4))
    both = (_found(3, tint="red"), _found(3, tint="blue"), _found(4, tint="blue"))
    assert not _right(task, *both)


def test_style_counts_only_where_it_was_named() -> None:
    seen = _seen(_found(3), background="blue", style="fluent")
    named = judge_task(_task("single_object", Group(3)), seen)
    assert (named.right, named.style, named.background) == (True, False, False)
    assert judge_task(_task("single_object", Group(3), says_style=False), seen).style is None
