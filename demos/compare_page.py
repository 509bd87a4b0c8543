"""A comparison as the page shows it: each reader's table of similarities, and what a wording
changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.markup import Markup, fill, joined
from demos.comparing import Compared, Matrix, Reader
from demos.messages import note, warning
from demos.pictures import data_uri

if TYPE_CHECKING:
    from PIL.Image import Image

# Of a thumbnail, whose place on the page is half of it: sharp on a phone's dense screen.
_THUMB_SIDE = 128
_HOW_TO_READ = (
    "The cosine of each text with each picture, and below it how likely the text is among these. "
    "The stronger the shade, the nearer. ★ marks a picture's nearest text"
)
_BEST, _BEFORE = "★", "☆"
_MARKS = {_BEST: "nearest", _BEFORE: "nearest by bare names"}


def summary_html(found: Compared) -> str:
    """What was compared, in how long, and warnings."""
    counts = [
        (len(found.pictures), "picture"),
        (len(found.labels), "text"),
        (len(found.matrices), "model"),
    ]
    told = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for n, name in counts)
    line = f"{told} in {found.seconds:.1f} s"
    if len(found.matrices) > 1:
        line += f" · the models agree on {found.alike} of {len(found.pictures)}"
    left_out = [f"Left out: {why}" for why in found.unreadable]
    warnings = [*left_out, *_cut_off(found), *_other_languages(found)]
    return note(line) + "".join(map(warning, warnings))


def _cut_off(found: Compared) -> list[str]:
    return [
        f"{_some(matrix.cut)}: longer than {matrix.reader.name} reads; the end counts for nothing."
        for matrix in found.matrices
        if matrix.cut
    ]


def _other_languages(found: Compared) -> list[str]:
    """A warning where English alone is read and a text is perhaps of another language."""
    english = [each.reader.name for each in found.matrices if not each.reader.many_languages]
    foreign = [label for label in found.labels if any(map(_is_foreign, label))]
    if not english or not foreign:
        return []
    return [
        f"English alone is read by {' and '.join(english)}: for {_some(foreign)}, go by a model "
        "that reads many languages."
    ]


def _is_foreign(letter: str) -> bool:
    return letter.isalpha() and not letter.isascii()


def _some(labels: tuple[str, ...] | list[str]) -> str:
    """The first of some texts, and how many more there are."""
    first = labels[0] if len(labels[0]) <= 40 else labels[0][:40] + "…"
    more = len(labels) - 1
    return f"“{first}”" + (f" and {more} more" if more else "")


# ---------------------------------------------------------------- tables


def matrices_html(found: Compared) -> str:
    """A table a reader, side by side where there is room."""
    thumbs = [_thumbnail(image) for _, image in found.pictures]
    before = any(matrix.changed for matrix in found.matrices)
    return str(
        fill(
            '<div class="bridge-study"><p class="bridge-note">{}{}.</p>'
            '<div class="bridge-compare" style="--pictures:{}">{}</div></div>',
            _HOW_TO_READ,
            f", and {_BEFORE} what it was by bare names" if before else "",
            len(thumbs),
            joined(_section(found, matrix, thumbs) for matrix in found.matrices),
        )
    )


def _section(found: Compared, matrix: Matrix, thumbs: list[str]) -> Markup:
    return fill(
        '<section><h3>{}</h3><p class="bridge-note">{}</p>'
        '<div class="rows" tabindex="0" role="region" aria-label="Similarities by {}">{}</div>{}'
        "</section>",
        matrix.reader.name,
        _about(matrix),
        matrix.reader.name,
        _table(found, matrix, thumbs),
        _changes(found, matrix),
    )


def languages(reader: Reader) -> str:
    """What a reader reads, in two words."""
    return "many languages" if reader.many_languages else "English"


def _about(matrix: Matrix) -> Markup:
    sentences = joined((fill("<bdi>“{}”</bdi>", each) for each in matrix.templates), ", ")
    return fill(
        "Reads {} ({}). Texts as {}{}{}.",
        languages(matrix.reader),
        matrix.reader.notes,
        sentences,
        ", averaged" if len(matrix.templates) > 1 else "",
        ", through the model's head" if matrix.has_head else "",
    )


def _table(found: Compared, matrix: Matrix, thumbs: list[str]) -> Markup:
    heads = joined(
        fill(
            '<th scope="col" title="{}"><img src="{}" alt=""><small>{}</small><small>{}</small>'
            "</th>",
            name,
            thumb,
            place,
            name,
        )
        for place, (thumb, (name, _)) in enumerate(zip(thumbs, found.pictures, strict=True), 1)
    )
    every = [value for row in matrix.similarities for value in row]
    lines = joined(
        fill(
            '<tr><th scope="row"><bdi>{}</bdi></th>{}</tr>',
            label,
            joined(
                _cell(matrix, picture, place, min(every), max(every))
                for picture in range(len(thumbs))
            ),
        )
        for place, label in enumerate(found.labels)
    )
    return fill(
        '<table><caption>Texts by pictures, {}</caption><thead><tr><th scope="col">Text</th>{}</tr>'
        "</thead><tbody>{}</tbody></table>",
        matrix.reader.name,
        heads,
        lines,
    )


def _cell(matrix: Matrix, picture: int, label: int, least: float, most: float) -> Markup:
    value = matrix.similarities[picture][label]
    mark = ""
    if matrix.best[picture] == label:
        mark = _BEST
    elif matrix.bare[picture] == label:
        mark = _BEFORE
    shown = fill(' <span role="img" aria-label="{}">{}</span>', _MARKS.get(mark, ""), mark)
    return fill(
        '<td{} style="--heat:{:.3f}"><b>{}</b>{}<small>{:.0%}</small></td>',
        Markup(' class="best"') if mark == _BEST else "",
        (value - least) / (most - least) if most > least else 0.0,
        _figure(value),
        shown if mark else "",
        matrix.shares[picture][label],
    )


def _figure(value: float) -> str:
    """Two places, with a minus that screen readers say; never a minus before zero."""
    return f"{value:z.2f}".replace("-", "−")


def _changes(found: Compared, matrix: Matrix) -> Markup:
    """What each picture was by bare names, where the wording makes it another."""
    if not matrix.changed:
        return Markup()
    lines = joined(
        fill(
            "<li><bdi>{}</bdi>: by bare names <s><bdi>{}</bdi></s>, now <b><bdi>{}</bdi></b></li>",
            _called(found, place),
            found.labels[matrix.bare[place]],
            found.labels[matrix.best[place]],
        )
        for place in matrix.changed
    )
    return fill(
        "<h4>The wording changes {} of {}</h4><ul>{}</ul>",
        len(matrix.changed),
        len(found.pictures),
        lines,
    )


def _called(found: Compared, place: int) -> str:
    """A picture's number and its file's name."""
    return f"{place + 1} · {found.pictures[place][0]}"


def _thumbnail(image: Image) -> str:
    shown = image.copy()
    shown.thumbnail((_THUMB_SIDE, _THUMB_SIDE))
    return data_uri(shown)
