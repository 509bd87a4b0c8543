"""The peers whose own code runs beside ours, and where each is found.

Packages are installed by ``make parity``. What is no package is read from a clone below the
folder that the variable ``PEERS`` names, at the commit of this table; none of it is in this
repository.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

# `make parity` sets it: there a peer that is missing is a failure and not a skip.
STRICT = bool(os.environ.get("BRIDGE_PARITY_STRICT"))


@dataclass(frozen=True)
class Clone:
    """A peer that is read from a clone: its folder below ``PEERS``, and its commit."""

    folder: str
    repository: str
    commit: str
    version: str


CLONES = {
    each.folder: each
    for each in (
        Clone(
            "webui",
            "AUTOMATIC1111/stable-diffusion-webui",
            "82a973c04367123ae98bd9abdf80d9eda9b910e2",
            "1.10.1",
        ),
        Clone(
            "forge",
            "lllyasviel/stable-diffusion-webui-forge",
            "dfdcbab685e57677014f05a3309b48cc87383167",
            "June 2025",
        ),
        Clone(
            "comfyui",
            "Comfy-Org/ComfyUI",
            "4f874c5e3a2fafb9938273c5f3fc47d2da017667",
            "0.29.0",
        ),
        Clone(
            "adv_clip_emb",
            "BlenderNeko/ComfyUI_ADV_CLIP_emb",
            "63984deefb005da1ba90a1175e21d91040da38ab",
            "April 2024",
        ),
        Clone(
            "sd_embed",
            "xhinker/sd_embed",
            "4a47f71150a22942fa606fb741a1c971d95ba56f",
            "April 2025",
        ),
        Clone(
            "diffusers",
            "huggingface/diffusers",
            "58eb52c0803ea9af3abec60841c2a093bdf1f951",
            "its community pipelines",
        ),
        Clone("daam", "castorini/daam", "09564e048cf5ffc1523aa0605736e7f178ca505a", "0.2.0"),
        Clone("llava", "haotian-liu/LLaVA", "c121f0432da27facab705978f83c4ada465e46fd", "1.2.2"),
        Clone(
            "clip_benchmark",
            "LAION-AI/CLIP_benchmark",
            "48de38c1689fa6d8b4dd53e3370c669c3bb18117",
            "1.6.1",
        ),
    )
}

PACKAGES = (
    "compel",
    "open_clip_torch",
    "timm",
    "scikit-learn",
    "diffusers",
    "transformers",
    "torch",
)


def missing(why: str) -> None:
    """Skip the test, or fail it where every peer is asked for."""
    if STRICT:
        pytest.fail(why)
    pytest.skip(why)


def clone(name: str) -> Path:
    """The folder of a peer's clone. Skips (or fails) where it is not there at its commit."""
    peer = CLONES[name]
    root = os.environ.get("PEERS")
    if not root:
        missing(f"PEERS names no folder with a clone of {peer.repository}")
    folder = Path(str(root)) / name
    found = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if found != peer.commit:
        missing(f"{folder} is not a clone of {peer.repository} at {peer.commit}")
    return folder


def package(name: str) -> ModuleType:
    """An installed peer. Skips (or fails) where it is not installed."""
    if importlib.util.find_spec(name) is None:
        missing(f"{name} is not installed; make parity installs it")
    return importlib.import_module(name)


def versions() -> dict[str, str]:
    """Peer -> the version or the commit that was compared with."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    clones = {f"{each.repository} {each.version}": each.commit for each in CLONES.values()}
    return {**found, **clones}


@contextmanager
def on_path(folder: Path) -> Iterator[None]:
    """Import a peer's modules from its clone; the path is as it was afterwards."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
