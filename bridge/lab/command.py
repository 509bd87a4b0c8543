"""The command ``bridge study``: from its options to a study and its files."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bridge.errors import OptionError
from bridge.lab.result import ENDINGS, Study
from bridge.lab.run import study
from bridge.lab.variants import own


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``bridge study``."""
    parser.add_argument("prompt", nargs="+", help="the prompts")
    parser.add_argument(
        "-t", "--towers", metavar="NAMES", help="names, folders or hub ids, by comma"
    )
    parser.add_argument(
        "--variants", metavar="NAMES", help="operations by comma (default: the usual)"
    )
    parser.add_argument(
        "--own", metavar="FILE", help="phrasings of your own, one a line; - for stdin"
    )
    parser.add_argument("--names", metavar="FILE", help="JSON for the operation language")
    parser.add_argument("-m", "--model", help="draw with it: name, folder or hub id")
    parser.add_argument(
        "--choices", metavar="NAMES", help="whole, a tower, pooled; by comma, or all"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of pictures and of shuffles (default: 0)"
    )
    parser.add_argument(
        "-n", "--images", type=int, default=1, help="pictures a variant (default: 1)"
    )
    parser.add_argument("--steps", type=int, default=20, help="sampler steps (default: 20)")
    parser.add_argument("--guidance", type=float, default=5.0, help="guidance scale (default: 5)")
    parser.add_argument("--image-tower", metavar="NAME", help="measures how far pictures drift")
    parser.add_argument("--cache", metavar="FOLDER", help="keeps what is done, to go on later")
    parser.add_argument(
        "-o", "--output", action="append", metavar="FILE",
        help="report.html, table.csv or all.json; repeatable",
    )  # fmt: skip


def run_study(
    options: Namespace,
    own_lines: Sequence[str] | None,
    on_progress: Callable[[str], object] | None,
) -> tuple[Study, list[Path]]:
    """The study that the options ask for, and the files written.

    ``own_lines``: phrasings of the user's own, which take the place of the usual operations unless
    some are named. Raises as ``bridge.study``, and OptionError before anything loads for an output
    that could not be written.
    """
    outputs = [Path(path) for path in options.output or ()]
    for path in outputs:
        _check_output(path)
    names = None if options.names is None else _read_names(options.names)
    operations = _listed(options.variants)
    variants: Any = operations
    if own_lines is not None:
        variants = [*(operations or ()), *own(own_lines)]
    found = study(
        options.prompt,
        towers=_listed(options.towers),
        variants=variants,
        model=options.model,
        seed=options.seed,
        names=names,
        seeds=[options.seed + at for at in range(max(1, options.images))],
        steps=options.steps,
        guidance_scale=options.guidance,
        choices="all" if options.choices == "all" else _listed(options.choices),
        image_tower=options.image_tower,
        cache=options.cache,
        device=options.device,
        dtype=options.dtype,
        on_progress=on_progress,
    )
    return found, [found.save(path) for path in outputs]


def _listed(text: str | None) -> list[str] | None:
    """Names that commas part; None if the option was not given."""
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


def _check_output(path: Path) -> None:
    if path.suffix.lower() not in ENDINGS:
        raise OptionError(f"output {str(path)!r} must end in one of {', '.join(ENDINGS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise OptionError(f"output {str(path)!r}: give a file in a folder that exists")


def _read_names(path: str) -> dict[str, dict[str, str]]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"names {path!r} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise OptionError(f"names {path!r} must be an object: {{'de': {{'cat': 'Katze'}}}}")
    return found
