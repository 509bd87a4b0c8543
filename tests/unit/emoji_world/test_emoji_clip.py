"""The towers' recipes: the loss, who is trained, and folders that stock classes read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.places import DATA
from support.tiny_models import tiny_clip_tokenizer
from support.tiny_world import scenes_at, synthetic_sprites, tiny_vae
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from bridge.training import run_state
from emoji_world.render import render_scene
from emoji_world.train import clip
from emoji_world.train.data import pictures
from emoji_world.train.loop import Recipe

TEXTS = ["a cat", "two red apples left of a dog", ""]


def words(second: bool = False) -> CLIPTokenizer:
    return tiny_clip_tokenizer("!" if second else "<|endoftext|>")


def spread(model: CLIPModel) -> CLIPModel:
    """Values that differ everywhere, so that a mixed-up tensor shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture
def small_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "BATCH", 4)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here."""
    monkeypatch.setattr(run_state, "draw_curve", lambda *_, **__: None)


def assert_step_trains(recipe: Recipe, frozen: tuple[str, ...]) -> None:
    """One step is finite and reaches every part that is not frozen, and no frozen one."""
    loss, figures = recipe.loss(0)
    assert torch.isfinite(loss) and loss.ndim == 0
    assert all(isinstance(v, float) and v == v for v in figures.values())
    loss.backward()
    for name, parameter in recipe.module.named_parameters():
        held = name.startswith(frozen) if frozen else False
        assert parameter.requires_grad != held, name
        if held:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


# ---------------------------------------------------------------- shapes and losses


def test_the_two_towers_have_the_stated_shapes() -> None:
    torch.manual_seed(0)
    one, two = clip.build(words()), clip.build(words(True), second=True)
    assert (one.config.text_config.hidden_size, two.config.text_config.hidden_size) == (192, 224)
    assert (one.config.text_config.hidden_act, two.config.text_config.hidden_act) == (
        "quick_gelu",
        "gelu",
    )
    assert one.config.vision_config.hidden_size == 192
    assert len(one.vision_model.encoder.layers) == 6 and len(one.text_model.encoder.layers) == 4
    assert two.text_projection.weight.shape == (256, 224)
    assert one.config.text_config.eos_token_id == words().eos_token_id


def test_info_nce_is_the_mean_of_both_directions() -> None:
    torch.manual_seed(1)
    image, text, scale = torch.randn(5, 8), torch.randn(5, 8), torch.tensor(1.3)
    loss, right = clip.info_nce(image, text, scale)
    total, hits = 0.0, 0
    for i in range(5):
        rows = torch.tensor([F.cosine_similarity(image[i], text[j], dim=0) for j in range(5)])
        columns = torch.tensor([F.cosine_similarity(image[j], text[i], dim=0) for j in range(5)])
        for values in (rows, columns):
            total -= (values * scale.exp()).log_softmax(0)[i].item()
        hits += int(rows.argmax()) == i
    assert loss.item() == pytest.approx(total / 10, abs=1e-5)
    assert right == pytest.approx(hits / 5)
    perfect, share = clip.info_nce(image, image, torch.tensor(10.0))  # the scale stops at 100
    assert share == 1.0 and perfect < 1e-3


@pytest.mark.parametrize("second", [False, True])
def test_short_padding_reads_as_full_padding_does(second: bool) -> None:
    torch.manual_seed(2)
    tokenizer = words(second)
    model = spread(clip.build(tokenizer, second=second)).eval()
    short = clip.tokenise(tokenizer, TEXTS)
    full = tokenizer(TEXTS, padding="max_length", return_tensors="pt").input_ids
    assert short["input_ids"].shape[1] < 77
    with torch.no_grad():
        one = model.text_model(**short).pooler_output
        two = model.text_model(input_ids=full).pooler_output
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_dense_heads_learn_looks_on_things_only() -> None:
    torch.manual_seed(3)
    scenes = scenes_at(5, 3)
    heads = clip.DenseHeads(16)
    states = torch.randn(3, 64, 16, requires_grad=True)
    truth = clip.patch_truth(scenes)
    loss, figures = heads(states, truth)
    normed = heads.norm(states)
    parts = {}
    for name in ("concept", "tint", "size", "style"):
        target = getattr(truth, name).flatten()
        chosen = target >= 0
        logits = getattr(heads, name)(normed).flatten(0, 1)[chosen].log_softmax(-1)
        parts[name] = -logits[torch.arange(len(logits)), target[chosen]].mean()
    expected = 3 * parts["concept"] + 0.5 * parts["tint"] + 0.3 * (parts["size"] + parts["style"])
    torch.testing.assert_close(loss, expected)
    assert figures["concept"] == pytest.approx(parts["concept"].item(), abs=1e-5)


# ---------------------------------------------------------------- recipes


def tiny(tokenizer: CLIPTokenizer, projection: int) -> CLIPModel:
    """A small CLIP that sees pictures of the world's size."""
    with torch.random.fork_rng(devices=[]):
        told = clip.build(tokenizer).config.to_dict()
    text = told["text_config"] | {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "projection_dim": projection,
    }  # fmt: skip
    vision = told["vision_config"] | {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 2, "projection_dim": projection,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))


@pytest.mark.parametrize("stage", ["clip", pytest.param("clip-2", marks=pytest.mark.slow)])
def test_the_first_hundred_losses_are_those_of_the_loop_that_trained_what_ships(
    stage: str, tmp_path: Path
) -> None:
    """Rounding alone differs: one loop pools by the short way, the other computed all states."""
    settings, sprites = clip.Settings(100, batch=8, precision="no"), synthetic_sprites()
    torch.manual_seed(0)
    model = tiny(words(), 24)
    if stage == "clip":
        clip.train(model, words(), sprites, tmp_path / "run", settings)
    else:
        second = tiny(words(), 40)
        clip.train_second(second, model, words(), sprites, tmp_path / "run", settings)
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    want = json.loads((DATA / "clip_losses.json").read_text())[stage]
    assert [row["loss"] for row in log] == pytest.approx(want, rel=1e-5)


@pytest.mark.usefixtures("small_batch")
def test_the_image_tower_goes_on_against_both_locked_text_towers(tmp_path: Path) -> None:
    torch.manual_seed(6)
    models = clip.build(words()), clip.build(words(), second=True)
    heads = clip.DenseHeads(192)
    recipe = clip.recipe_vision(models, heads, words(), synthetic_sprites(), tiny_vae())
    locked = tuple(f"{m}.text_{part}" for m in ("first", "second") for part in ("model", "proj"))
    assert_step_trains(recipe, locked)
    assert models[0].vision_model is models[1].vision_model


def test_tower_2_leaves_the_image_tower_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(5)
    first, model = spread(tiny(words(), 24)), tiny(words(True), 40)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = clip.Settings(2, batch=4, precision="no")
    run = (model, first, words(True), synthetic_sprites(), tmp_path / "run", settings)
    trained = clip.train_second(*run)
    for name, tensor in trained.state_dict().items():
        if name.startswith("vision_model."):
            assert torch.equal(tensor, first.state_dict()[name]), name
    moved = {n.partition(".")[0] for n, t in trained.state_dict().items() if t.ne(before[n]).any()}
    assert moved == {"text_model", "text_projection", "visual_projection", "logit_scale"} | {
        "vision_model"  # the first one's
    }
    again = clip.train_second(*run)  # it came to its end: it is read
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name


def test_averaged_heads_come_back_from_a_run(tmp_path: Path) -> None:
    torch.manual_seed(7)
    settings = clip.Settings(2, batch=4, precision="no")
    clip.train(tiny(words(), 24), words(), synthetic_sprites(), tmp_path / "clip", settings)
    fresh, heads = (
        clip.trained_heads(tmp_path / "gone", 32),
        clip.trained_heads(tmp_path / "clip", 32),
    )
    again = clip.trained_heads(tmp_path / "clip", 32)
    for name, tensor in heads.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(heads.concept.weight, fresh.concept.weight)
    assert heads.norm.weight.ne(1).any()  # trained, and averaged with where it began


# ---------------------------------------------------------------- what is exported


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPModel, CLIPModel]:
    """Both CLIPModels written as the stages write them; the second shares the image tower."""
    torch.manual_seed(8)
    weights = tmp_path_factory.mktemp("weights")
    first = spread(clip.build(words()))
    second = spread(clip.build(words(True), second=True))
    second.vision_model.load_state_dict(first.vision_model.state_dict())
    clip.export(first, words(), weights, second=False)
    clip.export(second, words(True), weights, second=True)
    return weights, first, second


Exported = tuple[Path, CLIPModel, CLIPModel]


@pytest.mark.parametrize("second", [False, True])
def test_stock_clip_reads_the_shared_files(exported: Exported, second: bool) -> None:
    weights, *models = exported
    folder = weights / ("emoji-clip-2" if second else "emoji-clip")
    loaded, notes = CLIPModel.from_pretrained(folder, dtype=torch.float16, output_loading_info=True)
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = models[second].state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name].half()), name
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer(TEXTS).input_ids == words(second)(TEXTS).input_ids
    assert tokenizer.pad_token == words(second).pad_token


@pytest.mark.parametrize("second", [False, True])
def test_the_pipelines_text_tower_is_the_same_tensors(exported: Exported, second: bool) -> None:
    weights, *_ = exported
    kind = CLIPTextModelWithProjection if second else CLIPTextModel
    folder = weights / "emoji-xl" / ("text_encoder_2" if second else "text_encoder")
    loaded, notes = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    assert json.loads((folder / "config.json").read_text())["architectures"] == [kind.__name__]
    source = CLIPModel.from_pretrained(
        weights / ("emoji-clip-2" if second else "emoji-clip"), dtype=torch.float32
    )
    ids = clip.tokenise(words(second), TEXTS)["input_ids"]
    with torch.no_grad():
        mine = loaded.eval()(ids)
        theirs = source.eval().text_model(input_ids=ids)
        assert torch.equal(mine.last_hidden_state, theirs.last_hidden_state)
        if second:
            projected = source.text_projection(theirs.pooler_output)
            assert torch.equal(mine.text_embeds, projected)


def test_each_tensor_lies_in_one_file(exported: Exported) -> None:
    weights, *_ = exported
    files = {p.relative_to(weights).as_posix() for p in weights.rglob("*.safetensors")}
    assert files == {
        "emoji-xl/text_encoder/model.safetensors",
        "emoji-xl/text_encoder_2/model.safetensors",
        "emoji-clip/vision.safetensors",
        "emoji-clip/head.safetensors",
        "emoji-clip-2/head.safetensors",
    }
    assert not list(weights.rglob("*.part"))
    for name in ("emoji-clip", "emoji-clip-2"):
        index = json.loads((weights / name / "model.safetensors.index.json").read_text())
        assert all((weights / name / file).is_file() for file in index["weight_map"].values())


def test_the_image_processor_gives_the_training_pixels(exported: Exported) -> None:
    weights, *_ = exported
    processor = CLIPImageProcessor.from_pretrained(weights / "emoji-clip")
    scenes, sprites = scenes_at(9, 2), synthetic_sprites()
    images = [Image.fromarray(render_scene(scene, sprites)) for scene in scenes]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, pictures(scenes, sprites), atol=1e-5, rtol=0)
