r"""Random prompts that can be had again: ``{red|blue} __animal__`` with a seed.

The notation is that of the dynamic-prompts extension of stable-diffusion-webui:

- ``{a|b|c}`` is one of its options; ``{2::a|b}`` takes a twice as often as b.
- ``{2$$a|b|c}`` is two different ones with ``, `` between; ``{1-3$$ and $$a|b|c}`` one to three,
  with `` and ``.
- ``__name__`` is a line of ``name.txt`` in the wildcard folder; empty lines and those that begin
  with ``#`` are left out. Names may have slashes.
- Numbers have at most 15 digits; a longer one is text.
- Options and lines may hold more of both. ``\{``, ``\}`` and ``\|`` are the characters themselves.

A brace that is never closed is text, as is one that closes nothing.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bridge.checks import did_you_mean, keywords
from bridge.errors import PromptError
from bridge.files import read_text
from bridge.prompt.syntax import check_text, prompt_error

# Every pattern looks at a bounded stretch, or `_expand` remembers what it found: options are read
# again at each brace around them.
_NAME = re.compile(r"__([\w./ -]*?\w)__")
_NAME_CHARACTERS = re.compile(r"[\w./ -]*+")
_WEIGHT = re.compile(r"\s{0,99}(\d{1,15}(?:\.\d{1,15})?)::")
_COUNT = re.compile(r"\s{0,99}(\d{1,15})(?:-(\d{1,15}))?\$\$")
# Files that call each other deeper than this are taken to go round in a circle.
_DEEPEST = 32
# Files can double a prompt again and again; this many characters are a mistake.
_LONGEST = 100_000
# So are this many in all lines that are drawn, for one that is not taken costs as much.
_MOST_DRAWN = 1_000_000


@dataclass
class _Open:
    """A brace that waits for its end: its place, and where its options were parted."""

    start: int
    bars: list[int] = field(default_factory=list)


@dataclass
class _Drawing:
    """What one prompt is expanded with: the files, read once each, and what was drawn so far."""

    rng: random.Random
    folder: Path | None
    lines: dict[str, list[str]] = field(default_factory=dict)
    drawn: int = 0


@keywords
def expand(text: str, seed: int, folder: Path | None = None) -> str:
    """The prompt that ``text`` stands for with ``seed``; the same for the same files.

    Raises:
        PromptError: a wildcard without a folder or without a file, a file that cannot be read,
            files that go round in a circle, a weight of 0 for all options, a result of over
            100,000 characters, or over a million in all the lines that are drawn for it.
    """
    check_text(text)
    return _expand(text, _Drawing(random.Random(seed), folder), 0)


def _expand(text: str, drawing: _Drawing, depth: int) -> str:
    """Braces from the inside out: what is inside is drawn even if its option is not taken."""
    done: list[str] = []  # characters and finished pieces; a piece may be long
    waiting: list[_Open] = []
    at = nameless = 0
    while at < len(text):
        character = text[at]
        if at >= nameless and text.startswith("__", at):
            name = _NAME.match(text, at)
            if name:
                done.append(_line(text, name, drawing, depth))
                at = name.end()
                continue
            # What does not end here ends for no later beginning among these characters.
            nameless = _characters_end(text, at)
        if character == "\\" and text[at + 1 : at + 2] in ("{", "}", "|"):
            done.append(text[at + 1])
            at += 2
            continue
        if character == "{":
            waiting.append(_Open(len(done)))
        elif character == "|" and waiting:
            waiting[-1].bars.append(len(done))
        elif character == "}" and waiting:
            done.append(_drawn(done, waiting.pop(), drawing.rng, text, at))
            at += 1
            continue
        done.append(character)
        at += 1
    return _bounded("".join(done), text, 0, len(text))


def _characters_end(text: str, at: int) -> int:
    """Where the characters that a name may have end."""
    found = _NAME_CHARACTERS.match(text, at)
    return at if found is None else found.end()


def _bounded(result: str, text: str, start: int, end: int) -> str:
    if len(result) > _LONGEST:
        raise prompt_error(f"This grows beyond {_LONGEST:,} characters.", text, start, end)
    return result


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
    return _bounded(between.join(_sample(choices, weights, taken, rng)), text, at, at + 1)


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
    choices: tuple[str, ...], weights: tuple[float, ...], count: int, rng: random.Random
) -> list[str]:
    """``count`` different options, or all of them if there are fewer."""
    if count == 1:
        return rng.choices(choices, weights)
    # Who arrives first where each arrives at its own rate: the odds of drawing one after another.
    arrivals = [(rng.expovariate(weight), i) for i, weight in enumerate(weights) if weight]
    return [choices[i] for _, i in sorted(arrivals)[:count]]


def _line(text: str, name: re.Match[str], drawing: _Drawing, depth: int) -> str:
    """A line of the wildcard's file, itself expanded."""

    def refused(why: str) -> PromptError:
        return prompt_error(why, text, *name.span())

    if depth >= _DEEPEST:
        raise refused("Wildcard files call each other in a circle here.")
    if drawing.folder is None:
        raise refused("A wildcard needs a folder of text files; give one.")
    if name[1] not in drawing.lines:
        try:
            drawing.lines[name[1]] = _lines(drawing.folder, name[1])
        except (OSError, ValueError) as error:  # WeightsError is an OSError
            why = getattr(error, "strerror", None) or error
            raise refused(f"The wildcard's file cannot be read: {why}") from error
    lines = drawing.lines[name[1]]
    if not lines:
        raise refused(_missing(drawing.folder, name[1]))
    line = drawing.rng.choice(lines)
    drawing.drawn += len(line)
    if drawing.drawn > _MOST_DRAWN:
        raise refused(
            f"The wildcards up to here draw lines of over {_MOST_DRAWN:,} characters; files that "
            "call others twice double them each time."
        )
    return _expand(line, drawing, depth + 1)


def _missing(folder: Path, name: str) -> str:
    names = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in _files(folder))
    hint = did_you_mean(name, names, "__{}__".format)
    return f"{folder} has no {name}.txt with a line in it.{hint}"


def _files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.txt"))


def _lines(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.txt"
    # A name may not lead out of the folder.
    if folder.resolve() not in path.resolve().parents or not path.is_file():
        return []
    lines = (line.strip() for line in read_text(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]
