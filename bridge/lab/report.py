"""One self-contained HTML page of a study: no network, no scripts, all text escaped."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

from bridge.lab.charts import legend, strips
from bridge.lab.overlaying import overlay
from bridge.lab.style import STYLE
from bridge.lab.variants.variant import ORIGINAL

if TYPE_CHECKING:
    from PIL.Image import Image

    from bridge.lab.painting import Drawn
    from bridge.lab.result import Study

Row = dict[str, Any]
_NAMES = {
    "pooled_cosine": "pooled cosine",
    "pooled_above_chance": "above chance",
    "pooled_centred": "pooled, centred",
    "token_cosine": "token cosine",
    "token_centred": "token, centred",
    "pieces_per_word": "pieces a word",
    "leave_one_out": "effect",
    "leave_one_out_centred": "effect, centred",
    "rollout_share": "share by rollout",
    "effective_rank": "effective rank",
    "kendall_tau": "Kendall's τ",
    "cka": "CKA",
    "token_chance": "chance of tokens",
    "pixel_distance": "pixel distance",
    "tower_distance": "tower distance",
}


def page(study: Study) -> str:
    """The whole page."""
    prompts = study.settings["prompts"]
    title = prompts[0] if len(prompts) == 1 else f"{len(prompts)} prompts"
    body = "".join([_head(study), *(_prompt(study, prompt) for prompt in prompts), _foot(study)])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} · bridge study</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>"
    )


def _head(study: Study) -> str:
    towers = study.towers.to_dict("records")
    facts = [f"{study.settings['variants']} variants", f"{len(towers)} towers"]
    if study.drawn:
        facts.append(f"{len(study.drawn)} pictures by {study.settings['model']}")
    return (
        f"<h1>How phrasing is read</h1><p>{escape(', '.join(facts))}.</p>"
        "<h2>Towers</h2><p>“Chance” is the mean cosine of unrelated texts: a cosine of that height "
        "says nothing.</p>" + _table(towers)
    )


def _prompt(study: Study, prompt: str) -> str:
    rows = _of(study.table, prompt)
    names = [row["tower"] for row in study.towers.to_dict("records")]
    chance = {row["tower"]: row["chance"] for row in study.towers.to_dict("records")}
    strip_rows: dict[str, list[tuple[str, float, str]]] = {}
    for row in rows:
        if row["operation"] != ORIGINAL:
            hint = f"{row['tower']} · {row['text']} · {_figure(row.get('pooled_cosine'))}"
            value = row.get("pooled_cosine")
            strip_rows.setdefault(row["operation"], []).append(
                (row["tower"], math.nan if value is None else float(value), hint)
            )
    parts = [f'<section><h2><bdi class="prompt">{escape(prompt) or "(empty)"}</bdi></h2>']
    if strip_rows:
        parts += [
            "<h3>How near each variant stays</h3><p>Cosine of pooled states with the prompt's own; "
            "dashed lines are chance.</p>",
            legend(names),
            f'<div class="wide">{strips(strip_rows, chance, names, "Cosine by operation")}</div>',
        ]
    parts += [
        _pictures(study, prompt),
        _words(_of(study.words, prompt), names),
        _titled("How many ways they differ", _of(study.sets, prompt),
                "Effective rank of the pooled states of a set of variants."),
        _titled("Do the towers agree?", _of(study.pairs, prompt),
                "τ compares which variants move most, CKA which texts lie near which."),
        "<details><summary>All variants</summary>",
        _table([{k: v for k, v in row.items() if k != "prompt"} for row in rows]),
        "</details></section>",
    ]  # fmt: skip
    return "".join(parts)


def _foot(study: Study) -> str:
    rows = study.verdicts.to_dict("records")
    shown = _titled("What the judge found", rows, "Means with 95 % intervals.")
    settings = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in study.settings.items()
    )
    return f"{shown}<h2>Settings</h2><dl>{settings}</dl>"


# ---------------------------------------------------------------- words and pictures


def _words(rows: Sequence[Row], towers: Sequence[str]) -> str:
    """The prompt's words, the more marked the more each matters, tower by tower."""
    if not rows:
        return ""
    lines = []
    for tower in towers:
        own = [row for row in rows if row["tower"] == tower]
        top = max((_known(row["leave_one_out"]) for row in own), default=0.0) or 1.0
        marks = "".join(
            f'<li style="--heat:{_known(row["leave_one_out"]) / top:.3f}"><bdi>'
            f"{escape(str(row['word']))}</bdi><small>{_figure(row['leave_one_out'])}</small>"
            f"<small>{_figure(row['rollout_share'])}</small></li>"
            for row in own
        )
        lines.append(f'<h4><bdi>{escape(tower)}</bdi></h4><ol class="words">{marks}</ol>')
    return (
        "<h3>Which words matter</h3><p>Under each word how far the pooled state moves without it "
        "(1 − cosine), and its share of the pooled state by attention rollout.</p>"
        + "".join(lines)
        + "<details><summary>Pieces and figures</summary>"
        + _table([{k: v for k, v in row.items() if k != "prompt"} for row in rows])
        + "</details>"
    )


def _pictures(study: Study, prompt: str) -> str:
    found = [
        (row, drawn)
        for row, drawn in zip(study.pictures.to_dict("records"), study.drawn, strict=True)
        if row["prompt"] == prompt
    ]
    if not found:
        return ""
    cards = []
    for row, drawn in found:
        lines = [f"{row['operation']}, seed {row['seed']}"]
        if row["choice"] != "whole":
            lines[0] += f", by {row['choice']}"
        if row["operation"] != ORIGINAL:
            lines += [
                f"{_NAMES[name]} {_figure(row[name])}"
                for name in ("pixel_distance", "tower_distance")
                if name in row
            ]
        lines += [
            f"{name.removeprefix('judge_')} {_figure(value)}"
            for name, value in row.items()
            if name.startswith("judge_")
        ]
        notes = "".join(f"<small>{escape(line)}</small>" for line in lines)
        cards.append(
            f"<figure>{_img(drawn.image, row['text'])}<figcaption><bdi>{escape(row['text'])}</bdi>"
            f"{notes}</figcaption>{_heats(drawn)}</figure>"
        )
    return f'<h3>What is drawn</h3><div class="grid">{"".join(cards)}</div>'


def _heats(drawn: Drawn) -> str:
    if not drawn.heat:
        return ""
    maps = "".join(
        f"<figure>{_img(overlay(drawn.image, heat), f'where {word} was looked at')}"
        f"<figcaption><bdi>{escape(word)}</bdi></figcaption></figure>"
        for word, heat in drawn.heat.items()
    )
    return f'<details><summary>Heat maps</summary><div class="heats">{maps}</div></details>'


def _img(image: Image, alt: str) -> str:
    data = BytesIO()
    image.convert("RGB").save(data, "WEBP", quality=90)
    text = base64.b64encode(data.getvalue()).decode()
    return (
        f'<img loading="lazy" width="{image.width}" height="{image.height}" '
        f'alt="{escape(alt)}" src="data:image/webp;base64,{text}">'
    )


# ---------------------------------------------------------------- tables


def _titled(title: str, rows: Sequence[Row], about: str) -> str:
    if not rows:
        return ""
    kept = [{k: v for k, v in row.items() if k != "prompt"} for row in rows]
    return f"<h3>{escape(title)}</h3><p>{escape(about)}</p>{_table(kept)}"


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    names = list(rows[0])
    head = "".join(f'<th scope="col">{escape(_NAMES.get(name, name))}</th>' for name in names)
    lines = "".join(f"<tr>{''.join(_cells(row, names))}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cells(row: Row, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            yield f"<td><bdi>{escape(value)}</bdi></td>"
        else:
            yield f'<td class="n">{_figure(value)}</td>'


def _figure(value: Any) -> str:
    """A number in few digits; a dash for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) >= 2 else f"{value:.3f}"
    return escape(str(value))


def _known(value: Any) -> float:
    return 0.0 if value is None or math.isnan(value) else max(0.0, float(value))


def _of(table: Any, prompt: str) -> list[Row]:
    rows: list[Row] = table.to_dict("records")
    return [row for row in rows if row.get("prompt") == prompt]
