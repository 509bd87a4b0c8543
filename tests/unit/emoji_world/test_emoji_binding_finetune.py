"""The text towers' reading stage: what is asked of which text, and who is trained by it."""

from __future__ import annotations

import random

import pytest
import torch
from support.tiny_models import tiny_clip_tokenizer
from support.tiny_world import scenes_at
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel

from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import BACKGROUNDS, SIZES, TINTS, Group, Scene
from emoji_world.train import binding_finetune, clip
from emoji_world.train.loop import Recipe

WORDS = tiny_clip_tokenizer("<|endoftext|>")


@pytest.fixture
def models() -> tuple[CLIPModel, CLIPModel]:
    torch.manual_seed(0)
    return clip.build(WORDS), clip.build(WORDS, second=True)


@pytest.fixture
def recipe(models: tuple[CLIPModel, CLIPModel], monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(binding_finetune, "BATCH", 6)
    return binding_finetune.recipe(models, nn.Linear(416, 48), WORDS)


def scene(*groups: Group, relation: str | None = None) -> Scene:
    return Scene("noto", "pink", groups, relation, ())


CAT, DOG = Group(3, tint="red", size="big"), Group(8, count=2)


def asked(one: Scene, named: bool = True) -> dict[tuple[str, str], object]:
    """What is asked of one scene, in words: (about, attribute) → answer."""
    tints, sizes, grounds = (None, *TINTS), tuple(SIZES), tuple(BACKGROUNDS)
    read = {
        "concept": lambda n: n,
        "tint": lambda n: tints[n],
        "size": lambda n: sizes[n],
        "count": lambda n: n + 1,
        "place": lambda n: binding_finetune.PLACES[n],
        "background": lambda n: grounds[n],
    }
    made = binding_finetune.ask([one], [named])
    assert made.row.tolist() == [0] * len(made.about)
    found = {}
    for number, about in enumerate(made.about.tolist()):
        things = len(binding_finetune.PLACES)
        about_what = (
            binding_finetune.PLACES[about]
            if about < things
            else ("ground" if about == things + len(CONCEPTS) else f"thing {about - things}")
        )
        for name, column in made.answers.items():
            if column[number] != -100:
                found[about_what, name] = read[name](int(column[number]))
    return found


@pytest.mark.parametrize(
    ("relation", "first", "second"),
    [
        ("left", "left", "right"),
        ("above", "top", "bottom"),
    ],
)
def test_places_and_things_are_asked_for(relation: str, first: str, second: str) -> None:
    cat = {"tint": "red", "size": "big", "count": 1}
    dog = {"tint": None, "size": "normal", "count": 2}
    wanted: dict[tuple[str, str], object] = {("ground", "background"): "pink"}
    for place, number, looks in ((first, 3, cat), (second, 8, dog)):
        wanted[place, "concept"] = number
        wanted[f"thing {number}", "place"] = place
        for name, value in looks.items():
            wanted[place, name] = wanted[f"thing {number}", name] = value
    assert asked(scene(CAT, DOG, relation=relation)) == wanted
    # Without the relation in the caption nobody can tell the places.
    untold = asked(scene(CAT, DOG, relation=relation), named=False)
    assert untold == {
        key: value
        for key, value in wanted.items()
        if key[0] not in (first, second) and key[1] != "place"
    }


def test_a_thing_alone_stands_alone_and_three_stand_anywhere() -> None:
    alone = asked(scene(CAT), named=False)
    assert alone["alone", "concept"] == 3 and alone["thing 3", "place"] == "alone"
    three = asked(scene(CAT, DOG, Group(11)))
    assert {about for about, _ in three} == {"thing 3", "thing 8", "thing 11", "ground"}
    assert "place" not in {name for _, name in three}


def test_the_reader_sees_each_texts_own_tokens_alone() -> None:
    torch.manual_seed(1)
    reader = binding_finetune.Reader(nn.Linear(416, 48))
    states = torch.randn(2, 7, 416)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    questions = binding_finetune.ask([scene(CAT, DOG, relation="left"), scene(CAT)], [True, True])
    logits = reader(states, mask, questions)
    assert {name: each.shape for name, each in logits.items()} == {
        name: (len(questions.row), size) for name, size in binding_finetune.ANSWERS.items()
    }
    changed = states.clone()
    changed[1, 4:] += 1  # behind the end of the second text
    same = reader(changed, mask, questions)
    changed[1, 0] += 1
    other = reader(changed, mask, questions)
    second = questions.row == 1
    for name in binding_finetune.ANSWERS:
        torch.testing.assert_close(same[name], logits[name])
        torch.testing.assert_close(other[name][~second], logits[name][~second])
        assert not torch.allclose(other[name][second], logits[name][second])


def test_the_towers_are_trained_and_nothing_else(
    recipe: Recipe, models: tuple[CLIPModel, CLIPModel]
) -> None:
    loss, figures = recipe.loss(0)
    assert figures["pooled_moved"] == pytest.approx(0, abs=1e-5)  # nothing has moved yet
    loss.backward()
    towers = {
        f"{n}.text_model.{k}"
        for n, m in zip(("first", "second"), models, strict=True)
        for k, _ in m.text_model.named_parameters()
    }
    trained = dict(recipe.module.named_parameters())
    assert len(towers) == sum(not name.startswith("reader.") for name in trained)
    for name, parameter in trained.items():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert "projection.0" not in name
    for model in models:
        others = [p for n, p in model.named_parameters() if not n.startswith("text_model.")]
        assert others and all(p.grad is None for p in others)


def test_the_loss_is_that_of_its_figures(
    recipe: Recipe, models: tuple[CLIPModel, CLIPModel]
) -> None:
    with torch.no_grad():  # as if trained: the pooled texts have moved
        for parameter in models[0].text_model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    loss, figures = recipe.loss(4)
    read = sum(
        binding_finetune.WEIGHTS.get(name, 1.0) * figures[name] for name in binding_finetune.ANSWERS
    )
    assert figures["pooled_moved"] > 1e-4
    assert loss.item() == pytest.approx(
        read + binding_finetune.POOLED_WEIGHT * figures["pooled_moved"], rel=1e-5
    )


def test_states_are_what_the_pipeline_conditions_on(models: tuple[CLIPModel, CLIPModel]) -> None:
    texts = clip.tokenise(WORDS, ["a red cat", "two dogs left of a cat"])
    with torch.no_grad():
        states, pooled = binding_finetune.states_of(models, texts)
        for model, part, vector in zip(models, states.split([192, 224], -1), pooled, strict=True):
            hidden = model.text_model(**texts, output_hidden_states=True).hidden_states
            torch.testing.assert_close(part, hidden[-2])
            own = model.get_text_features(**texts)
            own = own if isinstance(own, torch.Tensor) else own.pooler_output
            torch.testing.assert_close(F.normalize(vector), F.normalize(own))


def test_captions_say_the_relation_that_is_asked_for() -> None:
    scenes = scenes_at(2, 40)
    texts, named = binding_finetune.captioned(random.Random(0), scenes)
    assert len(texts) == 40 and 20 < sum(named) < 40
    again, _ = binding_finetune.captioned(random.Random(0), scenes, held_out=True)
    assert texts != again


def test_anchored_states_move_by_a_constant_and_the_pooled_text_stays() -> None:
    torch.manual_seed(0)
    model = clip.build(tiny_clip_tokenizer("<|endoftext|>")).eval()
    ids = torch.randint(3, 20, (6, 12))

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            seen = model.text_model(ids, output_hidden_states=True)
        return seen.hidden_states[-2], seen.last_hidden_state

    states, last = read()
    added = binding_finetune.anchor(model.text_model, ids)
    shifted, kept = read()
    torch.testing.assert_close(shifted, states + added)
    assert (added == added[0]).all() and added[0] != 0
    assert shifted.mean() / shifted.std() == pytest.approx(binding_finetune.ANCHOR, rel=1e-3)
    torch.testing.assert_close(kept, last, atol=1e-4, rtol=1e-4)
