"""The options of the command ``bridge study``; apart, so that the command line starts light."""

from __future__ import annotations

from argparse import ArgumentParser


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
