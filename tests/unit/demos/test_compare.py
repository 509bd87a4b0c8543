"""The app's tab Compare, without a browser: what it takes on, what it finds, the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.app_calls import as_file
from support.judge_world import picture

import bridge
from bridge.errors import BridgeError, ImageError
from demos.compare_page import matrices_html, summary_html
from demos.compare_tab import EXAMPLES
from demos.comparing import (
    BARE,
    HEAD,
    OWN,
    SEVEN,
    Compared,
    Matrix,
    Request,
    checked,
    compare,
    gathered,
    readers,
)
from demos.models import Models
from emoji_world.scenes import Group, PlacedObject, Scene

LABELS = ("cat", "dog", "apple", "banana", "car", "bicycle", "umbrella", "key", "penguin", "rose")
SHOWN = {"cat.png": 0, "key.png": 7, "umbrella.png": 6, "rose.png": 9}
NASTY = '<img src=x onerror="alert(1)">'
ALL = list(readers())
ENGLISH = [name for name in ALL if not readers()[name].many_languages]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The upload cache, with pictures of four things and a file that is none."""
    folder = tmp_path_factory.mktemp("gradio")
    for name, column in SHOWN.items():
        place = PlacedObject(column, None, "normal", 48, 32)
        scene = Scene("fluent", "white", (Group(column),), None, (place,))
        Image.fromarray(picture(scene)).save(folder / name)
    (folder / "notes.png").write_text("these are notes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


def gallery(cache: Path, *names: str, called: str | None = None) -> list[Any]:
    """Uploaded files as the page's gallery sends them."""
    return [
        {"image": as_file(str(cache / name), orig_name=called or name), "caption": None}
        for name in names
    ]


def request(cache: Path, **changes: Any) -> Request:
    asked = {"pictures": gallery(cache, "cat.png"), "labels": "cat\ndog", "reads": ENGLISH}
    return Request(**{**asked, **changes})


@pytest.fixture(scope="module")
def models(embedded: Callable[[str], Path]) -> Models:
    for name in ("emoji-clip", "emoji-clip-2", "emoji-multilingual"):
        embedded(name)
    return Models(device="cpu")


@pytest.fixture(scope="module")
def found(models: Models, cache: Path) -> Compared:
    """Four things and a broken file, ten names, all readers, through the head."""
    pictures = gallery(cache, "cat.png", "key.png", "notes.png", "umbrella.png", "rose.png")
    return compare(models, Request(pictures, "\n".join(LABELS), ALL))


# -- what is taken on ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pictures": None}, "no pictures yet"),
        ({"pictures": []}, "no pictures yet"),
        ({"pictures": "a.png"}, "cannot read what was sent"),
        ({"pictures": [None]}, "cannot read what was sent"),
        ({"pictures": ["/etc/passwd"]}, "no file uploaded"),
        ({"pictures": [{}] * 17}, "These are 17 pictures, and this page compares at most 16"),
        ({"labels": " \n\n"}, "no texts yet"),
        ({"labels": None}, "no texts yet"),
        ({"labels": ["cat"]}, "no text but a list"),
        ({"labels": "cat\n dog\ncat "}, "“cat” is written twice; leave one out"),
        ({"labels": "a\ud800"}, "surrogate"),
        ({"labels": "a\0"}, "NUL"),
        ({"labels": "\n".join(map(str, range(51)))}, "These are 51 texts.*at most 50"),
        ({"labels": "a" * 201}, "has 201 characters; this page takes texts of at most 200"),
        ({"labels": "a" * 20_001}, "20,001 characters"),
        ({"reads": []}, "No model is ticked"),
        ({"reads": "emoji-1"}, "cannot read what was sent"),
        ({"reads": [["emoji-1"]]}, "No model"),
        ({"reads": ["clip-l"]}, "No model 'clip-l'; there is: "),
        ({"wording": "clip-80"}, "No wording 'clip-80'"),
        ({"wording": {}}, "No wording"),
        ({"wording": OWN}, "no sentence of your own yet"),
        ({"wording": OWN, "sentences": "a picture"}, "'a picture' has no place for the name"),
        ({"wording": OWN, "sentences": "a {}\na {}"}, "'a {}' is given twice"),
        ({"wording": OWN, "sentences": "\n".join(f"{n} {{}}" for n in range(9))}, "at most 8"),
    ],
)
def test_what_is_missing_wrong_or_too_much_is_told(
    cache: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(BridgeError, match=told):
        checked(request(cache, **changes))


def test_as_much_as_is_told_is_taken(cache: Path) -> None:
    most = request(
        cache,
        pictures=gallery(cache, *["cat.png"] * 16),
        labels="\n".join("a" * 198 + f"{n:02}" for n in range(50)),
        wording=OWN,
        sentences="\n".join(f"{n} {{}}" for n in range(8)),
    )
    task = checked(most)
    assert (len(task.files), len(task.labels), len(task.options["templates"])) == (16, 50, 8)


def test_a_file_goes_by_its_caption_its_own_name_or_its_path(cache: Path) -> None:
    (item,) = gallery(cache, "cat.png", called="mine.png")
    asked = [{**item, "caption": "a drawn cat"}, item, item["image"], str(cache / "cat.png")]
    names = [name for name, _ in checked(request(cache, pictures=asked)).files]
    assert names == ["a drawn cat", "mine.png", "mine.png", "cat.png"]
    (long,) = gallery(cache, "cat.png", called="\ud800" + "a" * 5_000)
    ((name, _),) = checked(request(cache, pictures=[long])).files
    assert len(name.encode()) < 70


def test_pictures_that_were_there_already_are_gathered_but_for_the_unreadable(cache: Path) -> None:
    there = gallery(cache, "cat.png", "notes.png", "key.png")
    assert gathered(there) == [(cache / "cat.png", "cat.png"), (cache / "key.png", "key.png")]
    assert gathered(None) == gathered("x") == []


# -- what is found ---------------------------------------------------------------------


def test_the_readers_are_the_shipped_clips_by_name(models: Models) -> None:
    assert len(ALL) >= 3 and any(reader.many_languages for reader in readers().values())
    for name, reader in readers().items():
        clip = models.clip(reader.image, reader.text)
        assert clip.name == name
        assert clip is models.clip(reader.image, reader.text)


def test_what_is_nearest_is_what_is_shown(found: Compared) -> None:
    assert [name for name, _ in found.pictures] == list(SHOWN)
    assert found.unreadable[0].startswith("'notes.png' is not an image")
    for matrix in found.matrices:
        assert np.allclose(np.sum(matrix.shares, axis=1), 1, atol=1e-5)
        if not matrix.reader.many_languages:
            right = zip(matrix.best, SHOWN.values(), strict=True)
            assert sum(now == shown for now, shown in right) >= 3, matrix.reader
            assert matrix.has_head


def test_bare_names_are_plain_cosines_and_what_a_wording_changes_is_known(
    models: Models, found: Compared, cache: Path
) -> None:
    bare = compare(
        models,
        request(cache, pictures=gallery(cache, *SHOWN), labels="\n".join(LABELS), wording=BARE),
    )
    changed = 0
    for matrix, headed in zip(bare.matrices, found.matrices, strict=False):
        clip = bridge.CLIP(matrix.reader.image, text=matrix.reader.text, device="cpu")
        cosines = clip.similarity(
            clip.encode_image([cache / name for name in SHOWN]), clip.encode_text(LABELS)
        )
        assert torch.allclose(torch.tensor(matrix.similarities), cosines, atol=1e-5)
        assert matrix.best == matrix.bare == headed.bare == tuple(cosines.argmax(1).tolist())
        assert matrix.changed == ()
        differ = [place for place in range(4) if headed.best[place] != matrix.best[place]]
        assert list(headed.changed) == differ
        changed += len(differ)
    assert changed  # or the head would be for nothing


def test_sentences_are_those_that_were_asked_for(models: Models, cache: Path) -> None:
    for wording, options in (
        (SEVEN, {"templates": "clip-7", "head": None}),
        (OWN, {"templates": ["a small {}", "a {} {{x}}"], "head": None}),
        (HEAD, {}),
    ):
        asked = request(
            cache, reads=ENGLISH[:1], wording=wording, sentences="a small {}\n\n a {} {{x}} "
        )
        (matrix,) = compare(models, asked).matrices
        reader = matrix.reader
        wanted = models.clip(reader.image, reader.text).classifier(["cat", "dog"], **options)
        assert matrix.templates == wanted.templates
        shares = wanted.probabilities([Image.open(cache / "cat.png")])
        assert torch.allclose(torch.tensor(matrix.shares), shares, atol=1e-4)


def test_another_language_is_read_and_english_readers_warn(models: Models, cache: Path) -> None:
    asked = request(cache, labels="кошка\nсобака\ncar", reads=ALL, wording=BARE)
    found = compare(models, asked)
    assert found.matrices[-1].reader.many_languages and found.matrices[-1].best == (0,)
    told = summary_html(found)
    assert f"English alone is read by {' and '.join(ENGLISH)}: for “кошка” and 1 more" in told
    assert "English alone" not in summary_html(
        compare(models, request(cache, labels="кошка", reads=ALL[-1:]))
    )


def test_a_text_that_does_not_fit_is_told(models: Models, cache: Path) -> None:
    found = compare(models, request(cache, labels="qz" * 100 + "\ncat", reads=ENGLISH[:1]))
    (matrix,) = found.matrices
    assert [label[:2] for label in matrix.cut] == ["qz"]
    assert f"longer than {ENGLISH[0]} reads" in summary_html(found)


def test_pictures_of_which_none_can_be_read_are_an_error_with_their_names(
    models: Models, cache: Path
) -> None:
    pictures = gallery(cache, "notes.png") + gallery(cache, "notes.png", called=NASTY)
    with pytest.raises(ImageError, match=r"'notes.png' is not.*'<img src=x.*' is not"):
        compare(models, request(cache, pictures=pictures))


# -- the page --------------------------------------------------------------------------


class Table(HTMLParser):
    """The tags of a page, and how often each attribute has each value."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]


def test_the_tables_say_what_each_cell_is_of(found: Compared) -> None:
    page = matrices_html(found)
    told = Table(page)
    many = len(found.matrices)
    assert told.tags.count("caption") == told.tags.count("table") == many
    assert told.attributes.count(("th", "scope", "col")) == many * (1 + len(SHOWN))
    assert told.attributes.count(("th", "scope", "row")) == many * len(LABELS)
    assert told.attributes.count(("div", "tabindex", "0")) == many
    assert told.attributes.count(("span", "aria-label", "nearest")) == many * len(SHOWN)
    changed = sum(len(matrix.changed) for matrix in found.matrices)
    assert told.attributes.count(("span", "aria-label", "nearest by bare names")) == changed
    assert told.tags.count("s") == changed > 0
    assert "★" in page and "☆" in page
    # The nearest of all has the strongest shade, the farthest none.
    shades = [float(shade) for shade in re.findall(r"--heat:([\d.]+)", page)]
    assert shades.count(1.0) >= many and shades.count(0.0) >= many
    assert min(shades) >= 0 and max(shades) <= 1


def one(**changes: Any) -> Compared:
    """Two pictures and two texts, by hand."""
    matrix = Matrix(
        readers()[ENGLISH[0]], ("{}",), False, ((-0.004, 0.3), (-0.5, 0.25)),
        ((0.1, 0.9), (0.25, 0.75)), (0, 1), (),
    )  # fmt: skip
    pictures = tuple((name, Image.new("RGB", (9, 5))) for name in (NASTY, "b.png"))
    made = {"pictures": pictures, "labels": (NASTY, "b"), "matrices": (matrix, matrix)}
    return Compared(**{**made, "unreadable": (NASTY,), "seconds": 0.123, **changes})


def test_what_people_write_is_escaped() -> None:
    found = one()
    for page in (matrices_html(found), summary_html(found)):
        assert "onerror" in page
        assert "<img src=x" not in page
        assert not [each for each in Table(page).attributes if each[1] == "onerror"]


def test_numbers_and_marks_are_readable() -> None:
    page = matrices_html(one())
    assert "<b>0.00</b>" in page and "<b>−0.50</b>" in page and "<small>75%</small>" in page
    assert "The wording changes 1 of 2" in page
    assert "2 pictures, 2 texts, 2 models in 0.1 s · the models agree on 2 of 2" in summary_html(
        one()
    )
    alone = one(labels=("b",), matrices=(one().matrices[0],))
    assert "1 text, 1 model in" in summary_html(alone) and "agree" not in summary_html(alone)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_taken(cache: Path, example: str) -> None:
    assert len(checked(request(cache, labels=example)).labels) >= 3
