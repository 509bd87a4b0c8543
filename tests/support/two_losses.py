"""Every contrastive loss in two processes: `python two_losses.py OUT`; gradients go to OUT."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    from safetensors.torch import save_file

    from bridge.contrastive.distributed import place
    from support.loss_cases import LOSSES, gradients
    from support.two_processes import in_two

    out = Path(sys.argv[1])

    def work() -> None:
        for name in LOSSES:
            for form in ("plain", "cached"):
                found = gradients(name, form=form)
                save_file(found, out / f"{name}-{form}-{place()[0]}.safetensors")

    in_two(out / "meeting", work)


if __name__ == "__main__":
    main()
