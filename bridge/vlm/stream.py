"""Text while it is being generated, from a worker thread to an iterator.

transformers' TextIteratorStreamer hands pieces over through a queue. Two things it leaves
open are settled here: an error in the worker reaches the reader (who would otherwise wait
for ever), and a reader who leaves stops the worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch


def stream_text(tokenizer: Any, run: Callable[..., None]) -> Iterator[str]:
    """Run ``run(streamer=..., stopping_criteria=...)`` in a thread and yield its text.

    White space around the whole answer is left out, so the joined pieces equal the stripped
    text. Special tokens are skipped. Raises what ``run`` raised, after the pieces before it.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    left = threading.Event()
    failures: list[BaseException] = []
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

    class ReaderLeft(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full(
                (input_ids.shape[0],), left.is_set(), device=input_ids.device, dtype=torch.bool
            )

    def work() -> None:
        try:
            run(streamer=streamer, stopping_criteria=StoppingCriteriaList([ReaderLeft()]))
        except BaseException as error:
            failures.append(error)
            streamer.end()

    def read() -> Iterator[str]:
        worker = threading.Thread(target=work, name="bridge-answer", daemon=True)
        worker.start()
        try:
            yield from _stripped(streamer)
            worker.join()
            if failures:
                raise failures[0]
        finally:
            left.set()
            worker.join()

    return read()


def _stripped(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces without empty ones and without white space at the two ends of the whole."""
    started, held = False, ""
    for piece in pieces:
        text = held + piece if started else piece.lstrip()
        body = text.rstrip()
        held = text[len(body) :]
        if body:
            started = True
            yield body
