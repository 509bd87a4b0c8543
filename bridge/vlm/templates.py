"""Chat templates to text. Those that came with a model are written in a process of their own.

See `bridge.vlm.template_worker` for why. One such process serves all models: it starts with the
first foreign template (about a second) and is kept; it ends with this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bridge.errors import UnsupportedModelError
from bridge.vlm.chat import CHAT_TEMPLATE

_WORKER = Path(__file__).with_name("template_worker.py")
# Of the processor, a whole number; a long chat takes a few hundredths of a second.
SECONDS = 1
# Seconds by the clock, for systems that cannot limit the processor's, and for starting.
WALL = 60.0

Messages = Sequence[Mapping[str, object]]


def write_chat(
    template: str, messages: Messages, tokenizer: Any, name: str, **options: object
) -> str:
    """The chat as the template writes it, as ``tokenizer.apply_chat_template`` does.

    Raises UnsupportedModelError, which names the model, for a template that raises or does not
    come to an end within the bounds of time and memory.
    """
    if template == CHAT_TEMPLATE:  # bridge's own
        made = tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, **options
        )
        return str(made)
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
