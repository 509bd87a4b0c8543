"""The phrasings of captions, as tables of templates; some are kept for scoring only.

Held-out frames and ways to say where are in no table that models are trained on. The clauses of
ground and style are: a held-out caption has some of the known ones. (Tokenizers are learnt from
held-out captions too.) What a painter makes of held-out phrasings depends on how
many others it has seen: one that knew a dozen frames and eight ways to say where drew half as many
positions right by held-out phrasings as by known ones. So there are many, and the ways to say where
are put together by a grammar.
"""

from __future__ import annotations

from collections.abc import Sequence

# {a} and {b} are the groups' phrases; a stands left of (above) b. Many name b first.
RELATIONS_HELD_OUT = {
    "left": ("{b} on the right of {a}", "on the left {a}, on the right {b}"),
    "above": ("{b} at the bottom, {a} at the top", "at the top {a} and under it {b}"),
}
USUAL = {
    "left": (
        "{a} left of {b}",
        "{a} to the left of {b}",
        "{b} right of {a}",
        "{b} to the right of {a}",
        "{a} on the left of {b}",
        "{a} at the left of {b}",
        "{b} at the right of {a}",
        "{b} with {a} on the left",
        "{a} with {b} on the right",
        "{a} and right of it {b}",
        "{b} and to its left {a}",
        "on the left {a} and next to it {b}",
    ),
    "above": (
        "{a} above {b}",
        "{a} over {b}",
        "{b} below {a}",
        "{b} under {a}",
        "{b} beneath {a}",
        "{a} on top of {b}",
        "{b} with {a} above",
        "{a} with {b} under it",
        "{a} and below it {b}",
        "{b} and over it {a}",
        "at the top {a} and below it {b}",
        "at the bottom {b} and above it {a}",
        "on top {a}, under it {b}",
    ),
}
# Where each of the two stands, said of itself.
_PLACES = {
    "left": (
        ("on the left", "on the right"),
        ("on the left side", "on the right side"),
        ("at the left", "at the right"),
        ("to the left", "to the right"),
        ("left", "right"),
    ),
    "above": (
        ("at the top", "at the bottom"),
        ("on top", "below"),
        ("above", "below"),
        ("in the upper half", "in the lower half"),
        ("up", "down"),
    ),
}
JOINTS = (", and ", " and ", ", ", "; ")


def arranged(relation: str, joints: Sequence[str] = JOINTS) -> list[str]:
    """Both things with their places: in both orders, the place after the thing or before it."""
    forms = []
    for first, second in _PLACES[relation]:
        for joint in joints:
            forms += [
                f"{{a}} {first}{joint}{{b}} {second}",
                f"{{b}} {second}{joint}{{a}} {first}",
                f"{first} {{a}}{joint}{second} {{b}}",
                f"{second} {{b}}{joint}{first} {{a}}",
            ]
    kept = {_unjoined(form) for form in RELATIONS_HELD_OUT[relation]}
    return [form for form in forms if _unjoined(form) not in kept]


def _unjoined(form: str) -> str:
    """The form without what joins its halves: another joint alone makes no new phrasing."""
    for joint in JOINTS:
        form = form.replace(joint, " | ")
    return form


# As often a usual form as an arranged one, more or less.
RELATIONS = {name: (*(5 * USUAL[name]), *arranged(name)) for name in USUAL}

# {what} is the objects' phrase; {bg}, {style}, {On} and {Style} are optional clauses.
FRAMES = (
    *(6 * ("{what}{bg}{style}",)),
    *(5 * ("{On}{what}{style}",)),
    "a picture of {what}{bg}{style}",
    "{there} {what}{bg}{style}",
    "an emoji of {what}{bg}{style}",
    "{Style}{what}{bg}",
    "{Style}{On}{what}",
    "an icon of {what}{bg}{style}",
    "draw {what}{bg}{style}",
    "drawing, {what}{bg}{style}",
    "picture: {what}{bg}{style}",
    "{what}{bg}{style}, sticker",
    "a drawing with {what}{bg}{style}",
    "an image of {what}{bg}{style}",
    "image, {what}{bg}{style}",
    "icon, {what}{bg}{style}",
    "a photo of {what}{bg}{style}",
    "an illustration showing {what}{bg}{style}",
    "{what} as an emoji{bg}{style}",
    "{what} in an image{bg}{style}",
    "{what} on a sticker{bg}{style}",
    "please draw {what}{bg}{style}",
    "i want to see {what}{bg}{style}",
    "clipart, {On}{what}{style}",
    "{what}{bg}{style}, simple and flat",
    "scene with {what}{bg}{style}",
    "this is {what}{bg}{style}",
    "please, {what}{bg}{style}",
)
FRAMES_HELD_OUT = (
    "{what} in a picture{bg}{style}",
    "emoji, {what}{bg}{style}",
    "{Bg}{what}{style}",
)
# The clauses that held-out captions have, which training shows among others. {c} is the
# background's colour, {a} the same with its article.
BACKGROUND_HELD_OUT = (" on {a} background", ", {c} background", " on {c}")
BACKGROUND = (*BACKGROUND_HELD_OUT, " over {c}", " with {a} background", " in front of {c}")
ON = (
    "on {a} background, ",
    "on {c}, ",
    "with {a} background, ",
    "over {c}, ",
    "{a} background with ",
    "{c} ground, ",
    "background in {c}, ",
)
STYLE_HELD_OUT = (" in {} style", ", {} style", ", {}")
STYLE = (*STYLE_HELD_OUT, " in the style of {}", " by {}", ", {} emoji", ", drawn as {}")
