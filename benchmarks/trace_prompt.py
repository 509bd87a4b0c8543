"""The way of a prompt to tensors: which files of bridge run, and which of its types are made.

    python -m benchmarks.trace_prompt

Counts one call of ``bridge.condition("a (red:1.3) apple", "blurry")`` on the shipped model, which
another prompt has loaded before. docs/architecture.md shows what it prints.
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

HOME = Path(__file__).resolve().parent.parent / "bridge"
PROMPT, NEGATIVE = "a (red:1.3) apple", "blurry"


def traced(call: Callable[[], object]) -> tuple[list[str], list[str]]:
    """Run ``call``: the files of bridge that a function ran in, and the classes of bridge that an
    instance was made of, each in the order of their first use.

    Made is what was initialised, or has a method run and was not there before.
    """
    files: dict[str, None] = {}
    types: dict[str, None] = {}
    there = {id(each) for each in gc.get_objects()}

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        path = Path(code.co_filename)
        if HOME in path.parents:
            files.setdefault(str(path.relative_to(HOME.parent)))
        if code.co_argcount and code.co_varnames[0] == "self":
            own = frame.f_locals.get("self")
            kind = type(own)
            is_new = code.co_name == "__init__" or id(own) not in there
            if is_new and kind.__module__.startswith("bridge."):
                types.setdefault(f"{kind.__module__}.{kind.__qualname__}")

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [*files], [*types]


def main() -> None:
    """Print both lists."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.trace_prompt")
    parser.parse_args()
    import bridge

    warnings.simplefilter("ignore")
    condition = bridge.condition
    condition("a cat", "ugly")
    files, types = traced(lambda: condition(PROMPT, NEGATIVE))
    for title, found in (("files", files), ("types", types)):
        print(f"{len(found)} {title}")
        for each in found:
            print(f"  {each}")


if __name__ == "__main__":
    main()
