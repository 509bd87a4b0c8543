"""The ``bridge`` command: draw, ask, encode, study, measure, convert, train, list what there is.

Starts light: torch loads only once a command has passed its own checks. A bad input is one
line on standard error and exit status 2; ``--debug`` shows the traceback instead.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bridge import __version__
from bridge.console import ends_with_its_reader
from bridge.contrastive.eval_command import add_arguments as add_eval_arguments
from bridge.contrastive.train.options import add_arguments as add_clip_training_arguments
from bridge.contrastive.train.options import run_command as train_clip_command
from bridge.errors import BridgeError, ImageError, OptionError, PromptError, quoted
from bridge.files import (
    check_output_file,
    check_output_folder,
    write_whole,
)
from bridge.lab.command import add_arguments as add_study_arguments
from bridge.progress import Progress, ProgressLine
from bridge.threads import is_shared, thread_settings
from bridge.vlm.train.options import add_arguments as add_training_arguments
from bridge.vlm.train.options import run_command as train_command

if TYPE_CHECKING:
    from PIL.Image import Image

_PICTURE_KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage and leaves; here a bad command line is an error as any other."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see `{self.prog} --help`)")

    # By argparse's own way the program would complain of what a command does not know.
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def _path(text: str) -> Path:
    """A path of the command line; an empty one would be the folder that the user stands in."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; give a name")
    return Path(text)


@ends_with_its_reader
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; ``argv`` is without the program name. Returns the exit status.

    0: done. 1: a fault of bridge itself. 2: a bad input, said in one line. 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    # The libraries' own notes would bury ours; set before they load, and only if unset.
    for name in () if debug else ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    # OpenMP reads it when torch loads.
    os.environ.update(thread_settings(os.environ, shared=is_shared()))
    try:
        options = _parser().parse_args(arguments)
        with _short_notes(debug):
            options.run(options)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise  # an OSError, but no fault
    except (BridgeError, OSError) as error:
        if debug:
            raise
        line, place = str(error), ""
        if isinstance(error, PromptError):
            line, _, place = line.partition("\n")
        _say(f"error: {line}")
        if place:  # the prompt, with a caret under what is meant
            print(place, file=sys.stderr)
        return 2
    except Exception as error:
        if debug:
            raise
        _say(f"internal error: {type(error).__name__}: {error} (run again with --debug)")
        return 1
    return 0


def _parser() -> _Parser:
    from bridge.embedded import ANSWERING, DRAWING  # a damaged list is an error of the command

    parser = _Parser(
        prog="bridge",
        description="A prompt becomes a picture, a picture becomes an answer.",
    )
    parser.add_argument("--version", action="version", version=f"bridge {__version__}")
    shared = _Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show tracebacks and library notes")
    shared.add_argument("--json", action="store_true", help="print one JSON object")
    device = _Parser(add_help=False)
    device.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    placed = _Parser(add_help=False, parents=[device])
    placed.add_argument("--dtype", help="float32, bfloat16, float16 (default: by size and device)")
    worded = _wording_options()
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    draw = commands.add_parser("draw", parents=[shared, placed, worded], help="draw a prompt")
    draw.add_argument("prompt", help="what to draw")
    draw.add_argument("-o", "--output", type=_path, help="file (default: bridge-SEED.png)")
    draw.add_argument("-m", "--model", default=DRAWING, help="name, folder or hub id")
    draw.add_argument("--negative", metavar="PROMPT", help="what to keep out")
    draw.add_argument("--seed", type=int, help="the same seed draws the same picture")
    draw.add_argument("--steps", type=int, default=20, help="sampler steps (default: 20)")
    draw.add_argument(
        "--guidance", type=float, help="guidance scale (default: 3 for the embedded model, else 5)"
    )
    draw.add_argument("-n", "--images", type=int, default=1, help="how many (default: 1)")
    draw.add_argument("--height", type=int, help="in pixels (default: the model's own)")
    draw.add_argument("--width", type=int, help="in pixels (default: the model's own)")
    draw.set_defaults(run=_draw)

    ask = commands.add_parser("ask", parents=[shared, placed], help="ask about a picture")
    ask.add_argument("image", help="file, or - for standard input")
    ask.add_argument("question", nargs="?", default="describe the picture.", help="the question")
    ask.add_argument("-m", "--model", default=ANSWERING, help="name, folder or hub id")
    ask.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    ask.add_argument("--conversation", metavar="NAME", help="of a LLaVA, such as llava_v1")
    ask.set_defaults(run=_ask)

    tokens = commands.add_parser("tokens", parents=[shared], help="what each tower reads")
    tokens.add_argument("prompt", help="the prompt")
    tokens.add_argument("-m", "--model", default=DRAWING, help="name, folder or hub id")
    tokens.add_argument("--dialect", default="a1111", help="a1111, comfy, compel or plain")
    tokens.set_defaults(run=_tokens)

    encode = commands.add_parser(
        "encode", parents=[shared, placed, worded], help="encode prompts to safetensors files"
    )
    encode.add_argument("prompts", help="text file, a prompt a line, or - for standard input")
    encode.add_argument("-o", "--output", type=_path, required=True, help="folder for the files")
    encode.add_argument("-m", "--model", default=DRAWING, help="name, folder or hub id")
    encode.add_argument("--negative", metavar="PROMPT", help="what to keep out, of every prompt")
    encode.set_defaults(run=_encode)

    convert = commands.add_parser(
        "convert", parents=[shared], help="LLaVA checkpoints: original layout to stock and back"
    )
    convert.add_argument("source", help="folder, name or hub id of a LLaVA checkpoint")
    convert.add_argument("output", type=_path, help="the new folder")
    convert.add_argument(
        "--to", required=True, choices=("hf", "llava"), help="transformers' or LLaVA's layout"
    )
    convert.add_argument("--allow-pickle", action="store_true", help="read .bin, tensors only")
    convert.add_argument("--base", help="the language model, where source has only a projector")
    convert.add_argument("--vision-tower", metavar="NAME", help="the tower's name for LLaVA's code")
    convert.add_argument("--conversation", metavar="NAME", help="what it is asked in: llava_v1 ...")
    convert.set_defaults(run=_convert)

    study = commands.add_parser(
        "study", parents=[shared, placed], help="compare phrasings across text towers"
    )
    add_study_arguments(study)
    study.set_defaults(run=_study)
    train = commands.add_parser(
        "train-vlm", parents=[shared, placed], help="train a bridge from pictures to answers"
    )
    add_training_arguments(train)
    train.set_defaults(run=_train_vlm)
    train_clip = commands.add_parser(
        "train-clip", parents=[shared, device], help="train or adapt a CLIP on captioned pictures"
    )
    add_clip_training_arguments(train_clip)
    train_clip.set_defaults(run=_train_clip)

    measured = commands.add_parser(
        "eval-clip", parents=[shared, placed], help="measure a CLIP on your own pictures"
    )
    add_eval_arguments(measured)
    measured.set_defaults(run=_eval_clip)

    models = commands.add_parser("models", parents=[shared], help="list the known models")
    models.set_defaults(run=_models)

    towers = commands.add_parser("towers", parents=[shared], help="list text and image towers")
    towers.set_defaults(run=_towers)
    return parser


def _wording_options() -> _Parser:
    """How prompts are read and by which towers, the same for drawing and encoding."""
    worded = _Parser(add_help=False)
    worded.add_argument("--dialect", default="a1111", help="a1111, comfy, compel or plain")
    worded.add_argument("--emphasis", help="the formula of weights (default: the dialect's)")
    worded.add_argument("--long-prompt", help="the way with long ones (default: the dialect's)")
    worded.add_argument(
        "--lora",
        action="append",
        metavar="PATH[=STRENGTH]",
        help="LoRA file, or a folder of those that prompts name as <lora:name:0.8>; repeatable",
    )
    worded.add_argument(
        "--embedding", action="append", metavar="PATH", help="textual-inversion file; repeatable"
    )
    worded.add_argument(
        "--tower",
        action="append",
        metavar="NAME",
        help="another text tower (name, folder, hub id); repeated, one for each of the model's",
    )
    worded.add_argument("--adapter", metavar="FILE", help="what maps a foreign tower's states")
    return worded


# ---------------------------------------------------------------- commands


def _draw(options: argparse.Namespace) -> None:
    _check_output(options.output, options.images)
    from bridge.diffusion import generate
    from bridge.diffusion.options import default_guidance

    guidance = default_guidance(options.model) if options.guidance is None else options.guidance
    started = time.perf_counter()
    with ProgressLine(sys.stderr) as show:
        made = generate(
            options.prompt,
            negative_prompt=options.negative,
            model=options.model,
            seed=options.seed,
            steps=options.steps,
            guidance_scale=guidance,
            num_images=options.images,
            height=options.height,
            width=options.width,
            device=options.device,
            dtype=options.dtype,
            on_step=lambda at: show(Progress("drawing", at.step, at.steps, "steps")),
            dialect=options.dialect,
            emphasis=options.emphasis,
            long_prompt=options.long_prompt,
            **_addons(options),
            **_towers_given(options),
        )
    seconds = time.perf_counter() - started
    paths = _output_paths(options.output, made.seeds)
    for path, picture in zip(paths, made.images, strict=True):
        write_picture(picture, path)
    if options.json:
        _print_json(
            {
                "images": [str(path) for path in paths],
                "seeds": list(made.seeds),
                "prompt": options.prompt,
                "negative_prompt": options.negative,
                "model": options.model,
                "steps": options.steps,
                "guidance_scale": guidance,
                "seconds": round(seconds, 3),
            }
        )
        return
    for path, seed in zip(paths, made.seeds, strict=True):
        print(f"{path}  seed {seed}")


def _ask(options: argparse.Namespace) -> None:
    from bridge.vlm import describe, load_vlm

    model: Any = options.model
    if options.conversation is not None:
        model = load_vlm(
            model, device=options.device, dtype=options.dtype, conversation=options.conversation
        )
    image: Any = sys.stdin.buffer.read() if options.image == "-" else options.image
    if image == b"":
        raise ImageError(
            "Standard input is empty; send it a picture: bridge ask - QUESTION < picture.png"
        )
    pieces = describe(
        image,
        options.question,
        model=model,
        max_new_tokens=options.max_new_tokens,
        device=options.device,
        dtype=options.dtype,
        stream=True,
    )
    if options.json:
        record = {"image": options.image, "question": options.question, "model": options.model}
        _print_json({**record, "answer": "".join(pieces)})
        return
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _tokens(options: argparse.Namespace) -> None:
    from bridge.prompt import check_text, plan_report

    check_text(options.prompt)
    from bridge.encoding import tokenizers_of

    report = plan_report(options.prompt, tokenizers_of(options.model), options.dialect)
    if options.json:
        _print_json(report.to_dict())
    else:
        print(report.text())


def _encode(options: argparse.Namespace) -> None:
    check_output_folder(options.output)
    lines = _prompt_lines(options.prompts)
    from bridge.encoding.prompt_folder import encode_folder

    settings = {
        "negative_prompt": options.negative,
        "model": options.model,
        "dialect": options.dialect,
        "emphasis": options.emphasis,
        "long_prompt": options.long_prompt,
        "dtype": options.dtype,
        **(_addons(options) if options.lora or options.embedding else {}),
        **_towers_given(options),
    }
    with ProgressLine(sys.stderr) as show:
        done = encode_folder(
            lines, options.output, settings, device=options.device, on_progress=show
        )
    if options.json:
        record = {"output": str(options.output), "made": done.made, "files": list(done.files)}
        _print_json(record)
    else:
        there = len(lines) - done.made
        print(f"{options.output}: {done.made} encoded, {there} were there")


def _addons(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "loras": [_lora(text) for text in options.lora or ()],
        "textual_inversions": options.embedding or [],
    }


def _towers_given(options: argparse.Namespace) -> dict[str, Any]:
    """``towers`` and ``adapter``, as far as they were given."""
    named = options.tower or []
    towers = {"towers": named[0] if len(named) == 1 else named} if named else {}
    return towers | ({"adapter": options.adapter} if options.adapter else {})


def _lora(text: str) -> tuple[str, float]:
    """``PATH=STRENGTH``, or a path alone at 1."""
    path, _, strength = text.rpartition("=")
    try:
        return (path, float(strength)) if path else (text, 1.0)
    except ValueError:
        return text, 1.0


def _convert(options: argparse.Namespace) -> None:
    from bridge.vlm import convert

    done = 0

    def count(number: int) -> None:
        nonlocal done
        done = number
        show(Progress("converting", number, None, "tensors"))

    with ProgressLine(sys.stderr) as show:
        path = convert(
            options.source,
            options.output,
            to=options.to,
            allow_pickle=options.allow_pickle,
            base=options.base,
            vision_tower=options.vision_tower,
            conversation=options.conversation,
            on_tensor=count,
        )
    if options.json:
        _print_json({"output": str(path), "to": options.to, "tensors": done})
    else:
        print(f"{path}: {done} tensors in the layout {options.to}")


def _study(options: argparse.Namespace) -> None:
    from bridge.lab.command import run_study

    own_lines = _prompt_lines(options.own) if options.own else None
    with ProgressLine(sys.stderr) as show:
        found, written = run_study(options, own_lines, show)
    if options.json:
        _print_json(found.to_dict())
        return
    for path in written:
        print(path)
    if not written:
        print(found.summary())


def _train_vlm(options: argparse.Namespace) -> None:
    done = train_command(options)
    if options.json:
        _print_json(done)
    else:
        losses = f"loss {done['first_loss']:.3f} to {done['last_loss']:.3f}"
        print(f"{done['output']}: {done['steps']} steps, {losses}")


def _train_clip(options: argparse.Namespace) -> None:
    done = train_clip_command(options)
    if options.json:
        _print_json(done)
        return
    losses = f"loss {done['first_loss']:.3f} to {done['last_loss']:.3f}"
    print(f"{done['output']}: {done['steps']} steps, {losses}")
    if done["skipped"]:
        print(f"{done['skipped']} pictures could not be read; skipped.json lists them")
    sets = {row["set"]: row for row in done["retrieval"]}
    for name, last in sets.items():
        first = next(row for row in done["retrieval"] if row["set"] == name)
        told = ", ".join(
            f"{metric} {100 * first[metric]:.1f} to {100 * last[metric]:.1f} %"
            for metric in ("text_to_image@1", "image_to_text@1")
        )
        print(f"{name}: {told}")


def _eval_clip(options: argparse.Namespace) -> None:
    from bridge.contrastive.eval_command import run_eval, summary

    with ProgressLine(sys.stderr) as show:
        found, written = run_eval(options, show)
    if options.json:
        _print_json(found)
        return
    print(summary(found))
    for path in written:
        print(path)


def _prompt_lines(source: str) -> list[str]:
    """The prompts of a text file, or of standard input for ``-``. Raises OptionError."""
    named = "standard input" if source == "-" else f"the file {quoted(source)}"
    data = sys.stdin.buffer.read() if source == "-" else _read_prompts(source)
    try:
        text = data.decode("utf-8-sig")  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise OptionError(f"{named} is no UTF-8 text ({error}); save it as UTF-8") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise OptionError(f"{named} has no prompt in it; write one a line")
    return lines


def _read_prompts(source: str) -> bytes:
    wanted = "give a text file with a prompt a line, or - for standard input"
    path = Path(source)
    if not source or os.path.isdir(source):
        raise OptionError(f"{quoted(source)} is no file of prompts; {wanted}")
    try:
        return path.read_bytes()  # a pipe too, such as a shell's <(...)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise OptionError(f"no such file of prompts: {quoted(source)}; {wanted}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OptionError(f"the file {quoted(source)} cannot be read: {why}; {wanted}") from error


def _models(options: argparse.Namespace) -> None:
    from bridge.embedded import EMBEDDED, weights_dir
    from bridge.manifest import embedded_state
    from bridge.store import HUB_IDS
    from bridge.vlm.packaged import missing_extra

    root = weights_dir()
    rows = []
    for name in EMBEDDED:
        state = embedded_state(name)
        extra = missing_extra(root / name) if state == "ready" else None
        shown = state if extra is None else f"needs bridge[{extra}]"
        rows.append(_row(name, "embedded", root / name, shown))
    rows += [_row(name, "short name", hub_id, "on the hub") for name, hub_id in HUB_IDS.items()]
    if options.json:
        _print_json({"models": rows})
        return
    wide, high = (max(len(row[key]) for row in rows) for key in ("name", "state"))
    for row in rows:
        print(f"{row['name']:<{wide}}  {row['kind']:<10}  {row['state']:<{high}}  {row['source']}")


def _towers(options: argparse.Namespace) -> None:
    from bridge.towers import table_lines, towers

    rows = towers()
    if options.json:
        _print_json({"towers": rows})
    else:
        print("\n".join(table_lines(rows)))


def _row(name: str, kind: str, source: object, state: str) -> dict[str, str]:
    return {"name": name, "kind": kind, "source": str(source), "state": state}


# ---------------------------------------------------------------- files


def _check_output(output: Path | None, images: int) -> None:
    """Refuse a file that could not be written, before minutes are spent on its picture."""
    if output is None:
        check_output_file(Path("bridge-0.png"))
        return
    if output.suffix.lower() not in _PICTURE_KINDS:
        kinds = ", ".join(_PICTURE_KINDS)
        raise OptionError(f"output {str(output)!r} must end in one of {kinds}")
    check_output_file(output)
    if images > 1:
        check_output_file(_numbered(output, images))


def _output_paths(output: Path | None, seeds: Sequence[int]) -> list[Path]:
    """One path a picture: ``bridge-SEED.png``, ``NAME.png``, or ``NAME-1.png`` and so on."""
    if output is None:
        return [Path(f"bridge-{seed}.png") for seed in seeds]
    if len(seeds) == 1:
        return [output]
    return [_numbered(output, number) for number in range(1, len(seeds) + 1)]


def _numbered(output: Path, number: int) -> Path:
    return output.with_name(f"{output.stem}-{number}{output.suffix}")


def write_picture(picture: Image, path: Path) -> None:
    """Save whole, so that no reader ever sees half a file."""
    data = io.BytesIO()
    picture.save(data, _PICTURE_KINDS[path.suffix.lower()])
    write_whole(path, data.getvalue())


# ---------------------------------------------------------------- standard error


def _say(text: str) -> None:
    print(f"bridge: {' '.join(text.split())}", file=sys.stderr)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


@contextlib.contextmanager
def _short_notes(debug: bool) -> Iterator[None]:
    """bridge's own warnings as one line each; those of libraries only with --debug."""
    if debug:
        yield
        return
    from bridge.errors import DialectWarning, OffManifoldWarning
    from bridge.prompt import TruncationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for told in (DialectWarning, OffManifoldWarning, TruncationWarning):
            warnings.simplefilter("always", told)
        warnings.showwarning = lambda message, *_, **__: _say(f"note: {message}")
        yield


if __name__ == "__main__":
    sys.exit(main())
