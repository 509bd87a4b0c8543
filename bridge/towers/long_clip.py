"""Long-CLIP's way to a longer context: position embeddings stretched, the first ones kept.

Zhang et al. 2024, "Long-CLIP: Unlocking the Long-Text Capability of CLIP"
("knowledge-preserved stretching"); the rule for the last positions is that of the authors' code
(beichenzbc/Long-CLIP, ``SDXL/encode_prompt.py``, ``kps``). With n positions of which k are kept,
and a whole factor r:

- positions below k stay;
- position ``k + r i + j`` is ``((r - j) p[k + i] + j p[k + i + 1]) / r`` for ``0 <= j < r``;
- the last r go on along the last step: ``p[n - 1] + j (p[n - 1] - p[n - 2]) / r``.

So n positions become ``k + r (n - k)``: 77 with 20 kept and a factor of 4 are 248. Long-CLIP-L is
trained after this; the authors' own SDXL stretches bigG and does not train it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor

from bridge.errors import OptionError, UnsupportedModelError

_KEYS = ("embeddings.position_embedding.weight", "positional_embedding")
_IMAGE = ("vision_model.", "visual.")


def stretched(positions: Tensor, to: int = 248, keep: int = 20) -> Tensor:
    """Position embeddings ``(n, D)`` as ``(to, D)``, in their dtype. Raises OptionError."""
    length = len(positions)
    if not 0 <= keep < length - 1:
        raise OptionError(f"keep must be from 0 to {length - 2}, not {keep!r}.")
    factor, rest = divmod(to - keep, length - keep)
    if factor < 1 or rest:
        fitting = ", ".join(str(keep + r * (length - keep)) for r in (2, 3, 4))
        raise OptionError(
            f"{length} positions with {keep} kept do not stretch to {to}; to must be keep plus a "
            f"multiple of {length - keep}, such as {fitting}."
        )
    exact = positions.float()
    # One more point beyond the last, on the line of the last step.
    points = torch.cat([exact[keep:], (2 * exact[-1] - exact[-2])[None]])
    share = (torch.arange(factor, device=exact.device, dtype=torch.float32) / factor)[None, :, None]
    between = points[:-1, None] * (1 - share) + points[1:, None] * share
    return torch.cat([exact[:keep], between.flatten(0, 1)]).to(positions.dtype)


@overload
def stretch_positions(
    tower: Mapping[str, Tensor], to: int = ..., keep: int = ...
) -> dict[str, Tensor]: ...
@overload
def stretch_positions(tower: Any, to: int = ..., keep: int = ...) -> Any: ...


def stretch_positions(tower: Any, to: int = 248, keep: int = 20) -> Any:
    """A text tower of a longer context, made of an ordinary one, which is not changed.

    Args:
        tower: a transformers ``CLIPTextModel`` or ``CLIPTextModelWithProjection``, or a state
            dict with their keys, ``CLIPModel``'s or open_clip's.
        to: positions of the new tower; 248 is Long-CLIP's.
        keep: positions that stay as they are; the authors keep 20.

    Returns:
        A new module whose config says ``max_position_embeddings=to``, or a new state dict (whose
        other tensors are shared). ``save_pretrained`` writes the module as any other.

    Raises:
        OptionError: numbers that do not fit each other.
        UnsupportedModelError: no text positions in it.
    """
    if isinstance(tower, Mapping):
        return _stretched_state(tower, to, keep)
    config: Any = getattr(tower, "config", None)
    if not hasattr(config, "max_position_embeddings"):
        raise UnsupportedModelError(
            f"{type(tower).__name__} is no CLIP text tower; pass a CLIPTextModel, a "
            "CLIPTextModelWithProjection or a state dict."
        )
    state = _stretched_state(tower.state_dict(), to, keep)
    changed = type(config).from_dict({**config.to_dict(), "max_position_embeddings": to})
    made = type(tower)(changed).to(device=tower.device, dtype=tower.dtype)
    made.load_state_dict(state)
    return made.train(tower.training)


def _stretched_state(state: Mapping[str, Tensor], to: int, keep: int) -> dict[str, Tensor]:
    names = [name for name in state if name.endswith(_KEYS) and not name.startswith(_IMAGE)]
    if not names:
        raise UnsupportedModelError(
            "There are no text positions to stretch; no tensor's name ends in "
            f"{' or '.join(_KEYS)}."
        )
    # position_ids is a count from 0 that transformers makes anew; in old files it has 77 entries.
    found = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    return {**found, **{name: stretched(state[name], to, keep) for name in names}}
