"""Textual inversions and LoRAs: read as a caller gives them, bound to a model's text towers, and
the account of them.

A LoRA that is given acts on every prompt of the call at its strength, unless a prompt's tag
(``<lora:name:0.8>``) says another; one in a folder acts only where a tag names it. Files are read
before any tower loads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bridge.checks import did_you_mean, is_finite
from bridge.errors import OptionError, WeightsError, quoted
from bridge.files import check_given, stamp
from bridge.kept import kept
from bridge.prompt import Dialect
from bridge.prompt.inversion import Concept, with_words
from bridge.prompt.prompt import Tagged
from bridge.prompt.syntax import prompt_error
from bridge.towers import (
    Lora,
    LowRank,
    TextualInversion,
    TowerAddOns,
    file_of,
    misfit,
    name_of,
    read_lora,
    read_textual_inversion,
)

if TYPE_CHECKING:
    from bridge.encoding.model import TextModel

AnyPath: TypeAlias = str | os.PathLike[str]
OneInversion: TypeAlias = AnyPath | TextualInversion
TextualInversions: TypeAlias = OneInversion | Sequence[OneInversion] | Mapping[str, OneInversion]
OneLora: TypeAlias = AnyPath | Lora | tuple[AnyPath | Lora, float]
Loras: TypeAlias = OneLora | Sequence[OneLora] | Mapping[str, OneLora]


@dataclass(frozen=True)
class LoraInput:
    """A LoRA of a call. ``strength`` is for prompts without a tag; None is one of a folder, which
    those do not have."""

    name: str
    lora: Lora
    strength: float | None

    def on(self, tagged: Tagged) -> tuple[float, float]:
        """Its strengths on one prompt's text towers and UNet. Tags of one name add up."""
        tags = [tag for tag in tagged.tags if tag.name == self.name]
        if tags:
            return sum(tag.strength for tag in tags), sum(tag.unet for tag in tags)
        return self.strength or 0.0, self.strength or 0.0


@dataclass(frozen=True)
class AddOnInputs:
    """The add-ons of a call."""

    inversions: tuple[TextualInversion, ...] = ()
    loras: tuple[LoraInput, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """What their action depends on, files' hashes in the place of their contents."""
        return (
            *((each.word, each.hash) for each in self.inversions),
            *((each.name, each.lora.hash, each.strength) for each in self.loras),
        )


NO_INPUTS = AddOnInputs()
"""Nothing was given."""


def read_addons(
    textual_inversions: TextualInversions | None, loras: Loras | None, tagged: Sequence[Tagged]
) -> AddOnInputs:
    """Read what is given and what the prompts' tags name.

    Raises:
        OptionError: values of another kind, two of one name.
        PromptError: a tag that names no LoRA.
        WeightsError: as ``read_lora`` and ``read_textual_inversion``.
    """
    return AddOnInputs(_inversions(textual_inversions), _loras(loras, tagged))


# ---------------------------------------------------------------- textual inversions


def _inversions(given: object) -> tuple[TextualInversion, ...]:
    if given is None:
        return ()
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, (str, os.PathLike, TextualInversion)):
        pairs = [(None, given)]
    elif isinstance(given, Sequence):
        pairs = [(None, each) for each in given]
    else:
        raise _kind("textual_inversions", "a file, a list of files, or {word: file}", given)
    found = tuple(_inversion(word, each) for word, each in pairs)
    _check_names([each.word for each in found], "textual inversions")
    return found


def _inversion(word: object, given: object) -> TextualInversion:
    if word is not None and (not isinstance(word, str) or not word.strip()):
        raise _kind("textual_inversions", "words as keys", word)
    if isinstance(given, TextualInversion):
        if word is None or word == given.word:
            return given
        return TextualInversion(word, given.vectors, given.source, given.hash)
    if not isinstance(given, (str, os.PathLike)):
        raise _kind("textual_inversions", "files", given)
    path = Path(_named_path(given, "textual_inversions"))
    return _cached_inversion(path, stamp(path), word)


# ---------------------------------------------------------------- LoRAs


def _loras(given: object, tagged: Sequence[Tagged]) -> tuple[LoraInput, ...]:
    acting, waiting = _found(given)
    _check_names([name for name, _, _ in acting], "LoRAs")
    acts = {name for name, _, _ in acting}
    called: dict[str, Path] = {}
    for prompt in tagged:
        for tag in prompt.tags:
            if tag.name in acts:
                continue
            places = waiting.get(tag.name, [])
            if not places:
                message = _missing(tag.name, [*acts, *waiting])
                raise prompt_error(message, prompt.source, tag.start, tag.end)
            _check_names([tag.name] * len(places), f"LoRAs in {places[0].parent}")
            called[tag.name] = places[0]
    return (
        *(LoraInput(name, _lora(place, name), strength) for name, place, strength in acting),
        *(LoraInput(name, _lora(place, name), None) for name, place in called.items()),
    )


def _found(given: object) -> tuple[list[tuple[str, Path | Lora, float]], dict[str, list[Path]]]:
    """LoRAs that act (name, where, strength), and those that wait for a tag (name -> files)."""
    acting: list[tuple[str, Path | Lora, float]] = []
    waiting: dict[str, list[Path]] = {}
    for name, value in _named(given):
        each, strength = value if _is_pair(value) else (value, 1.0)
        place = _place(each)
        if isinstance(place, Lora) or not os.path.isdir(place):
            if not isinstance(place, Lora):
                what = "LoRA file" if place.suffix else "LoRA file or folder"
                check_given(place, what)  # before names are looked up
            chosen = name or (place.name if isinstance(place, Lora) else name_of(place))
            acting.append((chosen, place, _strength(chosen, strength)))
        else:
            for path in sorted(place.rglob("*.safetensors")):
                waiting.setdefault(name_of(path), []).append(path)
    return acting, waiting


def _named(given: object) -> list[tuple[str | None, Any]]:
    """Each LoRA or folder, with the name that the caller gives it."""
    if given is None:
        return []
    if isinstance(given, Mapping):
        for name in given:
            if not isinstance(name, str):
                raise _kind("loras", "names as keys", name)
        return list(given.items())
    if isinstance(given, Sequence) and not isinstance(given, str) and not _is_pair(given):
        return [(None, each) for each in given]
    return [(None, given)]


def _is_pair(value: object) -> bool:
    """Whether it is ``(file, strength)`` and not two files."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and not isinstance(value[1], (str, os.PathLike, Lora, tuple))
    )


def _place(given: object) -> Path | Lora:
    if isinstance(given, Lora):
        return given
    if not isinstance(given, (str, os.PathLike)):
        raise _kind(
            "loras",
            "a file, a folder, (file, 0.8), a list of these, or {name: file}",
            given,
        )
    return file_of(Path(_named_path(given, "loras")))


def _lora(place: Path | Lora, name: str) -> Lora:
    return place if isinstance(place, Lora) else _cached_lora(place, stamp(place), name)


def _strength(name: str, value: object) -> float:
    if not is_finite(value):
        raise OptionError(f"The strength of the LoRA {name!r} must be a number, not {value!r}.")
    return float(value)


def _missing(name: str, named: Sequence[str]) -> str:
    if not named:
        return (
            f"No LoRA was given, or only a folder without any, so there is no {quoted(name, 60)}; "
            "give its file with --lora, in Python as loras={name: file}, or take the tag out."
        )
    shown = ", ".join(named[:8]) + (" …" if len(named) > 8 else "")
    return (
        f"There is no LoRA named {quoted(name, 60)}; there is: {shown}."
        f"{did_you_mean(name.removesuffix('.safetensors'), named)}"
    )


# ---------------------------------------------------------------- shared


def _check_names(names: Sequence[str], what: str) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise OptionError(f"Two {what} are called {twice!r}; give them names, as {{name: file}}.")


def _named_path(given: AnyPath, option: str) -> AnyPath:
    """The path as it is; an empty one would be the folder that the caller stands in."""
    if not os.fspath(given):
        raise OptionError(f"{option} has an empty path; give a file, or leave it out.")
    return given


def _kind(option: str, wanted: str, given: object) -> OptionError:
    return OptionError(f"{option} takes {wanted}, not {type(given).__name__} ({given!r:.60}).")


# Files are read once for many calls; ``stamp`` tells when one has changed.


@kept(8)
def _cached_lora(path: Path, stamp: object, name: str) -> Lora:
    return read_lora(path, name)


@kept(32)
def _cached_inversion(path: Path, stamp: object, word: str | None) -> TextualInversion:
    return read_textual_inversion(path, word)


# ---------------------------------------------------------------- the account


@dataclass(frozen=True)
class AddOn:
    """The account of one textual inversion or LoRA that took part.

    Attributes:
        kind: ``"textual inversion"`` or ``"lora"``.
        name: the word, or the LoRA's name.
        source: its file.
        hash: the first 16 hex digits of the file's sha256.
        towers: the towers that it acts in.
        strengths: of a LoRA, one for each prompt.
        unet_strengths: what the prompts ask of its UNet part; the pipeline's business.
        unused: keys of its tensors that are not for text towers; the pipeline's business too.
    """

    kind: str
    name: str
    source: str
    hash: str
    towers: tuple[str, ...]
    strengths: tuple[float, ...] = ()
    unet_strengths: tuple[float, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its key among a conditioning's fingerprints."""
        return f"{self.kind} {self.name}"

    def take(self, rows: Sequence[int], count: int) -> AddOn:
        """The account for the prompts at ``rows`` of ``count``; it may have one for several."""

        def of(strengths: tuple[float, ...]) -> tuple[float, ...]:
            return taken(strengths, rows, count)

        return replace(self, strengths=of(self.strengths), unet_strengths=of(self.unet_strengths))

    def text(self) -> str:
        """One line."""
        line = f"{self.label} ({self.source}, {self.hash})"
        if self.kind == "lora":
            line += f" at {_shown(self.strengths)}"
        line += f": in {', '.join(self.towers) or 'no text tower'}"
        if self.unused:
            line += (
                f"; {len(self.unused)} tensors are for the pipeline (load_lora_weights) at "
                f"{_shown(self.unet_strengths)}: {self.unused[0]} …"
            )
        return line

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def taken(accounts: tuple[Any, ...], rows: Sequence[int], count: int) -> tuple[Any, ...]:
    """The accounts of ``rows`` of ``count`` rows, where each may stand for several rows in turn:
    repeating a prompt leaves one account for all of its rows."""
    each = count // max(1, len(accounts))
    return tuple(accounts[row // each] for row in rows) if accounts else ()


def _shown(strengths: Sequence[float]) -> str:
    """``0.8``, or one for each prompt where they differ."""
    distinct = dict.fromkeys(f"{value:.4g}" for value in strengths)
    return ", ".join(distinct if len(distinct) == 1 else (f"{value:.4g}" for value in strengths))


@dataclass(frozen=True)
class AddOns:
    """The add-ons of a call, bound to the towers of a model.

    Attributes:
        towers: one for each tower of the recipe; empty if there are none.
        inversions: the account of the textual inversions.
        loras: those of the call, with the towers that each acts in.
        concepts: for each tower the textual inversions that are found by the dialect's own rule;
            the others are words of the model's tokenizers.
        key: what their action depends on.
    """

    towers: tuple[TowerAddOns, ...] = ()
    inversions: tuple[AddOn, ...] = ()
    loras: tuple[tuple[LoraInput, tuple[str, ...]], ...] = ()
    concepts: tuple[tuple[Concept, ...], ...] = ()
    key: tuple[object, ...] = ()

    def strengths(self, tagged: Tagged) -> tuple[float, ...]:
        """The strength of each LoRA on one prompt and its negative."""
        return tuple(each.on(tagged)[0] for each, _ in self.loras)

    def account(self, tagged: Sequence[Tagged]) -> tuple[AddOn, ...]:
        """The account for a call's prompts; LoRAs that are at 0 on all of them took no part."""
        of_loras = (_account(each, towers, tagged) for each, towers in self.loras)
        return (
            *self.inversions,
            *(a for a in of_loras if any(a.strengths) or any(a.unet_strengths)),
        )


NO_ADDONS = AddOns()
"""There are none."""


def _account(given: LoraInput, towers: tuple[str, ...], tagged: Sequence[Tagged]) -> AddOn:
    both = [given.on(each) for each in tagged]
    return AddOn(
        "lora",
        given.name,
        given.lora.source,
        given.lora.hash,
        towers,
        tuple(text for text, _ in both),
        tuple(unet for _, unet in both),
        given.lora.unused,
    )


# ---------------------------------------------------------------- bound to a model


def bind_addons(model: TextModel, given: AddOnInputs, dialect: Dialect) -> TextModel:
    """The model with add-ons; its towers and tokenizers stay as they are.

    Raises:
        OptionError: a word that a tokenizer has already, in dialects whose tools teach it to the
            tokenizer.
        WeightsError: an embedding of another width, a LoRA for another model; the message names
            the file, the tower, and both widths.
    """
    if not given.inversions and not given.loras:
        return model
    words: dict[str, list[tuple[TextualInversion, str]]] = {}
    accounts = []
    for inversion in given.inversions:
        places = _places(model, inversion)
        for component, part in places.items():
            words.setdefault(component, []).append((inversion, part))
        accounts.append(
            AddOn("textual inversion", inversion.word, inversion.source, inversion.hash, (*places,))
        )
    loras = [_layers(model, each) for each in given.loras]
    towers, tokenizers, concepts = [], [], []
    for use, tokenizer in zip(model.recipe.towers, model.tokenizers, strict=True):
        here = words.get(use.component, [])
        rows = [each.vectors[part] for each, part in here]
        grown: Any = tokenizer
        ids: tuple[int, ...] = ()
        counts = tuple((each.word, len(r)) for (each, _), r in zip(here, rows, strict=True))
        if dialect.inversions != "words":
            # Their tools look a textual inversion up beside the tokenizer (prompt/inversion.py).
            ids = tuple(range(len(tokenizer), len(tokenizer) + sum(map(len, rows))))
            concepts.append(_concepts(given.inversions, counts, ids))
        elif here:
            grown, ids = with_words(tokenizer, counts)
        vectors = tuple(vector for tensor in rows for vector in tensor)
        towers.append(
            TowerAddOns(ids, vectors, tuple(parts.get(use.component, {}) for parts in loras))
        )
        tokenizers.append(grown)
    addons = AddOns(
        tuple(towers),
        tuple(accounts),
        tuple((each, (*parts,)) for each, parts in zip(given.loras, loras, strict=True)),
        tuple(concepts),
        (dialect.inversions, *given.key),
    )
    return replace(model, tokenizers=tuple(tokenizers), addons=addons)


def _concepts(
    inversions: Sequence[TextualInversion], counts: Sequence[tuple[str, int]], ids: tuple[int, ...]
) -> tuple[Concept, ...]:
    """All textual inversions of a call as one tower knows them: with their ids, or with none."""
    rest = iter(ids)
    own = {word: tuple(next(rest) for _ in range(count)) for word, count in counts}
    return tuple(Concept(each.word, own.get(each.word, ())) for each in inversions)


def _places(model: TextModel, inversion: TextualInversion) -> dict[str, str]:
    """Towers that a textual inversion goes to, and the part of its file that each takes.

    A file that does not name a tower goes to the first of its width, as diffusers takes the first
    tower; the others then read the word as text. Of one that names several, those that the model
    does not have are left out.
    """
    uses = model.recipe.towers
    widths = {use.component: spec.width for use, spec in zip(uses, model.specs, strict=True)}
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
                f"{f' for {part}' if part else ''} are {mine} wide, but in {model.source} "
                f"({model.recipe.name}) {towers}. It was made for another model."
            )
        found[component] = part
    if not found:
        raise WeightsError(
            f"{inversion.source} has vectors for {', '.join(inversion.vectors)}, but "
            f"{model.source} ({model.recipe.name}) has {', '.join(named)}. It was made for another "
            "model."
        )
    return {name: found[name] for name in widths if name in found}


def _layers(model: TextModel, given: LoraInput) -> dict[str, Mapping[str, LowRank]]:
    """The layers of a LoRA for each tower of the model, judged by their shapes."""
    lora, found = given.lora, {}
    towers = {u.component: s for u, s in zip(model.recipe.towers, model.specs, strict=True)}

    def refused(why: str) -> WeightsError:
        return WeightsError(
            f"The LoRA {lora.source} was made for another model than {model.source} "
            f"({model.recipe.name}): {why}."
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
