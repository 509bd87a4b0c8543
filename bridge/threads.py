"""How torch's threads wait for each other in the app and the command, on a machine that is shared.

A small operation ends in a barrier, where a thread that is done waits for the others. GNU's OpenMP,
which torch has on Linux, lets it turn in circles for milliseconds before it sleeps: quick when the
machine is quiet, but a processor lost to the very thread that is waited for when others compute
too. Turns of a fraction of a millisecond keep nearly all of the one and most of the other;
`benchmarks/threads.py` measures how many, and benchmarks/results/threads.json has both tables. The
library itself sets nothing: whoever imports it has a process of his own.
"""

from __future__ import annotations

from collections.abc import Mapping

_TURNS = "10000"
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


def thread_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to a process's environment before torch loads; nothing to a user's own settings.

    OpenMP reads it once, when it loads; so it is of no use later, and does no harm.
    """
    return {} if any(name in environment for name in _OWN) else {"GOMP_SPINCOUNT": _TURNS}
