"""What is studied and how it is drawn, checked before anything loads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.checks import is_whole
from bridge.diffusion.options import checked_options
from bridge.embedded import STUDY_TOWERS
from bridge.encoding.options import read_rules
from bridge.errors import OptionError
from bridge.lab.measures import texts_without
from bridge.lab.variants import Settings, Variant, original, read_variants
from bridge.prompt import check_prompts
from bridge.prompt.dialect import DialectName
from bridge.towers import TextTower

_UNRELATED = 8  # texts at least that chance is measured on


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
    def weighted_texts(self) -> list[tuple[str, DialectName]]:
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
            is not a whole number; weights that are not numbers.
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


def read_unrelated(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts that chance is measured on, each once.

    Raises:
        OptionError: less than eight texts, of which the mean cosine would be a matter of luck.
    """
    found = tuple(dict.fromkeys(check_prompts(texts, "unrelated")))
    if isinstance(texts, str):
        raise OptionError(f"unrelated is one text; give a list of {_UNRELATED} or more.")
    if not all(text.strip() for text in found):
        raise OptionError("unrelated has an empty text; leave it out.")
    if len(found) < _UNRELATED:
        some = f"{len(found)} different text{'s' * (len(found) != 1)}"
        raise OptionError(
            f"unrelated has {some}; give {_UNRELATED} or more that have nothing in common, or "
            "leave it out for the usual 32."
        )
    return found


# ---------------------------------------------------------------- towers


def read_towers(towers: Any, model: Any) -> list[Any] | None:
    """The towers as they were given, each once; None for the model's own.

    Raises:
        OptionError: an empty list, what is not a tower, or two towers of one name.
    """
    if towers is None and model is not None:
        return None
    given = STUDY_TOWERS if towers is None else towers
    single = isinstance(given, (str, os.PathLike, TextTower, Mapping))
    some = [given] if single or not isinstance(given, Iterable) else list(given)
    if not some:
        raise OptionError(f"towers is empty; name at least one, such as {STUDY_TOWERS[0]!r}.")
    for each in some:
        if not isinstance(each, (str, os.PathLike, TextTower)):
            raise OptionError(
                "towers takes a name, a folder, a hub id, a TextTower or a list of these, not "
                f"{type(each).__name__} ({each!r:.60})."
            )
    different = list(dict.fromkeys(some))
    labels = [tower_name(each) for each in different]
    if len(set(labels)) < len(labels):
        raise OptionError(f"Two towers have one name ({', '.join(labels)}); give each its own.")
    return different


def tower_name(tower: Any) -> str:
    """What a tower is called in the tables."""
    return tower.name if isinstance(tower, TextTower) else os.fspath(tower)


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class DrawSettings:
    """How pictures are drawn."""

    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    height: int | None
    width: int | None

    def arguments(self) -> dict[str, Any]:
        """The pipeline's arguments."""
        sizes = {"height": self.height, "width": self.width}
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            **{name: value for name, value in sizes.items() if value is not None},
        }


def read_draw_settings(
    seeds: object, steps: object, guidance_scale: object, height: object, width: object
) -> DrawSettings:
    """The settings, checked.

    Raises:
        OptionError: no seeds, and as ``bridge.generate``.
    """
    wanted: list[Any] = [seeds]
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        wanted = list(dict.fromkeys(seeds))
        if not wanted:
            raise OptionError("seeds is empty; give at least one.")
    checked = checked_options(
        "any", None, seed=wanted, steps=steps, guidance_scale=guidance_scale,
        num_images=len(wanted), size=(height, width),
    )  # fmt: skip
    return DrawSettings(
        checked.seeds, checked.steps, checked.guidance_scale, checked.height, checked.width
    )
