"""Regional prompts and key biases at a UNet's cross-attentions.

Both act around the attention modules and leave their processors in place. A bias is added to the
logits as the module's own ``attention_mask``. (The UNet's ``encoder_attention_mask`` would reach
the same place, but only as ``(1 - mask) * -10000`` in the UNet's dtype, which keeps three decimals
of a bias in float32 and none in float16.) Regions run the module once on a row for each prompt,
and mix what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bridge.diffusion.hooks import Kwargs, by_name
from bridge.encoding.pipeline_state import is_guided
from bridge.encoding.regions import RegionalConditioning
from bridge.errors import UnsupportedModelError

Call = tuple[tuple[Any, ...], Kwargs]


def cross_attentions(unet: Any) -> Iterator[Any]:
    """The attention modules that look at the prompt."""
    from diffusers.models.attention_processor import Attention

    for module in unet.modules():
        if isinstance(module, Attention) and module.is_cross_attention:
            yield module


def biased(bias: Callable[[], Tensor | None]) -> Callable[[tuple[Any, ...], Kwargs], Call]:
    """``before`` of a cross-attention that adds ``bias() (R, 1, K)`` to its logits."""

    def before(args: tuple[Any, ...], kwargs: Kwargs) -> Call:
        added = bias()
        if added is None or kwargs.get("encoder_hidden_states") is None:
            return args, kwargs
        mask = kwargs.get("attention_mask")
        added = added.to(args[0].device, args[0].dtype)
        return args, kwargs | {"attention_mask": added if mask is None else added + mask}

    return before


class RegionalAttention:
    """``before`` and ``after`` of each cross-attention, and ``before_unet`` of the UNet.

    Rows come as negatives, then prompts whose K texts stand end to end; inside the module they
    are negatives, then K rows a picture.
    """

    def __init__(self, pipe: Any, plan: RegionalConditioning) -> None:
        self._pipe = pipe
        self._plan = plan
        self._negatives = 0
        self._size = (0, 0)
        self._shares: dict[tuple[int, int, int], Tensor] = {}

    def before_unet(self, args: tuple[Any, ...], kwargs: Kwargs) -> Call:
        """Note the size of the latents, and how many rows are negatives."""
        sample = by_name(args, kwargs)["sample"]
        self._size = (sample.shape[-2], sample.shape[-1])
        self._negatives = len(sample) // 2 if is_guided(self._pipe) else 0
        return args, kwargs

    def before(self, args: tuple[Any, ...], kwargs: Kwargs) -> Call:
        """A row for each prompt of each picture."""
        states = kwargs.get("encoder_hidden_states")
        if states is None:
            return args, kwargs
        if not isinstance(states, Tensor):
            raise UnsupportedModelError("Regions do not go with an IP-Adapter; unload it.")
        hidden, *others = args
        split = {"encoder_hidden_states": self._apart(states, 1)}
        if (mask := kwargs.get("attention_mask")) is not None:
            split["attention_mask"] = self._apart(mask, 2)
        n, k = self._negatives, len(self._plan)
        wide = torch.cat([hidden[:n], hidden[n:].repeat_interleave(k, 0)])
        return (wide, *others), kwargs | split

    def after(self, output: Tensor) -> Tensor:
        """Each picture's K rows mixed by their shares, place by place."""
        n, k = self._negatives, len(self._plan)
        own = output[n:].unflatten(0, (-1, k))
        mixed = (own * self._shares_for(own)).sum(1)
        return torch.cat([output[:n], mixed.to(output.dtype)])

    def _apart(self, rows: Tensor, dim: int) -> Tensor:
        """A row for each of the K texts that stand end to end along ``dim``; of negatives one."""
        n, k = self._negatives, len(self._plan)
        own = rows[n:].unflatten(dim, (k, -1)).movedim(dim, 1).flatten(0, 1)
        return torch.cat([rows[:n].unflatten(dim, (k, -1)).select(dim, 0), own])

    def _shares_for(self, own: Tensor) -> Tensor:
        """The shares ``(K, places, 1)``, kept for the next step."""
        height, width = grid(own.shape[-2], *self._size)
        key = (height, width, own.device.index or 0)
        if key not in self._shares:
            found = self._plan.shares(height, width).flatten(1)[..., None]
            self._shares[key] = found.to(own.device, torch.float32)
        return self._shares[key]


def grid(places: int, height: int, width: int) -> tuple[int, int]:
    """The height and width of an attention over ``places`` places of a UNet whose latents are
    ``height`` by ``width``: each level halves them, rounding up."""
    while height * width > places and (height > 1 or width > 1):
        height, width = -(-height // 2), -(-width // 2)
    if height * width != places:
        raise UnsupportedModelError(f"No level of the UNet has {places} places.")
    return height, width
