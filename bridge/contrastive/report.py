"""One HTML page of what was measured of a CLIP or of two, and its charts as SVG.

What the page says is worked out here, how it looks is in ``report.jinja`` and ``charts.jinja``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bridge.contrastive.evaluation import BINS, Calibration, ClassFigures, Classification
from bridge.contrastive.measuring import Evaluation
from bridge.errors import ImageError
from bridge.images import load_image
from bridge.page import page_environment

if TYPE_CHECKING:
    from PIL.Image import Image

_HERE = Path(__file__).parent
_WORST, _EACH = 12, 4  # confusions that are shown, and pictures of each
_THUMB = 96  # pixels
_NAMED = 40  # labels that are written at the matrix; of more, numbers are
_CELLS = 1000  # of a side of the matrix, at most
_NAMES = {
    "classification": "zero-shot",
    "probe": "linear probe",
    "retrieval": "retrieval",
    "top_1": "top-1",
    "top_5": "top-5",
    "mean_per_class_recall": "mean per-class recall",
    "calibration_error": "calibration error (ECE)",
}

Values = dict[str, Any]


def page(found: Sequence[Evaluation], settings: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        found: of one model, or of several on the same data.
        settings: what was asked for, as plain values.
    """
    environment = page_environment(_HERE)
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    models = [_model(each) for each in found]
    return environment.get_template("report.jinja").render(
        title=", ".join(each.model for each in found),
        facts=[f"{len(found[0].paths):,} pictures of {found[0].data}", *_sizes(found[0])],
        models=models,
        figures=_figures(found),
        settings=settings,
    )


def _sizes(found: Evaluation) -> list[str]:
    sizes = []
    if found.classification or found.probe:
        labels = (found.classification or found.probe.classification).labels  # type: ignore[union-attr]
        sizes.append(f"{len(labels):,} labels")
    if found.retrieval:
        sizes.append(f"{len(found.retrieval.owners):,} captions")
    return sizes


def _figures(found: Sequence[Evaluation]) -> list[tuple[str, list[Any], int]]:
    """A row for each figure: its name, a share of each model, and of how many it is."""
    every = [each.figures() for each in found]
    rows = []
    for name in dict.fromkeys(name for each in every for name in each):
        shares = [each.get(name) for each in every]
        n = next(share.n for share in shares if share is not None)
        rows.append((figure_name(name), shares, n))
    return rows


def figure_name(name: str) -> str:
    """``classification/top_1`` as a reader has it: "zero-shot, top-1"."""
    task, _, figure = name.partition("/")
    way, _, k = figure.partition("_recall_at_")
    return f"{_NAMES[task]}, " + (f"{way} R@{k}" if k else _NAMES[figure])


def _model(found: Evaluation) -> Values:
    probe = found.probe
    return {
        "name": found.model,
        "notes": found.notes,
        "unreadable": found.unreadable,
        "classification": found.classification and _classified(found.classification, found.paths),
        "probe": probe
        and {
            "n_train": probe.n_train,
            "n_test": len(probe.classification),
            "strength": probe.probe.strength,
            "tried": len(probe.sweep),
            "found": _classified(
                probe.classification, [found.paths[place] for place in found.probe_places]
            ),
        },
    }


def _classified(found: Classification, paths: Sequence[Path]) -> Values:
    calibrated = found.calibration
    return {
        "reliability": calibrated and _reliability(calibrated),
        "confusion": _confusion(found),
        "worst": [
            {
                "label": each.label,
                "taken_for": each.taken_for,
                "count": len(each.places),
                "of": each.share.n,
                "images": _thumbs([paths[place] for place in each.places]),
            }
            for each in found.worst_confusions(_WORST)
        ],
        "rows": sorted(found.per_class, key=_recall),
    }


def _recall(row: ClassFigures) -> float:
    return 2.0 if row.recall is None else row.recall.value


def _thumbs(paths: Sequence[Path]) -> list[tuple[Path, Image]]:
    """The first pictures, small. One that is gone since it was measured is left out."""
    found: list[tuple[Path, Image]] = []
    for path in paths[:_EACH]:
        try:
            picture = load_image(path)
        except ImageError:
            continue
        picture.thumbnail((_THUMB, _THUMB))
        found.append((path, picture))
    return found


# ---------------------------------------------------------------- charts

_LEFT, _RIGHT, _TOP, _FLOOR, _BASE = 62, 406, 46, 286, 366
_COUNTS = 36  # how high the longest bar of counts is


def reliability_svg(found: Calibration) -> str:
    """The reliability diagram (Guo et al. 2017, figure 1) as an SVG file's text."""
    return _chart("reliability", _reliability(found) | {"ground": True})


def confusion_svg(found: Classification) -> str:
    """The confusion matrix, each row in shares, as an SVG file's text."""
    return _chart("confusion", _confusion(found) | {"ground": True})


def _chart(name: str, chart: Values) -> str:
    template = page_environment(_HERE).get_template("charts.jinja")
    return str(getattr(template.module, name)(chart))


def _reliability(found: Calibration) -> Values:
    wide, high = _RIGHT - _LEFT, _FLOOR - _TOP
    most = max(each.n for each in found.bins)
    bars = []
    for each in found.bins:
        if each.right is None or each.confidence is None:
            continue
        x = _LEFT + each.low * wide
        sure = f"{100 * each.confidence:.1f} % sure"
        bars.append(
            {
                "x": x + 1,
                "middle": x + wide / (2 * len(found.bins)),
                "right": _FLOOR - each.right.value * high,
                "low": _FLOOR - each.right.low * high,
                "high": _FLOOR - each.right.high * high,
                "confidence": _FLOOR - each.confidence * high,
                "count": _BASE - max(1.0, each.n / most * _COUNTS),
                "hint": f"{each.n} pictures, {sure}; {each.right} right",
            }
        )
    ticks = [(at / 5, f"{20 * at} %") for at in range(6)]
    return {
        "title": f"Calibration error {100 * found.error.value:.1f} %",
        "width": 432,
        "height": _BASE + 8,
        "ground": False,
        "left": _LEFT,
        "right": _RIGHT,
        "top": _TOP,
        "floor": _FLOOR,
        "base": _BASE,
        "bar": wide / BINS - 2,
        "across": [(_LEFT + at * wide, said) for at, said in ticks],
        "up": [(_FLOOR - at * high, said) for at, said in ticks],
        "bars": bars,
    }


def _confusion(found: Classification) -> Values:
    count, side = len(found.labels), 360
    named = count <= _NAMED
    longest = max(map(len, found.labels)) if named else len(str(count))
    letters = max(7.0, min(12.0, 0.8 * side / count)) if named else 11.0
    margin = 30 + min(24, longest) * letters * 0.6
    step = 1 if named else 10 ** (len(str(count - 1)) - 1)
    step = step if count / step >= 4 else max(1, step // 2)
    told = [
        (at, _short(found.labels[at]) if named else str(at + 1)) for at in range(0, count, step)
    ]
    right = 100 * float(found.confusion.diagonal().sum()) / len(found)
    return {
        "title": f"{count} labels, {right:.1f} % of pictures right",
        "width": round(margin + side + 16),
        "height": round(26 + side + margin),
        "ground": False,
        "left": round(margin),
        "top": 26,
        "side": side,
        "letters": letters,
        "matrix": _png(_colours(found.confusion)),
        "ticks": [((at + 0.5) * side / count, said) for at, said in told],
    }


def _short(label: str) -> str:
    return label if len(label) <= 24 else label[:23] + "…"


def _colours(counts: torch.Tensor) -> torch.Tensor:
    """``(C, C, 3)`` uint8: each row's shares, right ones in blue and wrong ones in red. Where
    there are more labels than cells, a cell shows the largest of its shares."""
    shares = counts.float() / counts.sum(1, keepdim=True).clamp(min=1)
    right = torch.diag(shares.diagonal())
    wrong = shares - right
    by = -(-len(counts) // _CELLS)
    right, wrong = (
        torch.nn.functional.max_pool2d(each[None], by, ceil_mode=True)[0] for each in (right, wrong)
    )
    # One mistake among a thousand pictures is to be seen, so no red is paler than a third.
    wrong = torch.where(wrong > 0, 0.35 + 0.65 * wrong, 0.0)
    inks = torch.tensor([[47, 127, 193], [192, 40, 20]], dtype=torch.float32)
    white = torch.full((*right.shape, 3), 255.0, dtype=torch.float32)
    for share, ink in zip((right, wrong), inks, strict=True):
        white += share[..., None] * (ink - white)
    return white.round().to(torch.uint8)


def _png(pixels: torch.Tensor) -> str:
    from PIL import Image

    data = BytesIO()
    Image.fromarray(pixels.numpy()).save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
