"""``bridge.study`` in text alone: passes counted, figures against transformers, clean resumes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pandas.testing import assert_frame_equal
from support.tiny_models import tiny_sdxl_pipeline

import bridge
from bridge.errors import OptionError, PromptError, UnknownModelError
from bridge.lab.cache import Cache
from bridge.lab.measures import UNRELATED, above_chance, cosine, mean_cosine, texts_without
from bridge.lab.readings import read_texts, read_weighted
from bridge.lab.report import strips
from bridge.lab.variants import Variant
from bridge.towers import TEXT_FAMILIES, TextTower, rollout

PROMPT = "two red apples left of a cat"
# The order of a batch changes sums by float32's rounding.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = tiny_sdxl_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def towers(pipe: Any) -> list[TextTower]:
    return [
        TextTower.from_modules(pipe.text_encoder, pipe.tokenizer, name="one"),
        TextTower.from_modules(pipe.text_encoder_2, pipe.tokenizer_2, name="two"),
    ]


@contextmanager
def counted(towers: list[TextTower], fail: str = "") -> Iterator[dict[str, list[int]]]:
    """The rows of each forward pass by tower; that of the tower ``fail`` is cut off."""
    passes: dict[str, list[int]] = {tower.name: [] for tower in towers}
    handles = []
    for tower in towers:

        def note(module: Any, args: Any, kwargs: Any, name: str = tower.name) -> None:
            if name == fail:
                raise KeyboardInterrupt
            passes[name].append(len(args[0] if args else kwargs["input_ids"]))

        handles.append(tower.module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------- passes


def test_two_hundred_variants_take_one_pass_a_tower(towers: list[TextTower]) -> None:
    texts = [f"a {number} cat" for number in range(200)] + [PROMPT, "a 7 cat"]
    with counted(towers) as passes:
        found = bridge.study(PROMPT, towers=towers, variants={"mine": texts})
    different = {*texts, PROMPT, *texts_without(PROMPT), *UNRELATED}
    for rows in passes.values():
        # All texts in one pass, each once; and the prompt's attention in another.
        assert rows == [len(different), 1]
    # The prompt and 201 different texts, in two towers; "mine" may hold the prompt itself.
    assert len(found.table) == 2 * (1 + 201)


def test_towers_that_fill_up_nothing_take_a_pass_a_length(
    towers: list[TextTower], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = TEXT_FAMILIES["clip"]
    monkeypatch.setitem(TEXT_FAMILIES, "open", replace(clip, rule=replace(clip.rule, fill=False)))
    loose = replace(towers[0], family="open")
    texts = ["cat", "dog", "red cat", "two red dogs", "apple of"]
    with counted([loose]) as passes:
        found = bridge.study("a cat", towers=loose, variants={"mine": texts})
    lengths = [
        len(loose.tokenizer(text)["input_ids"])
        for text in {*texts, "a cat", "cat", "a", *UNRELATED}
    ]
    *plain, attention = passes["one"]
    assert sorted(plain) == sorted(lengths.count(length) for length in set(lengths))
    assert attention == 1
    # Alone or padded, causal attention gives the same.
    whole = bridge.study("a cat", towers=towers[0], variants={"mine": texts})
    for name in ("pooled_cosine", "token_cosine"):
        assert found.table[name].to_list() == pytest.approx(
            whole.table[name].to_list(), abs=TOLERANCE, nan_ok=True
        )


def test_a_study_that_was_cut_off_goes_on(towers: list[TextTower], tmp_path: Path) -> None:
    variants = ["word-order", "emphasis"]
    options: dict[str, Any] = {"towers": towers, "variants": variants}
    whole = bridge.study(PROMPT, **options)
    with counted(towers, fail="two") as passes, pytest.raises(KeyboardInterrupt):
        bridge.study(PROMPT, **options, cache=tmp_path)
    assert passes["one"] and not passes["two"]
    with counted(towers) as passes:
        resumed = bridge.study(PROMPT, **options, cache=tmp_path)
    assert not passes["one"] and passes["two"]
    assert not list(tmp_path.rglob("*.part"))
    with counted(towers) as passes:
        again = bridge.study(PROMPT, **options, cache=tmp_path)
    assert not passes["one"] and not passes["two"]
    for name in ("table", "words", "sets", "towers", "pairs"):
        for other in (resumed, again):
            assert_frame_equal(getattr(whole, name), getattr(other, name), atol=TOLERANCE)
    # One more phrasing is one more row, not all of them again.
    with counted(towers) as passes:
        bridge.study(PROMPT, towers=towers, variants={"new": ["a new cat"]}, cache=tmp_path)
    assert passes["one"] == [1]


def test_a_damaged_or_foreign_file_is_made_again(towers: list[TextTower], tmp_path: Path) -> None:
    options: dict[str, Any] = {"variants": "case", "cache": tmp_path}
    bridge.study("a cat", towers=towers[0], **options)
    files = sorted(tmp_path.rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:40])
    with counted(towers) as passes:
        bridge.study("a cat", towers=towers[0], **options)
        # Another tower's states are not taken for this one's.
        bridge.study("a cat", towers=towers[1], **options)
    assert passes["one"] == [1] and len(passes["two"]) == 2


def test_no_cell_of_a_csv_is_a_formula(towers: list[TextTower], tmp_path: Path) -> None:
    texts = ["=1+1", "+cat", "-2 cats", "@SUM(A1)", "\tcat", "'cat", "a = b"]
    variants = {"=cmd|' /C calc'!A0": texts}
    found = bridge.study("=HYPERLINK(1)", towers=towers, variants=variants)
    with found.save(tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    cells = {cell for row in rows for cell in row if not _is_number(cell)}
    assert not [cell for cell in (*header, *cells) if cell.startswith(("=", "+", "-", "@", "\t"))]
    assert {f"'{text}" for text in texts[:5]} | {"'cat", "a = b", "'=HYPERLINK(1)"} <= cells
    # Numbers stay numbers, also below 0.
    column = header.index("pooled_above_chance")
    stored = [float(row[column]) for row in rows if row[column]]
    assert stored == pytest.approx(found.table["pooled_above_chance"].dropna().to_list())
    assert min(stored) < 0


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- figures


@torch.no_grad()
def test_figures_are_those_of_transformers(pipe: Any, towers: list[TextTower]) -> None:
    found = bridge.study("a red cat", towers=towers, variants={"mine": ["a red dog"]})
    tower = pipe.text_encoder_2

    def run(text: str) -> Any:
        ids = pipe.tokenizer_2(text, padding="max_length", return_tensors="pt").input_ids
        return tower(ids, output_hidden_states=True)

    a, b = run("a red cat"), run("a red dog")
    row = found.table[(found.table.tower == "two") & (found.table.operation == "mine")].iloc[0]
    assert row.pooled_cosine == pytest.approx(
        cosine(a.text_embeds[0], b.text_embeds[0]), abs=TOLERANCE
    )
    # "a" and "red" are in both, at places 1 and 2; causal attention leaves them as they were.
    assert row.token_cosine == pytest.approx(1, abs=TOLERANCE)
    unrelated = torch.cat([run(text).text_embeds for text in UNRELATED])
    centred = cosine(a.text_embeds[0], b.text_embeds[0], unrelated.mean(0))
    assert row.pooled_centred == pytest.approx(centred, abs=1e-4)
    about, chance = found.towers.iloc[1], mean_cosine(unrelated)
    assert about.chance == pytest.approx(chance, abs=TOLERANCE) != about.token_chance
    above = above_chance(row.pooled_cosine, about.chance)
    assert row.pooled_above_chance == pytest.approx(above)
    without = run("a cat")
    word = found.words[(found.words.tower == "two") & (found.words.word == "red")].iloc[0]
    assert word.leave_one_out == pytest.approx(
        1 - cosine(a.text_embeds[0], without.text_embeds[0]), abs=TOLERANCE
    )
    tower.set_attn_implementation("eager")
    try:
        ids = pipe.tokenizer_2("a red cat", return_tensors="pt").input_ids
        layers = tower(ids, output_attentions=True).attentions
    finally:
        tower.set_attn_implementation("sdpa")
    eos = rollout([layer[0] for layer in layers])[-1]
    wanted = float(eos[2] / eos[1:4].sum())
    assert word.rollout_share == pytest.approx(wanted, abs=TOLERANCE)


@torch.no_grad()
def test_content_states_are_those_of_the_words(pipe: Any, towers: list[TextTower]) -> None:
    found = read_texts(towers[0], ["a red cat"], Cache(None), "")["a red cat"]
    ids = pipe.tokenizer("a red cat", padding="max_length", return_tensors="pt").input_ids
    assert found.content_ids == ids[0, 1:4].tolist()
    states = pipe.text_encoder(ids).last_hidden_state[0]
    torch.testing.assert_close(found.content_states, states[1:4])


@pytest.mark.parametrize("dialect", ["a1111", "comfy", "compel"])
@torch.no_grad()
def test_weighted_states_are_those_of_condition(pipe: Any, dialect: str) -> None:
    from support.tiny_models import tiny_sd_pipeline

    sd = tiny_sd_pipeline()
    tower = TextTower.from_modules(sd.text_encoder, sd.tokenizer, name="one")
    text = {"compel": "a (cat)0.6 of (dog)1.4"}.get(dialect, "a (cat:0.6) of (dog:1.4)")
    reading = read_weighted(tower, [(text, dialect)], Cache(None), "")[text, dialect]
    wanted = bridge.condition(text, model=sd, dialect=dialect).prompt_embeds[0]
    used = len(reading.ids)
    assert used == 6
    assert torch.allclose(reading.states, wanted[:used], atol=TOLERANCE)


def test_an_exclamation_mark_counts_where_it_is_what_pads(towers: list[TextTower]) -> None:
    assert towers[1].tokenizer.pad_token == "!"
    prompt = "a red cat!"
    found = bridge.study(prompt, towers=towers, variants={"mine": ["a dog!", "two of!"]})
    assert found.table.pivot(index="text", columns="tower", values="tokens").to_dict("index") == {
        text: {"one": count, "two": count}
        for text, count in ((prompt, 4), ("a dog!", 3), ("two of!", 3))
    }
    # "!" alone is in both.
    row = found.table[(found.table.text == "two of!") & (found.table.tower == "two")].iloc[0]
    assert 0 < row.token_cosine < 1


def test_tables_say_what_they_promise(towers: list[TextTower]) -> None:
    found = bridge.study(
        ["a red cat", "two dogs"], towers=towers, variants=["typo", "emphasis"], weights=[1.5]
    )
    first = found.table.iloc[0]
    assert first.operation == "original" and first.pooled_cosine == 1 and first.token_cosine == 1
    weighted = found.table[found.table.operation == "emphasis"]
    # No tool weighs pooled states, so emphasis moves the tokens alone.
    assert weighted.pooled_cosine.to_list() == pytest.approx([1] * len(weighted), abs=TOLERANCE)
    assert (weighted.token_cosine < 1 - 1e-4).any()
    assert list(found.words.word.unique()) == ["a", "red", "cat", "two", "dogs"]
    assert found.words.groupby(["prompt", "tower"]).rollout_share.sum().to_list() == pytest.approx(
        [1] * 4
    )
    assert set(found.sets.operation) == {"all", "typo"}
    assert list(found.towers.tower) == ["one", "two"]
    assert found.towers.chance.between(-1, 1).all()
    assert len(found.pairs) == 2 and found.pairs.cka.between(0, 1 + 1e-9).all()
    assert found.pictures.empty and found.verdicts.empty and not found.drawn
    assert "typo" in found.summary()


def test_the_empty_prompt_and_marks_alone_can_be_studied(towers: list[TextTower]) -> None:
    found = bridge.study(["", "🍎!"], towers=towers[0], variants={"mine": ["a cat"]})
    assert len(found.table) == 4 and found.words.empty
    assert found.to_dict()["table"][0]["pieces_per_word"] is None


# ---------------------------------------------------------------- bad input


class NotLoaded:
    """A tower's name that must not be opened."""

    def __fspath__(self) -> str:
        raise AssertionError("a tower was opened before the input was checked")


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"variants": []}, OptionError, "variants is empty"),
        ({"variants": ["negaton"]}, OptionError, "did you mean 'negation'"),
        ({"variants": ["a blue cat"]}, OptionError, 'of your own: variants={"mine": '),
        ({"variants": "a blue cat"}, OptionError, 'of your own: variants={"mine": '),
        ({"variants": ["language"], "names": {"it": {}}}, OptionError, "'it' has no names"),
        ({"variants": "language", "names": ["tlh"]}, OptionError, "'tlh'"),
        ({"variants": {"mine": ["a\0"]}}, PromptError, "NUL"),
        ({"variants": [Variant("x", "(a", dialect="nonsense")]}, OptionError, "dialect"),
        ({"variants": [Variant("x", "[a:b:0.5]", dialect="a1111")]}, PromptError, "schedule"),
        ({"prompt": []}, PromptError, "empty list"),
        ({"seed": 1.5}, OptionError, "seed"),
        ({"weights": ["x"]}, OptionError, "weights"),
        ({"unrelated": ["one"]}, OptionError, "unrelated has 1 different text; give 8 or more"),
        ({"unrelated": [*"ababab"]}, OptionError, "unrelated has 2 different texts; give 8"),
        ({"unrelated": "two birds on a fence"}, OptionError, "unrelated is one text"),
        ({"unrelated": [*"abcdefg", " "]}, OptionError, "unrelated has an empty text"),
        ({"seeds": []}, OptionError, "seeds"),
        ({"steps": 0}, OptionError, "steps"),
        ({"choices": "all"}, OptionError, "pass model"),
    ],
)
def test_bad_input_is_one_clear_error_before_anything_loads(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        bridge.study(**{"prompt": "a cat", "towers": [NotLoaded()], **options})


def test_towers_that_do_not_open(towers: list[TextTower], tmp_path: Path) -> None:
    with counted(towers) as passes, pytest.raises(UnknownModelError, match="emoji-1"):
        bridge.study("a cat", towers=[*towers, "emojy-1"])
    assert not any(passes.values())
    with pytest.raises(OptionError, match="towers is empty"):
        bridge.study("a cat", towers=[])
    with pytest.raises(OptionError, match="one name"):
        bridge.study("a cat", towers=[towers[0], replace(towers[1], name="one")])
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OptionError, match=r"cache .* cannot be written: a file stands"):
        bridge.study("a cat", towers=towers, cache=blocked / "cache")


# ---------------------------------------------------------------- files


def test_every_chance_is_on_the_axis_of_the_chart() -> None:
    rows = [{"tower": name, "pooled_cosine": 0.9, "text": "a CAT"} for name in ("one", "two")]
    chart = strips({"case": rows}, {"one": 0.21, "two": 0.55, "three": math.nan})
    assert [(tower, value) for _, _, tower, value in chart.chances] == [
        ("one", 0.21),
        ("two", 0.55),
    ]
    (end, last), *_, (begin, first) = chart.ticks
    assert (first, last) == (pytest.approx(0.2), 1) and begin < chart.chances[0][0] < end


def test_files_hold_the_tables(towers: list[TextTower], tmp_path: Path) -> None:
    import pandas

    found = bridge.study("a cat", towers=towers, variants="case")
    table = pandas.read_csv(found.save(tmp_path / "table.csv"), keep_default_na=False)
    assert list(table.columns) == list(found.table.columns) and len(table) == len(found.table)
    stored = json.loads(found.save(tmp_path / "all.json").read_text("utf-8"))
    assert stored == json.loads(json.dumps(found.to_dict()))
    assert len(stored["table"]) == len(found.table)
    with pytest.raises(OptionError, match=r"\.html, \.csv, \.json"):
        found.save(tmp_path / "table.xlsx")
