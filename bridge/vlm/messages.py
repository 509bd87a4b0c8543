"""Chats as messages, the form that transformers and chat servers share, to pictures and turns.

[{"role": "user", "content": [{"type": "image", "image": "a.png"},
                              {"type": "text", "text": "what is this?"}]},
 {"role": "assistant", "content": "a cat"},
 {"role": "user", "content": "of which colour?"}]

A picture is also taken as transformers ("url", "path") and OpenAI's servers ("image_url") write
it: a `data:` address or a local file. Nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.errors import PromptError
from bridge.vlm.chat import IMAGE_TOKEN, Turn
from bridge.vlm.image import ImageInput
from bridge.vlm.prompting import marks_at_head, n_pictures_at_head

Messages = Sequence[Mapping[str, Any]]


def read_messages(messages: Messages) -> tuple[list[ImageInput], str, list[Turn]]:
    """The pictures in reading order, the last question, and the (question, answer)s before it.

    A picture's place is written into its question as `<image>`, but not where training leaves it
    to the chat layout as well: a single picture of the first message, or several before its text.
    Raises PromptError for a chat without a user turn, one that does not end in one, roles that do
    not take turns or that a bridge chat does not have, parts of another type, and `<image>` in a
    text without a picture of its own.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(f"messages is a {type(messages).__name__}; give a list of messages")
    images: list[ImageInput] = []
    texts: list[str] = []
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        wanted = "assistant" if number % 2 == 0 else "user"
        if role not in ("user", "assistant"):
            raise PromptError(
                f"message {number} has the role {role!r}; a chat here has 'user' and 'assistant' "
                "(write what a system message says into the first question)"
            )
        if role != wanted:
            raise PromptError(
                f"message {number} is of the {role}, where the {wanted}'s turn is; a chat begins "
                "with the user, and they take turns"
            )
        texts.append(_text(message.get("content"), number, role, images))
    if not texts:
        raise PromptError("the chat has no user turn; ask something")
    if len(texts) % 2 == 0:
        raise PromptError("the chat ends with the assistant; end it with the user's question")
    turns: Sequence[Turn] = list(zip(texts[::2], [*texts[1::2], ""], strict=True))
    n_pictures_at_head(turns, len(images))  # refuses a mark that a text has of its own
    if images:
        turns = marks_at_head(turns)
    return images, turns[-1][0], list(turns[:-1])


def _text(content: object, number: int, role: str, images: list[ImageInput]) -> str:
    """The text of one message; its pictures go to ``images``, and their marks into the text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise PromptError(f"message {number} has a {type(content).__name__} as content, not text")
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            pieces.append(part["text"])
        elif role == "user" and (picture := _picture(part)) is not None:
            images.append(picture)
            pieces.append(f"{IMAGE_TOKEN}\n")
        else:
            raise PromptError(
                f"message {number} ({role}) has a part that is neither a text nor a user's image: "
                'give {"type": "text", "text": ...} or {"type": "image", "image": picture}'
            )
    return "".join(pieces)


def _picture(part: object) -> ImageInput | None:
    """The picture of a message's part, None if it has none."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in ("image", "image_url", "input_image"):
        return None
    given = [part[key] for key in ("image", "url", "path", "image_url") if key in part]
    found = given[0] if len(given) == 1 else None
    if isinstance(found, Mapping):  # OpenAI's {"url": ..., "detail": ...}
        found = found.get("url")
    return found
