"""The command ``bridge study``: its options, and from them a study and its files."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import OptionError, PromptError, WeightsError
from bridge.files import check_output_file, parse_json, read_text
from bridge.lab.result import ENDINGS
from bridge.progress import OnProgress

if TYPE_CHECKING:
    from bridge.lab.result import Study

_DRAWS = ("choices", "images", "steps", "guidance", "image_tower")  # the options of pictures


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``bridge study``. What only a model uses is None if it was not given."""
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
    parser.add_argument(
        "--names", metavar="NAMES", help="languages by comma, or a .json file, for language"
    )
    parser.add_argument("-m", "--model", help="draw with it: name, folder or hub id")
    parser.add_argument(
        "--choices", metavar="NAMES", help="whole, a tower, pooled; by comma, or all"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of pictures and of shuffles (default: 0)"
    )
    parser.add_argument("-n", "--images", type=int, help="pictures a variant (default: 1)")
    parser.add_argument("--steps", type=int, help="sampler steps (default: 20)")
    parser.add_argument(
        "--guidance", type=float, help="guidance scale (default: 3 for the embedded model, else 5)"
    )
    parser.add_argument("--image-tower", metavar="NAME", help="measures how far pictures drift")
    parser.add_argument("--cache", metavar="FOLDER", help="keeps what is done, to go on later")
    parser.add_argument(
        "-o", "--output", action="append", metavar="FILE",
        help="report.html, table.csv or all.json; repeatable",
    )  # fmt: skip


def run_study(
    options: Namespace,
    own_lines: Sequence[str] | None,
    on_progress: OnProgress,
) -> tuple[Study, list[Path]]:
    """The study that the options ask for, and the files written.

    Args:
        options: of ``add_arguments``.
        own_lines: phrasings of the user's own, which take the place of the usual operations unless
            some are named.
        on_progress: as for ``bridge.study``.

    Raises:
        OptionError: before anything loads, for an output that could not be written or an option
            that would do nothing.

    It also raises what ``bridge.study`` raises.
    """
    from bridge.lab.run import study
    from bridge.lab.variants import own

    # bridge.study takes the empty prompt; on a command line it is a variable that was not set.
    if not all(prompt.strip() for prompt in options.prompt):
        raise PromptError("prompt is empty; say what to study, such as 'a red apple on a table'.")
    operations = _listed(options.variants)
    _check_used(options, operations or ())
    images = 1 if options.images is None else options.images
    if images < 1:
        raise OptionError(f"images is {images}; draw 1 or more of a variant.")
    outputs = [Path(path) for path in options.output or ()]
    for path in outputs:
        _check_output(path)
    names = None if options.names is None else _read_names(options.names)
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
        seeds=[options.seed + at for at in range(images)],
        steps=20 if options.steps is None else options.steps,
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


def _check_used(options: Namespace, operations: Sequence[str]) -> None:
    if options.names is not None and "language" not in operations:
        raise OptionError(
            f"--names {options.names!r} would do nothing, since the operation language is not "
            "among the variants; add --variants language, or leave the names out."
        )
    given = [f"--{name.replace('_', '-')}" for name in _DRAWS if getattr(options, name) is not None]
    if given and options.model is None:
        raise OptionError(
            f"{', '.join(given)} would do nothing, since nothing is drawn; name a model with -m, "
            "or leave that out."
        )


def _check_output(path: Path) -> None:
    if path.suffix.lower() not in ENDINGS:
        raise OptionError(f"output {str(path)!r} must end in one of {', '.join(ENDINGS)}")
    check_output_file(path)


def _read_names(given: str) -> dict[str, dict[str, str]] | list[str]:
    """Languages that commas part, or names from a JSON file. (A folder "de" is no such file.)"""
    if not given.lower().endswith(".json") and not os.path.isfile(given):
        return _listed(given) or []
    try:
        found = parse_json(read_text(Path(given)), given)
    except WeightsError as error:
        raise OptionError(f"names cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise OptionError(f"names {given!r} must be an object: {{'de': {{'cat': 'Katze'}}}}")
    return found
