"""Model folders that nobody should have: each is one error that names what is wrong with it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from support.tiny_folders import KINDS

import bridge
from bridge.errors import BridgeError, UnsupportedModelError, WeightsError
from bridge.model_folder import check_described, files_size
from bridge.vlm import load_llm, load_vision


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def made(kind: str, root: Path) -> Path:
    KINDS[kind].make(root / kind)
    return root / kind


@pytest.mark.parametrize("part", ["llm", "vision"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_folder_that_is_a_part_of_itself(tmp_path: Path, part: str, steps: int) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    KINDS["own"].make(first)
    KINDS["own"].make(second)
    change(first / "config.json", **{part: str(second if steps == 2 else first)})
    change(second / "config.json", **{part: str(first)})
    for door in (bridge.load_vlm, load_llm, load_vision):
        with pytest.raises(UnsupportedModelError, match="part of itself") as caught:
            door(first, device="cpu")
        assert str(first) in str(caught.value)


@pytest.mark.parametrize("kind", ["llava", "own", "llm", "tower", "clip", "open_clip", "sd"])
@pytest.mark.parametrize("trap", ["pipe", "device", "itself"])
def test_what_never_ends_is_not_opened(tmp_path: Path, kind: str, trap: str) -> None:
    folder = made(kind, tmp_path)
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        kept = path.read_bytes()
        path.unlink()
        if trap == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero" if trap == "device" else path)
        for door in KINDS[kind].doors.values():
            with pytest.raises(BridgeError) as caught:
                door(folder)
            assert str(path) in str(caught.value) or trap == "itself"
        path.unlink()
        path.write_bytes(kept)


@pytest.mark.parametrize("named", ["evil.bin", "../evil.bin", 3, None, ["model.safetensors"]])
@pytest.mark.parametrize("kind", ["llm", "clip", "llava"])
def test_an_index_names_safetensors_only(tmp_path: Path, kind: str, named: Any) -> None:
    folder = made(kind, tmp_path)

    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    for place in (folder, tmp_path):
        (place / "evil.bin").write_bytes(pickle.dumps(Runs()))
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": named}}))
    for door in KINDS[kind].doors.values():
        with pytest.raises(WeightsError, match=r"safetensors"):
            door(folder)
    for odd in ([], "x", 3, None):
        index.write_text(json.dumps({"weight_map": odd}))
        for door in KINDS[kind].doors.values():
            with pytest.raises(WeightsError, match="weight_map"):
                door(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_may_lie_in_a_sibling(tmp_path: Path) -> None:
    folder = made("llm", tmp_path)
    (tmp_path / "other").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "other" / "far.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "other" / "far.safetensors", "pt") as stored:
        weights = dict.fromkeys(stored.keys(), "../other/far.safetensors")
    index = {"metadata": {}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_llm(folder, device="cpu")


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"num_hidden_layers": 10**9}),
        ("config.json", {"max_position_embeddings": 10**12}),
        ("config.json", {"hidden_size": "32"}),
        ("config.json", {"hidden_act": ["gelu"]}),
        ("config.json", {"architectures": 3, "model_type": {"x": 1}}),
        ("generation_config.json", {"eos_token_id": "end"}),
        ("generation_config.json", {"force_words_ids": [[1]]}),
        ("generation_config.json", {"assistant_early_exit": 1}),
        ("tokenizer_config.json", {"bos_token": {"content": 3}}),
        ("tokenizer.json", {"model": {"type": "BPE"}}),
    ],
)
def test_values_that_no_model_has(tmp_path: Path, file: str, values: dict[str, Any]) -> None:
    folder = made("llm", tmp_path)
    change(folder / file, **values)
    with pytest.raises(BridgeError) as caught:
        load_llm(folder, device="cpu")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_json_nested_without_end(tmp_path: Path, file: str) -> None:
    folder = made("llm", tmp_path)
    (folder / file).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(WeightsError) as caught:
        load_llm(folder, device="cpu")
    assert str(folder) in str(caught.value)


def test_a_part_of_a_pipeline_that_could_run_code_is_refused(tmp_path: Path) -> None:
    """diffusers passes trust_remote_code=False to no part, and processors ask for their parts."""
    folder = made("sd", tmp_path)
    change(folder / "model_index.json", tokenizer=["transformers", "LlavaProcessor"])
    with pytest.raises(UnsupportedModelError, match=r"tokenizer.*LlavaProcessor"):
        bridge.load_pipeline(folder, device="cpu")


def test_every_published_part_of_a_pipeline_is_taken(tmp_path: Path) -> None:
    """As the model_index.json of SD 1.5, SD 2.1 and SDXL name them."""
    from bridge.diffusion.load import pipeline_class_name

    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "image_encoder": [None, None],
        "requires_safety_checker": True,
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert pipeline_class_name(tmp_path) == "StableDiffusionPipeline"


@pytest.mark.parametrize(
    ("kind", "part"), [("llm", None), ("clip", "text_config"), ("clip", "vision_config")]
)
def test_a_config_that_describes_more_than_the_files_hold(
    tmp_path: Path, kind: str, part: str | None
) -> None:
    """Six thousand million numbers that transformers would make up, 24 GB of them."""
    folder = made(kind, tmp_path)
    values: dict[str, Any] = {"num_hidden_layers": 50, "intermediate_size": 1 << 21}
    if part is not None:
        whole = json.loads((folder / "config.json").read_text())
        values = {part: {**whole[part], **values}}
    change(folder / "config.json", **values)
    refused = 0
    for door in KINDS[kind].doors.values():
        try:
            door(folder)
        except WeightsError as error:
            assert "numbers, and its files hold" in str(error) and str(folder) in str(error)
            refused += 1
    assert refused


def test_what_a_config_describes_is_compared_with_the_weights(tmp_path: Path) -> None:
    import transformers

    small = transformers.CLIPTextConfig(num_hidden_layers=1, hidden_size=64, intermediate_size=64)
    large = transformers.CLIPTextConfig(hidden_size=768, intermediate_size=3072)
    model_class = transformers.CLIPTextModel
    check_described(model_class, small, tmp_path, 0)
    check_described(model_class, large, tmp_path, 30_000_000)
    with pytest.raises(WeightsError, match=r"describes 123,060,480 numbers.* hold 20,000,000 b"):
        check_described(model_class, large, tmp_path, 20_000_000)
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    assert files_size(tmp_path) == 100
