"""What is studied: prompts with their variants, checked before anything loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.checks import is_whole
from bridge.encoding.options import read_rules
from bridge.errors import OptionError
from bridge.lab.measures import texts_without
from bridge.lab.variants import Settings, Variant, original, read_variants
from bridge.prompt import check_prompts


@dataclass(frozen=True)
class Subject:
    """One prompt: the prompt itself first, then its variants."""

    prompt: str
    variants: tuple[Variant, ...]

    @property
    def plain_texts(self) -> list[str]:
        """All texts that a tower reads as they are: plain variants, and the prompt without each
        of its words."""
        plain = [each.text for each in self.variants if each.dialect == "plain"]
        return [*plain, *texts_without(self.prompt)]

    @property
    def weighted_texts(self) -> list[tuple[str, str]]:
        """``(text, dialect)`` of the variants with a syntax of their own."""
        return [(each.text, each.dialect) for each in self.variants if each.dialect != "plain"]


def read_subjects(
    prompt: object,
    variants: object,
    *,
    seed: int,
    names: Mapping[str, Mapping[str, str]] | Sequence[str] | None,
    weights: Sequence[float] | None,
) -> tuple[Subject, ...]:
    """The subjects of a study.

    Raises:
        PromptError: prompts or own texts that cannot be read.
        OptionError, MissingDependencyError: as ``bridge.lab.variants.read_variants``; a seed that
            is no whole number; weights that are no numbers.
    """
    prompts = tuple(dict.fromkeys(check_prompts(prompt)))
    if not is_whole(seed):
        raise OptionError(f"seed is {seed!r}; give a whole number.")
    usual = Settings()
    settings = Settings(
        seed=seed,
        names=names or (),
        weights=usual.weights if weights is None else _weights(weights),
    )
    found = []
    for each in prompts:
        made = read_variants(variants, each, settings)
        for variant in made:
            if variant.dialect != "plain":
                read_rules({"dialect": variant.dialect}).parse(variant.text)
        found.append(Subject(each, (original(each), *made)))
    return tuple(found)


def _weights(weights: Sequence[float]) -> tuple[float, ...]:
    try:
        found = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError) as error:
        raise OptionError(f"weights is {weights!r}; give a list of numbers.") from error
    if not found or not all(0 < weight < 100 for weight in found):
        raise OptionError(f"weights is {weights!r}; give numbers above 0 and below 100.")
    return found
