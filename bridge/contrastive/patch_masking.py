"""FLIP: a vision transformer that sees a random part of each picture's patches while it trains.

Li et al. 2023, "Scaling Language-Image Pre-training via Masking": half or three quarters of the
patches are left out after their positions are added, and the encoder runs over the rest, so a step
takes about half or a quarter of the time. Nothing is put in their place. A short training without
masks closes the gap to whole pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bridge.checks import is_finite, keywords
from bridge.errors import OptionError, UnsupportedModelError


@keywords
@contextmanager
def masked_patches(module: nn.Module, share: float) -> Iterator[None]:
    """Within the block, ``module`` sees each picture with ``share`` of its patches left out.

    Which are left out is drawn from torch's own generator, anew for each picture in each pass; the
    class token stays. A picture keeps one patch at least. Patch states that the module gives are
    those of the patches that are left, in the order of the picture.

    Args:
        module: an image tower's module, of any family that cuts pictures into patches: CLIP,
            open_clip, CoCa, SigLIP, SigLIP 2 (of free shapes too: of each picture's own patches),
            BLIP-2.
        share: from 0, which changes nothing, to below 1; 0.5 and 0.75 are FLIP's.

    Raises:
        OptionError: a share out of range.
        UnsupportedModelError: a convolutional network, whose places cannot be left out.
    """
    if not is_finite(share, 0) or share >= 1:
        raise OptionError(f"patch_masking is {share!r}; give a part from 0 to below 1, as 0.5 is")
    vision, embedded, first = _transformer(module)
    if share == 0:
        yield
        return
    draw = _Draw(share, first)
    hooks = [
        vision.register_forward_pre_hook(draw.before, with_kwargs=True),
        embedded.register_forward_hook(draw.after_embedding),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _transformer(module: nn.Module) -> tuple[nn.Module, nn.Module, int]:
    """The part that embeds patches and then encodes them; what gives the embeddings, positions
    added; and how many states stand before the patches."""
    for part in module.modules():
        embeddings = getattr(part, "embeddings", None)
        if isinstance(embeddings, nn.Module) and hasattr(embeddings, "patch_embedding"):
            return part, embeddings, int(hasattr(embeddings, "class_embedding"))
        if all(hasattr(part, name) for name in ("conv1", "class_embedding", "ln_pre")):
            norm = part.ln_pre  # open_clip's own; a norm acts on each state by itself
            assert isinstance(norm, nn.Module)
            return part, norm, 1
    raise UnsupportedModelError(
        f"{type(module).__name__} does not cut pictures into patches, so none can be left out; "
        "train it with patch_masking 0"
    )


class _Draw:
    """The two hooks of one block. Free shapes come with padding and a mask of it, which has to
    shrink with the patches."""

    def __init__(self, share: float, before_patches: int) -> None:
        self._share, self._first = share, before_patches
        self._kept: Tensor | None = None

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Free shapes alone: choose among each picture's own patches, and shrink their mask."""
        self._kept = None
        named = "pixel_attention_mask"
        mask = kwargs.get(named, args[1] if len(args) > 1 else None)
        if not isinstance(mask, Tensor):
            return None
        counts = mask.sum(1)
        wanted = (counts * (1 - self._share)).round().clamp(min=1).long()
        most = int(wanted.max())
        self._kept = _drawn(mask.shape, most, mask)
        order = torch.arange(most, device=mask.device, dtype=torch.int64)
        kept = (order < wanted[:, None]).to(mask.dtype)
        if named in kwargs:
            return args, {**kwargs, named: kept}
        return (args[0], kept, *args[2:]), kwargs

    def after_embedding(self, module: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """Rows ``(B, class token and patches, D)`` with the patches that are kept."""
        patches = out[:, self._first :]
        kept = self._kept
        if kept is None:
            count = max(1, math.floor(patches.shape[1] * (1 - self._share) + 0.5))
            kept = _drawn(patches.shape[:2], count, patches).sort(1).values
        self._kept = None
        places = kept[..., None].expand(-1, -1, out.shape[-1])
        return torch.cat([out[:, : self._first], patches.gather(1, places)], 1)


def _drawn(shape: Any, count: int, like: Tensor) -> Tensor:
    """``(B, count)`` places of ``(B, N)``, none twice; where ``like`` is a mask, what it hides
    comes last."""
    order = torch.rand(*shape, device=like.device, dtype=torch.float32)
    if like.ndim == 2:
        order = order.masked_fill(like == 0, torch.inf)
    return order.argsort(1)[:, :count]
