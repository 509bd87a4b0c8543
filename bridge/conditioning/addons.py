"""Textual inversions and LoRAs fitted to a model's text towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bridge.conditioning.account import AddOn
from bridge.conditioning.brought import Brought, BroughtLora
from bridge.errors import WeightsError
from bridge.prompt.inversion import Concept, with_words
from bridge.prompt.loras import Tagged
from bridge.towers import LowRank, TextualInversion, TowerAddOns, misfit

if TYPE_CHECKING:
    from bridge.conditioning.kit import Kit


@dataclass(frozen=True)
class AddOns:
    """What a call brings along, fitted to the towers of a kit.

    Attributes:
        towers: one for each tower of the recipe; empty if nothing was brought.
        inversions: the account of the textual inversions.
        loras: those of the call, with the towers that each acts in.
        concepts: for each tower the textual inversions that are found by the dialect's own rule;
            the others are words of the kit's tokenizers.
    """

    towers: tuple[TowerAddOns, ...] = ()
    inversions: tuple[AddOn, ...] = ()
    loras: tuple[tuple[BroughtLora, tuple[str, ...]], ...] = ()
    concepts: tuple[tuple[Concept, ...], ...] = ()

    def strengths(self, tagged: Tagged) -> tuple[float, ...]:
        """The strength of each LoRA on one prompt and its negative."""
        return tuple(brought.on(tagged)[0] for brought, _ in self.loras)

    def account(self, tagged: Sequence[Tagged]) -> tuple[AddOn, ...]:
        """The account for a call's prompts; LoRAs that are at 0 on all of them took no part."""
        of_loras = (_account(brought, towers, tagged) for brought, towers in self.loras)
        return (
            *self.inversions,
            *(a for a in of_loras if any(a.strengths) or any(a.unet_strengths)),
        )


NO_ADDONS = AddOns()
"""Nothing was brought."""


def _account(brought: BroughtLora, towers: tuple[str, ...], tagged: Sequence[Tagged]) -> AddOn:
    both = [brought.on(each) for each in tagged]
    return AddOn(
        "lora",
        brought.name,
        brought.lora.source,
        brought.lora.hash,
        towers,
        tuple(text for text, _ in both),
        tuple(unet for _, unet in both),
        brought.lora.unused,
    )


# Their tools look a textual inversion up beside the tokenizer, as bridge/prompt/inversion.py says.
_LOOK_UP = {"a1111", "comfy"}


def fitted(kit: Kit, brought: Brought, dialect: str) -> Kit:
    """The kit with what was brought along; its towers and tokenizers stay as they are.

    Raises:
        OptionError: a word that a tokenizer has already, in dialects whose tools teach it to the
            tokenizer.
        WeightsError: an embedding of another width, a LoRA for another model; the message names
            the file, the tower, and both widths.
    """
    if not brought.inversions and not brought.loras:
        return kit
    words: dict[str, list[tuple[TextualInversion, str]]] = {}
    accounts = []
    for inversion in brought.inversions:
        places = _places(kit, inversion)
        for component, part in places.items():
            words.setdefault(component, []).append((inversion, part))
        accounts.append(
            AddOn("textual inversion", inversion.word, inversion.source, inversion.hash, (*places,))
        )
    loras = [_layers(kit, each) for each in brought.loras]
    towers, tokenizers, concepts = [], [], []
    for use, tokenizer in zip(kit.recipe.towers, kit.tokenizers, strict=True):
        here = words.get(use.component, [])
        rows = [each.vectors[part] for each, part in here]
        grown: Any = tokenizer
        ids: tuple[int, ...] = ()
        counts = tuple((each.word, len(r)) for (each, _), r in zip(here, rows, strict=True))
        if dialect in _LOOK_UP:
            ids = tuple(range(len(tokenizer), len(tokenizer) + sum(map(len, rows))))
            concepts.append(_concepts(brought.inversions, counts, ids))
        elif here:
            grown, ids = with_words(tokenizer, counts)
        vectors = tuple(vector for tensor in rows for vector in tensor)
        towers.append(
            TowerAddOns(ids, vectors, tuple(parts.get(use.component, {}) for parts in loras))
        )
        tokenizers.append(grown)
    acting = tuple((b, (*parts,)) for b, parts in zip(brought.loras, loras, strict=True))
    addons = AddOns(tuple(towers), tuple(accounts), acting, tuple(concepts))
    return replace(kit, tokenizers=tuple(tokenizers), addons=addons)


def _concepts(
    inversions: Sequence[TextualInversion], counts: Sequence[tuple[str, int]], ids: tuple[int, ...]
) -> tuple[Concept, ...]:
    """All textual inversions of a call as one tower knows them: with their ids, or with none."""
    rest = iter(ids)
    own = {word: tuple(next(rest) for _ in range(count)) for word, count in counts}
    return tuple(Concept(each.word, own.get(each.word, ())) for each in inversions)


def _places(kit: Kit, inversion: TextualInversion) -> dict[str, str]:
    """Towers that a textual inversion goes to, and the part of its file that each takes.

    A file that does not name a tower goes to the first of its width, as diffusers takes the first
    tower; the others then read the word as text. Of one that names several, those that the model
    does not have are left out.
    """
    uses = kit.recipe.towers
    widths = {use.component: spec.width for use, spec in zip(uses, kit.specs, strict=True)}
    named = {use.part: use.component for use in uses}
    found: dict[str, str] = {}
    for part, vectors in inversion.vectors.items():
        mine = vectors.shape[1]
        if part and part not in named:
            continue
        fit = next((name for name, width in widths.items() if width == mine), None)
        component = named[part] if part else fit
        if component is None or widths[component] != mine:
            towers = ", ".join(f"{name} takes {width}" for name, width in widths.items())
            raise WeightsError(
                f"{inversion.source}: the vectors of {inversion.word!r}"
                f"{f' for {part}' if part else ''} are {mine} wide, but in {kit.source} "
                f"({kit.recipe.name}) {towers}. It was made for another model."
            )
        found[component] = part
    if not found:
        raise WeightsError(
            f"{inversion.source} has vectors for {', '.join(inversion.vectors)}, but {kit.source} "
            f"({kit.recipe.name}) has {', '.join(named)}. It was made for another model."
        )
    return {name: found[name] for name in widths if name in found}


def _layers(kit: Kit, brought: BroughtLora) -> dict[str, Mapping[str, LowRank]]:
    """The layers of a LoRA for each tower of the kit, judged by their shapes."""
    lora, found = brought.lora, {}
    towers = {u.component: s for u, s in zip(kit.recipe.towers, kit.specs, strict=True)}

    def refused(why: str) -> WeightsError:
        return WeightsError(
            f"The LoRA {lora.source} was made for another model than {kit.source} "
            f"({kit.recipe.name}): {why}."
        )

    for part, layers in lora.towers.items():
        if part and part not in towers:
            raise refused(f"it has layers for {part}, and the model has {', '.join(towers)}")
        reasons = {
            name: misfit(layers, spec) for name, spec in towers.items() if part in ("", name)
        }
        fit = next((name for name, reason in reasons.items() if reason is None), None)
        if fit is None:
            raise refused("; ".join(f"in {name}, {reason}" for name, reason in reasons.items()))
        found[fit] = layers
    joined = sum(spec.width for spec in towers.values())
    if lora.context_width not in (None, joined):
        raise refused(
            f"its UNet part reads text states {lora.context_width} wide, and these are {joined}"
        )
    return {name: found[name] for name in towers if name in found}
