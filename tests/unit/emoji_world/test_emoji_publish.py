"""What the stages write, put together, is a folder that stock pipelines open and run."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline
from safetensors.torch import load_file
from support.tiny_models import tiny_clip_tokenizer
from support.tiny_world import synthetic_sprites
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from emoji_world.llava_folder import build_tokenizer
from emoji_world.train import __main__ as stages
from emoji_world.train import clip, llava, publish, unet, vae
from emoji_world.train.loop import Run
from emoji_world.train.prefetch import Setup


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scenes where the autoencoder takes a batch: its kernels are slow on one core."""
    inner = vae.scene_batch
    monkeypatch.setattr(
        vae, "scene_batch", lambda rng, size, *kind: inner(rng, min(size, 2), *kind)
    )


def write_parts(weights: Path, runs: Path) -> None:
    """Every part of emoji-xl from the recipes' own exports, untrained."""
    torch.manual_seed(0)
    xl = weights / "emoji-xl"
    sprites = synthetic_sprites()
    for number, pad in (("", "<|endoftext|>"), ("_2", "!")):
        words = tiny_clip_tokenizer(pad)
        words.save_pretrained(xl / f"tokenizer{number}")
        second = number == "_2"
        clip.export(clip.build(words, second=second), words, weights, second=second)
    vae.export(Run(vae.recipe(vae.build(), sprites), runs), sprites, xl)
    unet.build().half().save_pretrained(xl / "unet")
    unet.scheduler().save_pretrained(xl / "scheduler")


@pytest.mark.usefixtures("few_scenes")
def test_the_published_folder_draws_with_the_stock_pipeline(tmp_path: Path) -> None:
    weights, runs = tmp_path / "weights", tmp_path / "runs"
    write_parts(weights, runs)
    (runs / "clip").mkdir()
    rows = [
        {"step": 20_001, "minutes": 0.123456, "nce": 12.34567},
        {"step": 20_002, "minutes": 1.0, "nce": 1.5, "r1": 0.75},
    ]
    (runs / "clip" / "log.json").write_text(json.dumps(rows))
    (runs / "unfinished").mkdir()
    words = weights / "emoji-xl" / "tokenizer" / "tokenizer.json"
    size, before = words.stat().st_size, Tokenizer.from_file(str(words)).to_str()
    publish.publish(weights, runs)
    assert words.stat().st_size < size and Tokenizer.from_file(str(words)).to_str() == before

    assert {p.name for p in (weights / "curves").iterdir()} == {"clip.json"}
    assert json.loads((weights / "curves" / "clip.json").read_text()) == {
        "step": [20_001, 20_002],
        "minutes": [0.1235, 1.0],
        "nce": [12.35, 1.5],
        "r1": [None, 0.75],
    }
    manifest = json.loads((weights / "manifest.json").read_text())["files"]
    for name in (
        "emoji-xl/model_index.json",
        "emoji-xl/unet/diffusion_pytorch_model.safetensors",
        "emoji-xl/text_encoder_2/model.safetensors",
        "emoji-clip/vision.safetensors",
        "emoji-clip-2/model.safetensors.index.json",
    ):
        data = (weights / name).read_bytes()
        assert manifest[name] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert not list(weights.rglob("*.part"))

    pipe = StableDiffusionXLPipeline.from_pretrained(
        weights / "emoji-xl", torch_dtype=torch.float32, add_watermarker=False
    )
    index = json.loads((weights / "emoji-xl" / "model_index.json").read_text())
    assert pipe.config["_class_name"] if "_class_name" in pipe.config else index["_class_name"]
    for name, part in pipe.components.items():
        if part is not None:
            assert index[name][1] == type(part).__name__, name
    assert pipe.unet.config.encoder_hid_dim_type == "text_proj"
    assert isinstance(pipe.unet.encoder_hid_proj, torch.nn.Linear)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a cat", num_inference_steps=1, height=128, width=128, output_type="np").images
    assert drawn.shape == (1, 128, 128, 3)


@pytest.mark.parametrize("spaced", [False, True])
def test_a_packed_vocabulary_is_read_as_before(tmp_path: Path, spaced: bool) -> None:
    merges = [("c", "a"), ("ca", "t"), *([("a", " "), ("a ", "t")] if spaced else [])]
    symbols = ["c", "a", "t", " ", *(a + b for a, b in merges)]
    model = models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=merges)
    path = tmp_path / "tokenizer.json"
    before = Tokenizer(model)
    before.save(str(path))
    for _ in range(2):  # what is packed already stays as it is
        publish._pack(path)
        after = Tokenizer.from_file(str(path))
        assert after.to_str() == before.to_str()
        assert after.encode("cat a t").ids == before.encode("cat a t").ids
    assert b"\n " not in path.read_bytes()


def _log(minutes: list[float], start: int = 0) -> list[dict[str, float]]:
    return [{"step": start + n, "minutes": m, "nce": m} for n, m in enumerate(minutes, 1)]


def test_a_long_curve_is_kept_as_means_of_equal_spans_of_time() -> None:
    rows = _log([n / 3 for n in range(1, 1000)])
    kept = publish.thinned(rows, 250)
    assert kept[0] == rows[0] and len(kept) == 250
    assert {**kept[-1], "nce": None} == {**rows[-1], "nce": None}  # the mean of its span
    for before, row in itertools.pairwise(kept):
        assert row["step"] > before["step"] and before["minutes"] < row["nce"] <= row["minutes"]
    assert publish.thinned(kept, 250) == kept
    assert publish.thinned(rows[:250], 250) == rows[:250]


def test_a_thinned_curve_goes_on_with_later_rows() -> None:
    first = publish.thinned(_log([n / 3 for n in range(1, 1000)]), 250)
    whole = publish.thinned(first + _log([333 + n / 3 for n in range(1, 301)], 999), 250)
    assert whole[0] == first[0] and (whole[-1]["step"], whole[-1]["minutes"]) == (1299, 433)
    gaps = [b["minutes"] - a["minutes"] for a, b in itertools.pairwise(whole)]
    assert len(whole) <= 250 and max(gaps) < 4  # no part is much coarser than another


def test_a_figure_that_begins_within_a_span_is_the_mean_of_where_it_is() -> None:
    rows = _log([1, 2, 3, 4])
    rows[3]["r1"] = 0.5
    assert publish.thinned(rows, 2)[1] == {"step": 4, "minutes": 4, "nce": 3, "r1": 0.5}


# ---------------------------------------------------------------- the autoencoder


@pytest.mark.usefixtures("few_scenes")
def test_the_autoencoders_recipe_trains_it_all_and_scales_to_unit_variance(tmp_path: Path) -> None:
    torch.manual_seed(1)
    sprites = synthetic_sprites()
    recipe = vae.recipe(vae.build(), sprites)
    loss, figures = recipe.loss(0)
    assert torch.isfinite(loss) and set(figures) == {"l1", "psnr", "latent_std"}
    loss.backward()
    assert all(p.grad is not None for p in recipe.module.parameters())
    run = Run(recipe, tmp_path)
    vae.export(run, sprites, tmp_path)
    loaded = AutoencoderTiny.from_pretrained(tmp_path / "vae", torch_dtype=torch.float32)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, run.average[name].half().float()), name
    x = vae.pictures(vae.scene_batch(vae.scene_rng(12, 0), 2), sprites)
    with torch.no_grad():
        z = loaded.encode(x).latents
        assert z.shape == (2, 32, 8, 8)
        assert (z * loaded.config.scaling_factor).std().item() == pytest.approx(1, abs=0.02)
        assert loaded.decode(z).sample.shape == x.shape


@pytest.mark.usefixtures("few_scenes")
def test_the_decoder_trains_on_with_the_encoder_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(2)
    part = vae.build()
    before = {k: v.clone() for k, v in part.encoder.state_dict().items()}
    recipe = vae.recipe_decoder(part, synthetic_sprites())
    loss, _ = recipe.loss(0)
    loss.backward()
    for name, parameter in part.named_parameters():
        assert (parameter.grad is not None) == name.startswith("decoder."), name
    run = Run(recipe, tmp_path)
    for name, average in run.average.items():
        if name.startswith("decoder."):
            average.add_(0.01)
    part.register_to_config(scaling_factor=1.25)
    vae.export_decoder(run, part, tmp_path)
    loaded = AutoencoderTiny.from_pretrained(tmp_path / "vae", torch_dtype=torch.float16)
    assert loaded.config.scaling_factor == 1.25
    # Worked out on construction; diffusers warns where it is stored.
    assert "block_out_channels" not in json.loads((tmp_path / "vae" / "config.json").read_text())
    assert tuple(loaded.config.block_out_channels) == tuple(part.config.block_out_channels)
    for name, tensor in loaded.encoder.state_dict().items():
        assert torch.equal(tensor, before[name].half()), name
    for name, parameter in loaded.decoder.named_parameters():
        assert torch.equal(parameter, run.average[f"decoder.{name}"].half()), name


def test_a_deepened_autoencoder_computes_the_same() -> None:
    torch.manual_seed(3)
    shallow = vae.build().eval()
    shallow.register_to_config(scaling_factor=0.7)
    deep = vae.deepened(shallow).eval()
    assert deep.config.scaling_factor == 0.7
    assert tuple(deep.config.num_decoder_blocks) == vae.DEEP_DECODER_BLOCKS
    x, z = torch.rand(1, 3, 32, 32), torch.randn(1, 32, 2, 2)
    with torch.no_grad():
        assert torch.equal(deep.encode(x).latents, shallow.encode(x).latents)
        assert torch.equal(deep.decode(z).sample, shallow.decode(z).sample)
    more = sum(p.numel() for p in deep.parameters()) / sum(p.numel() for p in shallow.parameters())
    assert more > 1.3


# ---------------------------------------------------------------- going on, and starting anew


def place(folder: Path, runs: str, *, fresh: bool = False) -> stages.Place:
    return stages.Place(synthetic_sprites, folder / "weights", folder / runs, fresh)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def changed(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> set[str]:
    assert set(one) == set(two)
    return {name for name in one if not torch.equal(one[name], two[name])}


def test_a_part_goes_on_when_its_weights_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "weights" / "emoji-llava"
    here, anew = place(tmp_path, "runs"), place(tmp_path, "runs", fresh=True)
    assert here.shipped("emoji-llava") is None
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    assert here.shipped("emoji-llava") is None  # a tokenizer alone is nothing trained
    (folder / "model.safetensors").write_bytes(b"")
    assert here.shipped("emoji-llava") == folder
    assert anew.shipped("emoji-llava") is None


@pytest.fixture
def few_everywhere(few_scenes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pools and few scenes to whiten by; the numbers of minutes are zero as well."""
    inner = stages.scene_batch
    monkeypatch.setattr(stages, "scene_batch", lambda rng, size: inner(rng, min(size, 12)))
    monkeypatch.setattr(unet, "SCENES", replace(unet.SCENES, pool=8))


@pytest.mark.usefixtures("few_everywhere")
def test_the_painter_goes_on_from_the_weights_unless_told_otherwise(tmp_path: Path) -> None:
    write_parts(tmp_path / "weights", tmp_path / "first")
    folder = tmp_path / "weights" / "emoji-xl" / "unet"
    before = weights_of(folder)
    stages.train_painter(
        place(tmp_path, "second"), 0, unet.SCENES
    )  # no time to learn: what went in comes out
    assert not changed(before, weights_of(folder))
    # The run's own checkpoint goes before the weights.
    state = tmp_path / "second" / "unet" / "state.safetensors"
    assert state.exists()

    stages.train_painter(place(tmp_path, "third", fresh=True), 0, unet.SCENES)
    anew = weights_of(folder)
    assert {"conv_in.weight", "encoder_hid_proj.weight"} <= changed(before, anew)
    projection = anew["encoder_hid_proj.weight"].float()
    assert (projection.diagonal() > 0).all()  # whitened, as every fresh painter starts
    torch.testing.assert_close(projection, projection.T, atol=1e-2, rtol=1e-2)
    stages.train_painter(place(tmp_path, "second"), 0, unet.SCENES)
    assert not changed(before, weights_of(folder))


@pytest.mark.usefixtures("few_everywhere")
def test_the_answerer_goes_on_with_its_words_and_todays_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_fewer(chats: Iterator[str], _: int) -> PreTrainedTokenizerFast:
        return build_tokenizer(itertools.islice(chats, 60), 400)

    monkeypatch.setattr(llava, "build_tokenizer", from_fewer)
    weights = tmp_path / "weights"
    write_parts(weights, tmp_path / "first")
    folder = weights / "emoji-llava"
    stages.train_llava(place(tmp_path, "second"), 0)
    before, words = weights_of(folder), (folder / "tokenizer.json").read_bytes()

    torch.manual_seed(9)  # another image tower is trained meanwhile
    tower = tiny_clip_tokenizer("<|endoftext|>")
    clip.export(clip.build(tower), tower, weights, second=False)
    stages.train_llava(place(tmp_path, "third"), 0)
    moved = changed(before, weights_of(folder))
    assert moved and all("vision_tower" in name for name in moved)
    assert (folder / "tokenizer.json").read_bytes() == words

    stages.train_llava(place(tmp_path, "fourth", fresh=True), 0)
    moved = changed(before, weights_of(folder))
    assert any("multi_modal_projector" in name for name in moved)
    assert any("embed_tokens" in name for name in moved)
    assert (folder / "tokenizer.json").read_bytes() == words  # the ids stay, even so


@pytest.mark.usefixtures("few_everywhere")
def test_the_decoder_stage_keeps_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(3)
    folder = tmp_path / "weights" / "emoji-xl"
    vae.export(
        Run(vae.recipe(vae.build(), synthetic_sprites()), tmp_path), synthetic_sprites(), folder
    )
    before, config = weights_of(folder / "vae"), (folder / "vae" / "config.json").read_text()
    stages.train_decoder(place(tmp_path, "runs"), 0)
    after = weights_of(folder / "vae")
    encoder = {name for name in before if name.startswith("encoder.")}
    assert encoder and all(torch.equal(after[name], before[name]) for name in encoder)
    wanted, found = json.loads(config), json.loads((folder / "vae" / "config.json").read_text())
    assert found["scaling_factor"] == wanted["scaling_factor"]
    # It is deepened once; going on from it deepens it no further.
    stages.train_decoder(place(tmp_path, "more"), 0)
    assert not changed(after, weights_of(folder / "vae"))


# ---------------------------------------------------------------- the command


def test_all_runs_the_stages_in_the_order_that_the_help_tells() -> None:
    told = re.findall(r"``([a-z0-9-]+)``", (stages.__doc__ or "").split("; ``all``")[0])
    assert told == list(stages.STAGES)


@pytest.mark.parametrize("fresh", [False, True])
def test_the_commands_options_reach_the_stage(
    fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[stages.Place, float]] = []
    monkeypatch.setitem(stages.STAGES, "unet", lambda *given: seen.append(given))
    monkeypatch.setattr(stages, "load_sprites", lambda _: synthetic_sprites())
    options: dict[str, Any] = {
        "weights": tmp_path / "w",
        "runs": tmp_path / "r",
        "threads": torch.get_num_threads(),
    }
    options |= {"device": "cpu", "times": 4, "workers": 3, "lr": 0.25}
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["train", "unet", *given, *(["--fresh"] if fresh else [])])
    stages.main()
    for wanted in ("2.5", "0"):
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--minutes", wanted])
        stages.main()
    (where, minutes), (_, shorter), (_, none) = seen
    assert (where.weights, where.runs, where.fresh) == (tmp_path / "w", tmp_path / "r", fresh)
    assert where.setup == Setup(torch.device("cpu"), times=4, workers=3) and where.lr == 0.25
    assert minutes == stages.MINUTES["unet"] and (shorter, none) == (2.5, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["clip", "--minutes", "2"], "clip is trained for --steps"),
        (["unet", "--steps", "2"], "unet is trained for --minutes"),
        (["clip", "--steps", "0"], "--times and --steps must be 1 or more"),
    ],
)
def test_a_stage_is_told_how_long_in_its_own_measure(
    given: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *given])
    with pytest.raises(SystemExit):
        stages.main()
    assert message in capsys.readouterr().err


def test_help_names_every_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit) as left:
        stages.main()
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert all(f"``{stage}``" in text for stage in stages.STAGES)
    assert set(stages.MINUTES) | set(stages.STEPS) == set(stages.STAGES) - {"tokenizer", "publish"}


def test_all_begins_with_nothing_but_goes_on_with_what_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh: dict[str, bool] = {}
    for name in stages.STAGES:
        monkeypatch.setitem(
            stages.STAGES, name, lambda place, _, name=name: fresh.update({name: place.fresh})
        )
    here = ["--weights", str(tmp_path / "w"), "--runs", str(tmp_path / "r"), "--device", "cpu"]
    here += ["--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["train", "all", *here])
    stages.main()
    assert [name for name, anew in fresh.items() if not anew] == ["unet"]  # after `sprites`


@pytest.mark.parametrize("option", [("--times", "0"), ("--workers", "-1")])
def test_sizes_that_make_no_batch_are_refused(
    option: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "publish", *option])
    with pytest.raises(SystemExit):
        stages.main()
    assert option[0] in capsys.readouterr().err


def test_a_stage_without_pictures_asks_for_no_artwork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: object) -> Any:
        raise AssertionError("the artwork was read")

    monkeypatch.setattr(stages, "load_sprites", none)
    monkeypatch.setattr(sys, "argv", ["train", "tokenizer", "--weights", str(tmp_path)])
    stages.main()
    assert (tmp_path / "emoji-xl" / "tokenizer" / "tokenizer.json").is_file()


def test_an_unknown_stage_is_refused_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "unett"])
    with pytest.raises(SystemExit) as left:
        stages.main()
    assert left.value.code == 2
    assert "invalid choice: 'unett'" in capsys.readouterr().err
