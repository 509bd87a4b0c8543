"""Changing what a module is given and what it gives, for a while and without a trace.

Forward hooks do it, as refiners' adapters do by taking a layer's place: weights, attention
processors and classes stay as they are, so SDPA, plain, sliced and IP-Adapter attention all work,
and removing the hooks leaves the module as it was, after an exception too. Several threads may
draw with one pipeline; a change acts only in the thread that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from bridge.errors import UnsupportedModelError

Kwargs = dict[str, Any]
_POSITIONAL = ("sample", "timestep", "encoder_hidden_states")


@contextmanager
def around(
    module: Any,
    before: Callable[[tuple[Any, ...], Kwargs], tuple[tuple[Any, ...], Kwargs]],
    after: Callable[[Any], Any] = lambda output: output,
) -> Iterator[None]:
    """While the block lasts, call ``module`` with what ``before`` makes of its arguments, and
    give on what ``after`` makes of its output."""
    owner = get_ident()

    # Another thread may drop its hooks between torch's look-ups: then kwargs are not passed.
    def before_hook(_: Any, args: tuple[Any, ...], kwargs: Kwargs | None = None) -> Any:
        return None if get_ident() != owner or kwargs is None else before(args, kwargs)

    def after_hook(_: Any, _args: Any, output: Any) -> Any:
        return None if get_ident() != owner else after(output)

    first = module.register_forward_pre_hook(before_hook, with_kwargs=True)
    try:
        second = module.register_forward_hook(after_hook)
        try:
            yield
        finally:
            second.remove()
    finally:
        first.remove()


def unet_of(pipe: Any, what: str = "AND, regions and attention bias") -> Any:
    """The UNet of a pipeline, if hooks can act on it. Raises UnsupportedModelError."""
    from diffusers import UNet2DConditionModel

    unet = getattr(pipe, "unet", None)
    whole = getattr(unet, "_orig_mod", unet)
    if not isinstance(whole, UNet2DConditionModel):
        raise UnsupportedModelError(
            f"{what} act inside a UNet2DConditionModel; "
            f"{type(pipe).__name__} draws with {type(whole).__name__}."
        )
    # A compiled graph does not look for hooks that came after it.
    if whole is not unet or any(m._compiled_call_impl is not None for m in unet.modules()):
        raise UnsupportedModelError(
            f"{what} cannot act inside a compiled UNet; load the pipeline without torch.compile."
        )
    return unet


def by_name(args: tuple[Any, ...], kwargs: Kwargs) -> Kwargs:
    """All arguments of a UNet call by name."""
    return dict(zip(_POSITIONAL, args, strict=False)) | kwargs


def by_place(call: Kwargs, count: int) -> tuple[tuple[Any, ...], Kwargs]:
    """The reverse: the first ``count`` arguments by their place, as they came."""
    names = _POSITIONAL[:count]
    rest = {name: value for name, value in call.items() if name not in names}
    return tuple(call[name] for name in names), rest


def picked(value: Any, rows: Tensor, count: int) -> Any:
    """``value`` with ``rows`` chosen from every tensor in it that has ``count`` of them."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.ndim and len(value) == count else value
    if isinstance(value, Mapping):
        return {key: picked(each, rows, count) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return type(value)(picked(each, rows, count) for each in value)  # type: ignore[call-arg]
    return value


def rows_of(values: Sequence[int]) -> Tensor:
    """Row numbers as an index."""
    return torch.tensor(values, dtype=torch.long)
