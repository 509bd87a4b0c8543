"""Runs of `train_clip` killed at random moments: `python killed_runs.py MODEL OUT COUNT`.

Each is a fork of this program, so that torch loads once, and is killed by SIGKILL; another fork
goes on in its folder. Prints how many were killed while they trained, and fails unless every log
and every weight is that of a run that nobody killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    from safetensors.torch import load_file

    from bridge.training import run_state
    from support.clip_training import train

    run_state.draw_curve = lambda *_, **__: None  # takes longer than training here
    model, out, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    options = {"steps": 24, "batch_size": 4, "save_every": 1, "ema": 0.9, "bank": 4}

    def begun(folder: Path) -> int:
        child = os.fork()
        if not child:
            train(model, folder, **options)
            os._exit(0)
        return child

    def finish(folder: Path) -> None:
        _, status = os.waitpid(begun(folder), 0)
        if status:
            sys.exit(f"the run in {folder} failed")

    def wait_for(path: Path) -> float:
        while not path.exists():
            time.sleep(0.002)
        return time.monotonic()

    finish(out / "straight")
    timed = begun(out / "timed")  # from its first checkpoint to its end
    first = wait_for(out / "timed" / run_state.CHECKPOINT)
    os.waitpid(timed, 0)
    span = time.monotonic() - first
    log = (out / "straight" / "log.json").read_bytes()
    weights = load_file(out / "straight" / "model.safetensors")
    rng, amid = random.Random(1), 0
    for number in range(count):
        folder = out / f"killed-{number}"
        child = begun(folder)
        wait_for(folder / run_state.CHECKPOINT)
        time.sleep(rng.uniform(0, span))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (folder / run_state.CHECKPOINT).exists():
            amid += 1
            finish(folder)
        assert (folder / "log.json").read_bytes() == log, folder
        for name, tensor in load_file(folder / "model.safetensors").items():
            assert tensor.equal(weights[name]), (folder, name)
    print(f"{amid} of {count}")


if __name__ == "__main__":
    main()
