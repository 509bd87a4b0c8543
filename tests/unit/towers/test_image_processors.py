"""A folder's image processor, in the layouts of transformers 4 and 5, and by towers' names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.tiny_pairs import plain_tokenizer
from transformers import CLIPConfig, CLIPModel

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.towers import open_image_tower
from bridge.towers.image_processor import load_image_processor
from bridge.vlm import load_llm, load_vision

SETTINGS: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
}
PICTURE = Image.linear_gradient("L").convert("RGB").resize((90, 40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP as transformers 5 saves it with its CLIPProcessor."""
    sides = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2}
    tokenizer = plain_tokenizer()
    text = {**sides, **heads, "vocab_size": len(tokenizer), "eos_token_id": 2}
    vision = {**sides, **heads, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    nested = {"processor_class": "CLIPProcessor", "image_processor": SETTINGS}
    (place / "processor_config.json").write_text(json.dumps(nested))
    return place


def test_a_tower_saved_by_transformers_5_opens(folder: Path) -> None:
    tower = open_image_tower(folder, device="cpu")
    want = load_vision(folder, device="cpu")[1]([PICTURE], return_tensors="pt").pixel_values
    assert want.shape == (1, 3, 32, 32)
    assert torch.equal(tower.processor([PICTURE], return_tensors="pt").pixel_values, want)
    assert tower.encode([PICTURE]).pooled is not None


@pytest.mark.parametrize("kind", ["CLIPFeatureExtractor", "CLIPImageProcessorFast"])
def test_older_names_and_the_older_file(kind: str, folder: Path, tmp_path: Path) -> None:
    old = {key: value for key, value in SETTINGS.items() if key != "image_processor_type"}
    named = "feature_extractor_type" if "Feature" in kind else "image_processor_type"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**old, named: kind}))
    got = load_image_processor(tmp_path)([PICTURE], return_tensors="pt").pixel_values
    want = load_image_processor(folder)([PICTURE], return_tensors="pt").pixel_values
    assert torch.equal(got, want)


def test_a_processor_of_another_towers_size_is_told(folder: Path, tmp_path: Path) -> None:
    """Nothing says the size, so transformers takes 224 for it: no picture would help."""
    place = shutil.copytree(folder, tmp_path / "unsized")
    nested = {"image_processor": {"image_processor_type": "CLIPImageProcessor"}}
    (place / "processor_config.json").write_text(json.dumps(nested))
    told = r"unsized: its image processor makes pixels of \(3, 224, 224\), .* takes \(3, 32, 32\)"
    with pytest.raises(WeightsError, match=told):
        open_image_tower(place, device="cpu")


def test_a_folder_without_a_processor_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no image processor"):
        load_image_processor(tmp_path)


def test_a_part_is_found_by_its_towers_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(source: str, *, revision: str | None = None) -> Path:
        asked.append((source, revision))
        raise WeightsError("stop here")

    monkeypatch.setattr("bridge.vlm.load.resolve", resolve)
    for load, name in ((load_vision, "clip-l"), (load_llm, "qwen3-0.6b"), (load_vision, "a/b")):
        with pytest.raises(WeightsError, match="stop here"):
            load(name, revision="main")
    sources = ["openai/clip-vit-large-patch14", "Qwen/Qwen3-0.6B", "a/b"]
    assert asked == [(source, "main") for source in sources]


@pytest.mark.parametrize("name", ["clip-l-336", "openclip-xlmr-h", "coca-l"])
def test_a_tower_of_another_layout_is_refused_before_it_is_fetched(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"'{name}' .* transformers' layout"):
        load_vision(name)
