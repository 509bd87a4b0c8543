"""Textual inversions in a prompt: where their words stand, as each dialect's tool finds them.

- diffusers (``plain``) and compel have them in the tokenizer. A concept of three vectors is loaded
  as the added tokens ``<cat>``, ``<cat>_1``, ``<cat>_2``; where a prompt says ``<cat>`` the model
  must be given all three (diffusers, ``TextualInversionLoaderMixin.maybe_convert_prompt``).
- The webui (``a1111``) tokenizes the prompt first. Where the tokens of a name stand in a row, they
  are the concept (``EmbeddingDatabase.find_embedding_at_position`` at 82a973c), the longest name
  first: ``easynegatives`` is not ``easynegative``, and a name may be a word of the vocabulary.
- ComfyUI writes ``embedding:name`` at the beginning of a weighted piece of text or after white
  space (``SDTokenizer.tokenize_with_weights`` at 4f874c5). The name ends at white space, ``<`` or
  ``[``; commas around it are text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bridge.cleaning import Origins
from bridge.errors import OptionError
from bridge.kept import kept

MARK = "embedding:"
"""What ComfyUI writes before a name."""
_MARKS = re.compile(rf"(?<=\s)(?={MARK})")
_NAME_END = re.compile(r"[\s<\[]")
# ComfyUI names files; a name with its ending is the same file.
_ENDINGS = (".safetensors", ".pt", ".bin")


@dataclass(frozen=True)
class Concept:
    """A textual inversion that a tower is given beside its tokenizer.

    Attributes:
        word: its name.
        ids: of its vectors, past the tokenizer's own; none where it has none for this tower.
    """

    word: str
    ids: tuple[int, ...]

    def vectors(self) -> Iterator[tuple[int, str]]:
        """The ids, each with the name that diffusers would give it."""
        return zip(self.ids, vector_names(self.word, len(self.ids)), strict=False)


def named(concepts: Sequence[Concept], name: str) -> Concept | None:
    """The concept that ComfyUI would find under a name: of a file, in a folder or not."""
    last = name.rsplit("/", 1)[-1]
    wanted = {name, last, *(last.removesuffix(ending) for ending in _ENDINGS)}
    return next((each for each in concepts if each.word in wanted), None)


def marked(
    text: str, origins: Origins, find: Callable[[str, tuple[int, int]], Concept]
) -> Iterator[tuple[str, Origins, Concept | None]]:
    """A piece of text as ComfyUI tokenizes it: stretches of text, and concepts between them.

    Args:
        text: the piece, without its escapes.
        origins: where its characters stand in the source.
        find: from a name and its source span to its concept; refuses what is none.
    """
    cuts = [0, *(mark.start() for mark in _MARKS.finditer(text)), len(text)]
    for a, b in pairwise(cuts):
        if not text.startswith(MARK, a, b):
            if a < b:
                yield text[a:b], origins[a:b], None
            continue
        start = a + len(MARK)
        while start < b and text[start].isspace():
            start += 1
        found = _NAME_END.search(text, start, b)
        end = found.start() if found else b
        bare = text[start:end].strip(",")
        place = (origins[a][0], origins[max(a, end - 1)][1])
        yield "", [place], find(bare, place)
        commas = start + len(bare)
        # A space parts the commas from what follows them without one.
        gap = " " if commas < end and end < b and not text[end].isspace() else ""
        rest = text[commas:end] + gap + text[end:b]
        if rest.strip():
            spans = [*origins[commas:end], *[origins[end - 1]] * len(gap), *origins[end:b]]
            yield rest, spans, None


def runs(
    ids: Sequence[int], names: Sequence[tuple[tuple[int, ...], Concept]]
) -> Iterator[tuple[int, int, Concept | None]]:
    """The tokens of a text as the webui reads them: ``(start, end, concept)``, end to end.

    Args:
        ids: the content tokens of a text.
        names: the tokens of each concept's name, the longest first.
    """
    at = 0
    while at < len(ids):
        for name, concept in names:
            if name and tuple(ids[at : at + len(name)]) == name:
                yield at, at + len(name), concept
                at += len(name)
                break
        else:
            yield at, at + 1, None
            at += 1


def spell_out(text: str, origins: Origins, several: dict[str, list[str]]) -> tuple[str, Origins]:
    """``text`` with words of several vectors spelt out, and where its characters came from.

    Args:
        text: a piece of a prompt.
        origins: where its characters stand in the source.
        several: as ``several_vectors`` finds them.
    """
    lower = {word.lower(): names for word, names in several.items()}
    pieces: list[str] = []
    places: Origins = []
    at = 0
    for match in words_pattern(several, re.ASCII).finditer(text):
        words = " ".join(several.get(match.group()) or lower[match.group().lower()])
        pieces += text[at : match.start()], words
        places += origins[at : match.start()]
        places += [(origins[match.start()][0], origins[match.end() - 1][1])] * len(words)
        at = match.end()
    return "".join([*pieces, text[at:]]), [*places, *origins[at:]]


def words_pattern(words: Iterable[str], flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """What finds words in a text, the longest first, so that one concept's name inside another's
    does not win. CLIP's tokenizer reads <Cat> as <cat>, of which diffusers then gives the model the
    first vector alone."""
    longest = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)), re.IGNORECASE | flags)


def with_words(tokenizer: Any, words: tuple[tuple[str, int], ...]) -> tuple[Any, tuple[int, ...]]:
    """A copy of a tokenizer that knows more words, and the ids of their vectors, in order.

    Args:
        tokenizer: a fast transformers tokenizer; it stays as it is.
        words: each with its number of vectors; ``("<cat>", 3)`` becomes the added tokens
            ``<cat>``, ``<cat>_1`` and ``<cat>_2``, as in diffusers.

    Raises:
        OptionError: a word that the tokenizer has as a token of its own, or that clashes with
            the vectors of another.
    """
    return _with_words(tokenizer, words, len(tokenizer))


# Copying CLIP's vocabulary takes half a second. ``size`` is in the key because a live pipeline's
# tokenizer may gain words between two calls.
@kept(4)
def _with_words(
    tokenizer: Any, words: tuple[tuple[str, int], ...], size: int
) -> tuple[Any, tuple[int, ...]]:
    taken = set(tokenizer.get_vocab())
    for word, count in words:
        names = vector_names(word, count)
        # The name after the last would be spelt out as one vector more.
        clash = next((n for n in (*names, f"{word}_{count}") if n in taken), None)
        if clash is not None:
            raise OptionError(
                f"The textual inversion {word!r} needs the word {clash!r}, which the tokenizer "
                "or another textual inversion has already; give it another word, as in "
                'textual_inversions={"<my-word>": path}.'
            )
        taken.update(names)
    copied = copy.deepcopy(tokenizer)
    names = [name for word, count in words for name in vector_names(word, count)]
    copied.add_tokens(names)
    return copied, tuple(copied.convert_tokens_to_ids(names))


def vector_names(word: str, count: int) -> list[str]:
    """The added tokens of a concept of ``count`` vectors."""
    return [word, *(f"{word}_{i}" for i in range(1, count))]


def several_vectors(tokenizer: Any) -> dict[str, list[str]]:
    """Concepts of more than one vector and the added tokens that make them up."""
    added = tokenizer.added_tokens_encoder
    found: dict[str, list[str]] = {}
    for word in added:
        if f"{word}_1" in added:
            words = [word]
            while f"{word}_{len(words)}" in added:
                words.append(f"{word}_{len(words)}")
            found[word] = words
    return found


def taught_words(tokenizer: Any) -> tuple[Concept, ...]:
    """The words that a tokenizer has been taught, of one vector or several."""
    several = several_vectors(tokenizer)
    followers = {name for names in several.values() for name in names[1:]}
    special = set(tokenizer.all_special_tokens)
    ids = tokenizer.added_tokens_encoder
    return tuple(
        Concept(word, tuple(ids[name] for name in several.get(word, [word])))
        for word in ids
        if word not in special and word not in followers
    )
