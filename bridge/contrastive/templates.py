"""Sentences that put a class's name before a text tower, and how they are read.

The 80 sentences for ImageNet, and the 7 of them that do nearly as well, are OpenAI's
(openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb, MIT licence); averaging the vectors
of several is section 3.1.4 of Radford et al. 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from bridge.checks import choice
from bridge.errors import OptionError

TemplateSet: TypeAlias = Literal["name", "photo", "clip-7", "clip-80"]
PLACE = "{}"

# fmt: off
TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "clip-7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "clip-80": (
        "a bad photo of a {}.",
        "a photo of many {}.",
        "a sculpture of a {}.",
        "a photo of the hard to see {}.",
        "a low resolution photo of the {}.",
        "a rendering of a {}.",
        "graffiti of a {}.",
        "a bad photo of the {}.",
        "a cropped photo of the {}.",
        "a tattoo of a {}.",
        "the embroidered {}.",
        "a photo of a hard to see {}.",
        "a bright photo of a {}.",
        "a photo of a clean {}.",
        "a photo of a dirty {}.",
        "a dark photo of the {}.",
        "a drawing of a {}.",
        "a photo of my {}.",
        "the plastic {}.",
        "a photo of the cool {}.",
        "a close-up photo of a {}.",
        "a black and white photo of the {}.",
        "a painting of the {}.",
        "a painting of a {}.",
        "a pixelated photo of the {}.",
        "a sculpture of the {}.",
        "a bright photo of the {}.",
        "a cropped photo of a {}.",
        "a plastic {}.",
        "a photo of the dirty {}.",
        "a jpeg corrupted photo of a {}.",
        "a blurry photo of the {}.",
        "a photo of the {}.",
        "a good photo of the {}.",
        "a rendering of the {}.",
        "a {} in a video game.",
        "a photo of one {}.",
        "a doodle of a {}.",
        "a close-up photo of the {}.",
        "a photo of a {}.",
        "the origami {}.",
        "the {} in a video game.",
        "a sketch of a {}.",
        "a doodle of the {}.",
        "a origami {}.",
        "a low resolution photo of a {}.",
        "the toy {}.",
        "a rendition of the {}.",
        "a photo of the clean {}.",
        "a photo of a large {}.",
        "a rendition of a {}.",
        "a photo of a nice {}.",
        "a photo of a weird {}.",
        "a blurry photo of a {}.",
        "a cartoon {}.",
        "art of a {}.",
        "a sketch of the {}.",
        "a embroidered {}.",
        "a pixelated photo of a {}.",
        "itap of the {}.",
        "a jpeg corrupted photo of the {}.",
        "a good photo of a {}.",
        "a plushie {}.",
        "a photo of the nice {}.",
        "a photo of the small {}.",
        "a photo of the weird {}.",
        "the cartoon {}.",
        "art of the {}.",
        "a drawing of the {}.",
        "a photo of the large {}.",
        "a black and white photo of a {}.",
        "the plushie {}.",
        "a dark photo of a {}.",
        "itap of a {}.",
        "graffiti of the {}.",
        "a toy {}.",
        "itap of my {}.",
        "a photo of a cool {}.",
        "a photo of a small {}.",
        "a tattoo of the {}.",
    ),
}
# fmt: on
"""The named sets."""


def read_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The sentences of a named set, or the caller's own.

    Args:
        templates: a name of ``TEMPLATES``, one sentence, or several; ``{}`` is the name's place.

    Raises:
        OptionError: no sentences, one twice, one without a place, another name.
    """
    if isinstance(templates, str) and PLACE not in templates:
        choice(templates, TEMPLATES, "set of templates")
        return TEMPLATES[templates]
    given = (templates,) if isinstance(templates, str) else tuple(templates)
    if not given:
        raise OptionError(f"templates is empty; give one at least, such as 'a photo of a {PLACE}.'")
    for each in given:
        if not isinstance(each, str) or PLACE not in each:
            raise OptionError(
                f"the template {each!r} has no place for the name; write {PLACE} where it goes, "
                f"as in 'a photo of a {PLACE}.'"
            )
        if given.count(each) > 1:
            raise OptionError(f"the template {each!r} is given twice; leave one out")
    return given


def with_name(template: str, name: str) -> str:
    """The sentence with the name in its place; other braces stay as they are."""
    return template.replace(PLACE, name)
