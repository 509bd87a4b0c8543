"""One self-contained HTML page of a study: no network, no scripts, all text escaped."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from bridge.lab.charts import legend, strips
from bridge.lab.heat_overlay import overlay
from bridge.lab.style import STYLE
from bridge.lab.variants.variant import ORIGINAL
from bridge.markup import Markup, fill, joined

if TYPE_CHECKING:
    from PIL.Image import Image

    from bridge.lab.result import Study
    from bridge.lab.variant_pictures import VariantPicture

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
    body = joined([_head(study), *(_prompt(study, prompt) for prompt in prompts), _foot(study)])
    return str(
        fill(
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            "<title>{} · bridge study</title><style>{}</style></head>"
            "<body><main>{}</main></body></html>",
            title,
            Markup(STYLE),
            body,
        )
    )


def _head(study: Study) -> Markup:
    towers = study.towers.to_dict("records")
    facts = [f"{study.settings['variants']} variants", f"{len(towers)} towers"]
    if study.drawn:
        facts.append(f"{len(study.drawn)} pictures by {study.settings['model']}")
    return fill(
        "<h1>How phrasing is read</h1><p>{}.</p>"
        "<h2>Towers</h2><p>“Chance” is the mean cosine of unrelated texts: a cosine of that height "
        "says nothing.</p>{}",
        ", ".join(facts),
        _table(towers),
    )


def _prompt(study: Study, prompt: str) -> Markup:
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
    parts = []
    if strip_rows:
        parts.append(
            fill(
                "<h3>How near each variant stays</h3><p>Cosine of pooled states with the prompt's "
                'own; dashed lines are chance.</p>{}<div class="wide">{}</div>',
                legend(names),
                strips(strip_rows, chance, names, "Cosine by operation"),
            )
        )
    parts += [
        _pictures(study, prompt),
        _words(_of(study.words, prompt), names),
        _titled("How many ways they differ", _of(study.sets, prompt),
                "Effective rank of the pooled states of a set of variants."),
        _titled("Do the towers agree?", _of(study.pairs, prompt),
                "τ compares which variants move most, CKA which texts lie near which."),
        fill("<details><summary>All variants</summary>{}</details>", _table(_kept(rows))),
    ]  # fmt: skip
    return fill(
        '<section><h2><bdi class="prompt">{}</bdi></h2>{}</section>',
        prompt or "(empty)",
        joined(parts),
    )


def _foot(study: Study) -> Markup:
    rows = study.verdicts.to_dict("records")
    shown = _titled("What the judge found", rows, "Means with 95 % intervals.")
    settings = joined(fill("<dt>{}</dt><dd>{}</dd>", *pair) for pair in study.settings.items())
    return fill("{}<h2>Settings</h2><dl>{}</dl>", shown, settings)


# ---------------------------------------------------------------- words and pictures


def _words(rows: Sequence[Row], towers: Sequence[str]) -> Markup:
    """The prompt's words, the more marked the more each matters, tower by tower."""
    if not rows:
        return Markup()
    lines = []
    for tower in towers:
        own = [row for row in rows if row["tower"] == tower]
        top = max((_known(row["leave_one_out"]) for row in own), default=0.0) or 1.0
        marks = joined(
            fill(
                '<li style="--heat:{:.3f}"><bdi>{}</bdi><small>{}</small><small>{}</small></li>',
                _known(row["leave_one_out"]) / top,
                row["word"],
                _figure(row["leave_one_out"]),
                _figure(row["rollout_share"]),
            )
            for row in own
        )
        lines.append(fill('<h4><bdi>{}</bdi></h4><ol class="words">{}</ol>', tower, marks))
    return fill(
        "<h3>Which words matter</h3><p>Under each word how far the pooled state moves without it "
        "(1 − cosine), and its share of the pooled state by attention rollout.</p>{}"
        "<details><summary>Pieces and figures</summary>{}</details>",
        joined(lines),
        _table(_kept(rows)),
    )


def _pictures(study: Study, prompt: str) -> Markup:
    found = [
        (row, drawn)
        for row, drawn in zip(study.pictures.to_dict("records"), study.drawn, strict=True)
        if row["prompt"] == prompt
    ]
    if not found:
        return Markup()
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
        cards.append(
            fill(
                "<figure>{}<figcaption><bdi>{}</bdi>{}</figcaption>{}</figure>",
                _img(drawn.image, row["text"]),
                row["text"],
                joined(fill("<small>{}</small>", line) for line in lines),
                _heats(drawn),
            )
        )
    return fill('<h3>What is drawn</h3><div class="grid">{}</div>', joined(cards))


def _heats(drawn: VariantPicture) -> Markup:
    if not drawn.heat:
        return Markup()
    maps = joined(
        fill(
            "<figure>{}<figcaption><bdi>{}</bdi></figcaption></figure>",
            _img(overlay(drawn.image, heat), f"where {word} was looked at"),
            word,
        )
        for word, heat in drawn.heat.items()
    )
    return fill('<details><summary>Heat maps</summary><div class="heats">{}</div></details>', maps)


def _img(image: Image, alt: str) -> Markup:
    data = BytesIO()
    image.convert("RGB").save(data, "WEBP", quality=90)
    text = base64.b64encode(data.getvalue()).decode()
    return fill(
        '<img loading="lazy" width="{}" height="{}" alt="{}" src="data:image/webp;base64,{}">',
        image.width,
        image.height,
        alt,
        text,
    )


# ---------------------------------------------------------------- tables


def _titled(title: str, rows: Sequence[Row], about: str) -> Markup:
    if not rows:
        return Markup()
    return fill("<h3>{}</h3><p>{}</p>{}", title, about, _table(_kept(rows)))


def _kept(rows: Sequence[Row]) -> list[Row]:
    """The rows of one prompt, which need not say it."""
    return [{k: v for k, v in row.items() if k != "prompt"} for row in rows]


def _table(rows: Sequence[Row]) -> Markup:
    if not rows:
        return Markup()
    names = list(rows[0])
    head = joined(fill('<th scope="col">{}</th>', _NAMES.get(name, name)) for name in names)
    lines = joined(fill("<tr>{}</tr>", joined(_cells(row, names))) for row in rows)
    return fill(
        '<div class="wide" tabindex="0"><table><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>",
        head,
        lines,
    )


def _cells(row: Row, names: Iterable[str]) -> Iterator[Markup]:
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            yield fill("<td><bdi>{}</bdi></td>", value)
        else:
            yield fill('<td class="n">{}</td>', _figure(value))


def _figure(value: Any) -> str:
    """A number in few digits; a dash for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) >= 2 else f"{value:.3f}"
    return str(value)


def _known(value: Any) -> float:
    return 0.0 if value is None or math.isnan(value) else max(0.0, float(value))


def _of(table: Any, prompt: str) -> list[Row]:
    rows: list[Row] = table.to_dict("records")
    return [row for row in rows if row.get("prompt") == prompt]
