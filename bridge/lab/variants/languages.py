"""Other languages, by names that the caller gives.

bridge ships no dictionary: emojibase's names in 27 languages are used in training only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from bridge.errors import OptionError
from bridge.lab.variants.variant import Settings
from bridge.prompt import check_text


def languages(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """The prompt in each language of ``settings.names``.

    The whole prompt's translation if there is one, else the prompt with each known name
    replaced, longest first. A language that knows no word of the prompt gives none.
    """
    for language, names in settings.names.items():
        folded = {english.casefold(): word for english, word in names.items()}
        whole = folded.get(prompt.strip().casefold())
        if whole is not None:
            yield whole, f"{language}, whole prompt"
            continue
        text, count = _replaced(prompt, folded)
        if count:
            yield text, f"{language}, {count} {'name' if count == 1 else 'names'}"


def _replaced(prompt: str, names: Mapping[str, str]) -> tuple[str, int]:
    longest = sorted((name for name in names if name.strip()), key=lambda name: (-len(name), name))
    if not longest:
        return prompt, 0
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", re.IGNORECASE)
    return pattern.subn(lambda found: names.get(found.group().casefold(), found.group()), prompt)


def check_names(settings: Settings) -> None:
    """Raise OptionError unless there are names, and for each language some."""
    if not settings.names:
        raise OptionError(
            "The operation 'language' needs names, and bridge ships none: pass "
            "names={'de': {'cat': 'Katze'}}, with words or whole prompts as keys."
        )
    for language, names in settings.names.items():
        if not isinstance(names, Mapping) or not names:
            raise OptionError(
                f"The language {language!r} has no names; give a mapping of English words or whole "
                "prompts to its own, or leave it out."
            )
        for english, word in names.items():
            check_text(english, f"names[{language!r}]")
            check_text(word, f"names[{language!r}][{english!r}]")
