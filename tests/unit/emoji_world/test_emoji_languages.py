"""Names and words of the languages, captions made of them, and English captions read back."""

from __future__ import annotations

import gzip
import json
import random
import unicodedata

import pytest
from hypothesis import given
from support.tiny_world import SEEDS, STEADY, scenes_at

from bridge.embedded import weights_dir
from bridge.errors import OptionError, WeightsError
from bridge.lab.variants.languages import (
    CAPTIONS_FILE,
    CaptionMeaning,
    Thing,
    read_caption,
    write_caption,
)
from bridge.lab.variants.vocabulary import (
    COLOURS,
    LANGUAGES,
    NAMES_FILE,
    WORDS,
    dictionary,
    english_names,
    names_in,
    words_in,
)
from emoji_world import emojibase
from emoji_world.caption_meaning import (
    draw_caption,
    draw_meaning,
    english_phrasings,
    held_out_caption,
    meaning_of,
    pair_captions,
)
from emoji_world.captions import caption
from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import BACKGROUNDS, STYLES, TINTS

CAT, DOG, APPLE = (english_names()[name] for name in ("cat", "dog", "apple"))


# ---------------------------------------------------------------- the data


def test_every_language_names_every_concept_by_a_name_of_its_own() -> None:
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 27 and "en" not in LANGUAGES
    for language in LANGUAGES:
        names = names_in(language)
        assert len(names) == len(CONCEPTS) == 320
        for name in names:
            assert name and name == name.strip() == unicodedata.normalize("NFC", name), language
            assert all(letter.isprintable() or letter in "\u200c\u200d" for letter in name)
        assert len({name.casefold() for name in names}) == len(names), language
    assert names_in("de")[CAT] == "Katze" and names_in("ja")[DOG] == "イヌ"
    assert names_in("zh")[CAT] == "猫" and names_in("zh-hant")[CAT] == "貓"


def test_every_language_has_all_words_and_well_formed_templates() -> None:
    for words in WORDS.values():
        assert set(words.colours) == set(COLOURS) and set(words.counts) == {1, 2, 3, 4}
        assert sorted(words.order) == ["count", "name", "size", "tint"]
        single = [words.conjunction, words.picture, words.left, words.right, words.top]
        single += [words.bottom, *words.colours.values(), *words.sizes.values()]
        for forms in [*single, *words.counts.values(), words.background]:
            assert forms and len(set(forms)) == len(forms)
            assert all(form == form.strip() for form in forms), words.code
        # One word may not mean two things, or a caption would mean two scenes.
        for group in (words.colours, words.sizes, words.counts):
            cited = [form for forms in group.values() for form in forms]
            assert len(set(cited)) == len(cited), words.code
        places = [*words.left, *words.right, *words.top, *words.bottom]
        assert len(set(places)) == len(places)
        assert all(form.count("{c}") == 1 for form in words.background)
        for forms in words.relations.values():
            assert all(f.count("{a}") == f.count("{b}") == 1 for f in forms), words.code


def test_a_language_without_names_is_one_clear_error() -> None:
    for ask in (words_in, names_in, dictionary):
        with pytest.raises(OptionError, match=r"no names in the language 'tlh'.*bn, da, de"):
            ask("tlh")
    with pytest.raises(OptionError, match="'tlh'"):
        write_caption(CaptionMeaning((Thing(CAT),)), "tlh")


def test_a_dictionary_has_all_english_words() -> None:
    for language in LANGUAGES:
        found = dictionary(language)
        assert set(english_names()) <= set(found)
        assert {*COLOURS, "one", "two", "three", "four", "small", "big", "and"} <= set(found)
        assert all(found.values())
    assert dictionary("fr")["cats"] == "chat" and dictionary("fr")["red"] == "rouge"


def test_the_tables_are_those_of_the_world() -> None:
    """What the library has as data is what the world says of itself."""
    rows = [
        line.split("\t") for line in gzip.decompress(NAMES_FILE.read_bytes()).decode().splitlines()
    ]
    assert rows[0] == ["sign", "name", "one", "many", *LANGUAGES]
    assert [tuple(row[:4]) for row in rows[1:]] == [
        (concept.emoji, concept.name, concept.one, concept.many) for concept in CONCEPTS
    ]
    assert set(COLOURS) == {*TINTS, *BACKGROUNDS}
    made = json.loads(json.dumps(english_phrasings()))
    assert made == json.loads((weights_dir() / CAPTIONS_FILE).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- how the table is made


def compact(labels: dict[str, str]) -> bytes:
    rows = [{"unicode": e.replace("\ufe0f", ""), "label": label} for e, label in labels.items()]
    return json.dumps(rows).encode()


def test_the_table_is_what_emojibase_says() -> None:
    labels = {concept.emoji: f" {concept.name} " for concept in CONCEPTS}
    assert emojibase.names_of(compact(labels), "en") == [c.name for c in CONCEPTS]
    labels[CONCEPTS[3].emoji] = "fox, animal"
    assert emojibase.names_of(compact(labels), "en")[3] == "fox"
    del labels[CONCEPTS[5].emoji]
    with pytest.raises(WeightsError, match="no xx name of 🐈"):
        emojibase.names_of(compact(labels), "xx")


def test_names_are_shortened_where_they_stay_different() -> None:
    assert emojibase.shortened(["a, b", "c (d)", "e"]) == ["a", "c", "e"]
    assert emojibase.shortened(["Lift, b", "lift", "e"]) == ["Lift, b", "lift", "e"]
    assert emojibase.shortened(["(a)", "b"]) == ["(a)", "b"]


# ---------------------------------------------------------------- captions


def test_what_is_said_in_some_languages() -> None:
    meaning = CaptionMeaning((Thing(CAT, 2, "red"), Thing(DOG, size="big")), "left", "blue", "noto")
    assert (
        write_caption(meaning, "de") == "zwei rot Katze links von groß Hund, blau Hintergrund, noto"
    )
    assert write_caption(meaning, "es") == (
        "dos gato rojo a la izquierda de perro grande, fondo azul, noto"
    )
    assert write_caption(meaning, "ja") == "大きいイヌの左に二つの赤いネコ、青い背景、noto"
    assert write_caption(meaning, "zh") == "两个红色猫在大狗左边，蓝色背景，noto"
    assert write_caption(meaning, "th") == "แมวสีแดงสองอันอยู่ทางซ้ายของสุนัขขนาดใหญ่ พื้นหลังสีน้ำเงิน noto"
    assert write_caption(meaning, "fi") == (
        "vasemmalla kaksi punainen kissa, oikealla iso koira, sininen tausta, noto"
    )
    some = CaptionMeaning((Thing(CAT), Thing(DOG), Thing(APPLE)))
    assert write_caption(some, "fr") == "chat, chien et pomme rouge"


@given(seed=SEEDS)
@STEADY
def test_a_pair_says_the_same(seed: int) -> None:
    """All that the English caption says is found in the other, and no relation or style more."""
    (scene,) = scenes_at(seed, 1, held_out=None)
    for language in LANGUAGES:
        rng = random.Random(f"{seed}/{language}")
        foreign, english = pair_captions(scene, language, rng)
        meaning = read_caption(english)
        assert meaning is not None
        words = words_in(language)
        for group in scene.groups:
            assert names_in(language)[group.concept] in foreign
            if group.tint is not None:
                assert any(form in foreign for form in words.colours[group.tint])
            if group.count > 1:
                assert any(form in foreign for form in words.counts[group.count])
        for style in STYLES:
            assert (style in foreign) == (style == meaning.style)
        if scene.background != "white":
            assert any(form in foreign for form in words.colours[scene.background])


def test_english_is_one_of_the_languages_of_a_pair() -> None:
    for scene in scenes_at(3, 60):
        one, two = pair_captions(scene, "en", random.Random(3))
        first, second = read_caption(one), read_caption(two)
        assert first is not None and second is not None
        assert (first.relation, first.style) == (second.relation, second.style)


@given(seed=SEEDS)
@STEADY
def test_held_out_phrasings_are_none_of_training(seed: int) -> None:
    (scene,) = scenes_at(seed, 1, held_out=None)
    for language in LANGUAGES:
        rng = random.Random(f"{seed}/{language}")
        held_out = held_out_caption(scene, language, rng)
        words = words_in(language)
        grounds = [
            template.format(c=colour)
            for template in words.background
            for colour in words.colours[scene.background]
        ]
        assert held_out.startswith(tuple(grounds)) and held_out.endswith(scene.style)
        trained = [draw_caption(draw_meaning(scene, rng), language, rng) for _ in range(5)]
        assert not any(text.startswith(tuple(grounds)) for text in trained)


# ---------------------------------------------------------------- reading English


@given(seed=SEEDS)
@STEADY
def test_a_caption_is_read_as_it_was_meant(seed: int) -> None:
    (scene,) = scenes_at(seed, 1, held_out=None)
    rng = random.Random(seed)
    for held_out in (False, True):
        for relate in (True, False):
            style = rng.random() < 0.5
            text = caption(scene, rng, held_out=held_out, relation=relate, style=style)
            for typed in (text, text.upper(), f" {text}. "):
                meaning = read_caption(typed)
                assert meaning is not None, text
                assert meaning.relation == (scene.relation if relate else None), text
                assert meaning.style == (scene.style if style else None)
                assert meaning.background in (None, scene.background)
                if scene.background != "white":
                    assert meaning.background == scene.background
                if meaning.relation is not None:
                    assert meaning.things == meaning_of(scene).things
                assert sorted(map(str, meaning.things)) == sorted(
                    map(str, meaning_of(scene).things)
                )


@pytest.mark.parametrize(
    "text", ["", "a quiet morning", "a cat beside a dog", "two", "a red", "on a blue background"]
)
def test_other_texts_are_not_read(text: str) -> None:
    assert read_caption(text) is None


def test_keyword_lists_are_read() -> None:
    meaning = read_caption("small red cat x2, dog, blue background, noto")
    assert meaning == CaptionMeaning(
        (Thing(CAT, 2, "red", "small"), Thing(DOG)), None, "blue", "noto"
    )
