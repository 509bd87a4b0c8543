"""How prompts are to be read: dialect, emphasis, normalisation, and the way with long ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from bridge.cleaning import CLEANINGS
from bridge.conditioning.emphasis import EMPHASES
from bridge.conditioning.uneven import UNEVEN
from bridge.errors import OptionError, PromptError
from bridge.prompt import DIALECTS, LONG_PROMPTS, NORMALISATIONS, LongPrompt, Prompt, parse
from bridge.prompt.caret import prompt_error
from bridge.prompt.loras import Tagged, refuse_tags, take_tags
from bridge.prompt.tree import Alternation, Blend, Branch, Conjunction, Schedule, parts_of, walk
from bridge.prompt.windows import RULES

# Each dialect's own formula, and its own way with long prompts: compel's is that of CompelForSD.
_OWN = {
    "plain": ("none", "truncate"),
    "a1111": ("a1111", "a1111"),
    "comfy": ("comfy", "comfy"),
    "compel": ("compel", "compel"),
}
# The tools in which prompts and negatives of unequal length act as if each ran alone.
_REPEAT = ("a1111", "comfy")
_ALIGNS = ("repeat", "empty")
# The tools that skip layers for the negative as for the prompt: all but diffusers.
_SKIPS_IN_BOTH = ("a1111", "comfy", "compel")
_JOINS = ("concat", "first_eos", "no_bos_between", "average")
_POOLED = ("first", "last", "mean")


@dataclass(frozen=True)
class Wording:
    """The choices of one call, checked. ``align`` and ``clean`` are None where the dialect's tool
    decides."""

    dialect: str
    emphasis: str
    token_normalization: str
    long_prompt: LongPrompt
    align: str | None = None
    clean: str | None = None

    @property
    def own_align(self) -> str:
        """How the dialect's tool brings prompts and negatives to one length."""
        return "repeat" if self.dialect in _REPEAT else "empty"

    @property
    def skips_in_both(self) -> bool:
        """Whether the dialect's tool skips layers for the negative as for the prompt."""
        return self.dialect in _SKIPS_IN_BOTH

    @property
    def pools_source(self) -> bool:
        """Whether the dialect's tool reads pooled states of the text as written, with its marks."""
        return self.dialect == "compel"

    def tagged(self, text: str) -> Tagged:
        """A prompt without its LoRA tags, which are A1111's alone. Raises PromptError."""
        return take_tags(text, self.dialect)

    def parse(self, text: str, *, negative: bool = False, apart: bool = False) -> Prompt:
        """A prompt that is one and the same at every step.

        Args:
            apart: parts that are drawn apart (A1111's ``AND``) are welcome.

        Raises:
            PromptError: the dialect refuses it, it changes from step to step, it has parts that
                are not welcome, or it still has a LoRA tag.
        """
        prompt = self._parsed(text, negative)
        if isinstance(prompt.tree, Conjunction) and self.dialect == "a1111" and not apart:
            if len(prompt.tree.parts) == 1:
                raise _refused_weight(prompt, prompt.tree.parts[0])
            raise _refused_parts(prompt, prompt.tree, "each is drawn apart; use bridge.compose")
        for part in parts_of(prompt.tree):
            for node, _ in walk(part.children):
                if isinstance(node, (Schedule, Alternation)):
                    raise _refused(
                        prompt, "changes from step to step; use bridge.schedule",
                        node.start, node.end,
                    )  # fmt: skip
        return prompt

    def read(self, text: str, *, negative: bool = False) -> Prompt:
        """A prompt that may change from step to step, and whose parts, if it has several, are
        drawn apart (A1111's ``AND``). Raises PromptError."""
        prompt = self._parsed(text, negative)
        if isinstance(prompt.tree, (Conjunction, Blend)) and self.dialect != "a1111":
            raise _refused_parts(prompt, prompt.tree, "they are joined; use bridge.condition")
        return prompt

    def _parsed(self, text: str, negative: bool) -> Prompt:
        if self.dialect == "a1111":
            refuse_tags(text)
        return parse(text, self.dialect, negative=negative)


def read_wording(
    dialect: str,
    emphasis: str | None,
    token_normalization: str,
    long_prompt: object,
    align: str | None = None,
    clean: str | None = None,
) -> Wording:
    """Check the choices and fill in the dialect's own. Raises OptionError."""
    _check_name(dialect, DIALECTS, "dialect")
    own_emphasis, own_long = _OWN[dialect]
    chosen = own_emphasis if emphasis is None else emphasis
    _check_name(chosen, EMPHASES, "emphasis")
    _check_name(token_normalization, NORMALISATIONS, "token_normalization")
    long = own_long if long_prompt is None else long_prompt
    if not isinstance(long, LongPrompt):
        _check_name(long, LONG_PROMPTS, "long_prompt")
        long = LONG_PROMPTS[str(long)]
    if long.split is not None:
        _check_name(long.split, RULES, "long_prompt.split")
    back = long.backtrack
    if isinstance(back, bool) or not isinstance(back, int) or back < 0:
        raise OptionError(
            f"long_prompt.backtrack must be a whole number of tokens from 0 up, not {back!r}."
        )
    _check_name(long.join, _JOINS, "long_prompt.join")
    _check_name(long.pooled, _POOLED, "long_prompt.pooled")
    _check_name(long.uneven, UNEVEN, "long_prompt.uneven")
    if align is not None:
        _check_name(align, _ALIGNS, "align")
    if clean is not None:
        _check_name(clean, CLEANINGS, "clean")
    return Wording(dialect, chosen, token_normalization, long, align, clean)


def _check_name(value: object, names: Iterable[str], what: str) -> None:
    names = tuple(names)
    if value in names:
        return
    near = get_close_matches(str(value), names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise OptionError(f"No {what} {value!r}; there is: {', '.join(names)}.{hint}")


def _refused_parts(prompt: Prompt, tree: Conjunction | Blend, why: str) -> PromptError:
    second = tree.parts[min(1, len(tree.parts) - 1)]
    return _refused(prompt, f"has several parts, and {why}", second.start, second.end)


def _refused_weight(prompt: Prompt, only: Branch) -> PromptError:
    weight = prompt.source[only.end :].strip()
    return _refused(
        prompt,
        f"ends in {weight!r}, which is read as its weight in a picture of several prompts; if none "
        "is meant, put a word after it, else use bridge.compose",
        only.end,
        len(prompt.source),
    )


def _refused(prompt: Prompt, what: str, start: int, end: int) -> PromptError:
    return prompt_error(
        f'This prompt {what}. (dialect="plain" takes all characters as they are.)',
        prompt.source,
        start,
        end,
    )
