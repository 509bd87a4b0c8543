"""How torch's threads wait for each other in app and command, by what else the machine does.

A small operation ends in a barrier, where a thread that is done waits for the others. GNU's OpenMP,
which torch has on Linux, lets it turn in circles before it sleeps: quick when the machine is quiet,
but a processor lost to the very thread that is waited for when others compute too. No count of
turns is good in both cases (`benchmarks/threads.py`, benchmarks/results/threads.json), so it is
chosen when the process starts: some turns on a quiet machine, none beside others that compute. The
library itself sets nothing: whoever imports it has a process of his own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_QUIET = {"GOMP_SPINCOUNT": "10000"}
_SHARED = {"GOMP_SPINCOUNT": "0"}  # what OMP_WAIT_POLICY=PASSIVE comes to
# Whoever has set one of these has thought of it himself.
_OWN = (
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_SPINCOUNT",
    "GOMP_CPU_AFFINITY",
    "KMP_BLOCKTIME",
    "KMP_AFFINITY",
    "MKL_NUM_THREADS",
)


def thread_settings(environment: Mapping[str, str], *, shared: bool) -> dict[str, str]:
    """What to add to a process's environment before torch loads; nothing to a user's own settings.

    OpenMP reads it once, when it loads; so it is of no use later, and does no harm. ``shared`` says
    that others compute on the machine, too.
    """
    if any(name in environment for name in _OWN):
        return {}
    return dict(_SHARED if shared else _QUIET)


def is_shared(loads: Path = Path("/proc/loadavg"), cores: int | None = None) -> bool:
    """Whether others keep half of the processors or more busy at this moment.

    Where the system does not say so (it is Linux that does), nobody is counted.
    """
    try:
        running = int(loads.read_text(encoding="ascii").split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return 2 * (running - 1) >= (cores or os.cpu_count() or 1)  # one of them is this process
