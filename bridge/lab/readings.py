"""What a tower makes of texts: each is read once, in one pass for all of one length, and kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.encoding.emphasis import EMPHASES
from bridge.encoding.options import read_rules
from bridge.encoding.planning import Joining
from bridge.encoding.tower_pass import Tower, check_rows, encode_plans
from bridge.lab.cache import Cache
from bridge.lab.cache_keys import key_of
from bridge.lab.measures import Offsets, content
from bridge.progress import OnProgress, Progress, unwatched
from bridge.prompt import Reader, plan_many
from bridge.prompt.dialect import DialectName
from bridge.towers import LAST, TEXT_TOWERS, TextBatch, TextStates, TextTower, rollout

# Tokens of one pass at most, padding included: 850 texts of CLIP. More go in several passes.
MOST_TOKENS = 1 << 16
TEXTS = "texts"  # what `Progress` counts here
_ATTENTIONS = 32  # texts of one pass that keeps attention


@dataclass(frozen=True, eq=False)
class Reading:
    """One text in one tower, float32 on the CPU, padding left out.

    Attributes:
        pooled: ``(P,)``; of a family without a pooled state the mean of its text's tokens.
        states: ``(N, D)``, of the last layer with its norm, special tokens included.
        ids: N token ids.
        offsets: N places in the text, None for special tokens.
        cut: how many tokens did not fit.
    """

    pooled: Tensor
    states: Tensor
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int] | None, ...]
    cut: int

    @property
    def content(self) -> list[int]:
        """The places of the text's own tokens."""
        return content(self.offsets)

    @property
    def content_ids(self) -> list[int]:
        """Their ids."""
        return [self.ids[at] for at in self.content]

    @property
    def content_states(self) -> Tensor:
        """Their states ``(n, D)``."""
        return self.states[self.content]


def _reading_of(batch: TextBatch, states: TextStates, row: int) -> Reading:
    """One row of a pass as a reading."""
    used = max(1, int(batch.mask[row].sum()))
    own, offsets = _on_cpu(states.hidden[0][row, :used]), batch.offsets[row][:used]
    pooled = _pooled(None if states.pooled is None else states.pooled[row], own, offsets)
    return Reading(pooled, own, tuple(batch.ids[row, :used].tolist()), offsets, batch.cut[row])


def _pooled(pooled: Tensor | None, states: Tensor, offsets: Offsets) -> Tensor:
    """The pooled state ``(P,)``; without one the mean of the text's tokens, or of all."""
    if pooled is not None:
        return _on_cpu(pooled).flatten()
    return states[content(offsets) or slice(None)].mean(0)


def _on_cpu(states: Tensor) -> Tensor:
    return states.float().cpu().contiguous()


def stacked(readings: list[Reading]) -> Tensor:
    """The pooled states of several readings ``(N, P)``."""
    return torch.stack([each.pooled for each in readings])


def _kept_reading(cache: Cache, key: str) -> Reading | None:
    """A reading, if the cache has it whole."""
    kept = cache.tensors(key)
    if kept is None or kept.keys() != {"pooled", "states", "ids", "offsets", "cut"}:
        return None
    offsets = tuple(
        (start, end) if start < end else None for start, end in kept["offsets"].tolist()
    )
    ids = tuple(kept["ids"].tolist())
    return Reading(kept["pooled"], kept["states"], ids, offsets, int(kept["cut"]))


def _keep_reading(cache: Cache, key: str, reading: Reading, batch: str) -> None:
    offsets = [span or (0, 0) for span in reading.offsets]
    tensors = {
        "pooled": reading.pooled,
        "states": reading.states,
        "ids": torch.tensor(reading.ids, dtype=torch.long),
        "offsets": torch.tensor(offsets, dtype=torch.long).reshape(-1, 2),
        "cut": torch.tensor(reading.cut, dtype=torch.long),
    }
    cache.keep_tensors(key, tensors, batch)


# ---------------------------------------------------------------- passes


def read_texts(
    tower: TextTower,
    texts: Iterable[str],
    cache: Cache,
    tower_key: str,
    on_progress: OnProgress = unwatched,
) -> dict[str, Reading]:
    """The reading of each text, made or found in the cache.

    Equal texts are read once. What is missing goes through the tower in one pass for each length
    (a family that fills up its context has one), kept as soon as the pass is done.

    Args:
        tower: the tower.
        texts: to read.
        cache: where readings are kept.
        tower_key: a name for the tower as it is now (``module_key``).
        on_progress: called after each pass.
    """
    wanted = list(dict.fromkeys(texts))
    if not wanted:
        return {}
    batch = tower.tokenize(wanted)
    ids = [row[: int(mask.sum())].tolist() for row, mask in zip(batch.ids, batch.mask, strict=True)]
    keys = [
        key_of(tower=tower_key, text=text, ids=own, cut=cut)
        for text, own, cut in zip(wanted, ids, batch.cut, strict=True)
    ]
    found = {text: _kept_reading(cache, key) for text, key in zip(wanted, keys, strict=True)}
    missing = [at for at, text in enumerate(wanted) if found[text] is None]
    read = len(wanted) - len(missing)
    on_progress(Progress(f"{tower.name} reads", read, len(wanted), TEXTS))
    for rows in _lengths(tower, batch, missing):
        part = tower.tokenize([wanted[at] for at in rows])
        states = tower.encode(part)
        with cache.batch([keys[at] for at in rows]) as together:
            for row, at in enumerate(rows):
                reading = _reading_of(part, states, row)
                _keep_reading(cache, keys[at], reading, together)
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
    tower: TextTower, texts: Iterable[tuple[str, DialectName]], cache: Cache, tower_key: str
) -> dict[tuple[str, str], Reading]:
    """The readings of ``(text, dialect)`` with weights, by each dialect's own formula.

    One pass per dialect, because the formulas act on whole windows and some want further inputs
    (compel's masked copies). Pooled states are not weighted by any tool. Texts are truncated to
    one window. Empty for families whose states no tool weighs (other than CLIP and T5).
    """
    architecture = tower.spec.architecture
    if architecture not in TEXT_TOWERS:
        return {}
    found: dict[tuple[str, str], Reading] = {}
    by_dialect: dict[DialectName, list[str]] = {}
    for text, dialect in dict.fromkeys(texts):
        by_dialect.setdefault(dialect, []).append(text)
    for dialect, own in by_dialect.items():
        keys = {text: key_of(tower=tower_key, text=text, dialect=dialect) for text in own}
        kept = {text: _kept_reading(cache, keys[text]) for text in own}
        missing = [text for text in own if kept[text] is None]
        if missing:
            made = _weigh(tower, architecture, missing, dialect)
            with cache.batch([keys[text] for text in missing]) as together:
                for text in missing:
                    _keep_reading(cache, keys[text], made[text], together)
            kept |= made
        found |= {(text, dialect): each for text, each in kept.items() if each is not None}
    return found


def _weigh(
    tower: TextTower, architecture: str, texts: Sequence[str], dialect: DialectName
) -> dict[str, Reading]:
    rules = read_rules({"dialect": dialect, "long_prompt": "truncate"})
    reader = Reader(tower.tokenizer, tower.spec.context, clean=tower.rule.clean)
    plans = plan_many([rules.parse(text) for text in texts], reader, tower.name)
    with torch.no_grad():
        out = encode_plans(
            Tower(architecture, tower.module, tower.device, architecture == "T5EncoderModel"),
            plans,
            [LAST] * len(plans),
            Joining(EMPHASES[rules.emphasis], rules.long_prompt, 1, plans[0].limit),
        )
    check_rows([plans], [out.limits], rules.emphasis)
    made = {}
    for at, (text, plan) in enumerate(zip(texts, plans, strict=True)):
        (window,) = plan.windows
        states = _on_cpu(out.states[at, : window.used])
        offsets = tuple(None if t.special else (t.start, t.end) for t in window.tokens)
        pooled = _pooled(None if out.pooled is None else out.pooled[at], states, offsets)
        made[text] = Reading(pooled, states, window.ids[: window.used], offsets, plan.cut_tokens)
    return made


def read_rollouts(
    tower: TextTower, texts: Iterable[str], cache: Cache, tower_key: str
) -> dict[str, Tensor]:
    """For each text what its pooled state is made of, ``(N,)`` over its tokens by rollout.

    Further passes of 32 texts at most, since all layers' attention is large; so ask for prompts,
    not for their variants. Empty for a tower that does not show it (CoCa's class token).
    """
    wanted = list(dict.fromkeys(texts))
    keys = {text: key_of(tower=tower_key, text=text, rollout=True) for text in wanted}
    kept = {text: cache.tensors(keys[text]) for text in wanted}
    found = {text: each["row"] for text, each in kept.items() if each and "row" in each}
    missing = [text for text in wanted if text not in found]
    for start in range(0, len(missing), _ATTENTIONS):
        texts = missing[start : start + _ATTENTIONS]
        batch = tower.tokenize(texts)
        states = tower.encode(batch, attentions=True)
        with cache.batch([keys[text] for text in texts]) as together:
            for row, text in enumerate(texts):
                own = _pooled_row(
                    tower.spec.pooled_at, states, row, max(1, int(batch.mask[row].sum()))
                )
                if own is not None:
                    found[text] = own
                    cache.keep_tensors(keys[text], {"row": own}, together)
    return found


def _pooled_row(pooled_at: str, states: TextStates, row: int, used: int) -> Tensor | None:
    """``(used,)`` float32: the shares of a text's tokens in its pooled state, or in the mean of its
    tokens where there is none. None for a tower that does not show it.

    Args:
        pooled_at: where the tower pools (`bridge.towers.TowerSpec`).
        states: of a pass with attentions.
        row: of the batch.
        used: how many of its places are not padding.
    """
    if pooled_at == "hidden" or not states.attentions:
        return None
    width = states.attentions[0].shape[-1] if pooled_at == "end" else used
    whole = rollout([layer[row, :, :width, :width] for layer in states.attentions])
    if pooled_at == "first":
        own = whole[0]
    elif pooled_at == "mean" or states.pooled is None:
        own = whole.mean(0)
    else:
        own = whole[-1]
    return own[:used].float()
