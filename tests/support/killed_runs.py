"""Runs of `train_clip` killed at random moments: `python killed_runs.py MODEL OUT SEED...`.

Each is a fork of this program, so that torch loads once, and is killed by SIGKILL once or more;
another fork goes on in its folder. Prints for each seed how often its run was killed while it
trained, and what of its log and its weights is not that of a run that nobody killed.
"""

from __future__ import annotations

import json
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
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    options = {"steps": 10, "batch_size": 4, "save_every": 1, "ema": 0.9, "bank": 4}

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

    straight = begun(out / "straight")
    first = wait_for(out / "straight" / run_state.CHECKPOINT)
    _, status = os.waitpid(straight, 0)
    assert not status
    span = time.monotonic() - first  # from its first checkpoint to its end
    log = (out / "straight" / "log.json").read_bytes()
    weights = load_file(out / "straight" / "model.safetensors")
    found: dict[str, dict[str, object]] = {}
    for seed in sys.argv[3:]:
        rng, folder, amid = random.Random(seed), out / f"killed-{seed}", 0
        for _ in range(rng.choice((1, 1, 2, 3))):
            child = begun(folder)
            wait_for(folder / run_state.CHECKPOINT)
            time.sleep(rng.uniform(0, span))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if not (folder / run_state.CHECKPOINT).exists():  # it was at its end
                break
            amid += 1
        if (folder / run_state.CHECKPOINT).exists():
            finish(folder)
        tensors = load_file(folder / "model.safetensors")
        wrong = [name for name, tensor in tensors.items() if not tensor.equal(weights[name])]
        if (folder / "log.json").read_bytes() != log:
            wrong.append("log.json")
        found[seed] = {"amid": amid, "wrong": wrong}
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
