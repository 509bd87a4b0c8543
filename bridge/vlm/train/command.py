"""`bridge train-vlm`: the arguments, and what is done with them."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from bridge.errors import OptionError

# Options that are handed on to TrainOptions under their own names.
_HANDED_ON = (
    "stage",
    "lora",
    "epochs",
    "steps",
    "batch_size",
    "micro_batch",
    "learning_rate",
    "projector_learning_rate",
    "mixed_precision",
    "max_length",
    "seed",
    "save_every",
    "sample_every",
    "samples",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command; without torch, as `bridge --help` shows them."""
    add = parser.add_argument
    add("data", help="LLaVA's .json or .jsonl, or a folder of pictures with captions")
    add("-o", "--output", type=Path, required=True, help="folder for the trained model")
    add("-m", "--model", help="the VLM to train further: name, folder or hub id")
    add("--vision", metavar="MODEL", help="or: its tower, by name, folder or hub id ...")
    add("--llm", metavar="MODEL", help="... its language model ...")
    add("--projector", metavar="NAME", help="... and a fresh projector (default: mlp2x_gelu)")
    add("--select-layer", type=int, metavar="N", help="of the tower, with --vision (default: -2)")
    add("--image-folder", metavar="DIR", help="where the data's pictures lie (default: beside it)")
    add("--caption-question", metavar="TEXT", help="default: describe the picture.")
    add("--feature-folder", metavar="DIR", help="the tower's states (default: OUTPUT/features)")
    add(
        "--no-store-features",
        dest="store_features",
        action="store_false",
        help="run the tower in every step, keep nothing",
    )
    add("--stage", type=int, choices=(1, 2), help="1: the projector (default); 2: the LLM as well")
    add("--lora", type=int, metavar="RANK", help="in stage 2, low-rank updates of the LLM")
    add("--epochs", type=float, help="times through the data (default: 1)")
    add("--steps", type=int, metavar="N", help="or: how many steps")
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="rows a step (default: 256, stage 2: 128; fewer for fewer rows)",
    )
    add("--micro-batch", type=int, metavar="N", help="rows at once in a process (default: to 16)")
    add("--learning-rate", type=float, metavar="X", help="1e-3; stage 2: 2e-5; LoRA: 2e-4")
    add("--projector-learning-rate", type=float, metavar="X", help="the same; with LoRA 2e-5")
    add("--mixed-precision", choices=("bf16", "no"), help="default: bf16 where there is a GPU")
    add("--max-length", type=int, metavar="N", help="positions of a row (default: the context)")
    add("--seed", type=int, help="default: 0")
    add("--save-every", type=int, metavar="N", help="steps between checkpoints (default: 200)")
    add("--sample-every", type=int, metavar="N", help="steps between samples (default: 200)")
    add("--samples", type=int, metavar="N", help="rows to answer on the way (default: 3)")


def run_command(options: argparse.Namespace) -> dict[str, Any]:
    """Train, and give what was done as plain values. Data is read before any model loads."""
    named = {name: getattr(options, name) for name in ("vision", "llm")}
    if (options.model is None) != all(named.values()) or (options.model and any(named.values())):
        raise OptionError("give --model, or --vision and --llm, to say what is trained")
    if options.model and (options.projector or options.select_layer is not None):
        raise OptionError("--projector and --select-layer go with --vision and --llm, not --model")
    from bridge.vlm.train.data import CAPTION_QUESTION
    from bridge.vlm.train.run import train_vlm

    settings = {n: getattr(options, n) for n in _HANDED_ON if getattr(options, n) is not None}
    done = train_vlm(
        partial(_loaded if options.model else _paired, options),
        options.data,
        options.output,
        image_folder=options.image_folder,
        caption_question=options.caption_question or CAPTION_QUESTION,
        feature_folder=options.feature_folder,
        store_features=options.store_features,
        device=options.device,
        **settings,
    )
    return {
        "output": str(done.folder),
        "steps": len(done.log),
        "first_loss": done.losses[0] if done.log else None,
        "last_loss": done.losses[-1] if done.log else None,
    }


def _loaded(options: argparse.Namespace, device: Any) -> Any:
    from bridge.vlm.load import load_vlm

    return load_vlm(options.model, device=device, dtype=options.dtype)


def _paired(options: argparse.Namespace, device: Any) -> Any:
    """Tower and language model of the names, and a projector drawn from the seed."""
    import torch

    from bridge.vlm.pairing import pair
    from bridge.vlm.part_loading import load_llm, load_vision

    vision, processor = load_vision(options.vision, device=device, dtype=options.dtype)
    llm, tokenizer = load_llm(options.llm, device=device, dtype=options.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed or 0)
        return pair(
            vision,
            llm,
            tokenizer,
            projector=options.projector or "mlp2x_gelu",
            image_processor=processor,
            select_layer=-2 if options.select_layer is None else options.select_layer,
        )
