r"""Random prompts that can be had again: ``{red|blue} __animal__`` with a seed.

The notation is that of the dynamic-prompts extension of stable-diffusion-webui:

- ``{a|b|c}`` is one of its options; ``{2::a|b}`` takes a twice as often as b.
- ``{2$$a|b|c}`` is two different ones with ``, `` between; ``{1-3$$ and $$a|b|c}`` one to three,
  with `` and ``.
- ``__name__`` is a line of ``name.txt`` in the wildcard folder; empty lines and those that begin
  with ``#`` are left out. Names may have slashes.
- Options and lines may hold more of both. ``\{``, ``\}`` and ``\|`` are the characters themselves.

A brace that is never closed is text, as is one that closes nothing.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from bridge.prompt.caret import prompt_error
from bridge.prompt.check import check_text

_NAME = re.compile(r"__([\w./ -]*?\w)__")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d+)?)::")
_COUNT = re.compile(r"\s*(\d+)(?:-(\d+))?\$\$")
# Files that call each other deeper than this are taken to go round in a circle.
_DEEPEST = 32
# Files can double a prompt again and again; this many characters are a mistake.
_LONGEST = 100_000


@dataclass
class _Open:
    """A brace that waits for its end: its place, and where its options were parted."""

    start: int
    bars: list[int] = field(default_factory=list)


def expand(text: str, seed: int, folder: Path | None = None) -> str:
    """The prompt that ``text`` stands for with ``seed``; the same for the same files.

    Raises:
        PromptError: a wildcard without a folder or without a file, files that go round in a
            circle, a weight of 0 for all options, or a result of over 100,000 characters.
    """
    check_text(text)
    return _expand(text, random.Random(seed), folder, 0)


def _expand(text: str, rng: random.Random, folder: Path | None, depth: int) -> str:
    """Braces from the inside out: what is inside is drawn even if its option is not taken."""
    done: list[str] = []  # characters and finished pieces; a piece may be long
    waiting: list[_Open] = []
    at = 0
    while at < len(text):
        character = text[at]
        name = _NAME.match(text, at) if character == "_" else None
        if name:
            done.append(_line(text, name, rng, folder, depth))
            at = name.end()
            continue
        if character == "\\" and text[at + 1 : at + 2] in ("{", "}", "|"):
            done.append(text[at + 1])
            at += 2
            continue
        if character == "{":
            waiting.append(_Open(len(done)))
        elif character == "|" and waiting:
            waiting[-1].bars.append(len(done))
        elif character == "}" and waiting:
            done.append(_drawn(done, waiting.pop(), rng, text, at))
            at += 1
            continue
        done.append(character)
        at += 1
    whole = "".join(done)
    if len(whole) > _LONGEST:
        raise prompt_error(f"This grows beyond {_LONGEST:,} characters.", text, 0, len(text))
    return whole


def _drawn(done: list[str], brace: _Open, rng: random.Random, text: str, at: int) -> str:
    """What a closed brace stands for; its pieces are taken off ``done``."""
    borders = [brace.start, *brace.bars, len(done)]
    options = ["".join(done[a + 1 : b]) for a, b in pairwise(borders)]
    del done[brace.start :]
    least, most, between, options[0] = _count(options[0])
    weights, choices = zip(*map(_weighed, options), strict=True)
    if not any(weights):
        raise prompt_error("No option here has a weight above 0.", text, at)
    taken = rng.randint(least, most) if least < most else least
    return between.join(_sample(choices, list(weights), taken, rng))


def _count(first: str) -> tuple[int, int, str, str]:
    """How many options are taken, what goes between them, and the first option itself."""
    match = _COUNT.match(first)
    if not match:
        return 1, 1, ", ", first
    low = int(match[1])
    high = int(match[2]) if match[2] else low
    rest = first[match.end() :]
    between, mark, after = rest.partition("$$")
    if mark:
        return min(low, high), max(low, high), between, after
    return min(low, high), max(low, high), ", ", rest


def _weighed(option: str) -> tuple[float, str]:
    match = _WEIGHT.match(option)
    return (float(match[1]), option[match.end() :]) if match else (1.0, option)


def _sample(
    choices: tuple[str, ...], weights: list[float], count: int, rng: random.Random
) -> list[str]:
    """``count`` different options, or all of them if there are fewer."""
    found = []
    for _ in range(count):
        if not any(weights):
            break
        (index,) = rng.choices(range(len(choices)), weights)
        found.append(choices[index])
        weights[index] = 0.0
    return found


def _line(
    text: str, name: re.Match[str], rng: random.Random, folder: Path | None, depth: int
) -> str:
    """A line of the wildcard's file, itself expanded."""
    if depth >= _DEEPEST:
        raise prompt_error(
            "Wildcard files call each other in a circle here.", text, name.start(), name.end()
        )
    if folder is None:
        raise prompt_error(
            "A wildcard needs a folder of text files; give one.", text, name.start(), name.end()
        )
    lines = _lines(folder, name[1])
    if not lines:
        names = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in _files(folder))
        near = get_close_matches(name[1], names, 1)
        hint = f" Did you mean __{near[0]}__?" if near else ""
        raise prompt_error(
            f"{folder} has no {name[1]}.txt with a line in it.{hint}",
            text, name.start(), name.end(),
        )  # fmt: skip
    return _expand(rng.choice(lines), rng, folder, depth + 1)


def _files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.txt"))


def _lines(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.txt"
    # A name may not lead out of the folder.
    if folder.resolve() not in path.resolve().parents or not path.is_file():
        return []
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
