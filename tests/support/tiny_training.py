"""A tiny pairing, pictures that differ, and a folder of them to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bridge.vlm import BridgeVLM, pair
from support.tiny_pairs import plain_tokenizer, tiny_llm, tiny_tower

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 210), "black": (0, 0, 0)}


def tiny_vlm(llm: str = "Llama", tower: str = "clip", **options: Any) -> BridgeVLM:
    """Random parts of fixed seeds; the projector's is the same in every call as well."""
    tokenizer = options.pop("tokenizer", None) or plain_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return pair(tiny_tower(tower), tiny_llm(llm, 300), tokenizer, **options)


def coloured(path: Path, colour: str, size: tuple[int, int] = (40, 32)) -> None:
    Image.new("RGB", size, COLOURS[colour]).save(path)


def conversations(folder: Path, count: int = 8) -> Path:
    """LLaVA's JSON with pictures beside it: ragged, some of two turns, one without a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        colour = list(COLOURS)[index % len(COLOURS)]
        coloured(folder / f"{index}.png", colour, (40 + index, 32))
        said = [
            {"from": "human", "value": "<image>\nwhich colour is it?"},
            {"from": "gpt", "value": colour},
        ]
        if index % 3 == 1:
            said += [
                {"from": "human", "value": "is there a cat, or a dog?"},
                {"from": "gpt", "value": "no. there is neither."},
            ]
        rows.append({"id": f"r{index}", "image": f"{index}.png", "conversations": said})
    rows.append(
        {
            "id": "text",
            "conversations": [
                {"from": "human", "value": "say a colour"},
                {"from": "gpt", "value": "blue"},
            ],
        }
    )
    path = folder / "talk.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path
