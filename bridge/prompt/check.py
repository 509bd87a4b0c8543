"""Judging prompt input before anything loads: every refusal names the text and the place."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.errors import PromptError

# A tokenizer keeps at most a few hundred tokens; a text this long is a mistake (a file, say).
MAX_CHARACTERS = 1_000_000


def check_text(text: object, what: str = "prompt") -> str:
    """Return ``text`` if it can be encoded, else raise PromptError.

    The empty string is legal: it is what classifier-free guidance encodes.

    Raises:
        PromptError: not a string; a NUL; half of a surrogate pair; over a million characters.
    """
    if not isinstance(text, str):
        raise PromptError(f"{what} must be a string, not {type(text).__name__}; pass text.")
    if len(text) > MAX_CHARACTERS:
        raise PromptError(
            f"{what} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read. Shorten it."
        )
    nul = text.find("\0")
    if nul >= 0:
        raise PromptError(
            f"{what} has a NUL character at position {nul}, which no tokenizer can read; remove it."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} has half of a surrogate pair (U+{ord(text[error.start]):04X}) at position "
            f"{error.start}, so it is no valid Unicode; decode its source again."
        ) from error
    return text


def check_prompts(prompt: object, what: str = "prompt") -> tuple[str, ...]:
    """A string or a sequence of strings as a tuple of checked texts. Raises PromptError."""
    if isinstance(prompt, str):
        return (check_text(prompt, what),)
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise PromptError(
            f"{what} must be a string or a list of strings, not {type(prompt).__name__}."
        )
    if not prompt:
        raise PromptError(f"{what} is an empty list; give at least one text ('' is allowed).")
    return tuple(check_text(text, f"{what} {i}") for i, text in enumerate(prompt))


def check_paired(
    text: object, count: int, what: str = "negative_prompt", beside: str = "prompt"
) -> tuple[str, ...] | None:
    """Texts that go with ``count`` prompts: None stays None, one string serves all of them.

    Raises:
        PromptError: as ``check_prompts``, or a list whose length is not ``count``.
    """
    if text is None:
        return None
    texts = check_prompts(text, what)
    if isinstance(text, str):
        return texts * count
    if len(texts) != count:
        raise PromptError(
            f"{what} has {len(texts)} texts for {count} of {beside}; give one for each, "
            "or one string for all."
        )
    return texts
