"""Many texts through a tower: each once, in one pass for all of one length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from bridge.conditioning.emphasis import EMPHASES
from bridge.conditioning.passes import Wanted, encode_plans
from bridge.conditioning.soundness import check_rows
from bridge.conditioning.wording import read_wording
from bridge.lab.cache import Cache, key_of
from bridge.lab.pooled_row import pooled_row
from bridge.lab.reading import Reading, reading_of
from bridge.progress import OnProgress, Progress, unwatched
from bridge.prompt import Reader, plan_many
from bridge.towers import TEXT_TOWERS, Layer, TextBatch, TextTower

# Tokens of one pass at most, padding included: 850 texts of CLIP. More go in several passes.
MOST_TOKENS = 1 << 16
TEXTS = "texts"  # what `Progress` counts here
_ATTENTIONS = 32  # texts of one pass that keeps attention


def read_texts(
    tower: TextTower,
    texts: Iterable[str],
    cache: Cache,
    mark: str,
    on_progress: OnProgress = unwatched,
) -> dict[str, Reading]:
    """The reading of each text, made or found in the cache.

    Equal texts are read once. What is missing goes through the tower in one pass for each length
    (a family that fills up its context has one), kept as soon as the pass is done.

    Args:
        mark: a name for the tower as it is now (``module_mark``).
    """
    wanted = list(dict.fromkeys(texts))
    if not wanted:
        return {}
    batch = tower.tokenize(wanted)
    ids = [row[: int(mask.sum())].tolist() for row, mask in zip(batch.ids, batch.mask, strict=True)]
    keys = [
        key_of(tower=mark, text=text, ids=own, cut=cut)
        for text, own, cut in zip(wanted, ids, batch.cut, strict=True)
    ]
    found = {text: cache.reading(key) for text, key in zip(wanted, keys, strict=True)}
    missing = [at for at, text in enumerate(wanted) if found[text] is None]
    read = len(wanted) - len(missing)
    on_progress(Progress(f"{tower.name} reads", read, len(wanted), TEXTS))
    for rows in _lengths(tower, batch, missing):
        part = tower.tokenize([wanted[at] for at in rows])
        states = tower.encode(part)
        with cache.batch([keys[at] for at in rows]) as together:
            for row, at in enumerate(rows):
                reading = reading_of(part, states, row)
                cache.keep_reading(keys[at], reading, together)
                found[wanted[at]] = reading
        read += len(rows)
        on_progress(Progress(f"{tower.name} reads", read, len(wanted), TEXTS))
    return {text: reading for text, reading in found.items() if reading is not None}


def _lengths(tower: TextTower, batch: TextBatch, rows: Sequence[int]) -> list[list[int]]:
    """``rows`` in groups of one length, none of them too large for one pass."""
    used = batch.mask.sum(1).tolist()
    width = batch.ids.shape[1]
    shortest = min(range(len(batch)), key=used.__getitem__)
    # A family that fills up its context is padded even when alone.
    filled = tower.tokenize([batch.texts[shortest]]).ids.shape[1] > used[shortest]
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(width if filled else used[row], []).append(row)
    return [
        group[at : at + max(1, MOST_TOKENS // length)]
        for length, group in groups.items()
        for at in range(0, len(group), max(1, MOST_TOKENS // length))
    ]


def read_weighted(
    tower: TextTower, texts: Iterable[tuple[str, str]], cache: Cache, mark: str
) -> dict[tuple[str, str], Reading]:
    """The readings of ``(text, dialect)`` with weights, by each dialect's own formula.

    One pass a dialect, because the formulas act on whole windows and some want further inputs
    (compel's masked copies). Pooled states are not weighted by any tool. Texts are truncated to
    one window. Empty for families whose states no tool weighs (other than CLIP and T5).
    """
    architecture = tower.spec.architecture
    if architecture not in TEXT_TOWERS:
        return {}
    found: dict[tuple[str, str], Reading] = {}
    by_dialect: dict[str, list[str]] = {}
    for text, dialect in dict.fromkeys(texts):
        by_dialect.setdefault(dialect, []).append(text)
    for dialect, own in by_dialect.items():
        keys = {text: key_of(tower=mark, text=text, dialect=dialect) for text in own}
        kept = {text: cache.reading(keys[text]) for text in own}
        missing = [text for text in own if kept[text] is None]
        if missing:
            made = _weigh(tower, architecture, missing, dialect)
            with cache.batch([keys[text] for text in missing]) as together:
                for text in missing:
                    cache.keep_reading(keys[text], made[text], together)
            kept |= made
        found |= {(text, dialect): each for text, each in kept.items() if each is not None}
    return found


def _weigh(
    tower: TextTower, architecture: str, texts: Sequence[str], dialect: str
) -> dict[str, Reading]:
    wording = read_wording(dialect, None, "none", "truncate")
    reader = Reader(tower.tokenizer, tower.spec.context, clean=tower.rule.clean)
    plans = plan_many([wording.parse(text) for text in texts], reader, tower.name)
    with torch.no_grad():
        out = encode_plans(
            architecture,
            tower.module,
            [Wanted(plan, Layer()) for plan in plans],
            1,
            EMPHASES[wording.emphasis],
            wording.long_prompt,
            length=plans[0].limit,
            masked=architecture == "T5EncoderModel",
            device=tower.device,
        )
    check_rows([plans], [out.faults], wording.emphasis, "")
    made = {}
    for at, (text, plan) in enumerate(zip(texts, plans, strict=True)):
        (window,) = plan.windows
        states = out.states[at, : window.used].float().cpu().contiguous()
        own = [place for place, token in enumerate(window.tokens) if not token.special]
        pooled = out.pooled[at].float().cpu() if out.pooled is not None else states[own].mean(0)
        offsets = tuple(None if t.special else (t.start, t.end) for t in window.tokens)
        made[text] = Reading(
            pooled.contiguous(), states, window.ids[: window.used], offsets, plan.cut_tokens
        )
    return made


def read_rollouts(
    tower: TextTower, texts: Iterable[str], cache: Cache, mark: str
) -> dict[str, Tensor]:
    """For each text what its pooled state is made of, ``(N,)`` over its tokens by rollout.

    Further passes of 32 texts at most, since all layers' attention is large; so ask for prompts,
    not for their variants. Empty for a family that does not show it (``pooled_row``).
    """
    wanted = list(dict.fromkeys(texts))
    keys = {text: key_of(tower=mark, text=text, rollout=True) for text in wanted}
    kept = {text: cache.tensors(keys[text]) for text in wanted}
    found = {text: each["row"] for text, each in kept.items() if each and "row" in each}
    missing = [text for text in wanted if text not in found]
    for start in range(0, len(missing), _ATTENTIONS):
        texts = missing[start : start + _ATTENTIONS]
        batch = tower.tokenize(texts)
        states = tower.encode(batch, attentions=True)
        with cache.batch([keys[text] for text in texts]) as together:
            for row, text in enumerate(texts):
                own = pooled_row(tower.family, states, row, max(1, int(batch.mask[row].sum())))
                if own is not None:
                    found[text] = own
                    cache.keep_tensors(keys[text], {"row": own}, together)
    return found
