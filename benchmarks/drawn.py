"""The pictures that ``draw`` keeps for ``memorise``, with what they were drawn with."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bridge.errors import OptionError
from bridge.files import default_cache, hash_file, whole
from bridge.store import resolve

_LOADED = (".json", ".txt", ".safetensors")


@dataclass(frozen=True)
class Source:
    """What pictures were drawn with: the model's files and the options of ``draw``."""

    weights: str
    n: int
    seed: int
    steps: int
    guidance: float


def source_of(args: argparse.Namespace) -> Source:
    """What the options draw with now. Raises what ``bridge.store.resolve`` does."""
    return Source(weights_of(args.model), args.n, args.seed, args.steps, args.guidance)


def weights_of(model: str) -> str:
    """16 hex digits that change with every file that a model is loaded from."""
    folder = resolve(model)
    files = sorted(path for path in folder.rglob("*") if path.suffix in _LOADED)
    told = [f"{path.relative_to(folder)} {hash_file(path)}" for path in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def pictures_file(model: str, seed: int) -> Path:
    """Where a model's drawn pictures are kept between commands; folders of one name have two."""
    folder = resolve(model).resolve()
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return default_cache() / "benchmarks" / f"drawn-{folder.name}-{place}-{seed}.npz"


def keep_pictures(
    path: Path, source: Source, prompts: Sequence[str], pictures: Sequence[np.ndarray]
) -> None:
    """Write pictures, uint8 (H, W, 3), and their prompts."""
    told = json.dumps(asdict(source))
    with whole(path) as part, part.open("xb") as stream:
        np.savez(stream, pictures=np.stack(pictures), prompts=list(prompts), source=told)


def kept_pictures(path: Path, source: Source) -> tuple[list[str], np.ndarray]:
    """Prompts and pictures (N, H, W, 3). Raises OptionError for pictures of another source."""
    if not path.is_file():
        raise OptionError(f"there are no drawn pictures at {path}: run the draw command first")
    with np.load(path) as stored:
        # Files of older versions do not say.
        told = json.loads(str(stored["source"])) if "source" in stored else {}
        differs = [
            f"{name} {told.get(name, 'unknown')}, not {wanted}"
            for name, wanted in asdict(source).items()
            if told.get(name) != wanted
        ]
        if differs:
            raise OptionError(
                f"the pictures at {path} were drawn with {'; '.join(differs)}: run the draw "
                "command again, with the options of this one"
            )
        return [str(prompt) for prompt in stored["prompts"]], stored["pictures"]
