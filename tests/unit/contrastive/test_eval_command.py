"""`bridge eval-clip` from a folder of pictures to its files, on tiny random models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.tiny_folders import KINDS

import bridge
from bridge.cli import main
from bridge.contrastive import evaluate, read_eval_data
from bridge.contrastive.embeddings import unit
from bridge.contrastive.evaluation import classification
from bridge.errors import DataError, OptionError

COLOURS = {"red": (200, 30, 40), "green": (30, 180, 60), "blue": (40, 60, 210)}
HOSTILE = '<img src=x onerror="window.ran=1">&amp;"'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    KINDS["clip"].make(folder)
    return folder


def draw(path: Path, colour: tuple[int, int, int], number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (48, 40), colour)
    picture.paste((255, 255, 255), (number, 2 * number, number + 9, 2 * number + 7))
    picture.save(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of six pictures, and one file that is no picture."""
    root = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        for number in range(6):
            draw(root / f"{name}_square" / f"{number}.png", colour, number)
    (root / "red_square" / "broken.png").write_bytes(b"\x89PNG no more")
    return root


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures with two captions each."""
    root = tmp_path_factory.mktemp("captions")
    rows = ["path\tcaption"]
    for number in range(12):
        name, colour = list(COLOURS.items())[number % 3]
        draw(root / f"{number}.png", colour, number)
        rows += [f"{number}.png\ta {name} square {number}", f"{number}.png\t{number} in {name}"]
    (root / "t.tsv").write_text("\n".join(rows), encoding="utf-8")
    return root / "t.tsv"


def run(*arguments: object) -> int:
    return main(["eval-clip", *map(str, arguments), "--device", "cpu"])


def result(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of an error, at exit status 2."""
    assert run(*arguments) == 2
    out = capsys.readouterr()
    assert not out.out
    (line,) = out.err.splitlines()
    return line


# ---------------------------------------------------------------- what it gives


def test_a_folder_is_classified_and_probed(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert run(model, pictures, "--templates", "name", "--out", out) == 0
    told = capsys.readouterr().out
    files = {path.name for path in out.iterdir()}
    assert files == {"report.html", "results.json", "confusions.svg", "calibration.svg"}
    assert all(str(out / name) in told for name in files)
    assert "pictures that could not be read: 1; the first: '" in told and "broken.png" in told
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    names = [row["name"].partition("/")[2] for row in results["rows"]]
    assert names == [
        f"{task}/{figure}"
        for task in ("classification", "probe")
        for figure in ("top_1", "mean_per_class_recall", "calibration_error")
    ]
    for row in results["rows"]:
        assert {*row} == {"name", "value", "low", "high", "n", "unit"}
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 100
    assert [row["n"] for row in results["rows"]] == [18, 18, 18, 9, 9, 9]
    (left_out,) = results["unreadable"]
    assert left_out["name"].endswith("broken.png") and left_out["why"]
    assert {*results} >= {"command", "machine", "versions"}
    assert results["command"].startswith(f"bridge eval-clip {model} {pictures} --templates name")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "broken.png" in page and "blue square" in page


def test_figures_are_those_of_the_library(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zero-shot by hand: vectors of pictures and of names, and counting."""
    found = result(capsys, model, pictures, "--templates", "name", "--task", "classification")
    clip = bridge.CLIP(model, device="cpu")
    data = read_eval_data(pictures)
    kept = [(p, t) for p, t in zip(data.paths, data.targets, strict=True) if p.stem != "broken"]
    images = clip.encode_image([path for path, _ in kept])
    scores = clip.scores(images, clip.encode_text(list(data.labels)))
    targets = torch.tensor([target for _, target in kept])
    right = (scores.argmax(1) == targets).float().mean()
    top = next(row for row in found["rows"] if row["name"].endswith("/top_1"))
    assert top["value"] == pytest.approx(100 * float(right), abs=0.01)
    sure = scores.softmax(1).amax(1)
    whole = classification(scores, targets, data.labels, sigmoid=False)
    assert whole.confidences is not None and torch.allclose(whole.confidences, sure, atol=1e-5)
    assert whole.calibration is not None
    error = next(row for row in found["rows"] if row["name"].endswith("/calibration_error"))
    assert error["value"] == pytest.approx(100 * whole.calibration.error.value, abs=0.01)
    (classes,) = found["classes"].values()
    assert [each["label"] for each in classes] == ["blue square", "green square", "red square"]


def test_captions_are_retrieved(
    model: Path, captions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = result(capsys, model, captions)
    names = [row["name"].partition("/")[2] for row in found["rows"]]
    assert names == [
        f"retrieval/{way}_recall_at_{k}" for k in (1, 5, 10) for way in ("image", "text")
    ]
    assert [row["n"] for row in found["rows"]] == [24, 12] * 3


def test_an_unreadable_picture_takes_its_captions_with_it(
    model: Path, captions: Path, tmp_path: Path
) -> None:
    data = read_eval_data(captions)
    clip = bridge.CLIP(model, device="cpu")
    whole = evaluate(clip, data).retrieval
    path = tmp_path / "t.tsv"
    text = captions.read_text(encoding="utf-8").replace("\n", "\ngone.png\tnot there\n", 1)
    path.write_text(text, encoding="utf-8")
    found = evaluate(clip, read_eval_data(path, images=captions.parent))
    assert [each.name for each in found.unreadable] == [str(captions.parent / "gone.png")]
    assert found.retrieval is not None and whole is not None
    assert torch.equal(found.retrieval.image_ranks, whole.image_ranks)
    assert torch.equal(found.retrieval.text_ranks, whole.text_ranks)


def test_a_probe_is_fitted_on_pictures_of_its_own(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = tmp_path / "train"
    for name in ("red", "blue"):  # fewer labels than are measured
        for number in range(5):
            draw(train / f"{name}_square" / f"{number}.png", COLOURS[name], 20 + number)
    found = result(capsys, model, pictures, "--task", "probe", "--train", train)
    assert {row["n"] for row in found["rows"]} == {18}
    probe = evaluate(bridge.CLIP(model, device="cpu"), pictures, task="probe", train=train).probe
    assert probe is not None and probe.n_train == 10 and len(probe.classification) == 18
    assert not (probe.classification.predicted == 1).any()  # green was never learned


def test_names_of_a_list_are_those_of_the_training_pictures_too(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders of both have the same names, and the list says what they mean."""
    listed = tmp_path / "names.txt"
    listed.write_text("".join(f"{name}_square\t{name} thing\n" for name in COLOURS))
    options = ("--labels", listed, "--train", pictures, "--task", "probe")
    found = result(capsys, model, pictures, *options)
    assert {row["n"] for row in found["rows"]} == {18}
    assert f"--labels {listed}" in found["command"]


def test_two_models_side_by_side(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    KINDS["siglip"].make(other)
    out = tmp_path / "out"
    assert run(model, pictures, "--beside", other, "--task", "classification", "-o", out) == 0
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    models = list(results["classes"])
    assert len(models) == 2 and len(results["rows"]) == 6
    assert {path.name for path in out.iterdir()} == {
        "report.html", "results.json",
        "confusions-1.svg", "confusions-2.svg", "calibration-1.svg", "calibration-2.svg",
    }  # fmt: skip
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(page.count(f'<th scope="col"><bdi>{name}</bdi>') == 1 for name in models)


def test_too_few_pictures_for_a_probe_are_a_note(model: Path, tmp_path: Path) -> None:
    for name, colour in COLOURS.items():
        draw(tmp_path / name / "1.png", colour, 1)
    clip = bridge.CLIP(model, device="cpu")
    found = evaluate(clip, tmp_path)
    assert found.probe is None and "no linear probe" in found.notes[0]
    with pytest.raises(DataError, match="no linear probe: it needs two labels"):
        evaluate(clip, tmp_path, task="probe")


# ---------------------------------------------------------------- the page


class _Tags(HTMLParser):
    """What elements a page has, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_names_are_text(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    rows = ["path\tlabel\tcaption"]
    for number in range(8):
        path = f"{number}<b onclick=1>'.png"
        draw(root / path, COLOURS["red"], number)
        rows.append(f"{path}\t{number % 2} {HOSTILE}\ta caption {number}")
    rows.append(f"<script>gone\t1 {HOSTILE}\t</style>")
    (root / "t.tsv").write_text("\n".join(rows).replace('"', '""'), encoding="utf-8")
    table = (root / "t.tsv").read_text(encoding="utf-8").split("\n")
    quoted = "\n".join("\t".join(f'"{cell}"' for cell in row.split("\t")) for row in table)
    (root / "t.tsv").write_text(quoted, encoding="utf-8")
    out = tmp_path / "out"
    assert run(model, root / "t.tsv", "--out", out) == 0
    page = _Tags((out / "report.html").read_text(encoding="utf-8"))
    assert HOSTILE in page.text and "<script>gone" in page.text
    for tag, attributes in page.found:
        assert tag not in ("script", "b")
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/webp;base64,")
    for name in ("confusions", "calibration"):
        chart = _Tags((out / f"{name}.svg").read_text(encoding="utf-8"))
        assert not {tag for tag, _ in chart.found} & {"img", "script", "b"}
    # A chart has room for the beginning of a label.
    assert f"1 {HOSTILE}"[:23] in _Tags((out / "confusions.svg").read_text(encoding="utf-8")).text


def test_a_chart_of_many_labels_is_small() -> None:
    from bridge.contrastive.report import confusion_svg

    rng = torch.Generator().manual_seed(0)
    targets = torch.arange(3000) % 1500
    scores = torch.randn(3000, 1500, generator=rng)
    scores[torch.arange(3000), targets] += 3
    chart = confusion_svg(classification(scores, targets, [f"label {at}" for at in range(1500)]))
    assert len(chart) < 300_000 and "label 7" not in chart and re.search(">1001<", chart)


# ---------------------------------------------------------------- what is refused


def test_mistakes_are_told_before_a_model_loads(
    model: Path, pictures: Path, captions: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("bridge.contrastive.clip._open_towers", never)
    (tmp_path / "file").write_text("")
    cases: list[tuple[list[object], str]] = [
        ([pictures, "--task", "retrieval"], "retrieval needs captions, and "),
        ([captions, "--task", "classification"], "classification needs labels, and "),
        ([captions, "--train", pictures], "train is for a linear probe"),
        ([pictures, "--train", captions], "a linear probe needs labels, and "),
        ([pictures, "--out", tmp_path / "file"], "cannot be written"),
        ([pictures, "--out", ""], "out is an empty path"),
        ([tmp_path / "nothing"], "no such data"),
        ([pictures, "--templates", "no-such-set"], "No set of templates 'no-such-set'"),
        ([captions, "--templates", "name"], "templates is for classification"),
        ([pictures, "--task", "guess"], "invalid choice"),
        ([pictures, "--seed", "x"], "invalid int value"),
    ]
    other = tmp_path / "other" / "cow" / "1.png"
    draw(other, COLOURS["red"], 1)
    cases.append(([pictures, "--train", tmp_path / "other"], "has the label 'cow', which is not"))
    for arguments, words in cases:
        assert words in said(capsys, model, *arguments)


def test_other_mistakes_are_one_line(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"no picture")
    assert "none of the 2 pictures can be read" in said(capsys, model, tmp_path)
    out = tmp_path / "out"
    assert run(model, tmp_path, "--out", out) == 2
    assert not out.exists()


def test_a_classifier_of_other_labels_is_refused(model: Path, pictures: Path) -> None:
    clip = bridge.CLIP(model, device="cpu")
    by = clip.classifier(["cat", "dog"])
    with pytest.raises(OptionError, match="has other labels"):
        evaluate(clip, pictures, classifier=by)


def test_a_head_stands_between(model: Path, pictures: Path) -> None:
    """Pictures go through the head that the classifier's weights went through."""
    clip = bridge.CLIP(model, device="cpu")
    data = read_eval_data(pictures)
    by = clip.classifier(data.labels, templates="name")
    found = evaluate(clip, data, task="classification", classifier=by).classification
    assert found is not None
    vectors = unit(clip.encode_image(list(data.paths[:6])))
    assert torch.equal(by.scores(vectors).argmax(1), found.predicted[:6])
