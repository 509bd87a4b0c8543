"""Prompts that exercise a grammar: seeded, so that a number names a prompt for good."""

from __future__ import annotations

import random
from collections.abc import Iterator

WORDS = (
    "a", "cat", "red", "two apples", "left of the dog", "castle at night", "8k", "photo of",
    "naïve café", "1girl", "x-ray", "don't", "Ünïcode", "🐈", "!", "masterpiece",
)  # fmt: skip
# Names of embeddings, as ComfyUI's prompts write them.
EMBEDDED = ("cat", "cat", "x-ray", "x-ray.safetensors", "x-ray embedding:cat", ",cat", "cat,,")
# What cleaning mends, and what looks as if it should be mended.
ODD = (
    "cafÃ©", "donâ€™t", "“quoted”", "it’s", "&amp;", "&lt;b&gt;", "&amp;lt;", "&eacute;", "&#233;",
    "&copy", "&AMP;", "R&D", "a & b", "ﬁne", "ﬃ", "Ｆｕｌｌ", "ＷＩＤＥ，", "e\u0301", "Å", "ΟΔΟΣ",
    "Σ", "İstanbul", "straße", "ſ", "a\u00a0b", "a\u3000b", "a\u2028b", "a\u200bb", "\ufeffa",
    "soft\u00adhyphen", "ca\x07t", "\x1b[31mred\x1b[0m", "tab\tbed", "two  spaces", "line\nbreak",
    "a\x85b", "a\x1cb", "東京 タワー", "ｶﾀｶﾅ", "한국", "🐈‍⬛", "👍🏽", "c_d!", "...", "--", "'S",
    "I'LL", "1½", "²", "№", "ǅ", "नमस्ते", "سلام", "\u202eabc", "…", "<b>", "a<b", "a<&amp;",
)  # fmt: skip
LONG = "an old lighthouse above the sea, storm clouds, oil on canvas, "


def _weight(rng: random.Random) -> str:
    return rng.choice(("1.3", "0.5", "1", ".7", "1.05", "2", "0", "-1", "+1.2", " 1.1 "))


def a1111(rng: random.Random, depth: int = 2) -> str:
    """One prompt with the webui's marks: brackets, weights, BREAK, escapes, commas."""
    made = []
    for _ in range(rng.randint(1, 4)):
        word = rng.choice(WORDS) if depth == 0 or rng.random() < 0.5 else a1111(rng, depth - 1)
        made.append(
            rng.choice(
                (
                    f"{word}",
                    f"({word})",
                    f"(({word}))",
                    f"[{word}]",
                    f"({word}:{_weight(rng)})",
                    f"{word} BREAK",
                    rf"\({word}\)",
                    f"{word},",
                    f"({word}",
                    f"{word})",
                    f"{word}:1.2",
                    LONG * rng.choice((1, 1, 6)) if rng.random() < 0.05 else word,
                )
            )
        )
    return rng.choice((" ", ", ", "")).join(made)


def scheduled(rng: random.Random) -> str:
    """One prompt with edits and alternations."""
    a, b = rng.choice(WORDS), rng.choice(WORDS)
    when = rng.choice(("0.5", "0.25", "3", "10", "1", "0.05", "15"))
    inner = rng.choice(
        (f"[{a}:{b}:{when}]", f"[{a}|{b}]", f"[{a}:{when}]", f"[{a}::{when}]", f"[{a}|{b}|dog]",
         f"[{a}:[{b}|dog]:{when}]", f"([{a}:{b}:{when}]:1.2)")
    )  # fmt: skip
    return f"{rng.choice(WORDS)} {inner} {rng.choice(WORDS)}"


def odd(rng: random.Random) -> str:
    """One text without a dialect's marks, of what cleaning mends beside plain words."""
    words = [rng.choice(ODD if rng.random() < 0.6 else WORDS) for _ in range(rng.randint(1, 7))]
    return "".join(word + rng.choice((" ", " ", "", ", ", "  ", "\n")) for word in words)


def comfy(rng: random.Random, depth: int = 2) -> str:
    """One prompt with ComfyUI's marks: brackets, weights, escapes, words of its embeddings."""
    made = []
    for _ in range(rng.randint(1, 4)):
        word = rng.choice(WORDS) if depth == 0 or rng.random() < 0.5 else comfy(rng, depth - 1)
        made.append(
            rng.choice(
                (
                    f"{word}",
                    f"({word})",
                    f"(({word}))",
                    f"({word}:{_weight(rng)})",
                    f"(a ({word}:{_weight(rng)}) dog:{_weight(rng)})",
                    rf"\({word}\)",
                    f"{word},",
                    f"[{word}]",
                    f"({word}",
                    f"{word})",
                    f"({word}:)",
                    f"{word}:1.2",
                    f"{word} embedding:{rng.choice(EMBEDDED)}{rng.choice((' ', ',', '', '<b>'))}",
                    LONG * rng.choice((1, 1, 6)) if rng.random() < 0.1 else word,
                )
            )
        )
    return rng.choice((" ", ", ", "", "\n")).join(made)


def compel(rng: random.Random, depth: int = 2) -> str:
    """One prompt with compel's marks: pluses, brackets, quotes, blends, conjunctions, escapes."""
    if depth == 2 and rng.random() < 0.15:
        parts = [f'"{compel(rng, 0)}"' for _ in range(rng.randint(2, 3))]
        weights = ", ".join(rng.choice(("0.7", "1", "0.3", "1.2")) for _ in parts)
        how = rng.choice((f"blend({weights})", f"blend({weights}, no_normalize)", "and()",
                          f"and({weights})", "blend()"))  # fmt: skip
        return f"({', '.join(parts)}).{how}"
    made = []
    for _ in range(rng.randint(1, 4)):
        word = rng.choice(WORDS) if depth == 0 or rng.random() < 0.5 else compel(rng, depth - 1)
        made.append(
            rng.choice(
                (
                    f"{word}",
                    f"{word}{rng.choice(('+', '++', '-', '--'))}",
                    f"({word}){rng.choice(('+', '-', '1.3', '0.5', '0.9', '1.1', '', '2'))}",
                    f"(a ({word})1.2 dog)0.8",
                    f"({word}).attend({rng.choice(('1.3', '+', '0.6'))})",
                    f'"{word}"{rng.choice(("+", "", "1.2"))}',
                    rf"\({word}\)",
                    rf"\\({word})",
                    rf"\\\\({word}\\\)",
                    f"({rng.choice(WORDS)}){rng.choice(('', '', '+'))}.swap({rng.choice(WORDS)})",
                    f'"{rng.choice(WORDS)}".swap({rng.choice(WORDS)}, t_start=0.3, s_end)',
                    f"{word},",
                    f"{word}.",
                    f"({word}",
                    f"{word})",
                    LONG * rng.choice((1, 1, 6)) if rng.random() < 0.1 else word,
                )
            )
        )
    return rng.choice((" ", ", ", "")).join(made)


def draw(kind: str, count: int) -> Iterator[str]:
    """``count`` prompts of a kind, the same ones in each run."""
    makers = {"a1111": a1111, "scheduled": scheduled, "odd": odd, "comfy": comfy, "compel": compel}
    for number in range(count):
        yield makers[kind](random.Random(f"{kind}/{number}"))
