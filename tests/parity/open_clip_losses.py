"""open_clip's losses in two processes: `python open_clip_losses.py OUT`; gradients go to OUT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def inputs() -> dict[str, Tensor]:
    """Normalised vectors of 8 pairs, a temperature and a bias: leaves in fp64."""
    draws = torch.Generator().manual_seed(9)
    image, text = (
        torch.nn.functional.normalize(
            torch.randn(8, 16, generator=draws, dtype=torch.float64), dim=1
        )
        for _ in range(2)
    )
    made = {"image": image, "text": text, "logit_scale": torch.tensor(2.6).double()}
    made |= {"logit_bias": torch.tensor(-4.0).double()}
    return {name: each.clone().requires_grad_(True) for name, each in made.items()}


def peer_losses(rank: int = 0, processes: int = 1) -> dict[str, Any]:
    """From this process' share of `inputs` to the loss, for each of open_clip's losses."""
    from peers import package

    peer = package("open_clip")
    many = {"rank": rank, "world_size": processes}
    clip = peer.loss.ClipLoss(local_loss=True, gather_with_grad=True, **many)
    whole = peer.loss.ClipLoss(gather_with_grad=True, **many)
    made: dict[str, Any] = {
        name: lambda i, t, s, b, loss=loss: loss(i, t, s.exp())
        for name, loss in (("ClipLoss", clip), ("ClipLoss, not local", whole))
    }
    for way in ("bidir", "shift", "reduce", "gather"):
        loss = peer.loss.SigLipLoss(**many, dist_impl=way)
        made[f"SigLipLoss, {way}"] = lambda i, t, s, b, loss=loss: loss(i, t, s.exp(), b)
    return made


def main() -> None:
    import conftest  # noqa: F401 - torchvision's names, which open_clip imports
    from safetensors.torch import save_file
    from support.two_processes import in_two

    from bridge.contrastive.distributed import place, sum_over_processes

    def work() -> None:
        rank, processes = place()
        for name, loss in peer_losses(rank, processes).items():
            leaves = inputs()
            share = slice(rank * 4, rank * 4 + 4)
            value = loss(
                leaves["image"][share],
                leaves["text"][share],
                leaves["logit_scale"],
                leaves["logit_bias"],
            )
            value.backward()
            found = {"loss": value, **{n: p.grad for n, p in leaves.items() if p.grad is not None}}
            mean = {n: sum_over_processes(each) / processes for n, each in found.items()}
            if rank == 0:
                save_file(mean, Path(sys.argv[1]) / f"{name}.safetensors")

    in_two(Path(sys.argv[1]) / "meeting", work)


if __name__ == "__main__":
    main()
