"""A study as the page shows it: which words matter, how near phrasings stay, what they draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from bridge.errors import BridgeError
from bridge.lab import overlay
from bridge.lab.variants import ORIGINAL
from bridge.markup import Markup, fill, joined
from bridge.prompt import DIALECTS
from bridge.prompt.dialect import DialectName
from demos.messages import note, warning
from demos.pictures import data_uri
from demos.studying import CHOICES, Inquiry, Step, Studied

if TYPE_CHECKING:
    from PIL.Image import Image

    from bridge.lab.variant_pictures import VariantPicture

# Beside each other on the page; a model of 1024 pixels a side need not send them all.
_SHOWN_SIDE = 384
_CHOICE_NAMES = {choice: name for name, choice in CHOICES.items()}


def count_html(asked: Inquiry) -> str:
    """How many phrasings a press on Study would compare, of how many at most."""
    try:
        count = 1 + len(asked.variants())
    except BridgeError as error:
        return note(str(error))
    most = f"at most {asked.most}{' with pictures' if asked.draws else ''}"
    if count <= asked.most:
        return note(f"{count} phrasings with the prompt, of {most}.")
    cure = "Untick variants, or leave pictures out." if asked.draws else "Untick variants."
    return warning(f"{count} phrasings with the prompt are too many: {most}. {cure}")


def step_html(step: Step) -> str:
    """A progress bar and what goes on."""
    at = fill(" max='{}' value='{}'", step.steps, step.step) if step.steps else ""
    return str(
        fill(
            "<div class='bridge-drawing'><progress aria-label='Studying'{}></progress>"
            "<p class='bridge-note' role='status'>{}</p></div>",
            at,
            step.line,
        )
    )


def summary(studied: Studied) -> str:
    """What was compared, and in how long."""
    found = studied.study
    counts = [
        (1 + found.settings["variants"], "phrasing"),
        (len(found.towers), "tower"),
        (len(found.drawn), "picture"),
    ]
    told = [f"{n} {name}{'' if n == 1 else 's'}" for n, name in counts if n]
    return f"{', '.join(told)} in {studied.seconds:.1f} s"


# ---------------------------------------------------------------- tables


def tables_html(studied: Studied) -> str:
    """The prompt's words and the phrasings, as each tower reads them."""
    return str(
        fill(
            '<div class="bridge-study"><h3>Which words matter</h3><p class="bridge-note">How the '
            "prompt is split into tokens, and under each word how far the pooled state moves when "
            "the word is left out (1 − cosine).</p>{}<h3>How near each phrasing stays</h3>"
            '<p class="bridge-note">Cosine of pooled states with the prompt\'s own. Bars begin at '
            "chance, the mean cosine of unrelated texts, and end at 1. “By token” is the mean "
            "cosine of the tokens that both texts have.</p>{}</div>",
            _words(studied),
            _phrasings(studied),
        )
    )


def _words(studied: Studied) -> Markup:
    table = studied.study.words
    if table.empty:
        return Markup()
    lines = []
    for tower, own in table.groupby("tower", sort=False):
        rows = own.sort_values("position").to_dict("records")
        top = max(row["leave_one_out"] for row in rows) or 1.0
        chips = joined(
            fill(
                '<li style="--heat:{:.3f}"><bdi>{}</bdi><small>{:.3f}</small></li>',
                max(0.0, row["leave_one_out"]) / top,
                _pieces(_word_pieces(row)),
                row["leave_one_out"],
            )
            for row in rows
        )
        lines.append(fill('<h4>{}</h4><ol class="chips">{}</ol>', tower, chips))
    return joined(lines)


def _word_pieces(row: dict[str, Any]) -> list[str]:
    """A word's tokens as text. The embedded towers' tokenizers mark a word's end."""
    pieces = [piece.replace("</w>", "") for piece in row["pieces"].split()]
    return pieces or [row["word"]]


def _phrasings(studied: Studied) -> Markup:
    found = studied.study
    towers = found.towers.to_dict("records")
    of: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in found.table.to_dict("records"):
        key = (row["operation"], row["detail"], row["text"], row["dialect"])
        of.setdefault(key, {})[row["tower"]] = row
    head = joined(
        fill('<th scope="col">{}<small>chance {:.2f}</small></th>', tower["tower"], tower["chance"])
        for tower in towers
    )
    lines = joined(
        fill(
            '<tr><th scope="row">{}</th>{}</tr>',
            _phrasing(studied, *key),
            joined(_nearness(by[tower["tower"]]) for tower in towers),
        )
        for key, by in of.items()
    )
    return fill(
        '<div class="rows" tabindex="0"><table><thead><tr><th scope="col">Phrasing</th>{}</tr>'
        "</thead><tbody>{}</tbody></table></div>",
        head,
        lines,
    )


def _phrasing(studied: Studied, operation: str, detail: str, text: str, dialect: str) -> Markup:
    weighted = dialect not in DIALECTS or DIALECTS[cast(DialectName, dialect)].has_weights
    about = [operation, detail, dialect if weighted else ""]
    splits: dict[tuple[str, ...], list[str]] = {}
    if not weighted:
        for tower, pieces in studied.pieces.items():
            splits.setdefault(pieces[text], []).append(tower)
    # Towers that split alike say so once.
    named = {pieces: f"{', '.join(names)}: " for pieces, names in splits.items()}
    split = joined(
        fill(
            '<span class="split">{}<bdi>{}</bdi></span>',
            name if len(named) > 1 else "",
            _pieces(pieces),
        )
        for pieces, name in named.items()
    )
    told = " · ".join(filter(None, about))
    return fill("<bdi>{}</bdi><small>{}</small>{}", text, told, split)


def _pieces(pieces: Sequence[str]) -> Markup:
    return joined(pieces, "<i>|</i>")


def _nearness(row: dict[str, Any]) -> Markup:
    """A tower's cell: the pooled cosine with a bar, then tokens."""
    near = row.get("pooled_above_chance", math.nan)
    bar = 0.0 if math.isnan(near) else min(1.0, max(0.0, near))
    count, cut = row.get("tokens", math.nan), row.get("cut", 0)
    tokens = Markup() if math.isnan(count) else fill("<small>{:.0f} tokens</small>", count)
    if cut and not math.isnan(cut):
        tokens += fill("<small>{:.0f} cut off</small>", cut)
    return fill(
        '<td><b>{}</b><span class="bar"><span style="width:{:.1%}"></span></span>'
        "<small>by token {}</small>{}</td>",
        _figure(row.get("pooled_cosine")),
        bar,
        _figure(row.get("token_cosine")),
        tokens,
    )


def _figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


# ---------------------------------------------------------------- pictures


def pictures_html(studied: Studied, word: str | None) -> str:
    """Each phrasing's pictures, one a choice, and where ``word`` was looked at in them."""
    found = studied.study
    if not found.drawn:
        return ""
    cards: dict[tuple[str, str, str], list[Markup]] = {}
    for row, drawn in zip(found.pictures.to_dict("records"), found.drawn, strict=True):
        key = (row["operation"], row["text"], row["dialect"])
        cards.setdefault(key, []).append(_figures(row, drawn, word))
    sections = joined(
        fill(
            '<section><h4><bdi>{}</bdi></h4><div class="figures">{}</div></section>',
            text,
            joined(figures),
        )
        for (_, text, _), figures in cards.items()
    )
    return str(
        fill(
            '<div class="bridge-study"><h3>What is drawn</h3><p class="bridge-note">All with seed '
            "{} and guidance {}. Drift is from the prompt's own picture: the root mean square of "
            "pixels, and 1 − cosine in an image tower's space where there is one. Heat maps are of "
            'the whole model.</p><div class="cards">{}</div></div>',
            found.settings["seeds"][0],
            _number(found.settings["guidance_scale"]),
            sections,
        )
    )


def _number(value: object) -> str:
    """3 for 3.0; what is no number, as it is."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figures(row: dict[str, Any], drawn: VariantPicture, word: str | None) -> Markup:
    choice = _CHOICE_NAMES.get(drawn.choice, drawn.choice)
    drift = [_figure(row[name]) for name in ("pixel_distance", "tower_distance") if name in row]
    moved = row["operation"] != ORIGINAL
    shown = _figure_html(
        fill('<img src="{}" alt="{}, by {}">', _small(drawn.image), row["text"], choice),
        choice,
        f"drift {' · '.join(drift)}" if moved else "",
    )
    if word is None or not (drawn.heat or drawn.choice == "whole"):
        return shown
    heat = drawn.heat.get(word)
    if heat is None:
        nothing = Markup('<div class="none"></div>')
        return shown + _figure_html(nothing, f"no “{word}” in it", "")
    source = _small(overlay(drawn.image, heat))
    shown_heat = fill('<img class="heat" src="{}" alt="where “{}” was looked at">', source, word)
    return shown + _figure_html(shown_heat, f"“{word}”", "")


def _figure_html(inner: Markup, caption: str, small: str) -> Markup:
    return fill(
        "<figure>{}<figcaption>{}<small>{}</small></figcaption></figure>", inner, caption, small
    )


def _small(image: Image) -> str:
    shown = image.copy()
    shown.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return data_uri(shown)
