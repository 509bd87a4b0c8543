"""Textual inversions and LoRAs as a caller gives them, found and read before any tower loads.

A LoRA that is given acts on every prompt of the call at its strength, unless a prompt's tag
(``<lora:name:0.8>``) says another; one in a folder acts only where a tag names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bridge.checks import did_you_mean, is_finite
from bridge.errors import OptionError, quoted
from bridge.files import stamp
from bridge.kept import kept
from bridge.prompt.prompt import Tagged
from bridge.prompt.syntax import prompt_error
from bridge.towers import (
    Lora,
    TextualInversion,
    file_of,
    name_of,
    read_lora,
    read_textual_inversion,
)

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
        f"There is no LoRA named {quoted(name, 60)}; there is: {shown}.{did_you_mean(name, named)}"
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
