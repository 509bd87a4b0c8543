"""Other languages: by bridge's own names of the embedded world, or by names that a caller gives."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from bridge.errors import OptionError
from bridge.lab.variants.captions import read_caption, write_caption
from bridge.lab.variants.variant import Settings
from bridge.lab.variants.vocabulary import LANGUAGES, dictionary, english_names, words_in
from bridge.prompt import check_text


def languages(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """The prompt in each language of ``settings.names``, or in all that bridge has names in.

    By bridge's names: a caption of the embedded world as a whole, in the order and with the words
    of the language; of any other prompt the names and words known. By given names: the whole
    prompt's translation if there is one, else the prompt with each known name replaced, longest
    first. A language whose given names are not in the prompt gives none.

    Raises OptionError for a prompt without a name that bridge knows.
    """
    if isinstance(settings.names, Mapping):
        return _by_given(prompt, settings.names)
    return _by_own(prompt, settings.names or LANGUAGES)


def _by_given(prompt: str, names: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for language, own in names.items():
        folded = {english.casefold(): word for english, word in own.items()}
        whole = folded.get(prompt.strip().casefold())
        if whole is not None:
            yield whole, f"{language}, whole prompt"
            continue
        text, count = _replaced(prompt, folded)
        if count:
            yield text, f"{language}, {_counted(count)}"


def _by_own(prompt: str, chosen: Sequence[str]) -> Iterator[tuple[str, str]]:
    meaning = read_caption(prompt)
    known = len(_pattern(english_names()).findall(prompt))
    if meaning is None and not known:
        raise OptionError(
            f"The prompt {prompt!r} has no name that bridge knows in other languages; it knows the "
            "embedded world's things (cat, apple, rocket ...). Use one of them, or give names of "
            "your own: names={'de': {'cat': 'Katze'}}."
        )
    for language in chosen:
        if meaning is not None:
            yield write_caption(meaning, language), f"{language}, whole prompt"
        else:
            text, _ = _replaced(prompt, dictionary(language))
            yield text, f"{language}, {_counted(known)}"


def _counted(names: int) -> str:
    return f"{names} {'name' if names == 1 else 'names'}"


def _pattern(names: Collection[str]) -> re.Pattern[str]:
    longest = sorted((name for name in names if name.strip()), key=lambda name: (-len(name), name))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", re.IGNORECASE)


def _replaced(prompt: str, names: Mapping[str, str]) -> tuple[str, int]:
    if not any(name.strip() for name in names):
        return prompt, 0
    return _pattern(names).subn(
        lambda found: names.get(found.group().casefold(), found.group()), prompt
    )


def check_names(settings: Settings) -> None:
    """Raise OptionError for a language without names, of bridge's or given."""
    names = settings.names
    if isinstance(names, str) or not isinstance(names, Mapping | Sequence):
        raise OptionError(
            f"names is {names!r}; give languages, such as ['de', 'ja'], or names of your own: "
            "{'de': {'cat': 'Katze'}}."
        )
    if not isinstance(names, Mapping):
        for language in names:
            words_in(language)
        return
    for language, own in names.items():
        if not isinstance(own, Mapping) or not own:
            raise OptionError(
                f"The language {language!r} has no names; give a mapping of English words or whole "
                f"prompts to its own, or leave it out. (names={[str(language)]!r} takes bridge's.)"
            )
        for english, word in own.items():
            check_text(english, f"names[{language!r}]")
            check_text(word, f"names[{language!r}][{english!r}]")
