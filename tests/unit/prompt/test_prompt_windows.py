"""Long prompts: the tools' splitting rules on worked examples, and what holds for any prompt."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import tiny_clip_tokenizer

from bridge.prompt import LONG_PROMPTS, Token, parse, plan
from bridge.prompt.windows import RULES, Content, LongPrompt, comma, hard, sentences, words

TOKENIZER = tiny_clip_tokenizer()
UNTIMED = settings(deadline=None)


def content(text: str) -> list[Content]:
    """Each character is a token; a letter before a space, and a mark, ends a word.

    A capital letter is one vector of a concept: neighbours that are the same letter belong
    together.
    """
    found: list[Content] = []
    word = 0
    for at, character in enumerate(text):
        if character == " ":
            continue
        if at == 0 or text[at - 1] == " ":
            word += 1
        ends = at + 1 == len(text) or text[at + 1] == " " or not character.isalpha()
        same = at > 0 and character.isupper() and text[at - 1] == character
        group = found[-1].group if same else at
        found.append(Content(character + ("</w>" if ends else ""), word, group))
    return found


def dealt(rule: object, text: str, room: int) -> list[str]:
    tokens = content(text)
    cuts = rule(tokens, room)  # type: ignore[operator]
    plain = [token.piece.removesuffix("</w>") for token in tokens]
    return ["".join(plain[a:b]) for a, b in zip(cuts, [*cuts[1:], len(plain)], strict=True)]


@pytest.mark.parametrize(
    ("rule", "text", "room", "windows"),
    [
        (hard, "abcdef", 3, ["abc", "def"]),
        (hard, "abcdefg", 3, ["abc", "def", "g"]),
        (hard, "abc", 3, ["abc"]),
        (hard, "", 3, [""]),
        # The three vectors of a concept stay together, unless no window could hold them.
        (hard, "abXXXc", 4, ["ab", "XXXc"]),
        (hard, "aXXXXXb", 3, ["a", "XXX", "XXb"]),
        # The webui: back to just after the last comma of this window.
        (comma, "a , b c d", 4, ["a,", "bcd"]),
        (comma, "a b c , d", 4, ["abc,", "d"]),
        (comma, "a b c d , e", 4, ["abcd", ",e"]),
        (comma, "a b c d e", 4, ["abcd", "e"]),
        # A comma of the window before does not count again.
        (comma, "a , b c d e f g", 4, ["a,", "bcde", "fg"]),
        # ComfyUI: a short word moves whole.
        (words, "ab cd", 3, ["ab", "cd"]),
        (words, "ab cd ef", 4, ["abcd", "ef"]),
        # One of eight tokens or more fills up the window and goes on in the next.
        (words, "ab abcdefgh", 6, ["ababcd", "efgh"]),
        (words, "ab abcdefg", 7, ["ab", "abcdefg"]),
        # compel: a full stop, else a comma, else a word's end, else anywhere.
        (sentences, "a . b , c d", 5, ["a.", "b,cd"]),
        (sentences, "a b , c d e", 5, ["ab,", "cde"]),
        (sentences, "ab cd efgh", 5, ["abcd", "efgh"]),
        (sentences, "abcdefgh", 5, ["abcde", "fgh"]),
    ],
)
def test_worked_examples(rule: object, text: str, room: int, windows: list[str]) -> None:
    assert dealt(rule, text, room) == windows


def test_a_comma_further_back_than_twenty_is_left_alone() -> None:
    near = "a" * 9 + " , " + "b" * 20 + " c"  # the comma is the tenth of thirty tokens
    assert dealt(comma, near.replace("b" * 20, "b" * 19), 30) == ["aaaaaaaaa," + "b" * 19 + "c"]
    assert dealt(comma, near, 30) == ["aaaaaaaaa," + "b" * 20, "c"]
    close = "a" * 10 + " , " + "b" * 19 + " c"  # the eleventh: twenty from the end
    assert dealt(comma, close, 30) == ["a" * 10 + ",", "b" * 19 + "c"]
    # The webui's comma_padding_backtrack, where it is another number.
    assert dealt(LongPrompt("comma", backtrack=21).rule, near, 30) == [
        "a" * 9 + ",",
        "b" * 20 + "c",
    ]
    assert dealt(LongPrompt("comma", backtrack=0).rule, close, 30) == [
        "a" * 10 + "," + "b" * 19,
        "c",
    ]


@given(st.text("ab ,.;XY", max_size=90), st.integers(1, 12), st.sampled_from(sorted(RULES)))
@UNTIMED
def test_every_rule_deals_all_tokens_in_order_into_windows_that_fit(
    text: str, room: int, name: str
) -> None:
    tokens = content(text)
    cuts = RULES[name](tokens, room)
    assert cuts[0] == 0 and cuts == sorted(set(cuts))
    ends = [*cuts[1:], len(tokens)]
    assert all(0 <= end - start <= room for start, end in zip(cuts, ends, strict=True))
    assert len(tokens) == 0 or all(end > start for start, end in zip(cuts, ends, strict=True))
    if len(tokens) <= room:
        assert cuts == [0]


# ---------------------------------------------------------------- plans of several windows


def pieces_of(tokens: tuple[Token, ...]) -> list[str]:
    return [token.piece for token in tokens]


def test_each_window_has_its_own_bos_eos_and_padding() -> None:
    found = plan(parse("cat " * 100, "plain"), TOKENIZER, split="hard")
    one, two = found.windows
    bos, eos = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    cat = TOKENIZER.convert_tokens_to_ids("cat</w>")
    assert one.ids == (bos, *[cat] * 75, eos)
    assert two.ids == (bos, *[cat] * 25, *[eos] * 51)
    assert found.ids == one.ids + two.ids and len(found.mask) == 154
    assert (found.used, found.cut, found.cut_tokens) == (104, "", 0)
    assert two.mask == (1,) * 27 + (0,) * 50 and two.weights == (1.0,) * 77


def test_breaks_begin_windows_and_the_last_empty_one_is_dropped() -> None:
    def windows(text: str) -> list[list[str]]:
        found = plan(parse(text, "a1111"), TOKENIZER, split="comma")
        return [pieces_of(window.tokens)[1:-1] for window in found.windows]

    assert windows("cat BREAK dog") == [["cat</w>"], ["dog</w>"]]
    assert windows("cat BREAK BREAK dog") == [["cat</w>"], [], ["dog</w>"]]
    assert windows("cat BREAK") == [["cat</w>"]]
    assert windows("BREAK cat") == [[], ["cat</w>"]]
    assert windows("") == [[]]


def test_truncation_reads_over_breaks() -> None:
    found = plan(parse("cat BREAK dog", "a1111"), TOKENIZER)
    assert pieces_of(found.windows[0].tokens)[1:-1] == ["cat</w>", "dog</w>"]
    assert len(found.windows) == 1


def test_weights_words_and_fragments_of_tokens() -> None:
    text = "a (red cat:1.5), [dog]"
    found = plan(parse(text, "a1111"), TOKENIZER, split="comma")
    content = [token for token in found.tokens if not token.special]
    assert [text[t.start : t.end] for t in content] == ["a", "red", "cat", ",", "dog"]
    assert [t.weight for t in content] == [1, 1.5, 1.5, 1, pytest.approx(1 / 1.1)]
    assert [t.word for t in content] == [1, 2, 3, 4, 5]
    assert [t.fragment for t in content] == [1, 2, 2, 3, 4]
    assert found.is_weighted and not plan(parse("a cat", "a1111"), TOKENIZER).is_weighted


def test_tokens_of_one_word_share_its_number() -> None:
    found = plan(parse("zebra 🎈🎈 cat,", "plain"), TOKENIZER)
    by_word: dict[int, str] = {}
    for token in found.tokens:
        if not token.special:
            by_word[token.word] = by_word.get(token.word, "") + "x"
    assert list(by_word) == [1, 2, 3]
    assert len(by_word[1]) > 1 and len(by_word[2]) == 8 and len(by_word[3]) == 2


def test_a_concepts_vectors_are_not_parted() -> None:
    tokenizer = tiny_clip_tokenizer()
    tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2"])
    found = plan(parse("cat " * 74 + "<toy> dog", "plain"), tokenizer, split="hard")
    one, two = (pieces_of(window.tokens)[1:-1] for window in found.windows)
    assert one == ["cat</w>"] * 74
    assert two == ["<toy>", "<toy>_1", "<toy>_2", "dog</w>"]
    # The same concept twice is two groups.
    twice = plan(parse("cat " * 72 + "<toy> <toy>", "plain"), tokenizer, split="hard")
    assert len(twice.windows[0].tokens) == 77 and len(twice.windows[1].tokens) == 5


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_windows_hold_what_one_call_of_the_tokenizer_gives(seed: int) -> None:
    rng = random.Random(seed)
    text = " ".join(rng.choice(["cat", "red,", "zebra.", "🎈"]) for _ in range(rng.randrange(160)))
    whole = TOKENIZER(text, verbose=False).input_ids[1:-1]
    for rule in RULES:
        found = plan(parse(text, "plain"), TOKENIZER, split=rule)
        content = [i for window in found.windows for i in window.ids[1 : window.used - 1]]
        assert content == whole


# ---------------------------------------------------------------- ComfyUI's stretches


def windows_text(text: str, split: str) -> list[str]:
    found = plan(parse(text, "comfy"), TOKENIZER, split=split)
    return ["".join(t.piece for t in window.tokens if not t.special) for window in found.windows]


def test_comfyui_moves_a_short_stretch_whole_and_cuts_a_long_one_anywhere() -> None:
    """Traced by hand through ``SDTokenizer.tokenize_with_weights`` at b55c224 and at 4bd7a40.

    It splits at brackets only, no longer at spaces, so a stretch is all text of one weight.
    """
    cats = "cat " * 74
    # Two words of one stretch: the window fills up with the first.
    one, two = windows_text(cats + "red dog", "segments")
    assert one.endswith("cat</w>red</w>") and two == "dog</w>"
    # The same two as a stretch of their own are under 8 tokens, and move together.
    one, two = windows_text(cats + "(red dog)", "segments")
    assert one.endswith("cat</w>") and two == "red</w>dog</w>"
    # Eight tokens are long: they fill up the window, in the middle of a word if need be.
    one, two = windows_text(cats + "(zebrazeb)", "segments")
    assert one.endswith("cat</w>z") and two == "ebrazeb</w>"


def test_comfyuis_own_way_is_by_stretches() -> None:
    assert LONG_PROMPTS["comfy"].split == "segments"
