"""LoRA tags in prompts, as stable-diffusion-webui has them: ``<lora:name:0.8>``.

Facts from its ``modules/extra_networks.py`` and ``extra_networks_lora.py``: a tag, which is any
``<word:...>``, is taken out of the text before anything but comments is read, wherever it stands. A
LoRA's names a LoRA file by its stem, then
the strength in the text towers, then that in the UNet, which else is the same; either can be
named (``te=0.5``, ``unet=1``). Names that its LoRA code does not read (``lbw=...``, an extension's)
are passed over; the rank that it cuts a LoRA to (``dyn=4``, or a third number) is refused.
Tags of other kinds (hypernetworks) have no meaning here, but are taken out as well. Without a
number the strength is 1. Negative prompts have no tags there; here one is an error, so that it is
not encoded as words by mistake.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bridge.errors import PromptError, quoted
from bridge.prompt.dialects.a1111 import without_comments
from bridge.prompt.syntax import prompt_error

# ``lyco`` is the webui's other name for the same.
_TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>")
_ANY_TAG = re.compile(r"<(\w+):([^<>]+)>")
_MOST = 2  # numbers after the name


@dataclass(frozen=True)
class LoraTag:
    """One tag at ``source[start:end]``; ``unet`` is for the pipeline, bridge does not use it."""

    name: str
    strength: float
    unet: float
    start: int
    end: int


def find_tags(source: str) -> tuple[tuple[LoraTag, ...], tuple[tuple[int, int], ...]]:
    """The tags of LoRAs, and the places of tags of any kind.

    Raises:
        PromptError: a tag that cannot be read.
    """
    spoken = without_comments(source)
    tags = tuple(_tag(source, match) for match in _TAG.finditer(spoken))
    places = {match.span() for tag in (_TAG, _ANY_TAG) for match in tag.finditer(spoken)}
    return tags, tuple(sorted(places))


def _tag(source: str, match: re.Match[str]) -> LoraTag:
    def refused(why: str) -> PromptError:
        return prompt_error(f"This LoRA tag {why}.", source, *match.span())

    items = [item.strip() for item in match[1].split(":")]
    named = dict(item.split("=", 1) for item in items[1:] if "=" in item)
    numbers = [item for item in items[1:] if "=" not in item]
    if not items[0]:
        raise refused("has no name; write it as <lora:name:0.8>")
    if len(numbers) > _MOST or "dyn" in named:
        raise refused(
            "has more than a strength for the text towers and one for the UNet; bridge reads "
            "<lora:name:0.8>, <lora:name:0.8:1> and <lora:name:te=0.8:unet=1>"
        )
    strength = named.get("te", numbers[0] if numbers else "1")
    values = []
    for text in (strength, named.get("unet", numbers[1] if len(numbers) > 1 else strength)):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise refused(f"has {quoted(text, 40)} for a strength; write a number such as 0.8")
        values.append(value)
    return LoraTag(items[0], values[0], values[1], *match.span())
