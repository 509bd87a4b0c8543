"""What makes the trained parts a published set: pipeline index, loss curves, manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bridge.files import write_whole
from bridge.store import write_manifest

_MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.42.1",
    "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}


def publish(weights: Path, runs: Path) -> None:
    """Write emoji-xl/model_index.json, copy each run's loss curve, pack the vocabularies, and renew
    the manifest."""
    index = weights / "emoji-xl" / "model_index.json"
    write_whole(index, (json.dumps(_MODEL_INDEX, indent=2) + "\n").encode())
    curves = weights / "curves"
    curves.mkdir(exist_ok=True)
    for run in sorted(path for path in runs.glob("*") if (path / "log.json").exists()):
        for kind in ("json", "png"):
            source = run / ("log.json" if kind == "json" else "loss.png")
            if source.exists():
                shutil.copyfile(source, curves / f"{run.name}.{kind}")
    for words in sorted(weights.rglob("tokenizer.json")):
        _pack(words)
    write_manifest(weights)


def _pack(path: Path) -> None:
    """The same JSON without its indentation, which is half of a vocabulary's bytes."""
    content = json.loads(path.read_text(encoding="utf-8"))
    packed = json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
    write_whole(path, packed.encode())
