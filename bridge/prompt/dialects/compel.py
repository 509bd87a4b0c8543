r"""compel's prompts: ``x++``, ``(a b)1.3``, ``("a", "b").blend(0.6, 0.4)``, ``("a", "b").and()``.

Facts from compel 2.5.1, ``prompt_parser.py``:

- ``+`` is ×1.1 each and ``-`` ×0.9 each, after a word, brackets or quotes; a number only after
  brackets or quotes. ``x.attend(1.3)`` says the same. Weights multiply.
- Brackets and quotes without a weight only group. A bracket whose inside the grammar cannot read
  (unbalanced, a lone ``+``, a ``=``) is text up to the next space.
- Pieces are put together with one space between. ``\(``, ``\)`` and ``\"`` lose a backslash
  when a piece is made, when its weight is set, and each time that more is added to its text; other
  escapes keep it.
- ``.and()`` and ``.blend()`` count only around the whole prompt. Text after ``.and()`` is ignored,
  after ``.blend()`` it is an error. A part of an ``.and()`` that has no text is dropped.
- Of ``cat.swap(dog)`` the original (``cat``) is encoded, apart from its neighbours. compel's states
  are the same; the replacement is for a pipeline that controls cross-attention, which diffusers'
  are not. A ``.swap()`` in another or in a ``.blend()`` is an error.
- ``withLora()`` changes the network, not the text: it is refused here.
- Words, numbers, operators and options follow ``build_parser_syntax`` and the whitespace rules of
  pyparsing 3.3 that it rests on: space, tab and newlines may stand before any element.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridge.errors import quoted, warn
from bridge.prompt.syntax import (
    Blend,
    Branch,
    Choose,
    Conjunction,
    Group,
    Node,
    Runs,
    Span,
    SpanList,
    Swap,
    Text,
    Tree,
    Written,
    parts_of,
    prompt_error,
    walk,
    written_number,
)

_BLANK = " \t\n\r"
# Python's string.whitespace ends a word, though a vertical tab or a form feed begins nothing.
_SPACE = r" \t\n\r\v\f"
_NUMBER_PATTERN = r"(?:[+-]?(?:\d+\.\d*|\.\d+)|-?[0-9]+)"
_BLANKS = re.compile(f"[{_BLANK}]*")
# A word: escapes; a sign with an ordinary character after it; any other character.
_WORD = re.compile(rf"""\\[()",.+\-=]|[+-](?![{_BLANK}()",.+\-=]|\Z)|[^{_SPACE}()",.+\-=]""")
_RUN = re.compile(r"\++|-+")
_NUMBER = re.compile(_NUMBER_PATTERN)
_KEYWORD = re.compile(r"[A-Za-z0-9_-]+")
_FREE = re.compile(f"[^{_SPACE},]*,?")  # to a comma, with it
_LORA = re.compile(
    rf"(?:useLora|withLora)[{_BLANK}]*\([{_BLANK}]*[A-Za-z0-9_-]+[{_BLANK}]*"
    rf"(?:,[{_BLANK}]*{_NUMBER_PATTERN}[{_BLANK}]*)?\)"
)
_COMMA = re.compile(r",(\S)")
# From a run's beginning on: else a run of N that escapes nothing would be tried N times.
_ESCAPE = re.compile(r'(?<!\\)\\+(?=[()"])')
_QUOTE_END = re.compile(r'\\"|["\n\r]')
# Inside quotes pyparsing turns these two characters into one blank.
_BLANK_ESCAPE = re.compile(r"\\([tnfr])")
_SPECIAL = re.compile(r'[()"]')
_BLANK_OF = {"t": "\t", "n": "\n", "f": "\f", "r": "\r"}


def parse(source: str, negative: bool = False) -> Tree:
    """The tree of a prompt.

    Raises:
        PromptError: what compel raises an error for (weights that do not fit the parts, text after
            ``.blend()``, a ``.swap()`` in another), weights that are not finite, and
            ``withLora()``.
    """
    if not source.strip():
        return Branch((), 0, len(source))
    parted = frozenset(m.start(1) for m in _COMMA.finditer(source))
    reader = _Reader(source, 0, source, parted)
    tree = reader.combination() or Branch(reader.prompt(), 0, len(source))
    if any(_swap_in(part.children) for part in parts_of(tree)):
        warn(
            UserWarning,
            "Of a .swap() only the original is read, as by compel's CompelForSD; the replacement "
            "needs a pipeline that controls cross-attention.",
        )
    return tree


def spans(part: Branch, source: str, choose: Choose) -> tuple[Span, ...]:
    """The weighted pieces; neighbours of equal weight are one text, with spaces between."""
    found = SpanList(source)
    for pieces, weight in _runs(part):
        joined = False
        for number, piece in enumerate(pieces):
            # Empty quotes are a piece too: between others they make one space more.
            if number:
                found.add_space(pieces[number - 1].end, weight, joined)
                joined = True
            undone = 2 + len(pieces) - max(number, 1)
            for start, end in _unescaped(piece, undone):
                found.add(start, end, weight, joined)
                joined = True
    return found.done()


def write(parts: Written, kind: str) -> str:
    """One prompt: words, and ``(words)weight``; several: ``("a", "b").and(0.5, 1)``."""
    prompts = [(window, weight) for windows, weight in parts for window in windows]
    if len(prompts) == 1 and prompts[0][1] == 1.0:
        return _written(prompts[0][0])
    shown_parts = []
    for window, _ in prompts:
        text = _written(window)
        # A backslash at the end would escape the quote.
        shown_parts.append(f'"{text} "' if text.endswith("\\") else f'"{text}"')
    weights = [written_number(weight) for _, weight in prompts]
    shown = "" if set(weights) == {"1"} else ", ".join(weights)
    return f"({', '.join(shown_parts)}).and({shown})"


def _written(window: Runs) -> str:
    return " ".join(piece for run in window for piece in _written_run(*run))


def _written_run(text: str, weight: float) -> Iterator[str]:
    """The words of a run; those that brackets can hold are in brackets if they have a weight."""
    shown = written_number(max(weight, 0.0))
    held: list[str] = []
    for word in text.split():
        escaped = _SPECIAL.sub(r"\\\g<0>", word)
        if shown != "1" and _fits_brackets(escaped):
            held.append(escaped)
            continue
        if held:
            yield f"({' '.join(held)}){shown}"
            held = []
        yield from _loose(escaped)
    if held:
        yield f"({' '.join(held)}){shown}"


def _loose(word: str) -> tuple[str, ...]:
    """A word at weight 1: signs behind its first part would weigh that, so they stand apart."""
    end = _Words(word, 0, frozenset()).word(0)
    if 0 < end < len(word) and word[end] in "+-":
        return word[:end], word[end:]
    return (word,)


def _fits_brackets(word: str) -> bool:
    """Whether compel reads a word inside brackets as the text that it is."""
    words = _Words(word, 0, frozenset())
    at = 0
    while at < len(word):
        end = words.word(at)
        if end > at and word[end : end + 1] in ("+", "-"):
            return False
        if end == at and word[at] not in ",.":
            return False
        at = max(end, at + 1)
    return True


def _runs(part: Branch) -> Iterator[tuple[list[Text], float]]:
    """The pieces that compel puts together: neighbours of equal weight, up to a ``.swap()``."""
    run: list[Text] = []
    held, border = 1.0, math.inf
    for node, weight in walk(part.children):
        if isinstance(node, Swap) or (run and (weight != held or node.start >= border)):
            yield run, held
            run = []
        if isinstance(node, Swap):
            border = node.end
        elif isinstance(node, Text):
            border = math.inf if node.start >= border else border
            run.append(node)
            held = weight
    yield run, held


def _unescaped(piece: Text, times: int) -> Iterator[tuple[int, int]]:
    """The stretches of a piece that are left of it after so many backslashes of each escape."""
    escapes = [match.span() for match in _ESCAPE.finditer(piece.text)]
    starts = [0, *(end for _, end in escapes)]
    ends = [*(max(start, end - times) for start, end in escapes), len(piece.text)]
    for start, end in zip(starts, ends, strict=True):
        if start < end:
            yield piece.start + start, piece.start + end


def _swap_in(children: tuple[Node, ...]) -> Swap | None:
    return next((node for node, _ in walk(children) if isinstance(node, Swap)), None)


@dataclass(frozen=True)
class _Option:
    """An option of an operator: its number or name (its value dropped), at ``start:end``."""

    text: str
    start: int
    end: int


class _Words:
    """Reads the words of ``text``, which begins at ``base`` of the prompt.

    compel writes a space after each comma that has none, before all else. ``parted`` has the
    places in the prompt where it does so: they part words here too, although no space is there.
    """

    def __init__(self, text: str, base: int, parted: frozenset[int]) -> None:
        self.text = text
        self._base = base
        self._parted = parted

    def blank(self, at: int) -> int:
        """Where the blanks at ``at`` end."""
        found = _BLANKS.match(self.text, at)
        return at if found is None else found.end()

    def literal(self, wanted: str, at: int | None) -> int | None:
        """Where ``wanted`` ends, blanks before it allowed; None if something else stands there."""
        if at is None:
            return None
        at = self.blank(at)
        return at + len(wanted) if self.text.startswith(wanted, at) else None

    def word(self, at: int) -> int:
        """Where the word at ``at`` ends; ``at`` itself if none begins there."""
        start = at
        while at == start or self._base + at not in self._parted:
            unit = _WORD.match(self.text, at)
            if unit is None:
                break
            at = unit.end()
        return at

    def free(self, at: int) -> int:
        """Where the characters up to the next space end, whatever they are."""
        while (found := _FREE.match(self.text, at)) and found.end() > at:
            at = found.end()
            if self._base + at in self._parted and self.text[at - 1] == ",":
                break
        return at

    def strength(self, at: int, numbers: bool) -> tuple[float, int] | None:
        """The weight at ``at`` and its end: pluses, minuses or, if allowed, a number."""
        run = _RUN.match(self.text, at)
        if run is not None:
            return _power(run.group()), run.end()
        number = _NUMBER.match(self.text, at) if numbers else None
        return None if number is None else (float(number.group()), number.end())

    def attached(self, at: int, numbers: bool) -> tuple[float, int] | None:
        """As ``strength``, of a target that ends at ``at``: nothing may part them."""
        return None if self._base + at in self._parted else self.strength(at, numbers)

    def lora(self, at: int) -> int | None:
        """Where a ``withLora(name, weight)`` ends."""
        found = _LORA.match(self.text, at)
        return None if found is None else found.end()

    def options(self, at: int) -> tuple[list[_Option], int]:
        """The options at ``at`` (``0.6, no_normalize``) and where they end."""
        found: list[_Option] = []
        after = at
        start = self.blank(at)
        while (option := self._option(start)) is not None:
            found.append(option[0])
            after = option[1]
            comma = self.literal(",", after)
            if comma is None:
                break
            start = self.blank(comma)
        return found, after

    def _option(self, at: int) -> tuple[_Option, int] | None:
        name = _KEYWORD.match(self.text, at)
        equals = None if name is None else self.literal("=", name.end())
        if name is not None and equals is not None:
            value = self.blank(equals)
            found = _NUMBER.match(self.text, value) or _KEYWORD.match(self.text, value)
            if found is not None:
                return _Option(name.group(), *name.span()), found.end()
        plain = _NUMBER.match(self.text, at) or name
        return None if plain is None else (_Option(plain.group(), *plain.span()), plain.end())


def _power(run: str) -> float:
    """``+`` is 1.1 each, ``-`` is 0.9 each; infinite where Python's floats end."""
    try:
        return (1.1 if run[0] == "+" else 0.9) ** len(run)
    except OverflowError:
        return math.inf


class _Reader(_Words):
    """Reads a prompt, or the inside of quotes in one; ``text`` begins at ``base`` of ``source``.

    What was found at each bracket and quote is remembered (None: the grammar cannot read it), for
    the grammar looks at the same place under several rules.
    """

    def __init__(self, text: str, base: int, source: str, parted: frozenset[int]) -> None:
        super().__init__(text, base, parted)
        self._source = source
        self._groups: dict[int, tuple[Group, int] | None] = {}
        self._quotes: dict[int, tuple[Group, int] | None] = {}
        self._swapping = False

    def combination(self) -> Conjunction | Blend | None:
        """The whole text as ``(…).and(…)`` or ``(…).blend(…)``; None if it is neither."""
        parts: list[Branch] = []
        at = self.literal("(", 0)
        while at is not None:
            part = self._part(self.blank(at))
            if part is None:
                return None
            parts.append(part)
            at = self.literal(",", part.end)
        if not parts:
            return None
        closing = self.literal(")", parts[-1].end)
        for name in (".and", ".add", ".blend"):
            at = self.literal("(", self.literal(name, closing))
            if at is None:
                continue
            options, after = self.options(at)
            end = self.literal(")", after)
            if end is None:
                return None
            return self._combined(name, tuple(parts), options, at, end)
        return None

    def prompt(self) -> tuple[Node, ...]:
        """The whole text by the rule for prompts, which takes as text what is out of order."""
        children: list[Node] = []
        at = self.blank(0)
        while at < len(self.text):
            self._refuse_lora(at)
            target = self._target(at)
            word = self.word(at)
            if target is not None:
                at = self._operated(target, children)
            elif word > at and (operated := self._operated_word(at, word)) is not None:
                children.append(operated[0])
                at = operated[1]
            else:
                end = self.free(at)
                if end == at:
                    raise prompt_error(
                        "compel cannot read a vertical tab or a form feed; write a space.",
                        self._source, self._base + at,
                    )  # fmt: skip
                children.append(self._piece(at, end))
                at = end
            at = self.blank(at)
        return tuple(children)

    def _fragment(self, first: int | None = None) -> tuple[Group, int] | None:
        """The bracket at ``first``, or the whole text, by the stricter rule for fragments."""
        stack: list[tuple[int | None, list[Node]]] = [(first, [])]
        at = 0 if first is None else first + 1
        while True:
            at = self.blank(at)
            char = self.text[at : at + 1]
            opening, children = stack[-1]
            if char == "(" and at not in self._groups:
                stack.append((at, []))
                at += 1
            elif char == ")" and opening is not None:
                closed = self._group(children, 1.0, opening, at + 1), at + 1
                self._groups[opening] = closed
                stack.pop()
                if not stack:
                    return closed
                at = self._operated(closed, stack[-1][1])
            elif char == "" and opening is None:
                return self._group(children, 1.0, 0, at), at
            else:
                after = self._element(at, children)
                if after is None:
                    self._groups |= {start: None for start, _ in stack if start is not None}
                    return None
                at = after

    def _element(
        self, at: int, children: list[Node], marks: tuple[str, ...] = (",", ".")
    ) -> int | None:
        """Read what stands at ``at`` of a fragment into ``children``; None if nothing can."""
        self._refuse_lora(at)
        target = self._target(at)
        if target is not None:
            return self._operated(target, children)
        word = self.word(at)
        if word > at:
            operated = self._operated_word(at, word) or (self._piece(at, word), word)
            children.append(operated[0])
            return operated[1]
        if self.text.startswith(marks, at):
            children.append(self._piece(at, at + 1))
            return at + 1
        return None

    def _target(self, at: int) -> tuple[Group, int] | None:
        """The brackets or quotes at ``at``, without their operator."""
        if self.text.startswith("(", at):
            return self._groups[at] if at in self._groups else self._fragment(at)
        if self.text.startswith('"', at):
            if at not in self._quotes:
                self._quotes[at] = self._quote(at)
            return self._quotes[at]
        return None

    def _quote(self, at: int) -> tuple[Group, int] | None:
        close = self._quote_end(at)
        if close is None:
            return None
        if not self.text[at + 1 : close].strip():
            place = self._base + at + 1
            return self._group([Text("", place, place)], 1.0, at, close + 1), close + 1
        inside = self._inside(at, close)._fragment()
        if inside is None:
            return None
        return self._group(inside[0].children, 1.0, at, close + 1), close + 1

    def _inside(self, at: int, close: int) -> _Reader:
        text = _BLANK_ESCAPE.sub(lambda m: _BLANK_OF[m.group(1)] * 2, self.text[at + 1 : close])
        return _Reader(text, self._base + at + 1, self._source, self._parted)

    def _quote_end(self, at: int) -> int | None:
        """Where the quote that opens at ``at`` closes.

        An escaped quote closes it if no other does before the end of the line.
        """
        escaped: int | None = None
        for mark in _QUOTE_END.finditer(self.text, at + 1):
            if mark.group() == '"':
                return mark.start()
            if mark.group() != '\\"':
                break
            escaped = mark.start() + 1
        return escaped

    def _operated(self, target: tuple[Group, int], children: list[Node]) -> int:
        """Add brackets or quotes with the operator behind them; where that ends."""
        operated = self._with_operator(*target, numbers=True) or target
        children.append(operated[0])
        return operated[1]

    def _operated_word(self, at: int, end: int) -> tuple[Group, int] | None:
        """A word with the operator behind it; None without one."""
        word = self._group([self._piece(at, end)], 1.0, at, end)
        return self._with_operator(word, end, numbers=False)

    def _with_operator(self, group: Group, at: int, numbers: bool) -> tuple[Group, int] | None:
        """What ends at ``at`` under its operator, and where that ends; None without one."""
        swapped = self._swapped(group, at)
        if swapped is not None:
            return swapped
        weight = self._weight_at(at, numbers)
        if weight is None:
            return None
        return Group(group.children, weight[0], group.start, self._base + weight[1]), weight[1]

    def _weight_at(self, at: int, numbers: bool) -> tuple[float, int] | None:
        """The weight of what ends at ``at``, and where its operator ends; None without one."""
        value = self.literal("(", self.literal(".attend", at))
        if value is not None:
            strength = self.strength(self.blank(value), numbers=True)
            end = None if strength is None else self.literal(")", strength[1])
            if strength is not None and end is not None:
                return strength[0], end
        return self.attached(at, numbers)

    def _swapped(self, original: Group, at: int) -> tuple[Group, int] | None:
        """What ends at ``at`` with the ``.swap()`` behind it, and where that ends."""
        start = self.literal("(", self.literal(".swap", at))
        if start is None:
            return None
        if self._swapping or _swap_in(original.children):
            raise prompt_error(
                "compel takes no .swap() inside another; take the outer or the inner one.",
                self._source, self._base + at, self._base + start,
            )  # fmt: skip
        self._swapping = True
        after: int | None = start
        while after is not None:
            end = self.blank(after)
            after = self._element(end, [], marks=())
        self._swapping = False
        comma = self.literal(",", end)
        end = end if comma is None else self.options(comma)[1]
        closing = self.literal(")", end)
        if closing is None:
            return None
        nothing = Text("", original.start, original.start)
        children = original.children or (nothing,)
        return Swap(children, 1.0, original.start, self._base + closing), closing

    def _part(self, at: int) -> Branch | None:
        """One prompt of a combination: brackets, quotes or a word."""
        target = self._target(at)
        if target is not None:
            return Branch(target[0].children, at, target[1])
        close = self._quote_end(at) if self.text.startswith('"', at) else None
        if close is not None:
            return Branch(self._inside(at, close).prompt(), at, close + 1)
        word = self.word(at)
        return Branch((self._piece(at, word),), at, word) if word > at else None

    def _combined(
        self, name: str, parts: tuple[Branch, ...], options: list[_Option], at: int, end: int
    ) -> Conjunction | Blend:
        normalize = True
        if name == ".blend" and options and options[-1].text == "no_normalize":
            normalize = False
            options = options[:-1]
        weights = [self._weight(name, option) for option in options] or [1.0] * len(parts)
        full = [any(isinstance(node, Text) for node, _ in walk(p.children)) for p in parts]
        if len(weights) != len(parts) or (name == ".blend" and not all(full)):
            raise prompt_error(
                f"{name}() has {len(parts)} prompts and {len(weights)} weights; give one weight "
                "for each, or none, and no empty brackets.", self._source, at, end - 1,
            )  # fmt: skip
        for swap in filter(None, (_swap_in(part.children) for part in parts)):
            if name == ".blend":
                raise prompt_error(
                    "compel takes no .swap() inside .blend(); write the words themselves.",
                    self._source, swap.start, swap.end,
                )  # fmt: skip
        weighted = tuple(
            Branch(part.children, part.start, part.end, weight)
            for part, weight, has_text in zip(parts, weights, full, strict=True)
            if has_text
        )
        if name != ".blend":
            return Conjunction(weighted, 0, end)
        if normalize and math.isclose(sum(weights), 0, abs_tol=1e-6):
            raise prompt_error(
                ".blend() makes its weights add up to 1, and these add up to 0; write no_normalize "
                "after them, or other weights.", self._source, at, end - 1,
            )  # fmt: skip
        if self.blank(end) < len(self.text):
            raise prompt_error(
                "Nothing may stand after .blend(); put these words into its prompts.",
                self._source, self.blank(end), len(self.text),
            )  # fmt: skip
        return Blend(weighted, normalize, 0, end)

    def _weight(self, name: str, option: _Option) -> float:
        try:
            weight = float(option.text)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise prompt_error(
                f"{quoted(option.text, 40)} is no weight of {name}(); write numbers such as 0.6.",
                self._source, option.start, option.end,
            )  # fmt: skip
        return weight

    def _refuse_lora(self, at: int) -> None:
        end = self.lora(at)
        if end is not None:
            raise prompt_error(
                "compel's withLora() changes the network and is not supported; load the LoRA into "
                "the pipeline.", self._source, self._base + at, self._base + end,
            )  # fmt: skip

    def _group(self, children: Sequence[Node], weight: float, start: int, end: int) -> Group:
        return Group(tuple(children), weight, self._base + start, self._base + end)

    def _piece(self, start: int, end: int) -> Text:
        return Text(self.text[start:end], self._base + start, self._base + end)
