"""Two processes that train together: `python two_processes.py DATA OUT OPTIONS`.

One program that forks once torch is loaded, so that the import is paid for once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def in_two(meeting: Path, work: Callable[[], None]) -> None:
    """Run ``work`` in this process and a fork of it, joined by gloo. Fails where one does."""
    import torch

    child = os.fork()
    rank = 0 if child else 1
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2"}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    work()
    torch.distributed.destroy_process_group()
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))


def run_script(script: str, *arguments: object) -> str:
    """What a script of this folder prints, on the CPU: two processes want two GPUs, or none."""
    from support.places import ROOT, TESTS

    done = subprocess.run(
        [sys.executable, str(TESTS / "support" / script), *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        check=True,
        timeout=600,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def main() -> None:
    import accelerate  # noqa: F401

    from bridge.training import run_state
    from bridge.vlm import train_vlm
    from support.tiny_training import tiny_vlm

    run_state.draw_curve = lambda *_, **__: None  # takes longer than training here
    data, out, runs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])

    def work() -> None:
        for name, options in runs.items():
            train_vlm(tiny_vlm(), data, out / name, **options)

    in_two(out / "meeting", work)


if __name__ == "__main__":
    main()
