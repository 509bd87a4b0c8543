"""Emphasis: how token weights change the states that a tower gives, by each tool's own formula.

``EMPHASES`` names them; any goes with any prompt dialect. z is a token's state, e the state of
the empty prompt at the same place, w its weight:

=======================  ===================================================================
``none``                 weights are read and not used
``a1111``                z * w, then scaled so that each window keeps its mean
``no_norm``              z * w (sd_embed; stable-diffusion-webui's "No norm")
``comfy``                e + w * (z - e)
``compel``               as comfy; below 1 also mixed with the prompt whose words are masked
``comfy++``              below 1 as down_weight; above 1 adds w - 1 times what the words contribute
``down_weight``          all weights below 1, relative to the largest; mixed with masked prompts
``text_attention_bias``  log w is added to the token's attention logits in the text tower
``unet_attention_bias``  log w is added to its cross-attention logits in the UNet
=======================  ===================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from bridge.prompt import Token, TokenPlan, Window
from bridge.prompt.syntax import prompt_error


@dataclass(frozen=True)
class TowerInput:
    """One input of a tower.

    Attributes:
        ids: ``T`` ids, padding included.
        used: how many of them are no padding.
        hidden: places that no token may attend to.
        bias: what is added to the logits of each place in attention; none if empty.
    """

    ids: tuple[int, ...]
    used: int
    hidden: frozenset[int] = frozenset()
    bias: tuple[float, ...] = ()

    @classmethod
    def of(cls, window: Window, hidden: frozenset[int] = frozenset()) -> TowerInput:
        """A window's own input."""
        return cls(window.ids, window.used, hidden)

    def mask(self, hide_padding: bool) -> list[int]:
        """``T`` numbers, 0 where no token may attend to."""
        seen = self.used if hide_padding else len(self.ids)
        return [int(at < seen and at not in self.hidden) for at in range(len(self.ids))]

    def logits(self, hide_padding: bool) -> list[float]:
        """``T`` numbers to add to the logits of each place, minus infinity where mask has 0."""
        bias = self.bias or (0.0,) * len(self.ids)
        mask = self.mask(hide_padding)
        return [b if seen else -math.inf for b, seen in zip(bias, mask, strict=True)]


@dataclass(frozen=True)
class Emphasis:
    """One method.

    Attributes:
        rows: from a plan to the inputs it needs besides the plan's own windows. They are encoded
            in the same forward pass. Only asked of plans that are weighted.
        apply: from a plan, its states ``(k, T, D)`` for k windows, and the states ``(r, T, D)``
            of ``rows`` to the emphasised states ``(k, T, D)``.
        own: from a window of a weighted plan to the tower's input.
        check: refuses, before a tower loads, a plan whose weights it has no meaning for.
        biases: whether it acts in attention, of CLIP's towers or of a UNet.
        in_unet: whether it acts in a UNet's (``joining.key_bias``).
    """

    rows: Callable[[TokenPlan], tuple[TowerInput, ...]]
    apply: Callable[[TokenPlan, Tensor, Tensor], Tensor]
    own: Callable[[Window], TowerInput] = TowerInput.of
    check: Callable[[TokenPlan], None] = lambda plan: None
    biases: bool = False
    in_unet: bool = False


def no_rows(plan: TokenPlan) -> tuple[TowerInput, ...]:
    """For methods that need no other input."""
    return ()


def empty_row(plan: TokenPlan) -> tuple[TowerInput, ...]:
    """The empty prompt."""
    return (TowerInput.of(plan.empty),)


def weights_of(plan: TokenPlan, like: Tensor) -> Tensor:
    """The weights of every place, ``(k, T, 1)``, on the device and in the dtype of ``like``."""
    rows = [window.weights for window in plan.windows]
    return torch.tensor(rows, device=like.device, dtype=like.dtype)[..., None]


NONE = Emphasis(no_rows, lambda plan, states, extra: states)
"""Weights are read and not used."""


# ---------------------------------------------------------------- stable-diffusion-webui
#
# Emphasis of stable-diffusion-webui (``modules/sd_emphasis.py``): scale, then restore the mean.
#
# The mean is one number a window: over all its places and all channels. The webui takes it over the
# whole batch of prompts that it encodes at once; here each prompt is weighed by itself, as the
# webui does with one prompt, so that a prompt's neighbours cannot change it. A mean near zero makes
# the rescaling explode (webui issues 14874, 13791); ``no_norm`` leaves it out. A mean that is
# nothing but rounding, as that of a tower whose norm was never trained, has no ratio: it gives NaN,
# which ``tower_pass.check_rows`` makes an error of.


def _scale(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    return states * weights_of(plan, states)


def _scale_and_restore(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    scaled = _scale(plan, states, extra)
    return scaled * (_mean(states) / _mean(scaled))


def _mean(states: Tensor) -> Tensor:
    mean = states.mean((1, 2), keepdim=True)
    rounding = torch.finfo(torch.float32).eps * states.abs().mean((1, 2), keepdim=True)
    return mean.masked_fill(mean.abs() <= rounding, torch.nan)


A1111 = Emphasis(no_rows, _scale_and_restore)
"""The webui's default, "Original"."""

NO_NORM = Emphasis(no_rows, _scale)
"""The webui's "No norm"; what sd_embed does."""


# ---------------------------------------------------------------- ComfyUI
#
# Emphasis of ComfyUI (``comfy/sd1_clip.py``, ``ClipTokenWeightEncoder``): from the empty prompt.
#
# A state moves along the line from the empty prompt's state at the same place: ``e + w * (z - e)``.


def from_empty(states: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """``e + w * (z - e)``; states of weight 1 are left as they are, rounding included.

    Args:
        states: ``(..., T, D)``.
        empty: the empty prompt's, ``(T, D)``.
        weights: ``(..., T, 1)``.
    """
    return torch.where(weights == 1, states, empty + (states - empty) * weights)


def _comfy(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    return from_empty(states, extra[0], weights_of(plan, states))


COMFY = Emphasis(empty_row, _comfy)
"""ComfyUI's own."""


# ---------------------------------------------------------------- compel
#
# Emphasis of compel (``EmbeddingsProvider``), with its down-weighting by masking (``MASK``).
#
# All weights act as in ComfyUI. A fragment of weight w < 1 is also mixed with the prompt in which
# its tokens are hidden from the tower's attention, by ``t = tan((1 - w) * pi / 2)``: at 0.5 the two
# are halves, towards 0 the prompt without the fragment is all. With E the weighted prompt and E_i
# the same without fragment i: ``(E + sum(t_i * E_i)) / (1 + sum(t_i))``.

_LEAST = 1e-5  # of a weight; the tangent is infinite at 0


def _light(plan: TokenPlan) -> dict[int, float]:
    """Fragments of weight below 1, by number."""
    return {t.fragment: t.weight for t in plan.tokens if not t.special and t.weight < 1}


def _compel_rows(plan: TokenPlan) -> tuple[TowerInput, ...]:
    hidden = [
        TowerInput.of(window, places)
        for fragment in _light(plan)
        for window, places in zip(plan.windows, _hidden(plan, fragment), strict=True)
    ]
    return (*empty_row(plan), *hidden)


def _hidden(plan: TokenPlan, fragment: int) -> list[frozenset[int]]:
    """The places of a fragment in each window, from its first to its last.

    Of the windows between which it goes on, compel leaves only the first and the last place to see.
    """
    inside = [
        [at for at, token in enumerate(window.tokens) if token.fragment == fragment]
        for window in plan.windows
    ]
    own = [number for number, places in enumerate(inside) if places]
    found = []
    for number, places in enumerate(inside):
        if not places:
            found.append(frozenset[int]())
            continue
        first = places[0] if number == own[0] else 1
        last = places[-1] if number == own[-1] else len(plan.windows[number].ids) - 2
        found.append(frozenset(range(first, last + 1)))
    return found


def _compel(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    weights, light = weights_of(plan, states), _light(plan)
    without = extra[1:].reshape(len(light), *states.shape)
    mix = [1.0, *(math.tan((1 - max(w, _LEAST)) * math.pi / 2) for w in light.values())]
    shares = torch.tensor(mix, device=states.device, dtype=states.dtype)
    shares = shares / shares.sum()
    versions = from_empty(torch.cat([states[None], without]), extra[0], weights)
    return (versions * shares.view(-1, 1, 1, 1)).sum(0)


COMPEL = Emphasis(_compel_rows, _compel)
"""compel's default."""


# ---------------------------------------------------------------- ComfyUI_ADV_CLIP_emb
#
# ``comfy++`` and ``down_weight`` of ComfyUI_ADV_CLIP_emb (``adv_encode.py`` at 63984de).
#
# Words are taken out of a prompt by putting another token ("+") in the place of theirs. A "word" is
# what ComfyUI tokenizes at once: since its commit b55c224 a whole stretch of one weight.
#
# ``down_weight``: weights are divided by the largest, so none is above 1. Let ``w_1 < w_2 < ... <=
# 1`` be the distinct weights, and M_i the prompt without the words of weight ``w_i`` and below:
# the result is ``w_1 * z + sum((w_{i+1} - w_i) * M_i)``, with 1 after the last weight below 1.
#
# ``comfy++``: weights below 1 as in down_weight, undivided; to that, for each word of weight w
# above 1, ``(w - 1) * (z - z without the word)`` is added at the word's own tokens.


def _divided(plan: TokenPlan) -> float:
    """The largest weight of all places; BOS and EOS, of weight 1, count."""
    return max(max(window.weights) for window in plan.windows)


def _levels(plan: TokenPlan, top: float) -> list[float]:
    """Distinct weights below 1, ascending, after division by ``top``."""
    content = (token.weight / top for token in plan.tokens if not token.special)
    return sorted({weight for weight in content if weight < 1})


def _heavy(plan: TokenPlan) -> dict[int, float]:
    """Stretches of a weight above 1, by number."""
    return {t.fragment: t.weight for t in plan.tokens if not t.special and t.weight > 1}


def _without(plan: TokenPlan, window: Window, taken: frozenset[Token]) -> TowerInput:
    """A window with the mask token in the place of the tokens ``taken``."""
    kept = [plan.mask_id if token in taken else token.id for token in window.tokens]
    return TowerInput((*kept, *window.ids[window.used :]), window.used)


def _lighter_rows(plan: TokenPlan, top: float) -> list[TowerInput]:
    """For each level, the windows without the words at that level and below."""
    rows = []
    for level in _levels(plan, top):
        taken = frozenset(t for t in plan.tokens if not t.special and t.weight / top <= level)
        rows += [_without(plan, window, taken) for window in plan.windows]
    return rows


def _lightened(plan: TokenPlan, states: Tensor, masked: Tensor, top: float) -> Tensor:
    levels = _levels(plan, top)
    if not levels:
        return states
    shares = [levels[0], *(b - a for a, b in pairwise([*levels, 1.0]))]
    versions = torch.cat([states[None], masked.reshape(len(levels), *states.shape)])
    mix = torch.tensor(shares, device=states.device, dtype=states.dtype)
    return (versions * mix.view(-1, 1, 1, 1)).sum(0)


def _down_rows(plan: TokenPlan) -> tuple[TowerInput, ...]:
    return tuple(_lighter_rows(plan, _divided(plan)))


def _down(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    return _lightened(plan, states, extra, _divided(plan))


def _plus_rows(plan: TokenPlan) -> tuple[TowerInput, ...]:
    heavy = [
        _without(plan, window, frozenset(t for t in window.tokens if t.fragment == fragment))
        for fragment in _heavy(plan)
        for window in plan.windows
    ]
    return (*_lighter_rows(plan, 1.0), *heavy)


def _plus(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    heavy = _heavy(plan)
    lighter = len(extra) - len(heavy) * len(states)
    result = _lightened(plan, states, extra[:lighter], 1.0)
    without = extra[lighter:].reshape(len(heavy), *states.shape)
    for (fragment, weight), absent in zip(heavy.items(), without, strict=True):
        places = [[token.fragment == fragment for token in w.tokens] for w in plan.windows]
        padded = [row + [False] * (states.shape[1] - len(row)) for row in places]
        here = torch.tensor(padded, device=states.device, dtype=torch.bool)[..., None]
        result = result + torch.where(here, (weight - 1) * (states - absent), 0)
    return result


DOWN_WEIGHT = Emphasis(_down_rows, _down)
"""Weights only ever take away."""

COMFY_PLUS_PLUS = Emphasis(_plus_rows, _plus)
"""Weights scale what a word contributes."""


# ---------------------------------------------------------------- attention
#
# Emphasis as a bias of attention: the logarithm of a token's weight is added to its logits.
#
# After the softmax a token of weight w then has w times its attention before the rest is made up to
# 1 again: Prompt-to-Prompt's re-weighting (Hertz et al. 2022, section 3.2, "Attention
# re-weighting"), with the sum restored. Weight 0 hides a token. Negative weights have no logarithm.
#
# - ``text_attention_bias`` acts in the text tower: all tokens after a weighted one, the EOS state
#   and so the pooled state included, look at it more or less. Token states come as they are.
# - ``unet_attention_bias`` acts in the UNet's cross-attentions and leaves the tower's states alone.
#   Where two towers' states stand side by side, the mean of their tokens' biases counts, which
#   differs from either only if ``prompt_2`` is weighted otherwise. It is drawn inside
#   ``bridge.inject``.


def check_weights(plan: TokenPlan) -> None:
    """Refuse weights without a logarithm. Raises PromptError."""
    for token in plan.tokens:
        if token.weight < 0:
            raise prompt_error(
                f"A weight of {token.weight:g} cannot bias attention; give 0 or more.",
                plan.source,
                token.start,
                token.end,
            )


def log_weights(window: Window) -> tuple[float, ...]:
    """The logarithm of the weight of each place; 0 for padding."""
    return tuple(-math.inf if weight == 0 else math.log(weight) for weight in window.weights)


TEXT_ATTENTION_BIAS = replace(
    NONE,
    check=check_weights,
    own=lambda window: replace(TowerInput.of(window), bias=log_weights(window)),
    biases=True,
)
"""In the text tower."""

UNET_ATTENTION_BIAS: Emphasis = replace(NONE, check=check_weights, biases=True, in_unet=True)
"""In the UNet."""


EmphasisName = Literal[
    "none",
    "a1111",
    "no_norm",
    "comfy",
    "compel",
    "comfy++",
    "down_weight",
    "text_attention_bias",
    "unet_attention_bias",
]
EMPHASES: dict[EmphasisName, Emphasis] = {
    "none": NONE,
    "a1111": A1111,
    "no_norm": NO_NORM,
    "comfy": COMFY,
    "compel": COMPEL,
    "comfy++": COMFY_PLUS_PLUS,
    "down_weight": DOWN_WEIGHT,
    "text_attention_bias": TEXT_ATTENTION_BIAS,
    "unet_attention_bias": UNET_ATTENTION_BIAS,
}
"""The methods by name."""
