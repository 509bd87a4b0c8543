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
from bisect import bisect_right
from dataclasses import dataclass, replace

from bridge.errors import PromptError, quoted
from bridge.prompt.caret import prompt_error
from bridge.prompt.check import check_text
from bridge.prompt.dialect import dialect_of
from bridge.prompt.dialects.a1111_edits import without_comments
from bridge.prompt.plan import Token, TokenPlan

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


@dataclass(frozen=True)
class Tagged:
    """A prompt as written, the text that is left without its tags, those of LoRAs, and where in the
    source all that was taken out stood."""

    source: str
    text: str
    tags: tuple[LoraTag, ...] = ()
    taken: tuple[tuple[int, int], ...] = ()


def take_tags(source: str, dialect: str = "a1111") -> Tagged:
    """Take the tags out of a prompt; other dialects than A1111's have none.

    Raises:
        PromptError: a tag that cannot be read.
    """
    check_text(source)
    if not dialect_of(dialect).has_tags:
        return Tagged(source, source)
    spoken = without_comments(source)
    tags = tuple(_tag(source, match) for match in _TAG.finditer(spoken))
    places = {match.span() for tag in (_TAG, _ANY_TAG) for match in tag.finditer(spoken)}
    taken = tuple(sorted(places))
    borders = [0, *(at for place in taken for at in place), len(source)]
    text = "".join(source[a:b] for a, b in zip(borders[::2], borders[1::2], strict=True))
    return Tagged(source, text, tags, taken)


def refuse_tags(source: str) -> None:
    """Raise PromptError if a text that can have no tags has one."""
    match = _TAG.search(without_comments(source))
    if match:
        raise prompt_error(
            "A LoRA tag belongs into the prompt, from where it acts on its negative and on all "
            "towers; move it there.", source, *match.span(),
        )  # fmt: skip


def as_written(plan: TokenPlan, tagged: Tagged) -> TokenPlan:
    """The plan of ``tagged.text`` with its places moved to where they are in the source; a plan
    of another text (a second tower's own) as it is."""
    if not tagged.taken or plan.source != tagged.text:
        return plan
    # Where each tag stood in the text that is left, and how far what follows it has moved.
    borders, shifts, gone = [], [0], 0
    for begin, end in tagged.taken:
        borders.append(begin - gone)
        gone += end - begin
        shifts.append(gone)

    def start(at: int) -> int:
        return at + shifts[bisect_right(borders, at)]

    def moved(token: Token) -> Token:
        if token.special:
            return token
        if token.start == token.end:
            return replace(token, start=start(token.start), end=start(token.end))
        # A token ends where its last character does, before a tag that may follow.
        return replace(token, start=start(token.start), end=start(token.end - 1) + 1)

    return replace(
        plan,
        source=tagged.source,
        windows=tuple(
            replace(window, tokens=tuple(map(moved, window.tokens))) for window in plan.windows
        ),
        cut_start=None if plan.cut_start is None else start(plan.cut_start),
    )


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
