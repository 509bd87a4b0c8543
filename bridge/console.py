"""How a command ends where its reader has gone, or its disk is full."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

_P = ParamSpec("_P")


def ends_with_its_reader(command: Callable[_P, int]) -> Callable[_P, int]:
    """A command whose reader (``head``, say) may leave early: it ends there, with status 0.

    What cannot be written for another reason (a full disk) is said in a line, with status 2.
    """

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            return _flushed(command(*args, **kwargs))
        except BrokenPipeError:
            _forget_stdout()
            return 0
        except OSError as error:  # where output is not buffered, print itself fails
            if error.errno != errno.ENOSPC:
                raise
            _forget_stdout()
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run


def _flushed(status: int) -> int:
    """The command's status, once all that it printed is written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _forget_stdout()
        if status == 0:  # else the command has said what is wrong
            print(f"error: standard output: {error}", file=sys.stderr)
        return status or 2
    return status


def _forget_stdout() -> None:
    """Python would complain again when it closes stdout."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
