"""``heat_maps``: where in the picture each word of a prompt was looked at, as DAAM defines it.

Tang et al. 2023, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention" (arXiv
2210.04885), equation 7: the attention probabilities of a key at each place, over the
cross-attentions of the down- and upsampling blocks, their heads and all steps, each brought to the
size of the latents by bicubic interpolation, and added up. Here they are averaged, which is the
same but for a constant. Interpolation is linear, so maps of one size are added up first and
enlarged once; negative overshoot is cut off at the end, where the authors' code cuts it off each
map. That leaves maps of an eighth of the side out, and here all count. A word's map is the mean of
its keys'.

Unlike the authors' code it takes sequences of any length (long prompts, T5), batches, pictures of
any aspect ratio, both tokenizers of SDXL and the negative prompt. Probabilities are worked out
beside the attention modules (``hooks``): processors stay, and pictures are bit for bit the same.
They follow ``diffusers.models.attention_processor.AttnProcessor``: the module's own norms, query
and key layers (LoRAs in them included), scale and mask, softmax in float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bridge.checks import keywords
from bridge.diffusion.attention import Call, grid
from bridge.diffusion.hooks import Kwargs, around, by_name, unet_of
from bridge.encoding.conditioning import Conditioning
from bridge.encoding.pipeline_state import is_guided
from bridge.errors import OptionError, UnsupportedModelError
from bridge.prompt import TokenPlan


@keywords
@contextmanager
def heat_maps(pipe: Any, conditioning: Conditioning) -> Iterator[HeatMaps]:
    """While the block lasts, note where each key of ``conditioning`` is looked at.

    ::

        cond = bridge.condition("a cat left of a dog", model=pipe)
        with bridge.diffusion.heat_maps(pipe, cond) as heat:
            image = pipe(**cond.kwargs()).images[0]
        heat.of("cat")  # (h, w)

    With emphasis that acts inside the UNet, enter it inside ``bridge.inject``. Only the last call
    of the pipeline is kept. The maps take one tensor of ``(rows, T, h, w)`` a level of the UNet.

    Args:
        pipe: a diffusers pipeline with a ``UNet2DConditionModel`` that is not compiled.
        conditioning: what it draws with.

    Raises:
        UnsupportedModelError: another kind of pipeline, or attention whose keys are not the
            prompt's alone (DeepFloyd IF).
        OptionError: no ``Conditioning``; while drawing, rows that are not those of its prompts.
    """
    if not isinstance(conditioning, Conditioning):
        raise OptionError(
            f"heat_maps takes what bridge.condition gives, not a {type(conditioning).__name__}; "
            "prompts of several parts share their keys."
        )
    unet = unet_of(pipe, "heat maps")
    sums = _Sums(pipe)
    with ExitStack() as stack:
        stack.enter_context(around(unet, sums.before_unet))
        for module in _drawn(unet):
            stack.enter_context(around(module, partial(sums.before, module)))
        yield HeatMaps(conditioning, sums)


class HeatMaps:
    """The maps of one pipeline call; empty until it has run."""

    def __init__(self, conditioning: Conditioning, sums: _Sums) -> None:
        self._conditioning = conditioning
        self._sums = sums

    def of(
        self,
        word: str | tuple[int, int],
        *,
        prompt: int = 0,
        image: int = 0,
        negative: bool = False,
        tower: str | None = None,
    ) -> Tensor:
        """The map of a word ``(h, w)``, float32 on the CPU, of the latents' size.

        Args:
            word: a word or phrase of the prompt as written, every time it occurs, whatever its
                case; or its place ``(start, end)`` in the prompt. Where a tower was given a text
                of its own (``prompt_2``), a word is looked up in that; a place is of the first
                tower's text, or that of ``tower``.
            prompt, image: of which prompt of the batch, and which of its pictures.
            negative: of the negative prompt instead.
            tower: by which tower's tokens, such as ``"text_encoder_2"``. SDXL's two tokenizers may
                split a word differently, and place j has the states of both; by default the keys
                of all towers count.

        Raises:
            OptionError: a word that the prompt does not have, or that was cut off; no such prompt,
                picture or tower; nothing drawn yet, or no guidance for a negative.
        """
        keys = self.keys(prompt=prompt, image=image, negative=negative)
        plans = self._plans(prompt, negative)
        chosen = [plan for plan in plans if tower in (None, plan.tower)]
        if not chosen:
            names = ", ".join(plan.tower for plan in plans)
            raise OptionError(f"No tower {tower!r}; this prompt was read by {names}.")
        first = chosen[0].source
        places = {
            key
            for plan in chosen
            for span in _spans(word, plan.source, first)
            for key in keys_of(plan, len(keys), span)
        }
        if not places:
            texts = " or ".join(dict.fromkeys(repr(plan.source) for plan in chosen))
            raise OptionError(
                f"{word!r} has no key in the prompt {texts}; give a word of it that was not cut "
                "off, or its place (start, end)."
            )
        return keys[sorted(places)].mean(0)

    def keys(self, *, prompt: int = 0, image: int = 0, negative: bool = False) -> Tensor:
        """The maps of all keys ``(T, h, w)``, BOS, EOS and padding among them; float32, CPU."""
        whole = self._sums.whole()
        rows = len(whole.rows)
        pictures = rows // 2 if whole.guided else rows
        count = len(self._conditioning)
        each = _each(pictures, count)
        if not 0 <= prompt < count or not 0 <= image < each:
            raise OptionError(
                f"There is no picture {image} of prompt {prompt}: {count} prompts of {each} "
                "pictures were drawn, counted from 0."
            )
        if negative and not whole.guided:
            raise OptionError("The pipeline drew without guidance, so no negative was looked at.")
        first = pictures if whole.guided and not negative else 0
        return whole.of_row(first + prompt * each + image)

    def _plans(self, prompt: int, negative: bool) -> tuple[Any, ...]:
        cond = self._conditioning
        plans = cond.negative_plans if negative else cond.plans
        if not plans:
            raise OptionError("The negative is zeros, so it has no words.")
        if len(plans[prompt]) != len(cond.recipe.towers):
            raise OptionError("A prompt of several parts (.and(), .blend()) has no single keys.")
        return plans[prompt]


@dataclass(frozen=True, eq=False)
class _Whole:
    """What one call summed up: for each grid ``(R, T, h, w)``, and how many maps each sum has."""

    levels: dict[tuple[int, int], Tensor]
    size: tuple[int, int]
    count: int
    guided: bool

    @property
    def rows(self) -> Tensor:
        return next(iter(self.levels.values()))

    def of_row(self, row: int) -> Tensor:
        large = [
            interpolate(level[row][None].float(), self.size, mode="bicubic")[0]
            for level in self.levels.values()
        ]
        return (torch.stack(large).sum(0) / self.count).clamp_min(0).cpu()


class _Sums:
    """``before`` of each cross-attention, and ``before_unet`` of the UNet."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._levels: dict[tuple[int, int], Tensor] = {}
        self._size = (0, 0)
        self._count = 0
        self._guided = False
        self._time = -1.0
        self._schedule: Any = None

    def before_unet(self, args: tuple[Any, ...], kwargs: Kwargs) -> Call:
        call = by_name(args, kwargs)
        sample = call["sample"]
        time = float(torch.as_tensor(call["timestep"], dtype=torch.float32).flatten()[0])
        guided = is_guided(self._pipe)
        shape = (sample.shape[-2], sample.shape[-1])
        # A call sets its scheduler's time steps anew, and time runs down in it; where it jumps up,
        # or the picture changes, a new call began. (Time alone does not tell calls of one step.)
        schedule = getattr(getattr(self._pipe, "scheduler", None), "timesteps", None)
        if (
            schedule is not self._schedule
            or time > self._time
            or shape != self._size
            or guided != self._guided
        ):
            self._levels, self._count = {}, 0
        self._schedule = schedule
        self._time, self._size, self._guided = time, shape, guided
        return args, kwargs

    def before(self, module: Any, args: tuple[Any, ...], kwargs: Kwargs) -> Call:
        found = _probabilities(module, args, kwargs)
        if found is None:
            return args, kwargs
        level = grid(found.shape[1], *self._size)
        maps = found.transpose(1, 2).unflatten(-1, level)
        before = self._levels.get(level)
        if before is not None and before.shape != maps.shape:
            raise OptionError(
                f"The pipeline's rows or keys changed within one call, from "
                f"{tuple(before.shape[:2])} to {tuple(maps.shape[:2])}; heat maps need the same "
                "prompts at every step."
            )
        self._levels[level] = maps if before is None else before + maps
        self._count += 1
        return args, kwargs

    def whole(self) -> _Whole:
        if not self._levels:
            raise OptionError("Nothing was drawn inside the block yet, so there are no heat maps.")
        return _Whole(self._levels, self._size, self._count, self._guided)


def _each(pictures: int, prompts: int) -> int:
    each, rest = divmod(pictures, prompts)
    if rest or not each:
        raise OptionError(
            f"The pipeline drew {pictures} pictures, which do not fit {prompts} prompts; draw with "
            "the conditioning that was given to heat_maps."
        )
    return each


def _drawn(unet: Any) -> list[Any]:
    """The cross-attentions of the down and up blocks, as DAAM takes them; of a UNet that has them
    in its middle only, those."""
    from diffusers.models.attention_processor import Attention

    named = [
        (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    ]
    outer = [module for name, module in named if not name.startswith("mid_block")]
    return outer or [module for _, module in named]


def _spans(word: str | tuple[int, int], source: str, first: str) -> list[tuple[int, int]]:
    """Where a word is in a tower's text; a place is of the ``first`` text alone."""
    if isinstance(word, tuple):
        return [word] if source == first else []
    return _occurrences(word, source)


def _occurrences(word: str, source: str) -> list[tuple[int, int]]:
    if not word.strip():
        return []
    pattern = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
    return [found.span() for found in re.finditer(pattern, source, re.IGNORECASE)]


# ---------------------------------------------------------------- keys and probabilities


def keys_of(plan: TokenPlan, length: int, span: tuple[int, int]) -> list[int]:
    """The keys of the tokens that touch ``source[start:end]``.

    Args:
        plan: one tower's plan.
        length: how many keys there are, T.
        span: the place in the plan's source.
    """
    start, end = span
    step = _step(plan, length)
    found = (
        number * step + place
        for number, window in enumerate(plan.windows)
        for place, token in enumerate(window.tokens)
        if not token.special and token.start < end and token.end > start
    )
    return [key for key in found if key < length]


def _step(plan: TokenPlan, length: int) -> int:
    """How many keys after a window's the next window's begin; ``bridge.prompt.LongPrompt`` has the
    ways of joining windows, which the length tells apart."""
    if length == plan.limit:
        return 0  # one window, or the average of several
    if length % plan.limit and (length - 2) % (plan.limit - 2) == 0:
        return plan.limit - 2  # BOS and last state dropped between windows
    return plan.limit


@torch.no_grad()
def _probabilities(module: Any, args: tuple[Any, ...], kwargs: Kwargs) -> Tensor | None:
    """``(R, N, T)`` float32, the mean over the heads, for a call of ``module``.

    R rows, N places, T keys. None for a call without a prompt.

    Raises:
        UnsupportedModelError: keys that are not the prompt's alone.
    """
    names = ("hidden_states", "encoder_hidden_states", "attention_mask")
    call = dict(zip(names, args, strict=False)) | kwargs
    hidden, states = call["hidden_states"], call.get("encoder_hidden_states")
    if states is None:
        return None
    if not isinstance(states, Tensor):  # an IP-Adapter's pictures come behind the text
        states = states[0]
    if getattr(module, "add_k_proj", None) is not None:
        raise UnsupportedModelError(
            f"The keys of {type(module.processor).__name__} are the prompt's and the picture's at "
            "once, so they give no heat maps."
        )
    if hidden.ndim == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    if module.group_norm is not None:
        hidden = module.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
    if module.norm_cross is not None and module.norm_cross is not False:
        states = module.norm_encoder_hidden_states(states)
    query, key = (_heads(module, x) for x in (module.to_q(hidden), module.to_k(states)))
    query = query if module.norm_q is None else module.norm_q(query)
    key = key if module.norm_k is None else module.norm_k(key)
    mask = call.get("attention_mask")
    # Row by row, so that no more than one row's heads are in memory.
    rows = [
        _softmax(query[row], key[row], module.scale, None if mask is None else mask[row])
        for row in range(len(query))
    ]
    return torch.stack(rows)


def _heads(module: Any, states: Tensor) -> Tensor:
    """``(R, N, heads * d)`` as ``(R, heads, N, d)``."""
    return states.unflatten(-1, (module.heads, -1)).transpose(1, 2)


def _softmax(query: Tensor, key: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask.float()
    return scores.softmax(-1).mean(0)
