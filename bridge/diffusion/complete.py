"""A pipeline's parts are all there. Where a file lacks a tensor, transformers takes random numbers,
and diffusers a tensor of none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import WeightsError
from bridge.files import read_json

if TYPE_CHECKING:
    import torch


def load_text_encoders(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The text towers that a folder's index names, complete, on the CPU. Raises WeightsError."""
    from bridge.towers import TEXT_TOWERS, load_tower

    named = read_json(folder / "model_index.json").items()
    kinds = {name: kind[1] for name, kind in named if isinstance(kind, list) and len(kind) == 2}
    return {
        name: load_tower(kind, folder / name, dtype=dtype, device="cpu").requires_grad_(True)
        for name, kind in kinds.items()
        if isinstance(kind, str) and kind in TEXT_TOWERS
    }


def check_complete(folder: Path, pipe: Any) -> None:
    """Refuse a pipeline with tensors that no file had. Raises WeightsError."""
    import torch

    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        lacking = [key for key, parameter in part.named_parameters() if parameter.is_meta]
        if lacking:
            raise WeightsError(
                f"The {name} in {folder / name} lacks {len(lacking)} of its tensors "
                f"({', '.join(lacking[:3])}…); it is damaged or of another architecture."
            )
