"""Template ensembles: the prompt's core in other frames.

The first seven are those that OpenAI's CLIP notebook found to serve zero-shot ImageNet best (the
"Prompt_Engineering_for_ImageNet" notebook of github.com/openai/CLIP); the others are frames that
people write for pictures.
"""

from __future__ import annotations

from collections.abc import Iterator

from bridge.lab.variants.numbers import value_of
from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import ARTICLES, article_for, core_of

TEMPLATES = (
    "itap of a [].",
    "a bad photo of the [].",
    "a origami [].",
    "a photo of the large [].",
    "a [] in a video game.",
    "art of the [].",
    "a photo of the small [].",
    "a photo of {}",
    "a picture of {}",
    "a drawing of {}",
    "there is {} in the picture",
    "{}, highly detailed",
    "{}, simple background",
)
"""``[]`` takes the core without an article, ``{}`` with the one that the prompt has."""

_OF_ONE = ("a []", "a origami []")


def templates(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """The prompt in each of ``TEMPLATES``; of several things, in those that are not of one."""
    core = core_of(prompt)
    if not core:
        return
    several = value_of(core.split()[0]) not in (None, 1)
    whole = _with_article(core, prompt)
    for template in TEMPLATES:
        if several and any(frame in template for frame in _OF_ONE):
            continue
        # Not str.format: a prompt may hold braces of its own. A template has one place.
        yield (
            template.replace("[]", core) if "[]" in template else template.replace("{}", whole),
            template.replace("[]", "{}"),
        )


def _with_article(core: str, prompt: str) -> str:
    """The core behind the article that the prompt has for it."""
    before = prompt[: prompt.rfind(core)].split()
    article = before[-1].lower() if before else ""
    if article not in ARTICLES:
        return core
    return f"{article if article == 'the' else article_for(core)} {core}"
