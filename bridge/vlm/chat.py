"""A chat: turns and messages, LLaVA-1.5's layout of them, and what may be asked.

The layout is ``USER: <image>\\n{question} ASSISTANT: {answer}</s>``, turns set end to end, the
image in the first turn; training and answering share it. The beginning-of-sequence token is the
tokenizer's to add, so it is not part of the text. The format is that of Liu et al., "Improved
Baselines with Visual Instruction Tuning" (2023), without its system sentence.

Messages are the form that transformers and chat servers share:

[{"role": "user", "content": [{"type": "image", "image": "a.png"},
                              {"type": "text", "text": "what is this?"}]},
 {"role": "assistant", "content": "a cat"},
 {"role": "user", "content": "of which colour?"}]

A picture is also taken as transformers ("url", "path") and OpenAI's servers ("image_url") write
it: a `data:` address or a local file. Nothing is fetched. A part {"type": "image"} alone is a
place, for the next of the pictures that are given beside the messages, as transformers' processors
have it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from bridge.checks import whole
from bridge.errors import PromptError
from bridge.images import ImageInput
from bridge.prompt import check_text

IMAGE_TOKEN = "<image>"
END_OF_ANSWER = "</s>"

Turn = tuple[str, str]

# The layout as a Jinja chat template. A message's content is a text, or a list of parts of type
# "image" and "text".
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- 'USER: ' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- ' ASSISTANT: ' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endif -%}"
    "{{- '</s>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"
)


def chat_text(
    turns: Sequence[Turn],
    with_answers: bool,
    n_images: int = 1,
    *,
    image_token: str = IMAGE_TOKEN,
    end: str = END_OF_ANSWER,
) -> str:
    """The exact text of a conversation about ``n_images`` pictures, which stand in its first turn.

    ``turns`` are (question, answer) pairs, oldest first. ``with_answers=True`` gives the
    training text. ``with_answers=False`` leaves the last answer open (whatever its value):
    the text ends in ``ASSISTANT:`` and the model goes on with a space and its answer.
    ``end`` closes every answer. Raises PromptError when there is no turn.
    """
    template = CHAT_TEMPLATE.replace("'<image>\\n'", jinja_text(f"{image_token}\n"))
    messages = chat_messages(turns, n_images, with_answers=with_answers)
    return render_chat(template.replace("'</s>'", jinja_text(end)), messages, not with_answers)


def render_chat(template: str, messages: Sequence[Any], add_generation_prompt: bool) -> str:
    """What a template of bridge's own writes, as ``tokenizer.apply_chat_template`` does."""
    return _compiled(template).render(
        messages=messages, add_generation_prompt=add_generation_prompt
    )


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    from jinja2 import Environment

    return Environment(autoescape=False).from_string(template)


def jinja_text(text: str) -> str:
    """A text as Jinja reads it."""
    return json.dumps(text, ensure_ascii=False)


def chat_messages(
    turns: Sequence[Turn], n_images: int = 1, *, with_answers: bool = False
) -> list[dict[str, object]]:
    """The same conversation as messages for a chat template. Raises PromptError as `chat_text`."""
    if not turns:
        raise PromptError("a chat needs at least one turn of the user; ask something")
    messages: list[dict[str, object]] = []
    for index, (question, answer) in enumerate(turns):
        parts: list[dict[str, str]] = [{"type": "image"}] * (n_images if index == 0 else 0)
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        if with_answers or index < len(turns) - 1:
            content = [{"type": "text", "text": answer}]
            messages.append({"role": "assistant", "content": content})
    return messages


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
    return whole(value, "max_new_tokens", 1, 4096)


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


Messages = Sequence[Mapping[str, Any]]


def read_messages(
    messages: Messages, given: Sequence[ImageInput] = ()
) -> tuple[list[ImageInput], str, list[Turn]]:
    """The pictures in reading order, the last question, and the (question, answer)s before it.

    Pictures that are ``given`` beside the messages fill the places that these have, in their
    order; where these have neither place nor picture, they stand at the `<image>`s of the texts, or
    before the first question.

    A picture's place is written into its question as `<image>`, but not where training leaves it
    to the chat layout as well: a single picture of the first message, or several before its text.
    Raises PromptError for a chat without a user turn, one that does not end in one, roles that do
    not take turns or that a bridge chat does not have, parts of another type, `<image>` in a
    text without a picture of its own, and as many places as there are pictures given.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(f"messages is a {type(messages).__name__}; give a list of messages")
    images: list[ImageInput] = []
    left = deque(given)
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
        texts.append(_text(message.get("content"), number, role, images, left))
    if not texts:
        raise PromptError("the chat has no user turn; ask something")
    if len(texts) % 2 == 0:
        raise PromptError("the chat ends with the assistant; end it with the user's question")
    if left and images:
        raise PromptError(
            f"images has {len(given)} picture(s), and the messages have places "
            f'({{"type": "image"}}) for {len(given) - len(left)}; give as many'
        )
    images += left
    turns: Sequence[Turn] = list(zip(texts[::2], [*texts[1::2], ""], strict=True))
    n_pictures_at_head(turns, len(images))  # refuses a mark that a text has of its own
    if images:
        turns = marks_at_head(turns)
    return images, turns[-1][0], list(turns[:-1])


def _text(
    content: object, number: int, role: str, images: list[ImageInput], left: deque[ImageInput]
) -> str:
    """The text of one message; its pictures go to ``images``, and their marks into the text.
    ``left`` are those that are given for places."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise PromptError(f"message {number} has a {type(content).__name__} as content, not text")
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            pieces.append(part["text"])
        elif role == "user" and part == {"type": "image"}:
            if not left:
                raise PromptError(
                    f"message {number} has a place for a picture, and none is left for it; give "
                    'one for each place as images=[...], or write it into the message: {"type": '
                    '"image", "image": picture}'
                )
            images.append(left.popleft())
            pieces.append(f"{IMAGE_TOKEN}\n")
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


def n_pictures_at_head(turns: Sequence[Turn], n_images: int) -> int:
    """How many pictures stand before the first question: all, unless questions mark their places.

    Raises PromptError, giving both counts, when marks and pictures differ.
    """
    marks = sum(question.count(IMAGE_TOKEN) for question, _ in turns)
    if not marks:
        return n_images
    if marks != n_images:
        raise PromptError(
            f"the chat has {marks} {IMAGE_TOKEN} mark(s) and {n_images} picture(s); give one "
            "picture a mark, or no mark at all: then the pictures come first"
        )
    return 0


def marks_at_head(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Without the marks, where that says the same: pictures before the first question.

    LLaVA moves the mark of a single picture to the head, wherever its question has it.
    """
    first, answer = turns[0]
    marks = first.count(IMAGE_TOKEN)
    if any(IMAGE_TOKEN in question for question, _ in turns[1:]):
        return tuple(turns)
    text = first.replace(IMAGE_TOKEN, "").strip()
    leading = "".join(first.split()).startswith(IMAGE_TOKEN * marks)
    if not text or not (marks == 1 or leading):
        return tuple(turns)
    return ((text, answer), *turns[1:])
