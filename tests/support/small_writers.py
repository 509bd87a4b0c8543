"""Each kind of thing that bridge writes, small, through the door that users have.

A writer takes a folder and a version, and a reader says which version is there: None if none is.
A reader fails on what is half-written, or of two versions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import bridge
from bridge.adapters.adapter import Adapter, TowerCard
from bridge.adapters.maps import TowerMap
from bridge.adapters.reading import PLACE_WIDTH
from bridge.adapters.regression import LinearMap
from bridge.cli import main
from bridge.encoding import load_conditioning, save_conditioning
from bridge.lab.cache import Cache
from bridge.lab.result import TABLES, Study
from bridge.manifest import check_embedded, read_manifest, write_manifest
from bridge.towers import Layer
from bridge.training.run_state import Journal, load_checkpoint, save_checkpoint
from bridge.vlm import convert, load_vlm, save_vlm
from bridge.vlm.projectors import load_projector, save_projector
from support.tiny_models import tiny_sd_pipeline
from support.tiny_training import tiny_vlm
from support.tiny_vlm import tiny_llava


@dataclass(frozen=True)
class Writer:
    """``share``: how often it is tried; those that take longer are tried less."""

    name: str
    write: Callable[[Path, int], Any]
    read: Callable[[Path], int | None]
    share: int = 4


def _only(values: torch.Tensor) -> int:
    """The number that a tensor is filled with."""
    (value,) = set(values.float().flatten().tolist())
    return int(value)


def _filled(version: int, *shape: int) -> torch.Tensor:
    return torch.full(shape, float(version), dtype=torch.float32)


# ---------------------------------------------------------------- files


def _write_adapter(folder: Path, version: int) -> None:
    foreign, native = (TowerCard("tiny", wide, {"torch.float32": "0" * 16}) for wide in (32, 64))
    # What ``inputs_of`` gives for one layer of 32.
    ends = 32 * 3 + 2 * PLACE_WIDTH
    taken = {"content": 32 + PLACE_WIDTH, "eos": ends, "padding": ends}
    linear = {
        kind: LinearMap(_filled(version, count, 64), _filled(version, 64))
        for kind, count in taken.items()
    }
    Adapter(
        kind="ridge",
        recipe="sd15",
        layers=(Layer(),),
        foreign=foreign,
        natives={"text_encoder": native},
        maps={"text_encoder": TowerMap(linear, _filled(version, 77, 64))},
        explained={},
        prompts=version,
    ).save(folder / "a.safetensors")


def _read_adapter(folder: Path) -> int | None:
    if not (folder / "a.safetensors").exists():
        return None
    found = bridge.load_adapter(folder / "a.safetensors")
    assert _only(found.maps["text_encoder"].empty) == found.prompts
    return found.prompts


@lru_cache
def _conditioning() -> Any:
    return bridge.condition("a cat", model=tiny_sd_pipeline("sd15"))


def _write_conditioning(folder: Path, version: int) -> None:
    cond = _conditioning()
    cond = replace(cond, prompt_embeds=torch.full_like(cond.prompt_embeds, float(version)))
    save_conditioning(cond, folder / "c.safetensors")


def _read_conditioning(folder: Path) -> int | None:
    if not (folder / "c.safetensors").exists():
        return None
    return _only(load_conditioning(folder / "c.safetensors").prompt_embeds)


def _write_study(folder: Path, version: int) -> None:
    columns = {"prompt": "a cat", "operation": "original", "tower": "t", "version": [version] * 900}
    tables = {name: pd.DataFrame() for name in TABLES} | {"table": pd.DataFrame(columns)}
    found = Study(**tables, drawn=(), settings={"seed": version})
    for name in ("all.json", "table.csv"):
        found.save(folder / name)


def _read_study(folder: Path) -> int | None:
    if (folder / "table.csv").exists():
        table = pd.read_csv(folder / "table.csv")
        assert len(table) == 900 and len(set(table["version"])) == 1
    if not (folder / "all.json").exists():
        return None
    found = json.loads((folder / "all.json").read_text())
    assert {row["version"] for row in found["table"]} == {found["settings"]["seed"]}
    return int(found["settings"]["seed"])


def _write_cache(folder: Path, version: int) -> None:
    cache = Cache(folder / "cache")
    with cache.batch(["ab12"]) as batch:
        cache.keep_tensors("ab12", {"row": _filled(version, 5000)}, batch)


def _read_cache(folder: Path) -> int | None:
    assert len([*folder.glob("cache/*/*.safetensors")]) <= 1
    found = Cache(folder / "cache").tensors("ab12")
    return None if found is None else _only(found["row"])


def _write_manifest(folder: Path, version: int) -> None:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / f"{version}.json").write_text("{}")
    write_manifest(folder)


def _read_manifest(folder: Path) -> int | None:
    if not (folder / "manifest.json").exists():
        return None
    assert check_embedded("model", weights=folder)
    return max(int(Path(name).stem) for name in read_manifest(folder))


def _training() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Linear(40, 40)
    return module, torch.optim.AdamW(module.parameters())


def _write_checkpoint(folder: Path, version: int) -> None:
    module, adam = _training()
    nn.init.constant_(module.weight, version)
    save_checkpoint(folder / "checkpoint.safetensors", module, adam, version, {})


def _read_checkpoint(folder: Path) -> int | None:
    if not (folder / "checkpoint.safetensors").exists():
        return None
    module, adam = _training()
    step = load_checkpoint(folder / "checkpoint.safetensors", module, adam, {})
    assert _only(module.weight.detach()) == step
    return step


def _write_journal(folder: Path, version: int) -> None:
    Journal(folder, [{"step": 1.0, "loss": float(version)}] * 900).write()


def _read_journal(folder: Path) -> int | None:
    if not (folder / "log.json").exists():
        return None
    journal = Journal(folder)
    journal.resume(1)
    assert len(journal.log) == 900
    return int(journal.log[0]["loss"])


@lru_cache
def _projector() -> Any:
    return tiny_vlm().projector


def _write_projector(folder: Path, version: int) -> None:
    projector = _projector()
    for parameter in projector.parameters():
        nn.init.constant_(parameter, version)
    save_projector(projector, folder / "projector")


def _read_projector(folder: Path) -> int | None:
    if not (folder / "projector" / "projector.json").exists():
        return None
    projector: Any = load_projector(folder / "projector")
    return _only(torch.cat([p.detach().flatten() for p in projector.parameters()]))


# ---------------------------------------------------------------- folders


@lru_cache
def _vlm() -> Any:
    return tiny_vlm(llm="GPT2")  # in bridge's own layout


def _write_vlm(folder: Path, version: int) -> None:
    vlm = _vlm()
    tables = (vlm.llm.get_input_embeddings(), vlm.projector)
    for parameter in (p for module in tables for p in module.parameters()):
        nn.init.constant_(parameter, version)
    save_vlm(vlm, folder / "vlm")


def _read_vlm(folder: Path) -> int | None:
    if not (folder / "vlm" / "config.json").exists():
        return None
    vlm: Any = load_vlm(folder / "vlm", device="cpu", dtype=torch.float32)
    found = _only(vlm.llm.get_input_embeddings().weight.detach())
    assert {found} == {_only(p.detach()) for p in vlm.projector.parameters()}
    return found


def converting(root: Path) -> Writer:
    """To a new folder each time: ``bridge convert`` goes over none."""
    source = tiny_llava(root)

    def write(folder: Path, version: int) -> None:
        convert(source, folder / f"out-{version}", to="llava")

    def read(folder: Path) -> int | None:
        found = [*folder.glob("out-*")]
        for each in found:
            assert main(["convert", str(each), str(root / "back"), "--to", "hf", "--json"]) == 0
            (root / "back").rename(root / f"back-{len([*root.iterdir()])}")
        return max((int(each.name[4:]) for each in found), default=None)

    return Writer("convert", write, read, 1)


def encoding(root: Path) -> Writer:
    """``bridge encode``: a file a prompt, and their index."""
    model = root / "tiny-sd"
    tiny_sd_pipeline("sd15").save_pretrained(model)

    def write(folder: Path, version: int) -> None:
        (root / "prompts.txt").write_text(f"a cat\na dog {version}\n")
        command = ["encode", str(root / "prompts.txt"), "-m", str(model)]
        assert main([*command, "-o", str(folder / "encoded"), "--json"]) == 0

    def read(folder: Path) -> int | None:
        if not (folder / "encoded" / "index.json").exists():
            return None
        rows = json.loads((folder / "encoded" / "index.json").read_text())["files"]
        for row in rows:
            load_conditioning(folder / "encoded" / row["file"])
        return int(rows[1]["prompt"].rpartition(" ")[2])

    return Writer("encode", write, read, 1)


def writers(root: Path) -> list[Writer]:
    """All of them; ``root`` is for the models that they need."""
    return [
        Writer("adapter", _write_adapter, _read_adapter),
        Writer("conditioning", _write_conditioning, _read_conditioning),
        Writer("study", _write_study, _read_study),
        Writer("cache of a study", _write_cache, _read_cache),
        Writer("manifest", _write_manifest, _read_manifest),
        Writer("checkpoint of a training", _write_checkpoint, _read_checkpoint),
        Writer("journal of a training", _write_journal, _read_journal, 1),
        Writer("projector", _write_projector, _read_projector),
        Writer("vlm", _write_vlm, _read_vlm, 2),
        converting(root),
        encoding(root),
    ]
