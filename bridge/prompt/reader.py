"""How a tower reads text, where its tokenizer alone does not say.

CLIP's tokenizers state their context and take text as it is, or as the dialect's tool cleans it
(`bridge.cleaning`). T5 has no context of its own: a
pipeline says how many tokens it is given, and some (PixArt) write all text in small letters.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer

from bridge.cleaning import Origins
from bridge.kept import kept
from bridge.prompt.dialect import DIALECTS
from bridge.prompt.inversion import Concept


@dataclass(frozen=True)
class Reader:
    """A tokenizer and how it is used. ``plan`` takes one wherever it takes a tokenizer.

    Attributes:
        tokenizer: a fast transformers tokenizer.
        length: how many tokens the tower is given, special ones included. Such a tower has one
            window: what does not fit is cut off, and ``BREAK`` is read over. None: the
            tokenizer's own ``model_max_length``, in as many windows as it takes.
        least: dialect -> the length that its tool gives, which longer prompts exceed (ComfyUI,
            Forge).
        lower: whether text is put in small letters and stripped of white space around it.
        clean: how text is cleaned, a name of ``bridge.cleaning.CLEANINGS``. None: as the
            dialect's tool does it.
        concepts: textual inversions that are found by the dialect's own rule.
        grows: ``length`` is the least, as ``in_dialect`` finds it.
    """

    tokenizer: Any
    length: int | None = None
    lower: bool = False
    concepts: tuple[Concept, ...] = ()
    least: tuple[tuple[str, int], ...] = ()
    grows: bool = False
    clean: str | None = None

    def in_dialect(self, dialect: str) -> Reader:
        """The reader with the length, cleaning and reading of padding of the dialect's tool."""
        least = dict(self.least).get(dialect)
        if least is not None:
            return replace(self, length=least, grows=True, clean=self.clean or "none")
        special = {getattr(self.tokenizer, f"{name}_token", None) for name in ("bos", "eos", "unk")}
        pads_with_word = getattr(self.tokenizer, "pad_token", None) not in special
        clean = self.clean or "none"
        if self.clean is None and self.length is None and DIALECTS[dialect].cleans:
            # Towers that are padded with a word are open_clip's, whose tokenizer the webui takes.
            clean = "lower" if pads_with_word else "ftfy"
        if self.length is not None or not pads_with_word or not DIALECTS[dialect].padding_is_text:
            return replace(self, clean=clean)
        return replace(self, tokenizer=_with_padding_as_text(self.tokenizer), clean=clean)


def _with_padding_as_text(tokenizer: Any) -> Any:
    """A copy of a tokenizer in which the word that it pads with is one as any other."""
    copied = copy.copy(tokenizer)
    backend = tokenizer.backend_tokenizer
    copied._tokenizer = _without_added(backend, tokenizer.pad_token, len(tokenizer))
    return copied


# It takes half a second for CLIP's vocabulary. As in inversion.py, ``size`` is in the key because
# a live pipeline's tokenizer may gain words.
@kept(4)
def _without_added(backend: Tokenizer, word: str, size: int) -> Tokenizer:
    whole = json.loads(backend.to_str())
    whole["added_tokens"] = [each for each in whole["added_tokens"] if each["content"] != word]
    return Tokenizer.from_str(json.dumps(whole))


def lowered(text: str, origins: Origins) -> tuple[str, Origins]:
    """``text`` in small letters, and where each of them came from (``İ`` becomes two)."""
    small = text.lower()
    if len(small) == len(text):
        return small, origins
    # One letter depends on its neighbours (the final sigma), but not in how many it becomes.
    return small, [
        place for letter, place in zip(text, origins, strict=True) for _ in letter.lower()
    ]


def stripped(text: str, origins: Origins, *, left: bool, right: bool) -> tuple[str, Origins]:
    """``text`` without the white space at its ends."""
    start = len(text) - len(text.lstrip()) if left else 0
    end = len(text.rstrip()) if right else len(text)
    return text[start:end], origins[start:end]
