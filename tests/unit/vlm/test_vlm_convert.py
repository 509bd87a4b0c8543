"""The original LLaVA layout: read exactly, converted both ways bit for bit, and bad folders."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.tiny_checkpoints import (
    LLM_WIDTH,
    PINPOINTS,
    VISION_WIDTH,
    llava_config,
    llava_parts,
    llava_state,
    next_processor,
    plain_tokenizer,
    save_clip,
    save_llava,
    tiny_next,
)
from support.tiny_vlm import IMAGE_SIZE, PATCH_SIZE, tiny_llava
from torch import nn

from bridge.cli import main
from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.vlm import convert, describe, load_vlm
from bridge.vlm.checkpoints.convert import ShardWriter
from bridge.vlm.checkpoints.llava_layout import read_settings, to_hf, to_llava
from bridge.vlm.checkpoints.original import model_files, read_file
from bridge.vlm.model import BridgeVLM
from bridge.vlm.views import OneView

QUESTION = "what is on the left?"
TURNS = [[(QUESTION, "")]]
TOLERANCE = 1e-5

# LLaVA writes (width, height).
ANYRES = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": str([[wide, high] for high, wide in PINPOINTS]),
}


def picture(size: tuple[int, int] = (50, 30)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def mlp(depth: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(VISION_WIDTH, LLM_WIDTH)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(LLM_WIDTH, LLM_WIDTH)]
    return nn.Sequential(*layers)


class Made:
    """A whole checkpoint of the original layout and the parts it was written from."""

    def __init__(self, root: Path, projector: nn.Module | None = None, **settings: Any) -> None:
        self.parts = llava_parts(projector or mlp(2))
        self.tower = save_clip(root / "clip", self.parts[0], weights=True)
        self.config = llava_config(self.parts[1], self.tower, **settings)
        self.state = llava_state(*self.parts)
        self.folder = save_llava(root / "llava", self.config, self.state)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def made_anyres(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("anyres"), **ANYRES)


def by_hand(made: Made, vlm: BridgeVLM, image: Image.Image, layer: int, start: int) -> Any:
    """LLaVA's forward in its own order: cut the text at <image>, join embeddings."""
    tower, llm, projector, _ = made.parts
    head, tail = vlm.prompt_text([(QUESTION, "")]).split("<image>")
    tokenizer = plain_tokenizer()
    before = torch.tensor([tokenizer(head)["input_ids"]])
    after = torch.tensor([tokenizer(tail, add_special_tokens=False)["input_ids"]])
    pixels = vlm.image_processor(vlm.aspect.views(image), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        hidden = tower(pixels, output_hidden_states=True).hidden_states[layer][:, start:]
        embed = llm.get_input_embeddings()
        row = torch.cat([embed(before), projector(hidden), embed(after)], dim=1)
        return llm(inputs_embeds=row).logits


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def bits(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in model_files(folder) for name, t in read_file(file)}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


# -- reading ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "layer", "start"),
    [
        ({}, -2, 1),
        ({"mm_vision_select_layer": -1, "image_aspect_ratio": "square"}, -1, 1),
        ({"mm_vision_select_feature": "cls_patch"}, -2, 0),
    ],
)
def test_a_folder_answers_as_its_parts_do(
    tmp_path: Path, settings: dict[str, Any], layer: int, start: int
) -> None:
    made = Made(tmp_path, **settings)
    vlm = load_vlm(made.folder, device="cpu")
    assert vlm.aspect == OneView((122, 116, 104) if "image_aspect_ratio" not in settings else None)
    got = vlm.logits([picture()], TURNS)
    assert relative(got, by_hand(made, vlm, picture(), layer, start)) <= TOLERANCE
    # and it can fail: another layer, the other class-token rule
    wrong = by_hand(made, vlm, picture(), layer - 1, start)
    assert relative(got, wrong) > 1e-2
    assert got.shape != by_hand(made, vlm, picture(), layer, 1 - start).shape
    assert describe(picture(), QUESTION, model=made.folder, max_new_tokens=4) == vlm.answer(
        picture(), QUESTION, max_new_tokens=4
    )


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu", "mlp3x_gelu"])
def test_the_other_projectors(tmp_path: Path, kind: str) -> None:
    projector: nn.Module = (
        nn.Linear(VISION_WIDTH, LLM_WIDTH)
        if kind == "linear"
        else mlp(int(kind[3]) if kind != "identity" else 1)
    )
    made = Made(tmp_path, projector, mm_projector_type=kind)
    if kind == "identity":  # these widths differ, so only that it is said
        with pytest.raises(WeightsError, match="mm_projector"):
            load_vlm(made.folder)
        return
    vlm = load_vlm(made.folder, device="cpu")
    assert (
        relative(vlm.logits([picture()], TURNS), by_hand(made, vlm, picture(), -2, 1)) <= TOLERANCE
    )
    with pytest.raises(UnsupportedModelError, match="mlp2x_gelu"):
        convert(made.folder, tmp_path / "hf", to="hf")


def test_the_tower_is_fetched_where_the_config_says(made: Made, tmp_path: Path) -> None:
    """As with LLaVA's frozen towers, whose tensors are not in the checkpoint."""
    state = {k: v for k, v in made.state.items() if "vision_tower" not in k}
    folder = save_llava(tmp_path / "frozen", made.config, state)
    whole, frozen = load_vlm(made.folder, device="cpu"), load_vlm(folder, device="cpu")
    assert torch.equal(whole.logits([picture()], TURNS), frozen.logits([picture()], TURNS))


def test_a_mistral_is_asked_in_its_own_words(made: Made, tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "m", {**made.config, "model_type": "llava_mistral"}, made.state)
    vlm = load_vlm(folder, device="cpu")
    assert type(vlm.llm).__name__ == "MistralForCausalLM"
    assert vlm.prompt_text([("a", "b"), ("c", "")]) == (
        "[INST] <image>\na [/INST] b </s>[INST] c [/INST]"
    )


# -- to transformers ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(50, 30), (20, 90), (32, 32)])
def test_converted_to_hf_stock_gives_the_same_logits(
    made: Made, tmp_path: Path, size: tuple[int, int]
) -> None:
    from transformers import AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    folder = convert(made.folder, tmp_path / "hf", to="hf")
    stock = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    saved = json.loads((folder / "processor_config.json").read_text())
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil.from_dict(saved["image_processor"]),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        patch_size=saved["patch_size"],
        vision_feature_select_strategy=saved["vision_feature_select_strategy"],
        num_additional_image_tokens=saved["num_additional_image_tokens"],
    )
    original = load_vlm(made.folder, device="cpu")
    text = original.prompt_text([(QUESTION, "")])
    batch = processor(images=picture(size), text=text, return_tensors="pt")
    with torch.inference_mode():
        want = stock(**batch).logits
    got = original.logits([picture(size)], TURNS)
    # transformers' vocabulary has one row more, for <image>, which is never the likeliest.
    assert relative(want[..., :320], got) <= TOLERANCE
    assert bool((want[..., 320] <= want[..., :320].max(-1).values).all())
    tokens = stock.generate(**batch, max_new_tokens=12, do_sample=False)
    ours = original._generate(original.inputs([picture(size)], TURNS), 12)
    assert tokens[0, batch["input_ids"].shape[1] :].tolist() == ours[0].tolist()
    again = load_vlm(folder, device="cpu").logits([picture(size)], TURNS)
    assert relative(again, want) <= TOLERANCE


@pytest.mark.parametrize("size", [(50, 30), (20, 90), (3, 300)])
def test_anyres_converted_to_hf_is_a_llava_next(
    made_anyres: Made, tmp_path: Path, size: tuple[int, int]
) -> None:
    from transformers import AutoTokenizer, LlavaNextForConditionalGeneration

    folder = convert(made_anyres.folder, tmp_path / "hf", to="hf")
    stock = LlavaNextForConditionalGeneration.from_pretrained(folder).eval()
    assert stock.config.image_grid_pinpoints == PINPOINTS
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = next_processor(tokenizer, IMAGE_SIZE, PATCH_SIZE, PINPOINTS)
    original = load_vlm(made_anyres.folder, device="cpu")
    text = original.prompt_text([(QUESTION, "")])
    with torch.inference_mode():
        want = stock(**processor(images=picture(size), text=text, return_tensors="pt")).logits
    got = original.logits([picture(size)], TURNS)
    assert relative(want[..., :320], got) <= TOLERANCE


def test_pinpoints_are_turned_and_stay_in_order(made: Made) -> None:
    config = {**made.config, **ANYRES, "image_grid_pinpoints": [[64, 32], [32, 96]]}
    assert read_settings(config, "x").pinpoints == ((32, 64), (96, 32))


# -- round trips --------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["made", "made_anyres"])
def test_llava_to_hf_and_back_is_the_same(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made: Made = request.getfixturevalue(which)
    back = convert(convert(made.folder, tmp_path / "hf", to="hf"), tmp_path / "back", to="llava")
    wanted = dict(made.state)
    if which == "made":  # LLaVA 1.5 has no use for a newline, nor transformers a place
        wanted.pop("model.image_newline")
    assert_same(load_file(back / "model.safetensors"), wanted)
    config = json.loads((back / "config.json").read_text())
    first, second = read_settings(made.config, "a"), read_settings(config, "b")
    assert replace(second, tower=first.tower, text=first.text) == first
    assert {k: second.text.get(k) for k in ("vocab_size", "hidden_size", "rms_norm_eps")} == {
        k: first.text[k] for k in ("vocab_size", "hidden_size", "rms_norm_eps")
    }
    for size in ((50, 30), (20, 90)):
        a, b = (
            load_vlm(f, device="cpu").logits([picture(size)], TURNS) for f in (made.folder, back)
        )
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [tiny_llava, lambda root: tiny_next(root / "next")])
def test_hf_to_llava_and_back_is_the_same(make: Callable[[Path], Path], tmp_path: Path) -> None:
    from transformers import AutoConfig

    source = make(tmp_path)
    there = convert(source, tmp_path / "llava", to="llava")
    back = convert(there, tmp_path / "hf", to="hf")
    spelled = {to_hf(to_llava(name)): tensor for name, tensor in bits(source).items()}
    assert_same(bits(back), spelled)
    a, b = (AutoConfig.from_pretrained(folder) for folder in (source, back))
    for part in ("text_config", "vision_config"):
        kept = getattr(a, part).to_diff_dict()
        for name in ("dtype", "architectures", "transformers_version", "_name_or_path"):
            kept.pop(name, None)
        assert kept.items() <= getattr(b, part).to_dict().items()
    logits = [load_vlm(f, device="cpu").logits([picture()], TURNS) for f in (source, there, back)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_the_embedded_model_there_and_back(embedded: Callable[[str], Path], tmp_path: Path) -> None:
    source = embedded("emoji-llava")
    there = convert(source, tmp_path / "llava", to="llava")
    back = convert(there, tmp_path / "hf", to="hf")
    assert_same(bits(back), {to_hf(to_llava(k)): v for k, v in bits(source).items()})
    image = picture((128, 128))
    answers = [
        load_vlm(f, device="cpu").answer(image, "how many are there?", max_new_tokens=8)
        for f in (source, there, back)
    ]
    assert len(set(answers)) == 1


def test_names_go_both_ways() -> None:
    for name in (
        "model.layers.0.self_attn.q_proj.weight",
        "model.mm_projector.2.bias",
        "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
        "model.image_newline",
        "lm_head.weight",
    ):
        assert to_llava(to_hf(name)) == name
    for newer in (
        "model.language_model.layers.0.mlp.up_proj.weight",
        "model.vision_tower.vision_model.pre_layrnorm.weight",
        "vision_tower.pre_layrnorm.weight",
        "model.multi_modal_projector.linear_1.weight",
    ):
        assert to_hf(to_llava(newer)) != newer  # the published spelling
    for stranger in ("model.mm_projector.4.weight", "model.vision_resampler.x", "transformer.wte"):
        with pytest.raises(KeyError):
            to_hf(stranger)


# -- pickle -------------------------------------------------------------------------------


def pickled(made: Made, folder: Path) -> Path:
    folder = save_llava(folder, made.config, made.state)
    (folder / "model.safetensors").unlink()
    torch.save(made.state, folder / "pytorch_model.bin")
    return folder


def test_pickle_is_read_only_on_request(made: Made, tmp_path: Path) -> None:
    folder = pickled(made, tmp_path / "bin")
    with pytest.raises(WeightsError, match=r"pickle.*allow_pickle=True"):
        load_vlm(folder)
    with pytest.raises(WeightsError, match="--allow-pickle"):
        convert(folder, tmp_path / "hf", to="hf")
    allowed = load_vlm(folder, device="cpu", allow_pickle=True)
    whole = load_vlm(made.folder, device="cpu")
    assert torch.equal(allowed.logits([picture()], TURNS), whole.logits([picture()], TURNS))
    out = convert(folder, tmp_path / "hf", to="hf", allow_pickle=True)
    assert not [*out.rglob("*.bin")]


class _Command:
    def __reduce__(self) -> Any:
        return os.system, ("touch was-run",)


def test_a_pickled_program_is_not_run(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = pickled(made, tmp_path / "bin")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": _Command()}))
    with pytest.raises(WeightsError, match="plain tensors"):
        load_vlm(folder, allow_pickle=True)
    torch.save({"model.norm.weight": _Command()}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="plain tensors"):
        convert(folder, tmp_path / "hf", to="hf", allow_pickle=True)
    assert not (tmp_path / "was-run").exists()
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("sharded", [True, False])
def test_pickle_that_a_hub_keeps_is_to_be_downloaded_by_hand(
    made: Made, tmp_path: Path, sharded: bool
) -> None:
    """bridge fetches the index of pickled shards (a JSON file), and no pickle itself."""
    folder = pickled(made, tmp_path / "bin")
    (folder / "pytorch_model.bin").unlink()
    if sharded:
        index = {"weight_map": {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for allow_pickle in (False, True):
        with pytest.raises(WeightsError, match=r"never fetched from a hub.*hf download"):
            load_vlm(folder, allow_pickle=allow_pickle)


def test_a_tower_or_projector_that_a_hub_keeps_as_pickle(made: Made, tmp_path: Path) -> None:
    said = "never fetched from a hub.*hf download"
    state = {k: v for k, v in made.state.items() if "vision_tower" not in k}
    bare = save_clip(tmp_path / "clip", made.parts[0], weights=False)
    folder = save_llava(tmp_path / "frozen", {**made.config, "mm_vision_tower": str(bare)}, state)
    with pytest.raises(WeightsError, match=f"no weights of the vision tower.*{said}"):
        load_vlm(folder, allow_pickle=True)
    base = tmp_path / "vicuna"
    made.parts[1].save_pretrained(base)
    stage1 = tmp_path / "stage1"
    stage1.mkdir()
    (stage1 / "config.json").write_text(json.dumps(made.config))
    with pytest.raises(WeightsError, match=f"no mm_projector.bin.*{said}"):
        load_vlm(stage1, base=base, allow_pickle=True)


def test_a_projector_alone_needs_its_base(made: Made, tmp_path: Path) -> None:
    """LLaVA's first stage leaves config.json and mm_projector.bin."""
    base = tmp_path / "vicuna"
    made.parts[1].save_pretrained(base)
    plain_tokenizer().save_pretrained(base)
    folder = tmp_path / "stage1"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(made.config))
    own = {k: v for k, v in made.state.items() if "mm_projector" in k}
    torch.save(own, folder / "mm_projector.bin")
    with pytest.raises(WeightsError, match="base"):
        load_vlm(folder, allow_pickle=True)
    with pytest.raises(WeightsError, match="pickle"):
        load_vlm(folder, base=base)
    with pytest.raises(OptionError, match="plain 'llama'"):
        load_vlm(folder, base=made.folder, allow_pickle=True)
    vlm = load_vlm(folder, base=base, allow_pickle=True, device="cpu")
    whole = load_vlm(made.folder, device="cpu")
    assert torch.equal(vlm.logits([picture()], TURNS), whole.logits([picture()], TURNS))
    out = convert(folder, tmp_path / "hf", to="hf", base=base, allow_pickle=True)
    assert load_vlm(out).answer(picture(), QUESTION) == whole.answer(picture(), QUESTION)


# -- writing ------------------------------------------------------------------------------


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((10, 10), float(i)) for i in range(7)}
    writer = ShardWriter(tmp_path, limit=900)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    assert len([*tmp_path.glob("model-*-of-00004.safetensors")]) == 4
    assert not [*tmp_path.glob("*.part")]
    assert_same(bits(tmp_path), tensors)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 7 * 400


def test_nothing_is_left_when_it_fails(made: Made, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        raise RuntimeError(f"stopped after {done}")

    with pytest.raises(RuntimeError, match="stopped after 1"):
        convert(made.folder, tmp_path / "hf", to="hf", on_tensor=stop)
    assert [*tmp_path.iterdir()] == []


def test_an_output_that_cannot_be(made: Made, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("x")
    for name, match in (
        ("there", "there already"),
        ("file", "there already"),
        ("a/b", "directory"),
    ):
        with pytest.raises(OptionError, match=match):
            convert(made.folder, tmp_path / name, to="hf")
    with pytest.raises(OptionError, match="nothing to convert"):
        convert(made.folder, tmp_path / "x", to="llava")
    with pytest.raises(OptionError, match="'hf' or 'llava'"):
        convert(made.folder, tmp_path / "x", to="gguf")  # type: ignore[arg-type]


def test_the_command(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "hf"
    assert main(["convert", str(made.folder), str(out), "--to", "hf"]) == 0
    n = len(made.state) - 1
    assert capsys.readouterr().out == f"{out}: {n} tensors in the layout hf\n"
    assert main(["convert", str(made.folder), str(out), "--to", "hf"]) == 2
    assert "there already" in capsys.readouterr().err
    back = tmp_path / "back"
    name = "openai/clip-vit-large-patch14-336"
    command = ["convert", str(out), str(back), "--to", "llava", "--vision-tower", name, "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(back), "to": "llava", "tensors": n}
    assert json.loads((back / "config.json").read_text())["mm_vision_tower"] == name
    assert load_vlm(back).answer(picture(), QUESTION) == load_vlm(out).answer(picture(), QUESTION)


# -- bad folders --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model_type": "llava_mpt"}, "llava_mpt"),
        ({"mm_vision_tower": None}, "mm_vision_tower"),
        ({"image_aspect_ratio": "highres"}, "highres"),
        ({"image_aspect_ratio": "anyres"}, "spatial_unpad"),
        ({**ANYRES, "image_grid_pinpoints": "(1x)"}, "image_grid_pinpoints"),
        ({**ANYRES, "image_grid_pinpoints": []}, "image_grid_pinpoints"),
        ({"mm_vision_select_feature": "all"}, "mm_vision_select_feature"),
        ({"mm_vision_select_layer": "-2"}, "mm_vision_select_layer"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"s2": True}, "s2"),
        ({"mm_resampler_type": "perceiver"}, "resampler"),
    ],
)
def test_configs_that_are_refused_before_any_weight(
    made: Made, tmp_path: Path, settings: dict[str, Any], match: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**made.config, **settings}))
    with pytest.raises(UnsupportedModelError, match=match):
        load_vlm(tmp_path)


@pytest.mark.parametrize(
    ("lost", "match"),
    [
        ("model.norm.weight", "language model lacks 1"),
        ("model.mm_projector.0.bias", "mm_projector"),
        ("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias", "tower lacks 1"),
        ("model.image_newline", "anyres needs"),
    ],
)
def test_incomplete_checkpoints(made_anyres: Made, tmp_path: Path, lost: str, match: str) -> None:
    state = {k: v for k, v in made_anyres.state.items() if k != lost}
    folder = save_llava(tmp_path / "x", made_anyres.config, state)
    with pytest.raises(WeightsError, match=match):
        load_vlm(folder)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"vision_feature_layer": [-2, -1]}, "LLaVA takes one"),
        ({"projector_hidden_act": "relu"}, "GELU and biases"),
        ({"multimodal_projector_bias": False}, "GELU and biases"),
    ],
)
def test_what_llava_cannot_say(tmp_path: Path, config: dict[str, Any], match: str) -> None:
    source = tiny_llava(tmp_path, **config)
    with pytest.raises(UnsupportedModelError, match=match):
        convert(source, tmp_path / "out", to="llava")
    assert not (tmp_path / "out").exists()


def test_options_of_the_original_layout_alone(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="leave allow_pickle"):
        load_vlm(tiny_llava(tmp_path), allow_pickle=True)
