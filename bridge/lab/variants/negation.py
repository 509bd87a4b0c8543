"""Negation in the words that people try it with."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import core_of

_WITH = re.compile(r"\bwith\b", re.IGNORECASE)
_AND = re.compile(r"\band\b", re.IGNORECASE)


def negation(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """ "no", "without", "not" and "nothing but", of the whole and of its second half."""
    core = core_of(prompt)
    if not core:
        return
    yield f"no {core}", "no"
    yield f"without {core}", "without"
    yield f"not {prompt.strip()}", "not"
    yield f"a picture without {core}", "a picture without"
    yield f"nothing but {prompt.strip()}", "nothing but"
    for pattern, words in ((_WITH, ("without", "with no")), (_AND, ("but no", "without"))):
        if pattern.search(prompt):
            for word in words:
                found = pattern.search(prompt)
                assert found is not None
                text = f"{prompt[: found.start()]}{word}{prompt[found.end() :]}"
                # "without a dog" is English, "but no a dog" is not.
                text = re.sub(r"\bno an? ", "no ", text)
                yield text, f"{found.group()} → {word}"
