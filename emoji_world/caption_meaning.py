"""Captions that say the same of a scene, in English and in another language.

A translation must say what its original says and no more, or a tower that is taught by the pair
learns to guess. So both are made of one ``CaptionMeaning``.

``python -m emoji_world.caption_meaning`` writes how English captions are phrased beside the weights
(weights/captions.json), where `bridge.lab` reads them back by it.
"""

from __future__ import annotations

import json
import random
from typing import Any

from bridge.embedded import weights_dir
from bridge.files import write_whole
from bridge.lab.variants.languages import (
    CAPTIONS_FILE,
    CaptionMeaning,
    Thing,
    join_things,
    place_things,
    write_background,
    write_thing,
)
from bridge.lab.variants.vocabulary import words_in
from emoji_world.captions import caption
from emoji_world.phrasings import (
    BACKGROUND,
    FRAMES,
    FRAMES_HELD_OUT,
    JOINTS,
    ON,
    RELATIONS_HELD_OUT,
    STYLE,
    USUAL,
    arranged,
)
from emoji_world.scenes import BACKGROUNDS, STYLES, TINTS, Scene

_COUNT_ONE = 0.2  # how often a single thing is counted, where English has its article


def meaning_of(scene: Scene) -> CaptionMeaning:
    """All that a caption can say of a scene."""
    things = tuple(Thing(g.concept, g.count, g.tint, g.size) for g in scene.groups)
    return CaptionMeaning(things, scene.relation, scene.background, scene.style)


def draw_meaning(scene: Scene, rng: random.Random) -> CaptionMeaning:
    """What a random caption of the scene says: as often as `captions.caption` says it."""
    return CaptionMeaning(
        meaning_of(scene).things,
        scene.relation if rng.random() < 0.85 else None,
        scene.background if scene.background != "white" or rng.random() < 0.25 else None,
        scene.style if rng.random() < 0.7 else None,
    )


def pair_captions(scene: Scene, language: str, rng: random.Random) -> tuple[str, str]:
    """A random caption in a language ("en" too) and an English one that says the same.

    A white background may be said in one alone, since unsaid it is white.
    Raises OptionError for a language that bridge has no names in.
    """
    meaning = draw_meaning(scene, rng)
    related, styled = meaning.relation is not None, meaning.style is not None
    english = caption(scene, rng, relation=related, style=styled)
    if language == "en":
        return caption(scene, rng, relation=related, style=styled), english
    return draw_caption(meaning, language, rng), english


def held_out_caption(scene: Scene, language: str, rng: random.Random) -> str:
    """A caption that says everything in a phrasing that training never shows: the ground comes
    first, and of a pair the second thing does."""
    meaning, words = meaning_of(scene), words_in(language)
    ground = write_background(scene.background, words, rng.choice)
    things = _things(meaning, language, rng)
    if meaning.relation is None:
        rng.shuffle(things)
        what = join_things(things, None, words, rng.choice)
    else:
        what = words.comma.join(reversed(place_things(things, meaning.relation, words, rng.choice)))
    return words.comma.join([ground, what, scene.style])


def draw_caption(meaning: CaptionMeaning, language: str, rng: random.Random) -> str:
    """A caption in a language other than English, in a random phrasing.

    Raises OptionError for a language that bridge has no names in.
    """
    words = words_in(language)
    things = _things(meaning, language, rng)
    if meaning.relation is None:
        rng.shuffle(things)
    what = join_things(things, meaning.relation, words, rng.choice)
    clauses = []
    if meaning.background is not None:
        clauses.append(write_background(meaning.background, words, rng.choice))
    if meaning.style is not None:
        clauses.append(meaning.style)
    rng.shuffle(clauses)
    if rng.random() < 0.15:
        what = f"{rng.choice(words.picture)}: {what}"
    return words.comma.join([what, *clauses])


def _things(meaning: CaptionMeaning, language: str, rng: random.Random) -> list[str]:
    return [
        write_thing(
            thing,
            words_in(language),
            rng.choice,
            counted=thing.count > 1 or rng.random() < _COUNT_ONE,
        )
        for thing in meaning.things
    ]


# ---------------------------------------------------------------- how English ones are phrased


def english_phrasings() -> dict[str, Any]:
    """All phrasings of `captions.caption` but those in emoji, as `bridge.lab` reads them."""
    ground, style = "background", "style"
    return {
        "frames": list(dict.fromkeys((*FRAMES, *FRAMES_HELD_OUT))),
        "clauses": {
            "bg": {"says": ground, "forms": BACKGROUND},
            "Bg": {"says": ground, "forms": ("{c} background, ",)},
            "On": {"says": ground, "forms": ON},
            "style": {"says": style, "forms": [form.replace("{}", "{c}") for form in STYLE]},
            "Style": {"says": style, "forms": ("{c} style, ",)},
        },
        "relations": {
            name: list(dict.fromkeys((*USUAL[name], *arranged(name, ("{joint}",)), *held_out)))
            for name, held_out in RELATIONS_HELD_OUT.items()
        },
        "joints": JOINTS,
        "words": {ground: list(BACKGROUNDS), style: STYLES, "tint": TINTS},
    }


if __name__ == "__main__":
    text = json.dumps(english_phrasings(), indent=1) + "\n"
    write_whole(weights_dir() / CAPTIONS_FILE, text.encode())
