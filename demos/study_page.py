"""A study as the page shows it: which words matter, how near phrasings stay, what they draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError
from bridge.lab import overlay
from bridge.lab.variants import ORIGINAL
from demos.messages import note, warning
from demos.pictures import data_uri
from demos.studying import CHOICES, Inquiry, Step, Studied

if TYPE_CHECKING:
    from PIL.Image import Image

    from bridge.lab.painting import Drawn

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
    at = f" max='{step.steps}' value='{step.step}'" if step.steps else ""
    return (
        f"<div class='bridge-drawing'><progress aria-label='Studying'{at}></progress>"
        f"<p class='bridge-note' role='status'>{escape(step.line)}</p></div>"
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
    return (
        '<div class="bridge-study"><h3>Which words matter</h3><p class="bridge-note">How the '
        "prompt is split into tokens, and under each word how far the pooled state moves when the "
        f"word is left out (1 − cosine).</p>{_words(studied)}"
        '<h3>How near each phrasing stays</h3><p class="bridge-note">Cosine of pooled states with '
        "the prompt's own. Bars begin at chance, the mean cosine of unrelated texts, and end at "
        "1. “By token” is the mean cosine of the tokens that both texts have.</p>"
        f"{_phrasings(studied)}</div>"
    )


def _words(studied: Studied) -> str:
    table = studied.study.words
    if table.empty:
        return ""
    lines = []
    for tower, own in table.groupby("tower", sort=False):
        rows = own.sort_values("position").to_dict("records")
        top = max(row["leave_one_out"] for row in rows) or 1.0
        chips = "".join(
            f'<li style="--heat:{max(0.0, row["leave_one_out"]) / top:.3f}">'
            f"<bdi>{_pieces(_word_pieces(row))}</bdi><small>{row['leave_one_out']:.3f}</small></li>"
            for row in rows
        )
        lines.append(f'<h4>{escape(tower)}</h4><ol class="chips">{chips}</ol>')
    return "".join(lines)


def _word_pieces(row: dict[str, Any]) -> list[str]:
    """A word's tokens as text. The embedded towers' tokenizers mark a word's end."""
    pieces = [piece.replace("</w>", "") for piece in row["pieces"].split()]
    return pieces or [row["word"]]


def _phrasings(studied: Studied) -> str:
    found = studied.study
    towers = found.towers.to_dict("records")
    of: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in found.table.to_dict("records"):
        key = (row["operation"], row["detail"], row["text"], row["dialect"])
        of.setdefault(key, {})[row["tower"]] = row
    head = "".join(
        f'<th scope="col">{escape(tower["tower"])}<small>chance {tower["chance"]:.2f}</small></th>'
        for tower in towers
    )
    lines = "".join(
        f'<tr><th scope="row">{_phrasing(studied, *key)}</th>'
        f"{''.join(_nearness(by[tower['tower']]) for tower in towers)}</tr>"
        for key, by in of.items()
    )
    return (
        f'<div class="rows" tabindex="0"><table><thead><tr><th scope="col">Phrasing</th>{head}</tr>'
        f"</thead><tbody>{lines}</tbody></table></div>"
    )


def _phrasing(studied: Studied, operation: str, detail: str, text: str, dialect: str) -> str:
    about = [operation, detail, dialect if dialect != "plain" else ""]
    splits: dict[tuple[str, ...], list[str]] = {}
    if dialect == "plain":
        for tower, pieces in studied.pieces.items():
            splits.setdefault(pieces[text], []).append(tower)
    # Towers that split alike say so once.
    named = {pieces: f"{', '.join(names)}: " for pieces, names in splits.items()}
    split = "".join(
        f'<span class="split">{escape(name) if len(named) > 1 else ""}'
        f"<bdi>{_pieces(pieces)}</bdi></span>"
        for pieces, name in named.items()
    )
    return (
        f"<bdi>{escape(text)}</bdi><small>{escape(' · '.join(filter(None, about)))}</small>{split}"
    )


def _pieces(pieces: Sequence[str]) -> str:
    return "<i>|</i>".join(map(escape, pieces))


def _nearness(row: dict[str, Any]) -> str:
    """A tower's cell: the pooled cosine with a bar, then tokens."""
    near = row.get("pooled_above_chance", math.nan)
    bar = 0.0 if math.isnan(near) else min(1.0, max(0.0, near))
    count, cut = row.get("tokens", math.nan), row.get("cut", 0)
    tokens = "" if math.isnan(count) else f"<small>{count:.0f} tokens</small>"
    if cut and not math.isnan(cut):
        tokens += f"<small>{cut:.0f} cut off</small>"
    return (
        f'<td><b>{_figure(row.get("pooled_cosine"))}</b><span class="bar"><span style="width:'
        f'{bar:.1%}"></span></span><small>by token {_figure(row.get("token_cosine"))}</small>'
        f"{tokens}</td>"
    )


def _figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


# ---------------------------------------------------------------- pictures


def pictures_html(studied: Studied, word: str | None) -> str:
    """Each phrasing's pictures, one a choice, and where ``word`` was looked at in them."""
    found = studied.study
    if not found.drawn:
        return ""
    cards: dict[tuple[str, str, str], list[str]] = {}
    for row, drawn in zip(found.pictures.to_dict("records"), found.drawn, strict=True):
        key = (row["operation"], row["text"], row["dialect"])
        cards.setdefault(key, []).append(_figures(row, drawn, word))
    sections = "".join(
        f'<section><h4><bdi>{escape(text)}</bdi></h4><div class="figures">{"".join(figures)}</div>'
        "</section>"
        for (_, text, _), figures in cards.items()
    )
    seed, guidance = found.settings["seeds"][0], found.settings["guidance_scale"]
    return (
        '<div class="bridge-study"><h3>What is drawn</h3><p class="bridge-note">All with seed '
        f"{seed} and guidance {guidance:g}. Drift is from the prompt's own picture: the root mean "
        "square of pixels, and 1 − cosine in an image tower's space where there is one. Heat maps "
        f'are of the whole model.</p><div class="cards">{sections}</div></div>'
    )


def _figures(row: dict[str, Any], drawn: Drawn, word: str | None) -> str:
    choice = _CHOICE_NAMES.get(drawn.choice, drawn.choice)
    drift = [_figure(row[name]) for name in ("pixel_distance", "tower_distance") if name in row]
    moved = row["operation"] != ORIGINAL
    shown = _figure_html(
        f'<img src="{_small(drawn.image)}" alt="{escape(row["text"], quote=True)}, by {choice}">',
        choice,
        f"drift {' · '.join(drift)}" if moved else "",
    )
    if word is None or not (drawn.heat or drawn.choice == "whole"):
        return shown
    heat = drawn.heat.get(word)
    if heat is None:
        return shown + _figure_html('<div class="none"></div>', f"no “{word}” in it", "")
    name = f"where “{word}” was looked at"
    source = _small(overlay(drawn.image, heat))
    alt = escape(name, quote=True)
    return shown + _figure_html(f'<img class="heat" src="{source}" alt="{alt}">', f"“{word}”", "")


def _figure_html(inner: str, caption: str, small: str) -> str:
    return (
        f"<figure>{inner}<figcaption>{escape(caption)}<small>{escape(small)}</small>"
        "</figcaption></figure>"
    )


def _small(image: Image) -> str:
    shown = image.copy()
    shown.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return data_uri(shown)
