"""One tower's part of a study: it reads all texts, and its rows of the tables; and the rows of
pairs of towers, which say whether they agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from bridge.lab.cache import Cache
from bridge.lab.cache_keys import module_key
from bridge.lab.measures import (
    above_chance,
    cosine,
    effective_rank,
    effects,
    kendall_tau,
    linear_cka,
    mean_cosine,
    pieces_per_word,
    texts_without,
    token_cosine,
    tokens_of_words,
    word_shares,
)
from bridge.lab.readings import Reading, read_rollouts, read_texts, read_weighted, stacked
from bridge.lab.study_inputs import Subject
from bridge.lab.variants import Variant
from bridge.lab.variants.words import split_words
from bridge.progress import OnProgress, unwatched
from bridge.towers import TextTower

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class TowerStudy:
    """What one tower made of all texts of a study.

    Attributes:
        tower: the tower.
        readings: of plain texts.
        weighted: of texts with weights; without an entry for those that it cannot weigh.
        rollouts: of the prompts.
        unrelated: the texts that chance is measured on.
    """

    tower: TextTower
    readings: Mapping[str, Reading]
    weighted: Mapping[tuple[str, str], Reading]
    rollouts: Mapping[str, Tensor]
    unrelated: tuple[str, ...]

    def of(self, variant: Variant) -> Reading | None:
        """The reading of a variant; None for weights that this tower's states cannot take."""
        if variant.dialect == "plain":
            return self.readings[variant.text]
        return self.weighted.get((variant.text, variant.dialect))

    @property
    def chance(self) -> float:
        """The mean cosine of unrelated texts' pooled states: the anisotropy baseline."""
        return mean_cosine(self._unrelated_pooled)

    @property
    def token_chance(self) -> float:
        """The same of their tokens' mean states."""
        return mean_cosine(torch.stack([r.content_states.mean(0) for r in self._unrelated]))

    @property
    def _unrelated(self) -> list[Reading]:
        return [self.readings[text] for text in self.unrelated]

    @property
    def _unrelated_pooled(self) -> Tensor:
        return stacked(self._unrelated)

    # ------------------------------------------------------------ rows

    def rows(self, subjects: Sequence[Subject]) -> list[Row]:
        """A row for each variant of each prompt."""
        mean = self._unrelated_pooled.mean(0)
        token_mean = torch.cat([each.content_states for each in self._unrelated]).mean(0)
        chance = self.chance
        return [
            self._row(subject, variant, mean, token_mean, chance)
            for subject in subjects
            for variant in subject.variants
        ]

    def _row(
        self, subject: Subject, variant: Variant, mean: Tensor, token_mean: Tensor, chance: float
    ) -> Row:
        base, own = self.readings[subject.prompt], self.of(variant)
        row: Row = {
            "prompt": subject.prompt,
            "operation": variant.operation,
            "detail": variant.detail,
            "text": variant.text,
            "dialect": variant.dialect,
            "tower": self.tower.name,
        }
        if own is None:
            return row
        plain = cosine(base.pooled, own.pooled)
        ids = (base.content_ids, own.content_ids)
        states = (base.content_states, own.content_states)
        return row | {
            "tokens": len(own.content),
            "cut": own.cut,
            "pieces_per_word": pieces_per_word(variant.text, own.offsets),
            "pooled_cosine": plain,
            "pooled_above_chance": above_chance(plain, chance),
            "pooled_centred": cosine(base.pooled, own.pooled, mean),
            "token_cosine": token_cosine(*states, *ids),
            "token_centred": token_cosine(*states, *ids, token_mean),
        }

    def words(self, subjects: Sequence[Subject]) -> list[Row]:
        """A row for each word of each prompt."""
        mean = self._unrelated_pooled.mean(0)
        return [row for subject in subjects for row in self._words(subject.prompt, mean)]

    def _words(self, prompt: str, mean: Tensor) -> list[Row]:
        words = split_words(prompt).words
        if not words:
            return []
        base = self.readings[prompt]
        without = stacked([self.readings[text] for text in texts_without(prompt)])
        plain, centred = effects(base.pooled, without), effects(base.pooled, without, mean)
        places = tokens_of_words(prompt, base.offsets)
        shares = [math.nan] * len(words)
        if prompt in self.rollouts:
            shares = word_shares(self.rollouts[prompt], places)
        pieces = [_pieces(self.tower, base, own) for own in places]
        return [
            {
                "prompt": prompt,
                "position": at,
                "word": word,
                "tower": self.tower.name,
                "pieces": pieces[at],
                "leave_one_out": plain[at],
                "leave_one_out_centred": centred[at],
                "rollout_share": shares[at],
            }
            for at, word in enumerate(words)
        ]

    def sets(self, subjects: Sequence[Subject]) -> list[Row]:
        """The effective rank of each prompt's variants, of all and by operation.

        Without those of weights, which no tool puts on pooled states.
        """
        found = []
        for subject in subjects:
            plain = [each for each in subject.variants if each.dialect == "plain"]
            groups = {"all": plain}
            for variant in plain[1:]:
                groups.setdefault(variant.operation, []).append(variant)
            for operation, variants in groups.items():
                if len(variants) > 1:
                    pooled = stacked([self.readings[each.text] for each in variants])
                    found.append(
                        {
                            "prompt": subject.prompt,
                            "operation": operation,
                            "tower": self.tower.name,
                            "variants": len(variants),
                            "effective_rank": effective_rank(pooled),
                        }
                    )
        return found

    def about(self) -> Row:
        """The row of the towers' table."""
        spec = self.tower.spec
        return {
            "tower": self.tower.name,
            "family": self.tower.family,
            "width": spec.width,
            "layers": spec.layers,
            "context": spec.context,
            "chance": self.chance,
            "token_chance": self.token_chance,
        }


def study_tower(
    tower: TextTower,
    subjects: Sequence[Subject],
    unrelated: Sequence[str],
    cache: Cache,
    on_progress: OnProgress = unwatched,
) -> TowerStudy:
    """All passes of one tower: one for each length of plain texts, one for the prompts' attention,
    and one for each dialect with weights."""
    key = module_key(tower.module)
    plain = [text for subject in subjects for text in subject.plain_texts]
    weighted = [text for subject in subjects for text in subject.weighted_texts]
    return TowerStudy(
        tower,
        read_texts(tower, [*plain, *unrelated], cache, key, on_progress),
        read_weighted(tower, weighted, cache, key),
        read_rollouts(tower, [subject.prompt for subject in subjects], cache, key),
        tuple(unrelated),
    )


def _pieces(tower: TextTower, reading: Reading, places: Sequence[int]) -> str:
    names = tower.tokenizer.convert_ids_to_tokens([reading.ids[at] for at in places])
    return " ".join(map(str, names))


def pair_rows(studies: Sequence[TowerStudy], subjects: Sequence[Subject]) -> list[Row]:
    """A row for each two towers and prompt: Kendall's tau of the variants' pooled drift, and CKA of
    their pooled states; without weighted variants, since no tool weighs pooled states."""
    return [_pair_row(a, b, subject) for a, b in combinations(studies, 2) for subject in subjects]


def _pair_row(a: TowerStudy, b: TowerStudy, subject: Subject) -> Row:
    plain = [each.text for each in subject.variants if each.dialect == "plain"]
    texts = list(dict.fromkeys(plain))
    return {
        "tower": a.tower.name,
        "other": b.tower.name,
        "prompt": subject.prompt,
        "texts": len(texts),
        "kendall_tau": kendall_tau(_nearness(a, texts), _nearness(b, texts)),
        "cka": linear_cka(*(stacked([s.readings[text] for text in texts]) for s in (a, b))),
    }


def _nearness(study: TowerStudy, texts: Sequence[str]) -> list[float]:
    """How near the other texts are to the first, which is the prompt itself."""
    base, *others = (study.readings[text].pooled for text in texts)
    # Rounded, so that texts of the same tokens are a tie whatever float32 makes of them.
    return [round(cosine(base, other), 6) for other in others]
