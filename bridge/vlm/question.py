"""What may be asked: checks on questions, history and options, before any model loads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bridge.errors import OptionError, PromptError
from bridge.prompt import check_text
from bridge.vlm.chat import Turn

# Far beyond any context; keeps a pasted book from being tokenised at all.
MAX_CHARACTERS = 100_000


def checked_turns(question: object, history: object) -> list[Turn]:
    """History and question as turns, the last with an empty answer.

    Raises PromptError for text that is empty, too long, not text, or not encodable, and for
    a history that is not a sequence of (question, answer) pairs.
    """
    if isinstance(history, str | bytes) or not isinstance(history, Sequence):
        raise PromptError(
            f"history is a {type(history).__name__}; give a list of (question, answer) pairs"
        )
    turns: list[Turn] = []
    for index, turn in enumerate(history, start=1):
        if isinstance(turn, str | bytes) or not isinstance(turn, Sequence) or len(turn) != 2:
            raise PromptError(f"turn {index} of the history is not a (question, answer) pair")
        asked = _checked_text(turn[0], f"the question of turn {index}")
        told = _checked_text(turn[1], f"the answer of turn {index}", may_be_empty=True)
        turns.append((asked, told))
    turns.append((_checked_text(question, "the question"), ""))
    return turns


def check_no_special_tokens(turns: Iterable[Turn], special: Iterable[str]) -> None:
    """Refuse text that would be read as a control token, such as an end of turn."""
    marks = [mark for mark in special if mark]
    for turn in turns:
        for text in turn:
            for mark in marks:
                if mark in text:
                    raise PromptError(
                        f"the chat text {_shown(text)} holds {mark!r}, a control token of this "
                        "model; take it out (a picture's place is marked by <image>, in a question)"
                    )


def checked_max_new_tokens(value: object) -> int:
    """Raises OptionError unless ``value`` is an int of 1 to 4096."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
        raise OptionError(f"max_new_tokens is {value!r}; give a whole number from 1 to 4096")
    return value


def _checked_text(text: object, what: str, *, may_be_empty: bool = False) -> str:
    checked = check_text(text, what)
    if not may_be_empty and not checked.strip():
        raise PromptError(f"{what} is empty; ask something, such as 'what is on the left?'")
    if len(checked) > MAX_CHARACTERS:
        raise PromptError(
            f"{what} has {len(checked):,} characters; at most {MAX_CHARACTERS:,}: ask more briefly"
        )
    return checked


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")
