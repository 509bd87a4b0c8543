"""Arithmetic on conditionings: blend, interpolate, concatenate, subtract a concept, zero negatives.

All take conditionings of one recipe, made by the same towers, on one device and in one dtype, and
compute in float32. One of a single row goes with each of B rows. The states of one operand are the
first's where nothing else is said; so are the sizes.

=================  ============================================================================
``blend``          ``sum(w_i * z_i)``, weights divided by their sum (compel's ``.blend()``,
                   ComfyUI's ConditioningAverage with weights s and 1 - s)
``interpolate``    from one to the other: along the line, or on the sphere row by row (``slerp``)
``concatenate``    states end to end (ComfyUI's ConditioningConcat, compel's ``.and()``)
``subtract``       what points along a concept is taken out of each state (``rejected``)
``zero_negatives`` SDXL's ``force_zeros_for_empty_prompt``
=================  ============================================================================

ComfyUI's "ConDelta" nodes subtract ``s * (concept - base)`` from each place, which is ``blend([z,
concept, base], [1, -s, s], normalize=False)``. Subtracting the whole difference also takes away
what the prompt never had; so ``subtract`` projects, as Perp-Neg does with noise predictions
(Armandpour et al. 2023), Concept Algebra with scores (Wang et al. 2023), and directional ablation
with the states of language models (Arditi et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from bridge.checks import finite, keywords
from bridge.encoding.addons import taken
from bridge.encoding.tower_pass import check_finite
from bridge.encoding.trace import Drift, PooledSource, Trace
from bridge.errors import OptionError
from bridge.prompt import TokenPlan

if TYPE_CHECKING:
    from bridge.encoding.conditioning import Conditioning

_PART = ", part "
Plans = tuple[TokenPlan, ...]
Account = tuple[Plans, Trace]
T = TypeVar("T", TokenPlan, PooledSource, Drift)

Between = Literal["linear", "spherical"]
METHODS = get_args(Between)
NEAR_PARALLEL = 0.9995
"""The cosine above which ``slerp`` goes along the line, as in the slerp of diffusers' community
pipelines: the circle through two parallel vectors is undetermined, and here it is the line to
within ``2e-4`` of their length."""
_PROMPT, _NEGATIVE = "prompt_embeds", "negative_prompt_embeds"
_POOLED, _NEGATIVE_POOLED = "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
_MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
_STATES = (_PROMPT, _POOLED, _NEGATIVE, _NEGATIVE_POOLED)

_INFINITE = (
    "Arithmetic on conditionings gives states that are not finite (NaN or infinity): an operand's "
    "are not, or the weights take them beyond their dtype. Give smaller weights, or conditionings "
    "in float32."
)


@keywords
def blend(
    conds: Sequence[Conditioning], weights: Sequence[float], *, normalize: bool = True
) -> Conditioning:
    """The weighted sum of conditionings, pooled states and negatives alike.

    Args:
        conds: those to blend, of one length.
        weights: one for each; negative ones are legal.
        normalize: whether the weights are divided by their sum.

    Raises:
        OptionError: conditionings that do not go together, or weights that are no finite numbers,
            not one for each, or add up to 0 where they are to be divided by their sum.
    """
    ready = aligned(conds, same_length=True)
    values = _checked_weights(weights, len(ready), normalize)

    def mixed(tensors: list[Tensor]) -> Tensor:
        shares = tensors[0].new_tensor(values).view(-1, *[1] * tensors[0].ndim)
        return (torch.stack(tensors) * shares).sum(0)

    return _combined(ready, mixed, _STATES, _either)


def interpolate(
    first: Conditioning, second: Conditioning, t: float, *, method: Between = "linear"
) -> Conditioning:
    """The conditioning at ``t`` between two: at 0 the first's states exactly, at 1 the second's.

    Args:
        first, second: of one length.
        t: from 0 to 1.
        method: ``linear``: ``(1 - t) * a + t * b``; ``spherical``: ``slerp`` of each token's
            state, and of the pooled state.

    Raises:
        OptionError: conditionings that do not go together, ``t`` out of range, no such method.
    """
    if method not in METHODS:
        raise OptionError(f"No method {method!r}; there is: {', '.join(METHODS)}.")
    if not 0 <= finite(t, "t") <= 1:
        raise OptionError(f"t must be from 0 to 1, not {t!r}; blend takes any weights.")
    between = slerp if method == "spherical" else torch.lerp
    ready = aligned((first, second), same_length=True)
    return _combined(ready, lambda pair: between(pair[0], pair[1], t), _STATES, _either)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation of the rows of ``(..., D)`` tensors (Shoemake 1985).

    With unit vectors ``u = a/|a|``, ``v = b/|b|`` and ``w`` the angle between them, the direction
    is ``(sin((1 - t) w) u + sin(t w) v) / sin(w)`` and the length ``(1 - t)|a| + t|b|``. Rows that
    are zero, or parallel or opposite (``|cos w|`` above ``NEAR_PARALLEL``), go along the line.
    """
    if t in (0, 1):
        return b if t else a
    long_a, long_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    least = torch.finfo(a.dtype).tiny
    u, v = a / long_a.clamp_min(least), b / long_b.clamp_min(least)
    cosine = (u * v).sum(-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    turned = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / angle.sin()
    flat = (cosine.abs() > NEAR_PARALLEL) | (long_a == 0) | (long_b == 0)
    return torch.where(flat, torch.lerp(a, b, t), turned * torch.lerp(long_a, long_b, t))


def concatenate(conds: Sequence[Conditioning]) -> Conditioning:
    """Token states end to end, ``(B, T1 + T2 + ..., D)``; pooled states are the first's.

    Negatives are set end to end too. Each conditioning's negatives are as long as its prompts,
    filled up with the empty prompt, so that both sequences stay of one length; what was encoded
    without a negative adds the empty prompt's states, or zeros, as its model has it.

    Raises:
        OptionError: conditionings that do not go together.
    """
    ready = aligned(conds, same_length=False)

    def end_to_end(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors, 1)

    return _combined(ready, end_to_end, (_PROMPT, _NEGATIVE), end_to_end)


def subtract(
    cond: Conditioning,
    concept: Conditioning,
    strength: float = 1.0,
    *,
    base: Conditioning | None = None,
) -> Conditioning:
    """Take a concept out of each token's state and out of the pooled state (``rejected``).

    The negatives stay as they are.

    Args:
        cond: what is changed.
        concept: the concept, as a prompt of its own, of the same length.
        strength: 0 leaves all as it is, 1 leaves nothing along the concept, more turns it round.
        base: what the concept is measured from, such as ``condition("")``. Default: the
            concept's own negatives, where they are not zeros.

    Raises:
        OptionError: conditionings that do not go together, a strength that is no number, or no
            base, where the concept's negatives are zeros.
    """
    finite(strength, "strength")
    measured_from = concept.negative_prompt_embeds
    # Some dialects give zeros for an empty negative, too.
    if base is None and (measured_from is None or not bool(measured_from.any())):
        raise OptionError(
            "The concept's negatives are zeros, so there is nothing to measure it from; pass "
            'base=bridge.condition("", ...).'
        )
    others = (concept,) if base is None else (concept, base)
    ready = aligned((cond, *others), same_length=True)
    pairs = ((_PROMPT, _NEGATIVE), (_POOLED, _NEGATIVE_POOLED))
    changed: dict[str, Any] = {}
    for name, negative in pairs:
        z, other = getattr(ready[0], name), getattr(ready[1], name)
        e = getattr(ready[1], negative) if base is None else getattr(ready[2], name)
        if z is not None:
            found = rejected(z.float(), other.float(), e.float(), strength)
            changed[name] = found.to(z.dtype)
    check_finite(changed.values(), _INFINITE)
    return replace(ready[0], **changed, **accounts(ready[:2], negative=False, pooled=True))


def rejected(z: Tensor, concept: Tensor, base: Tensor, strength: float) -> Tensor:
    """``z - s <z - e, u> u`` for each row, with e the base and u the concept's direction.

    u is the mean of ``concept - base`` over all places, of length 1: at ``s = 1`` what a state
    has beyond the base is at right angles to the concept. The base is needed because states of a
    tower have much in common, which no concept may take along.

    Args:
        z, concept, base: ``(B, T, D)``, or ``(B, D)`` for pooled states.
        strength: s.
    """
    along = concept - base
    if along.ndim == 3:
        along = along.mean(1, keepdim=True)
    u = along / along.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    return z - strength * ((z - base) * u).sum(-1, keepdim=True) * u


def zero_negatives(cond: Conditioning) -> Conditioning:
    """With zeros for negatives, as SDXL means an absent one."""
    pooled = cond.pooled_prompt_embeds
    return replace(
        cond,
        negative_prompt_embeds=torch.zeros_like(cond.prompt_embeds),
        negative_pooled_prompt_embeds=None if pooled is None else torch.zeros_like(pooled),
        negative_plans=(),
        negative_traces=(),
    )


def _combined(
    conds: tuple[Conditioning, ...],
    change: Callable[[list[Tensor]], Tensor],
    names: Sequence[str],
    over_masks: Callable[[list[Tensor]], Tensor],
) -> Conditioning:
    """The first, with the tensors ``names`` made by ``change`` from those of all, and the masks of
    recipes that have them by ``over_masks``."""
    changed: dict[str, Any] = {}
    for name in names:
        tensors = [getattr(cond, name) for cond in conds]
        if tensors[0] is not None:
            found = change([tensor.float() for tensor in tensors])
            changed[name] = found.to(tensors[0].dtype)
    for name in _MASKS:
        masks = [getattr(cond, name) for cond in conds]
        if masks[0] is not None:
            changed[name] = over_masks(masks)
    check_finite([changed[name] for name in names if name in changed], _INFINITE)
    told = accounts(conds, negative=True, pooled=_POOLED in names)
    return replace(conds[0], **changed, **told)


def _either(masks: list[Tensor]) -> Tensor:
    """What any of the masks shows."""
    return reduce(torch.maximum, masks)


# ---------------------------------------------------------------- numbers


def _checked_weights(weights: Sequence[float], count: int, normalize: bool) -> list[float]:
    values = [finite(weight, f"weight {at}") for at, weight in enumerate(weights)]
    if len(values) != count:
        raise OptionError(f"There are {count} conditionings and {len(values)} weights; give each.")
    if not normalize:
        return values
    total = sum(values)
    if total == 0:
        raise OptionError("The weights add up to 0; change them, or pass normalize=False.")
    return [value / total for value in values]


# ---------------------------------------------------------------- operands


def aligned(conds: Sequence[Conditioning], *, same_length: bool) -> tuple[Conditioning, ...]:
    """The conditionings with one number of rows. Raises OptionError if they do not go together."""
    if not conds:
        raise OptionError("There is no conditioning to work on; give at least one.")
    first = conds[0]
    count = max(len(cond) for cond in conds)
    for at, cond in enumerate(conds):
        _check_pair(first, cond, at, same_length)
        if len(cond) not in (1, count):
            raise OptionError(
                f"Conditioning {at} has {len(cond)} rows and another has {count}; give 1 or "
                f"{count} of each."
            )
    return tuple(c if len(c) == count else c.repeat(count) for c in conds)


def _check_pair(first: Conditioning, cond: Conditioning, at: int, same_length: bool) -> None:
    one, other = first.prompt_embeds, cond.prompt_embeds
    if cond.recipe.name != first.recipe.name:
        raise OptionError(
            f"Conditioning {at} is of the recipe {cond.recipe.name}, the first of "
            f"{first.recipe.name}; encode both with one model."
        )
    if dict(cond.fingerprints) != dict(first.fingerprints):
        names = {*cond.fingerprints, *first.fingerprints}
        differing = sorted(
            name for name in names if cond.fingerprints.get(name) != first.fingerprints.get(name)
        )
        raise OptionError(
            f"Conditioning {at} was made by other towers than the first ({', '.join(differing)} "
            "differ); encode both with one model."
        )
    if cond.attention_bias is not None:
        raise OptionError(
            f"Conditioning {at} acts inside the UNet by its attention_bias, which has no sum; "
            "encode it with another emphasis."
        )
    if (cond.negative_prompt_embeds is None) != (first.negative_prompt_embeds is None):
        raise OptionError(
            f"Of conditioning {at} and the first one has negatives and the other has none; encode "
            "both with a negative, or both without."
        )
    if (one.device, one.dtype) != (other.device, other.dtype):
        raise OptionError(
            f"Conditioning {at} is {other.dtype} on {other.device}, the first {one.dtype} on "
            f"{one.device}; bring them together with .to(device, dtype)."
        )
    if same_length and one.shape[1] != other.shape[1]:
        raise OptionError(
            f"Conditioning {at} has {other.shape[1]} token states a prompt, the first "
            f"{one.shape[1]}; encode both in one call, which fills shorter prompts up, and take "
            "them apart with .rows()."
        )


def accounts(conds: Sequence[Conditioning], *, negative: bool, pooled: bool) -> dict[str, Any]:
    """The plans and traces of all, each row's as the parts of one prompt.

    ``pooled``: whether the pooled states of all count, or the first's only.
    """
    found: dict[str, Any] = {}
    for sign in ("", "negative_") if negative else ("",):
        plans, traces = f"{sign}plans", f"{sign}traces"
        columns = [
            _spread(getattr(cond, plans), getattr(cond, traces), len(cond)) for cond in conds
        ]
        rows = [_row(row, pooled) for row in zip(*[c for c in columns if c], strict=True)]
        found[plans] = tuple(row[0] for row in rows)
        found[traces] = tuple(row[1] for row in rows)
    return found


def _spread(plans: tuple[Plans, ...], traces: tuple[Trace, ...], count: int) -> tuple[Account, ...]:
    """One account a row of the tensors."""
    pairs = tuple(zip(plans, traces or (Trace(),) * len(plans), strict=True))
    return taken(pairs, range(count), count)


def _row(accounts: tuple[Account, ...], pooled: bool) -> Account:
    """The accounts of several prompts as that of one, their parts counted on."""
    plans: list[TokenPlan] = []
    sources: list[PooledSource] = []
    drifts: list[Drift] = []
    before = 0
    for own, trace in accounts:

        def named(item: T, by: int = before) -> T:
            if len(accounts) == 1:
                return item
            tower, _, part = item.tower.partition(_PART)
            return replace(item, tower=f"{tower}{_PART}{by + int(part or 1)}")

        plans += [named(plan) for plan in own]
        drifts += [named(drift) for drift in trace.drifts]
        if pooled or not before:
            sources += [named(source) for source in trace.pooled]
        before += len(own) // len({plan.tower.partition(_PART)[0] for plan in own})
    return tuple(plans), Trace(tuple(sources), tuple(drifts))
