"""The vocabulary of the embedded world: what can stand in a scene, and its names.

``concepts.tsv`` has one concept a line: the emoji, its name, the noun phrase for one, the
noun phrase for several, and the icon's name in each family. Names follow emojibase (MIT),
shortened where a person would say less ("automobile" is a car).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn; ``icons`` maps a style to the icon's name there."""

    emoji: str
    name: str
    one: str
    many: str
    icons: dict[str, str]


def _read() -> tuple[Concept, ...]:
    table = files("emoji_world").joinpath("concepts.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in table.splitlines() if line)
    return tuple(
        Concept(emoji, name, one, many, {"noto": noto, "fluent": fluent, "twemoji": twemoji})
        for emoji, name, one, many, noto, fluent, twemoji in rows
    )


CONCEPTS: tuple[Concept, ...] = _read()
