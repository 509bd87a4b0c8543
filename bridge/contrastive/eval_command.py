"""The command ``bridge eval-clip``: its options, and from them figures and files."""

from __future__ import annotations

import json
import os
import platform
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge import __version__
from bridge.errors import OptionError
from bridge.files import check_output_folder, filled_folder
from bridge.progress import OnProgress

if TYPE_CHECKING:
    from bridge.contrastive.evaluation import Classification, Share
    from bridge.contrastive.measuring import Evaluation

TASKS = ("classification", "retrieval", "probe", "all")
_SETTINGS = (
    "task", "templates", "labels", "images", "train", "text", "seed", "batch_size", "device",
    "dtype",
)  # fmt: skip


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``bridge eval-clip``."""
    parser.add_argument("model", help="name, folder or hub id of a CLIP")
    parser.add_argument(
        "data", help="folder with a folder for each class, .csv, .tsv, or COCO's captions .json"
    )
    parser.add_argument(
        "--task", default="all", choices=TASKS, help="default: all that the data allows"
    )
    parser.add_argument("--labels", metavar="FILE", help="names to choose among, one a line")
    parser.add_argument(
        "--templates", metavar="NAME", help="name, photo, clip-7, clip-80, or 'a sketch of a {}'"
    )
    parser.add_argument("--images", metavar="FOLDER", help="where a table's pictures are")
    parser.add_argument(
        "--train", metavar="DATA", help="to fit the probe on (default: half of the pictures)"
    )
    parser.add_argument("--beside", metavar="MODEL", help="another CLIP on the same pictures")
    parser.add_argument("--text", metavar="MODEL", help="another text tower for the same space")
    parser.add_argument("--seed", type=int, default=0, help="of the probe's halves (default: 0)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument(
        "-o", "--out", metavar="FOLDER", help="report.html, results.json and charts go there"
    )


def run_eval(options: Namespace, on_progress: OnProgress) -> tuple[dict[str, Any], list[Path]]:
    """Measure what the options ask for.

    Returns:
        The results as plain values, and the files written.

    Raises:
        OptionError, DataError: before any model loads, for data, options or a folder that will not
            do.

    It also raises what ``bridge.CLIP`` and ``bridge.contrastive.evaluate`` raise.
    """
    from bridge.contrastive.clip import CLIP
    from bridge.contrastive.eval_data import read_eval_data
    from bridge.contrastive.measuring import check_run, evaluate

    out = None if options.out is None else _folder(options.out)
    data = read_eval_data(options.data, labels=options.labels, images=options.images)
    train = None
    if options.train is not None:
        images = None if os.path.isdir(options.train) else options.images
        train = read_eval_data(options.train, labels=options.labels, images=images)
    tasks = check_run(data, options.task, train)
    sentences = _templates(options.templates, tasks)
    found = []
    for model in (options.model, options.beside):
        if model is None:
            continue
        with CLIP(model, text=options.text, device=options.device, dtype=options.dtype) as clip:
            by = clip.classifier(data.labels, templates=sentences) if sentences else None
            found.append(
                evaluate(
                    clip,
                    data,
                    task=options.task,
                    classifier=by,
                    train=train,
                    seed=options.seed,
                    batch_size=options.batch_size,
                    on_progress=on_progress,
                )
            )
    if len({each.model for each in found}) < len(found):  # two folders of one name
        found = [replace(each, model=f"{each.model} {at}") for at, each in enumerate(found, 1)]
    results = _results(options, found)
    return results, [] if out is None else _write(out, found, results, _settings(options))


def _templates(given: str | None, tasks: Sequence[str]) -> tuple[str, ...] | None:
    """The sentences of a set's name, or the one that was given; None for the model's own way."""
    from bridge.contrastive.templates import read_templates

    if given is None:
        return None
    if "classification" not in tasks:
        raise OptionError("templates is for classification, which is not among the tasks")
    return read_templates(given)


def _folder(given: str) -> Path:
    if not given:
        raise OptionError("out is an empty path; name a folder")
    path = Path(given)
    check_output_folder(path, "out")
    return path


def _settings(options: Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in _SETTINGS}
    models = {"model": options.model, "beside": options.beside, "data": options.data}
    return {name: value for name, value in (models | given).items() if value is not None}


def summary(results: Mapping[str, Any]) -> str:
    """The rows as aligned lines, then what was left out."""
    rows = results["rows"]
    width = max((len(row["name"]) for row in rows), default=0)
    lines = [
        f"{row['name']:<{width}}  {row['value']:6.2f} %  [{row['low']:.2f}, {row['high']:.2f}]  "
        f"n={row['n']}"
        for row in rows
    ]
    lines += [f"{model}: {note}" for model, notes in results["notes"].items() for note in notes]
    if left_out := {each["name"]: each["why"] for each in results["unreadable"]}:
        first = next(iter(left_out.values()))
        lines.append(f"pictures that could not be read: {len(left_out)}; the first: {first}")
    return "\n".join(lines)


# ---------------------------------------------------------------- results and files


def _results(options: Namespace, found: Sequence[Evaluation]) -> dict[str, Any]:
    """In the format of benchmarks/results, with the classes and what was left out beside it."""
    return {
        "command": _command(options),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": _versions(),
        "rows": [
            {"name": f"{each.model}/{name}", **_in_percent(share), "unit": "%"}
            for each in found
            for name, share in each.figures().items()
        ],
        "classes": {
            each.model: _classes(each.classification) for each in found if each.classification
        },
        "unreadable": [
            {"model": each.model, "name": one.name, "why": one.why}
            for each in found
            for one in each.unreadable
        ],
        "notes": {each.model: list(each.notes) for each in found if each.notes},
    }


def _in_percent(share: Share) -> dict[str, Any]:
    value, low, high = (round(100 * each, 2) for each in (share.value, share.low, share.high))
    return {"value": value, "low": low, "high": high, "n": share.n}


def _classes(found: Classification) -> list[dict[str, Any]]:
    return [
        {
            "label": row.label,
            "recall": row.recall and _in_percent(row.recall),
            "precision": row.precision and _in_percent(row.precision),
            "average_precision": round(100 * row.average_precision, 2),
        }
        for row in found.per_class
    ]


def _command(options: Namespace) -> str:
    """The command line that gives these options; where files go changes no figure."""
    parts = ["bridge", "eval-clip", options.model, options.data]
    usual = {"task": "all", "seed": 0, "batch_size": 32}
    for name in (*_SETTINGS, "beside"):
        value = getattr(options, name)
        if value is not None and value != usual.get(name):
            parts += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(parts)


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "numpy", "pillow")
    return {
        "bridge": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


def _write(
    out: Path, found: Sequence[Evaluation], results: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Path]:
    """Write all files, or none: they are made beside the folder's own and then moved in."""
    from bridge.contrastive.report import confusion_svg, page, reliability_svg

    texts = {"report.html": page(found, settings), "results.json": _json(results)}
    for at, each in enumerate(found, 1):
        number = "" if len(found) == 1 else f"-{at}"
        if each.classification is not None:
            texts[f"confusions{number}.svg"] = confusion_svg(each.classification)
            if each.classification.calibration is not None:
                calibrated = each.classification.calibration
                texts[f"calibration{number}.svg"] = reliability_svg(calibrated)
    with filled_folder(out) as place:
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")
        for name in texts:
            (place / name).replace(out / name)
    return [out / name for name in texts]


def _json(results: Mapping[str, Any]) -> str:
    return json.dumps(results, ensure_ascii=False, indent=1) + "\n"
