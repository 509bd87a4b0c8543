"""Pictures with labels or captions as people have them, and one clear error for each mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bridge.contrastive import EvalData, read_eval_data
from bridge.errors import DataError


def folder(root: Path, classes: dict[str, Sequence[str]]) -> Path:
    """A folder for each class; nothing here opens a picture, so a name is enough."""
    for name, files in classes.items():
        (root / name).mkdir(parents=True)
        for file in files:
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    return root


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def coco(path: Path, images: Any, annotations: Any) -> Path:
    return table(path, json.dumps({"images": images, "annotations": annotations}))


def names(data: EvalData) -> list[str]:
    return [path.name for path in data.paths]


# ---------------------------------------------------------------- what is read


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    root = folder(
        tmp_path / "data",
        {
            "red_apple": ["b.PNG", "a.jpg", "more/c.webp", "notes.txt", ".hidden.png"],
            "dog": ["1.jpeg"],
            ".git": ["x.png"],
        },
    )
    found = read_eval_data(root)
    assert found.labels == ("dog", "red apple")
    assert names(found) == ["1.jpeg", "a.jpg", "b.PNG", "c.webp"]
    assert found.targets == (0, 1, 1, 1) and not found.captions
    assert found.source == str(root) and len(found) == 4
    assert all(path.is_file() for path in found.paths)


def captioned(root: Path, texts: dict[str, str | None]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
        if text is not None:
            table((root / name).with_suffix(".txt"), text)
    return root


def test_a_folder_with_a_text_beside_each_picture(tmp_path: Path) -> None:
    root = captioned(tmp_path, {"b.png": "a cat\n", "a.PNG": "a dog", "more/c.jpg": "a key"})
    found = read_eval_data(root)
    assert found.paths == (root / "a.PNG", root / "b.png", root / "more/c.jpg")
    assert found.captions == (("a dog",), ("a cat",), ("a key",))
    assert not found.labels and found.source == str(root)


def test_a_folder_with_a_table_for_all(tmp_path: Path) -> None:
    folder(tmp_path, {"images": ["a.png", "b.png"]})
    lines = [
        {"file_name": "images/a.png", "text": ["a cat", "one cat"]},
        {"file_name": "images/b.png", "text": "a dog"},
    ]
    table(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    found = read_eval_data(tmp_path)
    assert found.captions == (("a cat", "one cat"), ("a dog",))
    assert all(path.is_file() for path in found.paths)
    (tmp_path / "metadata.jsonl").unlink()
    table(tmp_path / "captions.csv", "file_name,caption\nimages/a.png,a cat\n")
    assert read_eval_data(tmp_path).captions == (("a cat",),)


@pytest.mark.parametrize("as_file", [True, False])
def test_names_of_folders_from_a_list(tmp_path: Path, as_file: bool) -> None:
    root = folder(tmp_path / "data", {"n02": ["a.png"], "n01": ["b.png"], "dog": ["c.png"]})
    listed = table(tmp_path / "names.txt", "n02\tgreat white shark\r\nn01\ttench\n\ndog\n")
    if not as_file:
        listed.rename(root / "classes.txt")
    found = read_eval_data(root, labels=listed if as_file else None)
    assert found.labels == ("great white shark", "tench", "dog")
    assert names(found) == ["a.png", "b.png", "c.png"] and found.targets == (0, 1, 2)


def test_a_list_of_plain_names_finds_folders_with_underscores(tmp_path: Path) -> None:
    root = folder(tmp_path, {"red_apple": ["a.png"], "dog": ["b.png"]})
    found = read_eval_data(root, labels=["red apple", "dog"])
    assert found.labels == ("red apple", "dog") and names(found) == ["a.png", "b.png"]


@pytest.mark.parametrize(("ending", "comma"), [(".csv", ","), (".tsv", "\t")])
def test_a_table_of_labels(tmp_path: Path, ending: str, comma: str) -> None:
    text = "\ufeffPath,Label,by\na.png,dog,me\nin/b.png,cat,me\na.png,dog,you\n"
    found = read_eval_data(table(tmp_path / f"t{ending}", text.replace(",", comma)))
    assert found.labels == ("cat", "dog") and found.targets == (1, 0)
    assert found.paths == (tmp_path / "a.png", tmp_path / "in" / "b.png")


def test_a_table_of_captions_several_a_picture(tmp_path: Path) -> None:
    text = 'file_name,text\na.png,"a cat, red"\nb.png,a dog\na.png,one cat\n'
    found = read_eval_data(table(tmp_path / "t.csv", text), images=tmp_path)
    assert names(found) == ["a.png", "b.png"] and not found.labels
    assert found.captions == (("a cat, red", "one cat"), ("a dog",))


def test_a_table_of_both(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "path,label,caption\na.png,cat,red\nb.png,dog,blue\n")
    found = read_eval_data(path, labels=["dog", "cat"])
    assert found.labels == ("dog", "cat") and found.targets == (1, 0)
    assert found.captions == (("red",), ("blue",))


def test_cocos_captions(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    path = coco(
        tmp_path / "c.json",
        [{"id": 7, "file_name": "a.jpg", "width": 3}, {"id": 3, "file_name": "b.jpg"}],
        [
            {"image_id": 3, "caption": "a dog "},
            {"image_id": 7, "caption": "a cat"},
            {"image_id": 3, "caption": "dogs", "id": 1},
        ],
    )
    found = read_eval_data(path, images=tmp_path / "pictures")
    assert found.paths == (tmp_path / "pictures" / "a.jpg", tmp_path / "pictures" / "b.jpg")
    assert found.captions == (("a cat",), ("a dog", "dogs"))


# ---------------------------------------------------------------- one clear error each

Make = Callable[[Path], dict[str, Any]]


def _csv(text: str, **options: Any) -> Make:
    return lambda root: {"source": table(root / "t.csv", text), **options}


def _classes(classes: dict[str, Sequence[str]], **options: Any) -> Make:
    return lambda root: {"source": folder(root / "data", classes), **options}


def _json(images: Any, annotations: Any) -> Make:
    return lambda root: {"source": coco(root / "c.json", images, annotations)}


_ONE = {"cat": ["a.png"], "dog": ["b.png"]}
_PICTURE = [{"id": 1, "file_name": "a.png"}]
MISTAKES: dict[str, tuple[Make, str]] = {
    "nothing there": (lambda root: {"source": root / "no"}, "no such data: '.*no'; give a folder"),
    "another file": (
        lambda root: {"source": table(root / "t.xlsx", "")},
        "is not data that can be read; give a folder",
    ),
    "no classes": (
        lambda root: {"source": folder(root / "data", {".x": []})},
        "has no labels and no captions: put .* write a .txt",
    ),
    "a picture without a text beside it": (
        lambda root: {"source": captioned(root, {"a.png": "a cat", "b.png": None})},
        "b.png has no caption \\(1 of 2",
    ),
    "an empty text": (
        lambda root: {"source": captioned(root, {"a.png": " "})},
        "a.png: text is empty",
    ),
    "a line that is not an object": (
        lambda root: {"source": table(root / "metadata.jsonl", "[1]").parent},
        "metadata.jsonl, line 1 is not an object",
    ),
    "a label that is a number": (
        lambda root: {
            "source": table(root / "metadata.jsonl", '{"image": "a", "label": 3}').parent
        },
        "metadata.jsonl, line 1: label is 3; give a text",
    ),
    "a table without captions": (
        lambda root: {"source": table(root / "metadata.jsonl", '{"file_name": "a"}').parent},
        "has the columns file_name; it needs path, and label or caption",
    ),
    "splits": (_classes({"train": ["a.png"], "val": ["b.png"]}), "holds splits \\(train, val\\)"),
    "an empty class": (_classes({"cat": ["a.png"], "dog": ["b.txt"]}), "'dog' has no pictures in"),
    "names that are alike": (
        _classes({"red apple": ["a.png"], "red_apple": ["b.png"]}),
        "has the label 'red apple' twice; give each once",
    ),
    "labels twice": (_classes(_ONE, labels=["cat", "dog", "cat"]), "the label 'cat' twice"),
    "a name twice": (
        lambda root: {
            "source": folder(root / "data", _ONE),
            "labels": table(root / "l.txt", "cat\tpet\ndog\tpet\n"),
        },
        "the label 'pet' twice",
    ),
    "no labels": (_classes(_ONE, labels=[]), "labels has no labels; give one name a line"),
    "an empty list": (
        lambda root: {
            "source": folder(root / "data", _ONE),
            "labels": table(root / "l.txt", "\n \n"),
        },
        "l.txt' has no labels",
    ),
    "no list": (_classes(_ONE, labels="nowhere.txt"), "'nowhere.txt' cannot be read: No such file"),
    "a folder that is not listed": (
        _classes({**_ONE, "cow": ["c.png"]}, labels=["cat", "dog"]),
        "has the folder 'cow', not among labels",
    ),
    "a listed class without a folder": (
        _classes(_ONE, labels=["cat", "dog", "cow"]),
        "the class 'cow' has no pictures in",
    ),
    "a folder and images": (_classes(_ONE, images="."), "holds its own pictures"),
    "images is no folder": (
        _csv("path,label\na,b\n", images="nowhere"),
        "'nowhere' is not a folder",
    ),
    "other columns": (
        _csv("file,class\na.png,cat\n"),
        "has the columns file, class; it needs path, and label or caption",
    ),
    "an empty table": (_csv(""), "has the columns \\(none\\); it needs path"),
    "no rows": (_csv("path,label\n"), "has no rows below its columns"),
    "no path": (_csv("path,label\na.png,cat\n,dog\n"), "row 3: path is empty"),
    "a short row": (_csv("path,label\na.png\n"), "row 2: label is empty"),
    "no caption": (_csv("path,caption\na.png, \n"), "row 2: caption is empty"),
    "two labels": (
        _csv("path,label\na.png,cat\na.png,dog\n"),
        "row 3: 'a.png' has the labels 'cat' and 'dog'; give a picture one label",
    ),
    "a label that is not listed": (
        _csv("path,label\na.png,cat\nb.png,dgo\n", labels=["cat", "dog"]),
        "has the label 'dgo', not among labels. Did you mean 'dog'\\?",
    ),
    "a label without pictures": (
        _csv("path,label\na.png,cat\n", labels=["cat", "dog"]),
        "the class 'dog' has no pictures in",
    ),
    "labels for captions": (
        _csv("path,caption\na.png,a cat\n", labels=["cat"]),
        "has captions and no labels",
    ),
    "not UTF-8": (
        lambda root: {"source": _bytes(root / "t.csv", b"path,label\n\xff,cat\n")},
        "is not text in UTF-8",
    ),
    "not JSON": (lambda root: {"source": table(root / "c.json", "{")}, "cannot be read as JSON"),
    "another layout": (
        lambda root: {"source": table(root / "c.json", "[]")},
        "is not in COCO's layout: COCO's captions have",
    ),
    "no file name": (_json([{"id": 1}], []), "images\\[0\\] of .* has no id and file_name"),
    "an id twice": (_json(_PICTURE * 2, []), "images\\[1\\] of .*: the id 1 is there twice"),
    "no pictures": (_json([], []), "has no pictures"),
    "a picture without caption": (_json(_PICTURE, []), "has no caption of the picture 'a.png'"),
    "a caption of no picture": (
        _json(_PICTURE, [{"image_id": 2, "caption": "a"}]),
        "annotations\\[0\\] of .*: there is no picture with the id 2",
    ),
    "an empty caption": (
        _json(_PICTURE, [{"image_id": 1, "caption": " "}]),
        "annotations\\[0\\] of .*: caption is empty",
    ),
    "an id that is a list": (_json([{"id": [1], "file_name": "a"}], []), "has no id and file_name"),
}


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_clear_error(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, words = MISTAKES[mistake]
    options = make(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        read_eval_data(options.pop("source"), **options)
    assert not re.search(r"\n", str(caught.value))


def test_many_names_are_not_all_told(tmp_path: Path) -> None:
    rows = "".join(f"{at}.png,label {at:02}\n" for at in range(30))
    path = table(tmp_path / "t.csv", f"path,label\n{rows}")
    with pytest.raises(DataError, match=r"the labels 'label 01', .*'label 05' and 24 more"):
        read_eval_data(path, labels=["label 00"])
