"""Training data: every form reads to the same rows, and what is wrong is said by file and row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.tiny_pairs import (
    LLAVA_HF_TEMPLATE,
    SPACED_END_TEMPLATE,
    TEXT_TEMPLATE,
    plain_tokenizer,
)
from support.tiny_training import coloured, conversations

from bridge.errors import DataError, ImageError
from bridge.images import image_size, load_image
from bridge.training.order import Order
from bridge.vlm.chat import CHAT_TEMPLATE, chat_text
from bridge.vlm.chat_writer import ChatWriter
from bridge.vlm.train.batches import IGNORE_LABEL, encode
from bridge.vlm.train.data import CAPTION_QUESTION, Picture, Row, read_data


def plain(rows: list[Row]) -> list[Any]:
    return [(row.turns, [np.asarray(p.load()).tolist() for p in row.pictures]) for row in rows]


# -- forms --------------------------------------------------------------------------------


def test_llava_json(tmp_path: Path) -> None:
    rows = read_data(conversations(tmp_path, 4))
    assert rows[0].turns == (("which colour is it?", "red"),)
    assert len(rows[1].turns) == 2 and rows[1].pictures[0].size == (32, 41)
    assert rows[4].pictures == () and rows[4].turns == (("say a colour", "blue"),)
    assert "row 2" in rows[1].where and "'r1'" in rows[1].where
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text((tmp_path / "talk.json").read_text())
    assert plain(read_data(elsewhere, image_folder=tmp_path)) == plain(rows)
    lines = "\n".join(json.dumps(row) for row in json.loads(elsewhere.read_text()))
    (tmp_path / "talk.jsonl").write_text(lines)
    assert plain(read_data(tmp_path / "talk.jsonl")) == plain(rows)


@pytest.mark.parametrize("form", ["txt", "metadata.jsonl", "metadata.csv", "captions.csv"])
def test_folders_with_captions(form: str, tmp_path: Path) -> None:
    names = {"a.png": "a red square", "sub/b.png": 'blue, "deep" blue'}
    (tmp_path / "sub").mkdir()
    for name, colour in zip(names, ("red", "blue"), strict=True):
        coloured(tmp_path / name, colour)
    if form == "txt":
        for name, text in names.items():
            (tmp_path / name).with_suffix(".txt").write_text(f"{text}\n")
    elif form.endswith("jsonl"):
        lines = [json.dumps({"file_name": n, "text": t}) for n, t in names.items()]
        (tmp_path / form).write_text("\n".join(lines))
    else:
        with (tmp_path / form).open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerows([("file_name", "caption"), *names.items()])
    rows = read_data(tmp_path)
    assert [row.turns for row in rows] == [((CAPTION_QUESTION, text),) for text in names.values()]
    assert rows[1].pictures[0].load().getpixel((0, 0)) == (20, 40, 210)
    assert read_data(tmp_path, caption_question="what?")[0].turns[0][0] == "what?"


def test_rows_of_datasets(tmp_path: Path) -> None:
    """What a `datasets.Dataset` gives: decoded, undecoded, and read again when asked for."""
    coloured(tmp_path / "a.png", "red")
    picture = Image.open(tmp_path / "a.png")
    asked: list[int] = []

    class Table(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    data = (tmp_path / "a.png").read_bytes()
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which?"}]},
        {"role": "assistant", "content": "red"},
    ]
    table = Table(
        [
            {"image": picture, "question": "which?", "answer": "red"},
            {"image": {"bytes": data, "path": None}, "text": "red"},
            {"images": [np.asarray(picture)], "messages": messages},
        ]
    )
    rows = read_data(table)
    assert [row.turns[0] for row in rows] == [
        ("which?", "red"),
        (CAPTION_QUESTION, "red"),
        ("which?", "red"),
    ]
    asked.clear()
    pixels = [row.pictures[0].load().tobytes() for row in rows]
    assert asked == [0, 1, 2] and len(set(pixels)) == 1
    assert len({row.pictures[0].key() for row in rows}) == 1
    once = read_data(iter(list(table)))
    assert [row.pictures[0].load().tobytes() for row in once] == pixels


def test_marks_move_to_the_head_as_in_llava() -> None:
    def turns(*said: str, pictures: int = 1) -> Any:
        talk = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
        images = [np.zeros((4, 4, 3), np.uint8)] * pictures
        return read_data([{"images": images, "conversations": talk}])[0].turns

    assert turns("what is it?\n<image>", "a cat") == (("what is it?", "a cat"),)
    assert turns("<image>\n<image>\nalike?", "no", pictures=2) == (("alike?", "no"),)
    inside = "<image> then <image>: alike?"
    assert turns(inside, "no", pictures=2)[0][0] == inside
    later = turns("hello", "hello", "<image> and this?", "a cat")
    assert later[1][0] == "<image> and this?"


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_size_is_that_of_the_picture(tmp_path: Path, kind: str, orientation: int) -> None:
    path = tmp_path / f"a.{kind}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20), "red").save(path, exif=exif)
    picture = load_image(path)
    wanted = (20, 30) if orientation < 5 else (30, 20)
    assert image_size(path) == (picture.height, picture.width) == wanted


def test_a_size_of_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such image"):
        image_size(tmp_path / "b.jpg")


# -- bad data -----------------------------------------------------------------------------

GOOD = [{"from": "human", "value": "<image>\nwhich?"}, {"from": "gpt", "value": "red"}]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("text", r"talk.json, row 1 is a str"),
        ({"image": "a.png"}, r"row 1 has the fields 'image'; it needs 'conversations'"),
        ({"id": 7, "image": "no.png", "conversations": GOOD}, r"\(id 7\).*no such image file"),
        ({"image": "bad.png", "conversations": GOOD}, r"bad.png' is not an image"),
        ({"conversations": GOOD}, r"1 <image> mark\(s\) and 0 picture"),
        ({"image": ["a.png", "a.png"], "conversations": GOOD}, r"1 <image> mark.* 2 picture"),
        ({"image": "a.png", "conversations": []}, "not a list of messages"),
        ({"image": "a.png", "conversations": GOOD[:1]}, "ends without an answer"),
        ({"image": "a.png", "conversations": [*GOOD, GOOD[1]]}, "message 3 is from 'gpt' again"),
        ({"image": "a.png", "conversations": [{"from": "system", "value": "a"}]}, "'system'"),
        (
            {"image": "a.png", "conversations": [GOOD[0], {"from": "gpt", "value": " "}]},
            "the answer of turn 1 is empty",
        ),
        ({"image": "a.png", "conversations": [GOOD[0], {"from": "gpt"}]}, "message 2 has no text"),
        (
            {"image": "a.png", "question": "which?", "answer": ["red", "scarlet"]},
            "row 1: its 'answer' is a list; give one text",
        ),
    ],
)
def test_bad_rows(row: Any, match: str, tmp_path: Path) -> None:
    coloured(tmp_path / "a.png", "red")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "talk.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=match):
        read_data(tmp_path / "talk.json")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_data(tmp_path / "none.json")
    with pytest.raises(DataError, match="has no row"):
        read_data(tmp_path)
    coloured(tmp_path / "a.png", "red")
    with pytest.raises(DataError, match=r"a\.png has no caption \(1 of 1.*write a\.txt beside"):
        read_data(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"a\.txt cannot be read as UTF-8"):
        read_data(tmp_path)
    (tmp_path / "talk.json").write_text("[{]")
    with pytest.raises(DataError, match=r"talk\.json is not JSON"):
        read_data(tmp_path / "talk.json")
    (tmp_path / "talk.json").write_text("{}")
    with pytest.raises(DataError, match="holds no list"):
        read_data(tmp_path / "talk.json")
    with pytest.raises(DataError, match="not training data"):
        read_data(tmp_path / "a.png")
    with pytest.raises(DataError, match="data is a int"):
        read_data(3)  # type: ignore[arg-type]


# -- labels -------------------------------------------------------------------------------


def writer(template: str | None) -> ChatWriter:
    tokenizer = plain_tokenizer(image_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    return ChatWriter(tokenizer, template, "<image>", image_id, 160, "tiny")


TEXT = st.text("abcdefghij \n?.é", min_size=1, max_size=20).filter(lambda text: text.strip())
TURNS = st.lists(st.tuples(TEXT, TEXT.map(str.strip)), min_size=1, max_size=3)


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE, TEXT_TEMPLATE])
@settings(derandomize=True, deadline=None, max_examples=30, database=None)
@given(turns=TURNS)
def test_only_the_assistants_words_are_learnt(
    template: str | None, turns: list[tuple[str, str]]
) -> None:
    made = writer(template)
    row = Row((), tuple(turns), "row 1")
    found = encode(made, row, [], None)
    tokenizer = made.tokenizer
    learnt, runs = [], []
    for token, label in zip(found.ids, found.labels, strict=True):
        assert label in (token, IGNORE_LABEL)
        learnt.append(label != IGNORE_LABEL)
    for place, on in enumerate(learnt):
        if on:
            if not learnt[place - 1]:
                runs.append([])
            runs[-1].append(found.ids[place])
    texts = [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]
    lead = "" if template == TEXT_TEMPLATE else " "
    assert texts == [f"{lead}{answer}</s>" for _, answer in turns]
    if template is None:
        assert list(found.ids) == tokenizer(chat_text(turns, True, 0))["input_ids"]
    # What answering sees before the last answer is what training saw.
    asked = made.ids([*turns[:-1], (turns[-1][0], "")], [])
    assert list(found.ids[: len(asked)]) == asked
    assert found.n_learnt == sum(learnt)


def learnt(made: ChatWriter, turns: list[tuple[str, str]], limit: int | None = None) -> str:
    """What a row's labels spell."""
    found = encode(made, Row((), tuple(turns), "row 1"), [], limit)
    return str(made.tokenizer.decode([label for label in found.labels if label != IGNORE_LABEL]))


TWO_TURNS = [("what is it?", "a cat"), ("is there a dog?", "no")]


def test_a_space_before_the_end_of_an_answer_is_learnt_with_it() -> None:
    assert learnt(writer(SPACED_END_TEMPLATE), TWO_TURNS) == " a cat </s> no </s>"


def test_where_the_layout_does_not_close_answers_a_row_is_closed() -> None:
    """As generation stops at that token alone; within the chat stands what answering sees."""
    made = writer(LLAVA_HF_TEMPLATE)
    assert learnt(made, TWO_TURNS[:1]) == " a cat</s>"
    assert learnt(made, TWO_TURNS) == " a cat no</s>"
    found = encode(made, Row((), tuple(TWO_TURNS), "row 1"), [], None)
    assert list(found.ids[:-1]) == made.ids(TWO_TURNS, [], "no")[:-1]
    # A row that is cut short is closed after the last answer that it keeps.
    assert learnt(made, TWO_TURNS, len(found.ids) - 1) == " a cat</s>"


def test_what_a_template_writes_before_the_last_answer_alone() -> None:
    """Qwen 3's: an empty thought, which goes once a question follows."""
    made = writer(THINKING_TEMPLATE)
    found = encode(made, Row((), tuple(TWO_TURNS), "row 1"), [], None)
    text = "[user]what is it?</s>[assistant]a cat</s>[user]is there a dog?</s>[assistant]"
    assert list(found.ids) == made.tokenizer(f"{text}<think></think>no</s>")["input_ids"]
    assert learnt(made, TWO_TURNS) == "a cat</s>no</s>"
    # Answering begins behind the thought.
    assert made.text(TWO_TURNS, 0) == f"{text}<think></think>"


THINKING_TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}"
    "{% endif %}{% endif %}"
)


def test_pictures_are_not_learnt_and_long_rows_lose_their_last_turns(tmp_path: Path) -> None:
    row = read_data(conversations(tmp_path, 2))[1]
    made = writer(None)
    found = encode(made, row, [16], None)
    image_places = [n for n, token in enumerate(found.ids) if token == made.image_id]
    assert len(image_places) == 16
    assert all(found.labels[place] == IGNORE_LABEL for place in image_places)
    first = encode(made, Row(row.pictures, row.turns[:1], "one"), [16], None)
    cut = encode(made, row, [16], len(found.ids) - 1)
    assert cut.ids == first.ids and cut.labels == first.labels
    with pytest.raises(DataError, match=r"row 2.*first turn takes .* \(16 of them pictures\)"):
        encode(made, row, [16], 20)
    with pytest.raises(DataError, match=r"row 9: .*'</s>', a control token"):
        encode(made, Row((), (("a</s>", "b"),), "row 9"), [], None)


def test_pictures_of_a_turn_that_is_lost_are_lost_with_it() -> None:
    made = writer(None)
    pictures = tuple(Picture(name, (8, 8), lambda: b"never read") for name in ("one", "two"))
    row = Row(pictures, (("<image>\nwhat?", "a cat"), ("and <image>?", "a dog")), "row 1")
    whole = encode(made, row, [3, 5], None)
    assert (whole.ids.count(made.image_id), whole.pictures) == (3 + 5, pictures)
    cut = encode(made, row, [3, 5], len(whole.ids) - 1)
    assert (cut.ids.count(made.image_id), cut.pictures) == (3, pictures[:1])


# -- order --------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(
    lengths=st.lists(st.integers(1, 99), min_size=1, max_size=40),
    size=st.integers(1, 9),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_every_row_is_seen_as_often_as_the_others(
    lengths: list[int], size: int, epochs: int, seed: int
) -> None:
    steps = -(-len(lengths) * epochs // size)
    order = Order(tuple(lengths), size, steps, seed)
    batches = [order.batch(step) for step in range(steps)]
    assert [order.batch(step) for step in reversed(range(steps))] == batches[::-1]
    assert all(len(batch) == size for batch in batches)
    counts = np.bincount([row for batch in batches for row in batch], minlength=len(lengths))
    assert counts.max() - counts.min() <= 1
    for batch in batches:
        assert [lengths[row] for row in batch] == sorted((lengths[r] for r in batch), reverse=True)


def test_batches_are_of_like_length_and_in_no_order() -> None:
    lengths = tuple(range(400))
    order = Order(lengths, 8, 50, 1)
    batches = [order.batch(step) for step in range(50)]
    spans = [lengths[batch[0]] - lengths[batch[-1]] for batch in batches]
    assert max(spans) == 7, "one epoch is one stretch here, sorted as a whole"
    firsts = [batch[0] for batch in batches]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)
    assert Order(lengths, 8, 50, 2).batch(0) != batches[0]
