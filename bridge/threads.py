"""How torch's threads wait for each other in app and command, by what else the machine does.

A small operation ends in a barrier, where a thread that is done waits for the others. GNU's OpenMP,
which torch has on Linux, lets it turn in circles before it sleeps: quick when the machine is quiet,
but a processor lost to the very thread that is waited for when others compute too. No count of
turns is good in both cases (`benchmarks/threads.py`, benchmarks/results/threads.json), so it is
chosen when the process starts: some turns on a quiet machine, none beside others that compute. The
library itself sets nothing: whoever imports it has a process of his own. It has threads of its own,
though, in which torch computes on one core: `one_core_each`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock

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
# Held while threads start, in which torch's number for threads to come is not the user's.
_STARTING = Lock()


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


def one_core_each(threads: int) -> ThreadPoolExecutor:
    """So many threads, in each of which torch computes on one core; in all others as before.

    ``torch.set_num_threads`` counts for the thread that calls it and for those to come, so it is
    called in each, and then set back for those to come.
    """
    import torch

    started = Barrier(threads + 1)
    workers = ThreadPoolExecutor(threads, "bridge-core", initializer=_on_one_core)
    with _STARTING:
        before = torch.get_num_threads()
        for _ in range(threads):
            workers.submit(started.wait)  # each holds one thread, so that all of them start
        started.wait()
        torch.set_num_threads(before)
    return workers


def _on_one_core() -> None:
    import torch

    torch.get_num_threads()  # a thread's first look at it overwrites what was set there
    torch.set_num_threads(1)
