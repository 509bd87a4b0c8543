"""Two processes that train together: `python two_processes.py DATA OUT OPTIONS`.

One program that forks once torch is loaded, so that the import is paid for once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    import accelerate  # noqa: F401
    import torch

    from bridge.vlm import train_vlm
    from bridge.vlm.train import run_state
    from support.tiny_training import tiny_vlm

    run_state.draw_curve = lambda *_, **__: None  # takes longer than training here
    data, out, runs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    child = os.fork()
    rank = 0 if child else 1
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2"}
    meeting = f"file://{out}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for name, options in runs.items():
        train_vlm(tiny_vlm(), data, out / name, **options)
    torch.distributed.destroy_process_group()
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
