"""Names that no file can have are refused by every verb that takes one, as an error of bridge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.encoding import load_conditioning
from bridge.errors import BridgeError
from bridge.vlm import convert, load_llm, load_projector, load_vision

NAMES = ("a\0b", "a\0.safetensors", "n" * 300, "n" * 300 + "/x", "\ud800", "~nobody-of-that-name/a")
DOORS: dict[str, Callable[[str], Any]] = {
    "a LoRA": lambda name: bridge.condition("a cat", loras=name),
    "an embedding": lambda name: bridge.condition("a cat", textual_inversions=name),
    "a model": lambda name: bridge.condition("a cat", model=name),
    "a tower": lambda name: bridge.condition("a cat", towers=name),
    "an adapter": lambda name: bridge.load_adapter(name),
    "an adapter in use": lambda name: bridge.condition("a", towers="emoji-1", adapter=name),
    "a conditioning": load_conditioning,
    "a pipeline": bridge.load_pipeline,
    "a drawing's model": lambda name: bridge.generate("a cat", model=name),
    "a VLM": bridge.load_vlm,
    "a picture": lambda name: bridge.describe(name, "what is it?"),
    "a study's tower": lambda name: bridge.study("a cat", towers=[name]),
    "a study's model": lambda name: bridge.study("a cat", model=name),
    "a checkpoint": lambda name: convert(name, "out", to="hf"),
    "a projector": load_projector,
    "a vision tower": load_vision,
    "a language model": load_llm,
    "data": lambda name: bridge.train_vlm("emoji-llava", name, "out"),
    "pairs": lambda name: bridge.train_clip("emoji-clip", name, "out"),
    "a student": lambda name: bridge.train_clip(
        "emoji-clip", [{"text": "a"}], "out", mode="distill", student=name
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_name_that_no_file_can_have(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        with pytest.raises(BridgeError):
            DOORS[door](name)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("option", ["loras", "textual_inversions"])
def test_an_empty_name_is_not_the_folder_one_stands_in(option: str) -> None:
    for empty in ("", [""]):
        with pytest.raises(BridgeError, match=f"{option} has an empty path; give a file"):
            bridge.condition("a cat", **{option: empty})


@pytest.mark.parametrize(
    ("prompt", "dialect"),
    [("(a:" + "1.2." * 9_000 + ")", "a1111"), ('("a").and(' + "1" * 9_000 + ")", "compel")],
)
def test_a_long_text_is_not_repeated_whole(prompt: str, dialect: str) -> None:
    with pytest.raises(BridgeError, match="is no weight") as caught:
        bridge.condition(prompt, dialect=dialect)
    assert len(str(caught.value)) < 300
