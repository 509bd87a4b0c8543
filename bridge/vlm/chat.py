"""The chat layout of LLaVA-1.5, written once and used by training and by answering.

``USER: <image>\\n{question} ASSISTANT: {answer}</s>``, turns set end to end, the image in
the first turn. The beginning-of-sequence token is the tokenizer's to add, so it is not
part of the text. The format is that of Liu et al., "Improved Baselines with Visual
Instruction Tuning" (2023), without its system sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.errors import PromptError

IMAGE_TOKEN = "<image>"
END_OF_ANSWER = "</s>"

Turn = tuple[str, str]

# The same layout for `apply_chat_template`. A message's content is a text, or a list of
# parts of type "image" and "text"; test_vlm_layout holds it equal to chat_text.
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


NO_TURN = "a chat needs at least one turn of the user; ask something"


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
    if not turns:
        raise PromptError(NO_TURN)
    pieces = []
    for index, (question, answer) in enumerate(turns):
        head = f"{image_token}\n" * n_images if index == 0 else ""
        open_turn = not with_answers and index == len(turns) - 1
        tail = "" if open_turn else f" {answer}{end}"
        pieces.append(f"USER: {head}{question} ASSISTANT:{tail}")
    return "".join(pieces)


def chat_messages(
    turns: Sequence[Turn], n_images: int = 1, *, with_answers: bool = False
) -> list[dict[str, object]]:
    """The same conversation as messages for a chat template. Raises PromptError as `chat_text`."""
    if not turns:
        raise PromptError(NO_TURN)
    messages: list[dict[str, object]] = []
    for index, (question, answer) in enumerate(turns):
        parts: list[dict[str, str]] = [{"type": "image"}] * (n_images if index == 0 else 0)
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        if with_answers or index < len(turns) - 1:
            content = [{"type": "text", "text": answer}]
            messages.append({"role": "assistant", "content": content})
    return messages
