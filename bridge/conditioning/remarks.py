"""What a reader is told of a finished conditioning: text cut off, emphasis beyond its limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from bridge.conditioning.drift import off_manifold
from bridge.conditioning.trace import Trace
from bridge.prompt import TokenPlan

_QUOTED = 120


def remarks_of(
    plans: Sequence[Sequence[TokenPlan]], traces: Sequence[Trace], what: str
) -> Iterator[str]:
    """A sentence for each loss of each prompt, which is called ``what``, with its number if there
    are several; in the usual case nothing."""
    # Files of an older bridge have no traces.
    for index, (towers, trace) in enumerate(zip_longest(plans, traces, fillvalue=None)):
        name = what if len(plans) == 1 else f"{what} {index}"
        # Towers that cut the same text say so once.
        cuts = {(plan.cut, plan.cut_tokens): plan.tower for plan in towers or () if plan.cut}
        for (cut, tokens), tower in cuts.items():
            yield f"{name}: {tokens} tokens do not fit {tower} and are cut off: {_quoted(cut)}"
        if trace is not None:
            yield from filter(None, [off_manifold(trace.drifts, name)])


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "…")
