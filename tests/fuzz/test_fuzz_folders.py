"""Damaged and hostile model folders, by every door: one error that names the folder, or success."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from fuzz_support import Fuzz, Run, damage_bytes
from support.hostile_templates import HOSTILE
from support.tiny_folders import KINDS, make_all

from bridge.errors import BridgeError

ROW = "damaged folders, code folders, pickles that end in a traceback"
# Generous: a machine may be busy. What hangs, hangs for ever.
WALL = 120

_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 2**31, 10**12, 10**30, -(10**12), 1e308, -0.5, float("nan"), "", "x",
    "../../x", "a\0b", "é" * 300, [], [1], [[]], ["x", None], {}, {"x": 1}, [0] * 1000,
)  # fmt: skip


class Runs:
    """A pickle that leaves a mark where it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def places_of(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value of a JSON object."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value[:20]))
    return [at] * bool(at) + [place for k, v in inside for place in places_of(v, (*at, k))]


def damage_json(rng: random.Random, data: bytes) -> bytes:
    """One or two values changed for odd ones, taken away, moved, or nested without end."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        places = places_of(value)
        if not places:
            break
        # Deep places are many, such as a vocabulary's words; each depth has its turn.
        depth = rng.choice(sorted({len(place) for place in places}))
        *path, last = rng.choice([place for place in places if len(place) == depth])
        holder = value
        for step in path:
            holder = holder[step]
        kind = rng.randrange(6)
        if kind == 0:
            del holder[last]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(("auto_map", "model_type", "size", f"{last}_"))] = holder.pop(last)
        elif kind == 2 and isinstance(holder[last], int | float):
            holder[last] = holder[last] * rng.choice((-1, 2, 1000, 0.5)) + rng.choice((0, 1))
        else:
            holder[last] = deepcopy(rng.choice(_ODD))
    if rng.random() < 0.05:
        return b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    return json.dumps(value).encode()


def hostile_file(rng: random.Random, path: Path, mark: Path) -> None:
    """Something of another kind in the place of a file, or beside it."""
    whole = path.parent
    kind = rng.randrange(7)
    if kind == 0:
        path.unlink()
        rng.choice((os.mkfifo, Path.mkdir))(path)  # type: ignore[operator]
    elif kind == 1:
        path.unlink()
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/urandom", path, "nowhere")))
    elif kind == 2:
        path.write_bytes(pickle.dumps(Runs(mark)))
    elif kind == 3:
        (whole / "evil.bin").write_bytes(pickle.dumps(Runs(mark)))
        named = rng.choice(("evil.bin", "../evil.bin", "/dev/zero", 3, None, "config.json"))
        weights: Any = rng.choice(({"lm_head.weight": named}, [named], named, {}))
        for stem in ("model", "diffusion_pytorch_model"):
            index = whole / f"{stem}.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": weights}))
            (whole / f"{stem}.safetensors").unlink(missing_ok=True)
    elif kind == 4:
        for file in whole.glob("*.safetensors"):
            file.with_suffix(".bin").write_bytes(pickle.dumps(Runs(mark)))
            file.unlink()
    elif kind == 5:
        (whole / "chat_template.jinja").write_text(rng.choice(list(HOSTILE.values())))
    else:
        (whole / "generation_config.json").write_text(
            json.dumps({rng.choice(_GENERATION): rng.choice(_ODD)})
        )


_GENERATION = (
    "eos_token_id", "pad_token_id", "max_length", "min_length", "temperature", "num_beams",
    "num_beam_groups", "penalty_alpha", "repetition_penalty", "suppress_tokens", "do_sample",
    "bad_words_ids", "cache_implementation", "custom_generate", "dola_layers", "sequence_bias",
    "force_words_ids", "no_repeat_ngram_size", "forced_bos_token_id", "watermarking_config",
    "prompt_lookup_num_tokens", "guidance_scale", "stop_strings", "max_time",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_all(tmp_path_factory.mktemp("whole"))


def opened(run: Run, kind: str, door: str, folder: Path, what: str) -> None:
    """Note a failure unless the folder opens and works, or is refused by its name."""
    with run.within(WALL):
        try:
            KINDS[kind].doors[door](folder)
        except BridgeError as error:
            run.expect(str(folder) in str(error), f"{what}: not named: {error!r}")
        except Exception as error:
            run.fail(f"{what}: {error!r}")


Change = Callable[[random.Random, Path, Path], None]


def _bytes(rng: random.Random, path: Path, mark: Path) -> None:
    path.write_bytes(damage_bytes(rng, path.read_bytes()))


def _json(rng: random.Random, path: Path, mark: Path) -> None:
    if path.suffix == ".json":
        path.write_bytes(damage_json(rng, path.read_bytes()))
    else:
        _bytes(rng, path, mark)


@pytest.mark.parametrize(
    ("change", "share"),
    [(_bytes, 20), (_json, 70), (hostile_file, 30)],
    ids=["bytes", "values", "files"],
)
def test_damaged_folders(
    fuzz: Fuzz, whole: dict[str, Path], tmp_path: Path, change: Change, share: int
) -> None:
    with fuzz(ROW, share) as run:
        for rng in run.draws():
            kind = rng.choice(list(KINDS))
            door = rng.choice(list(KINDS[kind].doors))
            folder, mark = tmp_path / f"{kind}-{run.seed}", tmp_path / "mark"
            shutil.copytree(whole[kind], folder)
            path = rng.choice(sorted(each for each in folder.rglob("*") if each.is_file()))
            change(rng, path, mark)
            what = f"{kind} by {door}, {path.relative_to(folder)}"
            opened(run, kind, door, folder, what)
            run.expect(not mark.exists(), f"{what}: a pickle was run")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(mark, ignore_errors=True)
