"""FLIP: a vision transformer that sees a random part of each picture's patches while it trains.

Li et al. 2023, "Scaling Language-Image Pre-training via Masking": half or three quarters of the
patches are left out after their positions are added, and the encoder runs over the rest, so a step
takes about half or a quarter of the time. Nothing is put in their place. A short training without
masks closes the gap to whole pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bridge.checks import is_finite, keywords
from bridge.errors import OptionError, UnsupportedModelError
from bridge.towers.timm_images import TimmImage

# What cuts a picture into patches, in transformers' embeddings.
_PATCHES = ("patch_embedding", "patch_embeddings", "patch_embed")


@keywords
@contextmanager
def masked_patches(module: nn.Module, share: float) -> Iterator[None]:
    """Within the block, ``module`` sees each picture with ``share`` of its patches left out.

    Which are left out is drawn from torch's own generator, anew for each picture in each pass; the
    class token stays. A picture keeps one patch at least. Patch states that the module gives are
    those of the patches that are left, in the order of the picture.

    Args:
        module: an image tower's module, of any family that cuts pictures into patches: CLIP and its
            relatives, open_clip, CoCa, timm's vision transformers and EVA, SigLIP, SigLIP 2 (of
            free shapes too: of each picture's own patches), BLIP-2, DINOv2 and 3, AIMv2.
        share: from 0, which changes nothing, to below 1; 0.5 and 0.75 are FLIP's.

    Raises:
        OptionError: a share out of range.
        UnsupportedModelError: a network whose places cannot be left out, as those of convolutions
            and of windows are.
    """
    if not is_finite(share, 0) or share >= 1:
        raise OptionError(f"patch_masking is {share!r}; give a part from 0 to below 1, as 0.5 is")
    hung = _hooks(module, share)
    if share == 0:
        yield
        return
    with ExitStack() as stack:
        for each in hung:
            stack.enter_context(each())
        yield


Hung = Callable[[], AbstractContextManager[object]]


def _hooks(module: nn.Module, share: float) -> list[Hung]:
    """What is hung on a module for a block, by how it names its parts."""
    for part in module.modules():
        if isinstance(part, TimmImage) and hasattr(part.trunk, "patch_drop"):
            return _timm_hooks(part.trunk, share)
        embeddings = getattr(part, "embeddings", None)
        named = [name for name in _PATCHES if hasattr(embeddings, name)]
        if isinstance(embeddings, nn.Module) and named:
            draw = _Draw(share, _before_patches(embeddings))
            found: list[Hung] = [
                partial(part.register_forward_pre_hook, draw.before, with_kwargs=True),
                partial(embeddings.register_forward_hook, draw.after_embedding),
            ]
            turned = getattr(part, "rope_embeddings", None)
            if turned is not None:
                found.append(partial(turned.register_forward_hook, draw.after_rope))
            return found
        if all(hasattr(part, name) for name in ("conv1", "class_embedding", "ln_pre")):
            # open_clip's own; a norm acts on each state by itself
            norm, draw = part.ln_pre, _Draw(share, 1)
            assert isinstance(norm, nn.Module)
            return [partial(norm.register_forward_hook, draw.after_embedding)]
    network = next((m.config.name for m in module.modules() if isinstance(m, TimmImage)), None)
    raise UnsupportedModelError(
        f"{network or type(module).__name__} has no patches that can be left out, as a vision "
        "transformer has; train it with patch_masking 0"
    )


def _before_patches(embeddings: nn.Module) -> int:
    """How many states stand before the patches: a class token, and registers."""
    first = any(hasattr(embeddings, name) for name in ("class_embedding", "cls_token"))
    registers = getattr(embeddings, "register_tokens", None)
    return int(first) + (registers.shape[1] if isinstance(registers, Tensor) else 0)


def _timm_hooks(trunk: Any, share: float) -> list[Hung]:
    draw = _Draw(share, trunk.num_prefix_tokens)
    if trunk.patch_drop is None:  # of EVA's kind, which asks what was kept, to turn it
        return [partial(_in_its_place, trunk, draw)]
    return [partial(trunk.patch_drop.register_forward_hook, draw.after_embedding)]


@contextmanager
def _in_its_place(trunk: Any, draw: _Draw) -> Iterator[None]:
    trunk.patch_drop = _WithPlaces(draw)
    try:
        yield
    finally:
        trunk.patch_drop = None


class _Draw:
    """The hooks of one block. Free shapes come with padding and a mask of it, which has to shrink
    with the patches."""

    def __init__(self, share: float, before_patches: int) -> None:
        self._share, self._first = share, before_patches
        self._kept: Tensor | None = None
        self.places: Tensor | None = None

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
        self._kept, self.places = None, kept
        places = kept[..., None].expand(-1, -1, out.shape[-1])
        return torch.cat([out[:, : self._first], patches.gather(1, places)], 1)

    def after_rope(self, module: Any, args: tuple[Any, ...], out: Any) -> Any:
        """Cosines and sines ``(N, d)`` of all patches, as ``(B, 1, kept, d)`` of those kept."""
        assert self.places is not None
        return tuple(each[self.places][:, None] for each in out)


class _WithPlaces(nn.Module):
    """The hook as timm's `PatchDropoutWithIndices` is called."""

    def __init__(self, draw: _Draw) -> None:
        super().__init__()
        self._draw = draw

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._draw.after_embedding(self, (), x), self._draw.places


def _drawn(shape: Any, count: int, like: Tensor) -> Tensor:
    """``(B, count)`` places of ``(B, N)``, none twice; where ``like`` is a mask, what it hides
    comes last."""
    order = torch.rand(*shape, device=like.device, dtype=torch.float32)
    if like.ndim == 2:
        order = order.masked_fill(like == 0, torch.inf)
    return order.argsort(1)[:, :count]
