"""The process in which `bridge.vlm.chat_writer` has foreign chat templates written. Not imported.

A template is a program that came with a model folder. Jinja's sandbox keeps it from the disk and
the network but not from a loop without end or a text of ten gigabytes, and no thread can be
stopped in either. So it has a process, with a limit of seconds and of bytes, that may die.

Reads JSON objects, one a line: ``template``, ``messages``, ``options``, ``seconds``. Answers with
one line each: ``text`` or ``error``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

# Above what the process itself takes; a chat is some thousand characters.
BYTES = 512 << 20
CHARACTERS = 4 << 20


def main() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    limit_memory()
    reply = sys.stdout
    sys.stdout = sys.stderr  # nothing but answers goes to the reader
    print("{}", file=reply, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        limit_seconds(asked["seconds"])
        try:
            (text,), _ = render_jinja_template(
                conversations=[asked["messages"]],
                chat_template=asked["template"],
                **asked["options"],
            )
            answer = {"text": text}
            if len(text) > CHARACTERS:
                answer = {"error": f"it writes {len(text):,} characters"}
        # A template can raise anything that Python can.
        except Exception as error:
            words = str(error).strip().splitlines() or ["no message"]
            answer = {"error": f"{type(error).__name__}: {words[0][:300]}"}
        print(json.dumps(answer), file=reply, flush=True)


def limit_memory() -> None:
    resource = limits()
    if resource is None or not sys.platform.startswith("linux"):
        return
    with open("/proc/self/statm", encoding="ascii") as stream:
        taken = int(stream.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, hard))


def limit_seconds(seconds: int) -> None:
    """Of the processor's, from now: a busy machine takes nothing from a template."""
    resource = limits()
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def limits() -> Any:
    """The module of a process's limits, None where the system has none (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource


if __name__ == "__main__":
    main()
