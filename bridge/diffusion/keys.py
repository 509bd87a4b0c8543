"""Which keys of a UNet's cross-attention belong to which characters of a prompt."""

from __future__ import annotations

from bridge.prompt import TokenPlan


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
