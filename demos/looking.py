"""What an answer looked at: worked out when somebody asks to see it, never before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import OptionError
from bridge.images import load_image
from bridge.vlm import attention_rollout, heat_overlay, lens, lens_overlay, occlusion
from demos.asking import REMEMBERED, Turn, with_turns_that_fit
from demos.models import Models
from demos.pictures import data_uri

if TYPE_CHECKING:
    from PIL.Image import Image

BLANKED, ATTENTION, NEAREST = "Blanked parts", "Attention", "Nearest words"
KINDS = (BLANKED, ATTENTION, NEAREST)
WHOLE = -1  # the word picker's value for the whole answer

# Natural logarithms. A word that loses less than this with a part blanked owes it nothing, and
# is not to light up as if it did.
_LEAST_DROP = 0.25


@dataclass(frozen=True, eq=False)
class Look:
    """One way of looking at one answer: heat for each word, or words for each patch."""

    kind: str
    words: tuple[str, ...]
    picture: Image  # as the model saw it
    heat: np.ndarray  # (W + 1, rows, columns); the last is the whole answer's
    least: float  # what a part at least needs; where none has it, there is no map
    texts: np.ndarray | None = None  # (rows, columns) of words, for "Nearest words"
    told: str = ""  # what is said under the whole answer's picture
    told_word: str = ""  # and under a word's, which stands for {name}
    none: str = ""  # and where no part has as much as ``least``


def look(models: Models, picture: str | Image, turns: Sequence[Turn], kind: str) -> Look:
    """Look at the last answer of ``turns``. Raises what `bridge.vlm.occlusion` raises."""
    image = load_image(picture)
    vlm = models.vlm()
    *earlier, (question, answer) = turns
    if kind == NEAREST:
        return _nearest(vlm, image)
    make = _blanked if kind == BLANKED else _attention
    return with_turns_that_fit(
        earlier[-REMEMBERED:], lambda history: make(vlm, image, question, answer, history)
    )


def kind_of(value: object) -> str:
    """A way of looking, as it was sent. Raises OptionError."""
    for kind in KINDS:
        if value == kind:
            return kind
    raise OptionError(f"There is no such way of looking; there is: {', '.join(KINDS)}.")


def word_of(value: object, seen: Look) -> int:
    """The word picker's value as it was sent; the whole answer where it is no word of it."""
    named = isinstance(value, int) and 0 <= value < len(seen.words)
    return int(value) if named else WHOLE  # type: ignore[call-overload]


def word_choices(seen: Look) -> list[tuple[str, int]]:
    """The word picker's labels and values."""
    return [("whole answer", WHOLE), *((word, i) for i, word in enumerate(seen.words))]


def look_html(seen: Look, word: int = WHOLE) -> str:
    """The overlay of one word (or of the whole answer), and what its colours mean."""
    if seen.texts is not None:
        return _figure(
            lens_overlay(seen.picture, seen.texts), "Each patch's nearest word", seen.told
        )
    if not -1 <= word < len(seen.words):
        word = WHOLE
    heat = seen.heat[word]
    whole = word == WHOLE
    name = "the answer" if whole else f"“{seen.words[word]}”"
    if not float(np.nanmax(np.abs(heat))) >= seen.least:
        # Neither colours nor what they would mean.
        return _figure(seen.picture, "The picture as the model saw it", seen.none.format(name=name))
    shown = heat_overlay(seen.picture, heat)
    told = seen.told if whole else seen.told_word.format(name=name)
    return _figure(shown, f"Where {name} came from", told)


def _blanked(vlm: Any, image: Image, question: str, answer: str, history: list[Turn]) -> Look:
    found = occlusion(vlm, image, question, answer, history=history)
    heat = np.stack([*(found.cells(i) for i in range(len(found.words))), found.cells()])
    told = "Orange: with this part blanked, {name} gets less likely. Blue: likelier."
    return Look(
        kind=BLANKED,
        words=found.words,
        picture=found.picture,
        heat=heat,
        least=_LEAST_DROP,
        told=told.format(name="the answer"),
        told_word=told,
        none="No single part of the picture is evidence for {name}: whichever is blanked, it stays "
        "about as likely. There is no map to show.",
    )


def _attention(vlm: Any, image: Image, question: str, answer: str, history: list[Turn]) -> Look:
    found = attention_rollout(vlm, image, question, answer, history=history)
    whole = found.cells()
    each = [found.cells(i) for i in range(len(found.words))]
    told = "The more orange, the more attention {name} paid to this part, through all layers."
    told_word = told
    if len(each) > 1:
        # All words share most of their attention; what sets one apart is the rest.
        each = [cells - whole for cells in each]
        told_word = (
            "Orange: {name} paid more attention to this part than the answer's words do in the "
            "mean, through all layers. Blue: less."
        )
    return Look(
        kind=ATTENTION,
        words=found.words,
        picture=found.views[0].picture,
        heat=np.stack([*each, whole]),
        least=1e-6,
        told=told.format(name="the answer"),
        told_word=told_word,
        none="No part of the picture had more of the attention of {name} than others. There is no "
        "map to show.",
    )


def _nearest(vlm: Any, image: Image) -> Look:
    found = lens(vlm, image, method="logits", top=1)
    most = ", ".join(f"{word} ({count})" for word, count in found.counts()[:6])
    told = f"The word that the language model reads in each patch. Most often: {most}."
    view = found.views[0]
    empty = np.zeros((0, *view.grid))
    return Look(NEAREST, (), view.picture, empty, 1.0, texts=found.cells(), told=told)


def _figure(image: Image, title: str, told: str) -> str:
    return (
        f'<figure class="bridge-look"><img src="{data_uri(image)}" '
        f'alt="{escape(title, quote=True)}"><figcaption>{escape(told)}</figcaption></figure>'
    )
