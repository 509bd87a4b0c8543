"""A chat to the text and the ids that the language model reads.

Text comes of the tokenizer's own chat template, or of LLaVA's layout where it has none.
Pictures stand where the questions say `<image>`, or at the head of the first turn when no
question says so.

Templates that came with a model are written in a process of their own (see
`bridge.vlm.template_worker` for why). One such process serves all models: it starts with the
first foreign template (about a second) and is kept; it ends with this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from bridge.errors import PromptError, UnsupportedModelError
from bridge.vlm.chat import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    Messages,
    Turn,
    chat_messages,
    chat_text,
    check_no_special_tokens,
    n_pictures_at_head,
    render_chat,
)
from bridge.vlm.merge_embeddings import expand_placeholder

_ANSWER = "\N{WHITE SQUARE}answer\N{WHITE SQUARE}"
_QUESTION = "\N{WHITE SQUARE}question\N{WHITE SQUARE}"


@dataclass(frozen=True, eq=False)
class ChatWriter:
    """How one model writes its chats. ``template`` is a Jinja chat template, or None.

    With ``cut`` the text before, between and behind the pictures is read piece by piece, as
    LLaVA's own code does; SentencePiece begins each piece with a space.
    """

    tokenizer: Any
    template: str | None
    image_token: str
    image_id: int
    context: int | None  # positions of the language model, None if it sets no limit
    name: str
    cut: bool = False

    def text(self, turns: Sequence[Turn], n_images: int, answer: str | None = None) -> str:
        """The chat up to where the model goes on; with ``answer``, up to the end of that answer.

        An answer ends with the token that closes it in the layout or, where that has none, with
        the tokenizer's end of text, at which generation stops. Raises PromptError for a chat
        without a turn, and when there are more or fewer `<image>` marks than pictures.
        """
        prompt = self._render(turns, n_images, with_answers=False)
        if answer is None:
            return prompt
        # What the layout writes around an answer: LLaVA's a space before it, most an end token.
        before, after = self._around_answer(turns, n_images)
        lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
        return prompt + lead + answer + (self._end(after) or self.tokenizer.eos_token or "")

    def text_when_followed(self, turns: Sequence[Turn], n_images: int) -> str:
        """The chat up to the end of its last answer, as it stands once a question follows.

        Layouts may write that otherwise than a chat that ends there: Qwen 3's takes out the
        thought before an answer, and an end of text that the layout lacks is not there.
        """
        question, answer = turns[-1]
        told = [*turns[:-1], (question, _ANSWER), (_QUESTION, "")]
        rendered = self._render(told, n_images, with_answers=False)
        before, _, after = rendered.partition(_ANSWER)
        end = self._end(self._around_answer(turns, n_images)[1])
        return before + answer + (end if after.startswith(end) else "")

    def ids(
        self, turns: Sequence[Turn], n_soft: Sequence[int], answer: str | None = None
    ) -> list[int]:
        """Ids of the chat, each image mark repeated as its picture has soft tokens.

        Raises PromptError when no room is left for an answer; the message has the counts.
        """
        read = [(question.replace(IMAGE_TOKEN, ""), told) for question, told in turns]
        check_no_special_tokens(read, self.control_tokens)
        expanded = self._expanded(self.text(turns, len(n_soft), answer), n_soft)
        needed = len(expanded) + (1 if answer is None else 0)
        if self.context is not None and needed > self.context:
            hint = "drop earlier turns" if len(turns) > 1 else "ask more briefly"
            hint += ", or give fewer pictures" if len(n_soft) > 1 else ""
            pictures = "the picture" if len(n_soft) == 1 else f"the {len(n_soft)} pictures"
            raise PromptError(
                f"the chat takes {len(expanded)} positions ({sum(n_soft)} of them {pictures}) "
                f"and {self.name} has {self.context} in all, the answer included; {hint}"
            )
        return expanded

    def ids_when_followed(self, turns: Sequence[Turn], n_soft: Sequence[int]) -> list[int]:
        """Ids of `text_when_followed`, of turns that `ids` has taken."""
        return self._expanded(self.text_when_followed(turns, len(n_soft)), n_soft)

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        """Every text that the tokenizer reads as one special token, the image token included."""
        return special_tokens(self.tokenizer) | {self.image_token}

    def _expanded(self, text: str, n_soft: Sequence[int]) -> list[int]:
        """The text's ids, each image mark repeated as its picture has soft tokens."""
        # A template may write the beginning token itself.
        bos = self.tokenizer.bos_token
        begun = bool(bos) and text.removeprefix(self.image_token).startswith(bos)
        head, *others = text.split(self.image_token) if self.cut else [text]
        ids = self._read(head, begins=not begun)
        for piece in others:
            ids += [self.image_id, *self._read(piece, begins=False)]
        eos = self.tokenizer.eos_token
        if eos and ids and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(eos):
            ids = ids[:-1]  # a tokenizer that closes every text would close the open answer
        return expand_placeholder(ids, self.image_id, n_soft)

    def _read(self, text: str, *, begins: bool) -> list[int]:
        """The ids of a text; ``begins`` says whether what begins a text stands before it."""
        if self.cut and text.startswith(" ") and self._swallows_a_space:
            text = f" {text}"
        # Too long a chat is refused by `ids`, so the tokenizer need not warn of it.
        return list(self.tokenizer(text, add_special_tokens=begins, verbose=False)["input_ids"])

    @cached_property
    def _swallows_a_space(self) -> bool:
        """Whether the tokenizer takes a first space for the one that it begins a text with.
        SentencePiece, in whose place it stands, has both."""
        one, two = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", " a")
        )
        return bool(one == two)

    def _around_answer(self, turns: Sequence[Turn], n_images: int) -> tuple[str, str]:
        """What the layout writes before and after the answer that ends a chat."""
        told = [*turns[:-1], (turns[-1][0], _ANSWER)]
        before, _, after = self._render(told, n_images, with_answers=True).partition(_ANSWER)
        return before, after

    def _end(self, after: str) -> str:
        """The token that closes an answer and the white space before it (Llama 2's layout has a
        space), of the text that follows the answer; "" where it does not begin so."""
        told = after.lstrip()
        ends = sorted(self.control_tokens, key=len, reverse=True)
        end = next((end for end in ends if told.startswith(end)), "")
        return after[: len(after) - len(told)] + end if end else ""

    def _render(self, turns: Sequence[Turn], n_images: int, *, with_answers: bool) -> str:
        heads = n_pictures_at_head(turns, n_images)
        turns = [(q.replace(IMAGE_TOKEN, self.image_token), a) for q, a in turns]
        if self.template is None:
            end = self.tokenizer.eos_token or ""
            text = chat_text(turns, with_answers, heads, image_token=self.image_token, end=end)
        else:
            messages = chat_messages(turns, heads, with_answers=with_answers)
            if not self._reads_parts:
                messages = [{**m, "content": self._as_text(m["content"])} for m in messages]
            text = self._apply(messages, add_generation_prompt=not with_answers)
        if text.count(self.image_token) != n_images:
            raise UnsupportedModelError(
                f"{self.name}: the chat template does not place {self.image_token!r} once a picture"
            )
        return text

    def _as_text(self, parts: Any) -> str:
        """A message's parts as one string, an image part as its mark on a line of its own."""
        mark = f"{self.image_token}\n"
        return "".join(mark if part["type"] == "image" else part["text"] for part in parts)

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template takes message contents as parts; those of text models take text.

        Found out by trying: some templates raise on parts, others print them as Python would.
        """
        probe = [{"type": "image"}, {"type": "text", "text": "probe"}]
        try:
            text = self._apply([{"role": "user", "content": probe}], add_generation_prompt=False)
        except UnsupportedModelError:
            return False
        return text.count(self.image_token) == 1 and "probe" in text and "'type'" not in text

    def _apply(self, messages: Sequence[dict[str, object]], *, add_generation_prompt: bool) -> str:
        assert self.template is not None
        return write_chat(
            self.template,
            messages,
            self.tokenizer,
            self.name,
            add_generation_prompt=add_generation_prompt,
            # Of a model that can think first (Qwen 3), the layout of answers without a thought.
            enable_thinking=False,
        )


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """The texts of a tokenizer's special tokens. Of those added as special ones, transformers 5
    lists only the named among ``all_special_tokens``."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset({*added, *tokenizer.all_special_tokens} - {""})


_WORKER = Path(__file__).with_name("template_worker.py")
# Of the processor, a whole number; a long chat takes a few hundredths of a second.
SECONDS = 1
# Seconds by the clock, for systems that cannot limit the processor's, and for starting.
WALL = 60.0


def write_chat(
    template: str, messages: Messages, tokenizer: Any, name: str, **options: object
) -> str:
    """The chat as the template writes it, as ``tokenizer.apply_chat_template`` does.

    Raises UnsupportedModelError, which names the model, for a template that raises or does not
    come to an end within the bounds of time and memory.
    """
    if template == CHAT_TEMPLATE:  # bridge's own
        return render_chat(template, messages, bool(options.get("add_generation_prompt")))
    asked = {
        "template": template,
        "messages": list(messages),
        "options": {**tokenizer.special_tokens_map, **options},
        "seconds": SECONDS,
    }
    return _worker(os.getpid()).write(json.dumps(asked, default=str), name)


class _Worker:
    """The process, and whose turn it is."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, asked: str, name: str) -> str:
        with self._turn:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._process = _started(name)
            answer = None
            try:
                answer = _exchanged(process, asked.encode() + b"\n")
            finally:
                if answer is None:  # too slow, or interrupted: nobody may read what comes late
                    _end(process)
        if answer is None:
            raise _unfit(name, f"it did not end within {SECONDS} s of the processor's time")
        if "error" in answer:
            raise _unfit(name, str(answer["error"]))
        return str(answer["text"])


@lru_cache(maxsize=1)
def _worker(process_id: int) -> _Worker:
    """One for each process: a forked one must not read another's answers."""
    return _Worker()


def _started(name: str) -> subprocess.Popen[bytes]:
    # -P: the folder of the script, with its modules of common names, is not looked into.
    process = subprocess.Popen(
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    if _exchanged(process, b"") is None:
        _end(process)
        raise _unfit(name, "the process that writes foreign templates does not start")
    return process


def _exchanged(process: subprocess.Popen[bytes], line: bytes) -> dict[str, Any] | None:
    """The answer to a line; None of a process that ended, or that took longer than the wall."""
    assert process.stdin is not None and process.stdout is not None
    clock = threading.Timer(WALL, process.kill)
    clock.start()
    try:
        process.stdin.write(line)
        process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        return None
    finally:
        clock.cancel()
    return dict(json.loads(answer)) if answer.endswith(b"\n") else None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _unfit(name: str, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name}: its chat template cannot write this chat ({why}); the template is in "
        "chat_template.jinja, tokenizer_config.json or config.json of its folder, and "
        "bridge.vlm.pair takes another as chat_template"
    )
