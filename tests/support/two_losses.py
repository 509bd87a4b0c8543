"""Every contrastive loss, and CLIPs trained, in two processes: `python two_losses.py OUT`."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    from safetensors.torch import save_file

    from bridge.contrastive.distributed import place
    from bridge.training import run_state
    from support.clip_training import RUNS, train
    from support.loss_cases import LOSSES, gradients
    from support.two_processes import in_two

    run_state.draw_curve = lambda *_, **__: None  # takes longer than training here
    out = Path(sys.argv[1])

    def work() -> None:
        for name in LOSSES:
            for form in ("plain", "cached"):
                found = gradients(name, form=form)
                save_file(found, out / f"{name}-{form}-{place()[0]}.safetensors")
        for name, options in RUNS.items():
            train(out.parent / "clip", out / name, **options)

    in_two(out / "meeting", work)


if __name__ == "__main__":
    main()
