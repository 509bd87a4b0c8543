"""Measure bridge on the embedded world: drawing, answering, retrieval, speed, the judge itself.

    python benchmarks/compositional.py judge       the judge on pictures of known truth
    python benchmarks/compositional.py draw        GenEval's six kinds of task, held out
    python benchmarks/compositional.py memorise    are drawn pictures copies of training scenes?
    python benchmarks/compositional.py emphasis    is a thing drawn more often, the more its weight?
    python benchmarks/compositional.py adapters    the score that a foreign text tower keeps
    python benchmarks/compositional.py ask         answers to questions about held-out scenes
    python benchmarks/compositional.py clip        retrieval among 256 held-out scenes
    python benchmarks/compositional.py languages   the same by captions in 27 languages
    python benchmarks/compositional.py speed       seconds a picture, beside stock diffusers
    python benchmarks/compositional.py app         seconds until the app serves
    python benchmarks/compositional.py table       the figures to reach beside the measured ones
    python benchmarks/compositional.py all         everything above, in this order

Each command writes benchmarks/results/<command>.json, and pictures beside it; results of models
other than the shipped ones have the model's name behind the command's. The artwork that
the judge needs is fetched and rendered once (see emoji_world/art.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Run as a script, Python looks for modules beside this file, not in the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.results import RESULTS, command_of, commit
from bridge.errors import BridgeError


def _judge(args: argparse.Namespace) -> None:
    from benchmarks.judge_check import run_judge

    run_judge(args)


def _draw(args: argparse.Namespace) -> None:
    from benchmarks.draw import run_draw

    run_draw(args)


def _memorise(args: argparse.Namespace) -> None:
    from benchmarks.memorise import run_memorise

    run_memorise(args)


def _emphasis(args: argparse.Namespace) -> None:
    from benchmarks.emphasis import run_emphasis

    run_emphasis(args)


def _adapters(args: argparse.Namespace) -> None:
    from benchmarks.adapters import run_adapters

    run_adapters(args)


def _ask(args: argparse.Namespace) -> None:
    from benchmarks.ask import run_ask

    run_ask(args)


def _clip(args: argparse.Namespace) -> None:
    from benchmarks.retrieval import run_clip

    run_clip(args)


def _languages(args: argparse.Namespace) -> None:
    from benchmarks.languages import run_languages

    run_languages(args)


def _speed(args: argparse.Namespace) -> None:
    from benchmarks.speed import run_speed

    run_speed(args)


def _app(args: argparse.Namespace) -> None:
    from benchmarks.speed import run_app

    run_app(args)


def _table(args: argparse.Namespace) -> None:
    from benchmarks.table import run_table

    run_table(args)


def _all(args: argparse.Namespace) -> None:
    for name in COMMANDS:
        if name != "all":
            print(f"== {name}", flush=True)
            run(name, args)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "judge": _judge,
    "draw": _draw,
    "memorise": _memorise,
    "emphasis": _emphasis,
    "adapters": _adapters,
    "ask": _ask,
    "clip": _clip,
    "languages": _languages,
    "speed": _speed,
    "app": _app,
    "table": _table,
    "all": _all,
}

_DRAWING = ("model", "steps", "guidance", "seed")
# Options that the results name at their defaults too; others only where they differ.
_NAMED: dict[str, tuple[str, ...]] = {
    "judge": ("model", "n"),
    "draw": (*_DRAWING, "n"),
    "memorise": (*_DRAWING, "n", "gallery"),
    "emphasis": (*_DRAWING, "pairs"),
    "adapters": (*_DRAWING, "adapter_prompts", "captions", "train_steps"),
    "ask": ("vlm", "n", "seed"),
    "clip": ("clip", "seed"),
    "languages": ("seed",),
    "speed": ("model", "steps", "guidance", "repeats"),
}


def run(name: str, args: argparse.Namespace) -> None:
    """Run one command; it finds the line that repeats it as ``args.command``."""
    own = argparse.Namespace(**{**vars(args), "what": name})
    own.command = command_of(parser(), own, _NAMED.get(name, ()))
    COMMANDS[name](own)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python benchmarks/compositional.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("what", choices=COMMANDS, help="what to measure")
    made.add_argument("--model", default="emoji-xl", help="draws: name or folder")
    made.add_argument("--vlm", default="emoji-llava", help="answers: name or folder")
    made.add_argument("--clip", nargs="+", default=["emoji-clip", "emoji-clip-2"], help="retrieves")
    made.add_argument("--n", type=int, default=200, help="prompts or questions a kind")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--guidance", type=float, default=3.0)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--seed", type=int, default=0, help="of prompts, scenes and questions")
    made.add_argument("--budget", type=float, help="seconds for drawing; then what is done counts")
    made.add_argument("--gallery", type=int, default=20_000, help="training scenes to compare with")
    made.add_argument("--repeats", type=int, default=7, help="timed pictures a side")
    made.add_argument("--device", help="cpu, cuda ...; without it, CUDA if there is one")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    made.add_argument("--pairs", type=int, default=16, help="of things that each emphasis draws")
    made.add_argument("--captions", type=int, default=3000, help="that adapters are fitted on")
    made.add_argument("--train-steps", type=int, default=1500, help="of the trained adapter")
    made.add_argument(
        "--adapter-prompts", type=int, default=5, help="prompts a kind that each adapter draws"
    )
    made.add_argument(
        "--calibrate", action="store_true", help="judge: print what the thresholds rest on"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    commit()  # as the code is now, whatever happens to the tree meanwhile
    try:
        run(args.what, args)
    except BridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
