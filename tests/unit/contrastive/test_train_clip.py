"""`bridge.train_clip`: what each mode trains, equal forms, resumption, the folder, bad input."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from support.clip_training import COLOURS, FAST, rows, train
from support.tiny_coca import write_coca
from support.tiny_folders import KINDS
from torch.nn.functional import normalize

import bridge
from bridge.cli import main
from bridge.contrastive import interpolate
from bridge.contrastive.train import kept_states
from bridge.contrastive.train import run as run_module
from bridge.contrastive.train.options import ClipTrainOptions
from bridge.contrastive.train.pairs import Batches, read_pairs
from bridge.contrastive.train.recipe import FurtherLoss, Recipe
from bridge.contrastive.train.trainee import Trainee, trained_parts
from bridge.errors import DataError, NumbersError, OptionError, UnsupportedModelError
from bridge.towers import TextTower, open_captioner, stretch_positions
from bridge.towers.family import Scoring
from bridge.towers.open_clip_modules import ResNet, ResNetShape, made
from bridge.training import run_state
from bridge.training.run_state import CHECKPOINT

OPEN_CLIP = "open_clip_model.safetensors"


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Drawing takes longer than training here; the one test that looks at a curve has it."""
    if request.node.name != "test_the_folder_says_what_was_gained":
        monkeypatch.setattr(run_state, "draw_curve", lambda *_, **__: None)
        monkeypatch.setattr(run_module, "draw_retrieval", lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "clip"
    KINDS["clip"].make(place)
    return place


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    one, two = weights(before), weights(after)
    assert one.keys() == two.keys()
    return {name for name, tensor in one.items() if not torch.equal(tensor, two[name])}


def sides(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


TEXT = {"text_model", "text_projection"}
IMAGE = {"vision_model", "visual_projection"}


@pytest.mark.parametrize(
    ("mode", "trained"),
    [
        ("full", {*TEXT, *IMAGE, "logit_scale"}),
        ("scratch", {*TEXT, *IMAGE, "logit_scale"}),
        ("probe", {"text_projection", "visual_projection", "logit_scale"}),
        ("lora", {"text_model", "vision_model", "logit_scale"}),
        ("lit", {*TEXT, "logit_scale"}),
    ],
)
def test_each_mode_trains_its_parts(
    mode: str, trained: set[str], folder: Path, tmp_path: Path
) -> None:
    done = train(folder, tmp_path / "out", mode=mode, steps=10)
    moved = changed(folder, tmp_path / "out")
    assert sides(moved) == trained
    if mode == "lora":
        one, two = weights(folder), weights(tmp_path / "out")
        assert all(".layers." in name or name == "logit_scale" for name in moved)
        for name in moved - {"logit_scale"}:
            assert torch.linalg.matrix_rank(two[name] - one[name], rtol=1e-4) <= 8
    assert done.losses[-1] < 0.85 * done.losses[0]
    found = bridge.CLIP(tmp_path / "out", device="cpu")
    for mine, theirs in ((found, done.clip),):
        one, two = mine.encode_text(["a red cat"]), theirs.encode_text(["a red cat"])
        assert torch.allclose(one, two, atol=1e-6)
    assert not any(p.requires_grad for p in done.clip.text.module.parameters())


def test_a_stretched_text_tower_reads_on_and_its_saved_tokenizer_too(
    folder: Path, tmp_path: Path
) -> None:
    clip = bridge.CLIP(folder, device="cpu")
    before = clip.text.spec.context
    assert before == 77
    longer = stretch_positions(clip.text.module, to=134)
    text = TextTower.from_modules(longer, clip.text.tokenizer)
    trained = train(bridge.CLIP(folder, text=text, device="cpu"), tmp_path / "out", mode="lit")
    said = " ".join(["cat"] * 130)
    found = bridge.CLIP(tmp_path / "out", device="cpu")
    assert torch.allclose(found.encode_text([said]), trained.clip.encode_text([said]), atol=1e-6)
    # A tokenizer that cuts where the tower did once would drop the last words without a word.
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = theirs([said, "cat"], padding="max_length", truncation=True)["input_ids"]
    assert [len(row) for row in ids] == [134, 134]
    assert clip.text.tokenizer.model_max_length == before  # that of the model is left as it was


@pytest.mark.parametrize("mode", ["full", "probe", "lora", "lit"])
def test_a_half_precision_model_is_trained_and_measured(
    mode: str, folder: Path, tmp_path: Path
) -> None:
    clip = bridge.CLIP(folder, device="cpu", dtype=torch.bfloat16)
    clip.scoring = Scoring(99.5)
    done = train(clip, tmp_path / "out", mode=mode, steps=2, evaluation=rows(), learning_rate=1e-5)
    assert len(done.evaluations) == 2
    saved = weights(tmp_path / "out")
    assert saved.pop("logit_scale").dtype == torch.float32
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    found = bridge.CLIP(tmp_path / "out", device="cpu").scoring
    assert found is not None and found.scale == pytest.approx(done.clip.scoring.scale, rel=1e-5)
    whole = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    assert whole.logit_scale.exp().item() == pytest.approx(99.5, rel=2e-2)


def test_scratch_begins_with_nothing_that_was_learnt(folder: Path, tmp_path: Path) -> None:
    one = train(folder, tmp_path / "a", mode="scratch", steps=1)
    other = tmp_path / "other"
    KINDS["clip"].make(other)
    moved = transformers.CLIPModel.from_pretrained(other)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.3)
    moved.save_pretrained(other)
    two = train(other, tmp_path / "b", mode="scratch", steps=1)
    assert one.losses == two.losses
    assert changed(tmp_path / "a", tmp_path / "b") == set()


def test_the_result_opens_in_transformers(folder: Path, tmp_path: Path) -> None:
    done = train(folder, tmp_path / "out")
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = [f"a {name} cat" for name in COLOURS]
    ids = words(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    pictures = [row["image"] for row in rows()]
    with torch.no_grad():
        pixels = torch.stack([done.clip.preprocess(each) for each in pictures])
        whole = model(input_ids=ids, pixel_values=pixels)
    scores = done.clip.scores(done.clip.encode_image(pictures), done.clip.encode_text(texts))
    assert torch.allclose(scores, whole.logits_per_image, atol=1e-4)


def test_the_result_in_open_clips_layout_is_the_same(folder: Path, tmp_path: Path) -> None:
    """What open_clip itself makes of it: tests/parity."""
    done = train(folder, tmp_path / "out", open_clip=True)
    config = tmp_path / "out" / "open_clip" / "open_clip_config.json"
    told = json.loads(config.read_text())
    # Which tokenizer open_clip takes; bridge takes the one that lies there.
    assert told["model_cfg"]["text_cfg"].pop("hf_tokenizer_name")
    config.write_text(json.dumps(told))
    found = bridge.CLIP(tmp_path / "out" / "open_clip", device="cpu")
    assert found.image.family == "open_clip"
    pictures, texts = [row["image"] for row in rows()], ["a red cat", "", "a blue cat"]
    assert torch.allclose(found.encode_image(pictures), done.clip.encode_image(pictures), atol=1e-5)
    assert torch.allclose(found.encode_text(texts), done.clip.encode_text(texts), atol=1e-5)
    assert found.scoring is not None and done.clip.scoring is not None
    assert found.scoring.scale == pytest.approx(done.clip.scoring.scale, rel=1e-6)
    KINDS["siglip"].make(tmp_path / "siglip")
    with pytest.raises(UnsupportedModelError, match="cannot be said in open_clip's layout"):
        train(tmp_path / "siglip", tmp_path / "more", open_clip=True)


def test_siglip_is_trained_and_saved(tmp_path: Path) -> None:
    KINDS["siglip"].make(tmp_path / "siglip")
    done = train(tmp_path / "siglip", tmp_path / "out", steps=10)
    assert done.losses[-1] < done.losses[0]
    found = bridge.CLIP(tmp_path / "out", device="cpu")
    pictures, texts = [row["image"] for row in rows()], ["a red cat", "a blue cat"]
    assert torch.allclose(found.encode_image(pictures), done.clip.encode_image(pictures), atol=1e-5)
    assert torch.allclose(found.encode_text(texts), done.clip.encode_text(texts), atol=1e-5)
    assert found.scoring is not None and done.clip.scoring is not None
    assert found.scoring.scale == pytest.approx(done.clip.scoring.scale, rel=1e-6)
    assert found.scoring.sigmoid


@pytest.mark.parametrize(("kind", "loss"), [("siglip", "infonce"), ("clip", "sigmoid")])
def test_a_model_scores_as_the_loss_that_it_was_trained_by(
    kind: str, loss: Any, tmp_path: Path
) -> None:
    """A SigLIP without its bias said of every text that it fits; a CLIP lost the bias it learnt."""
    KINDS[kind].make(tmp_path / kind)
    done = train(tmp_path / kind, tmp_path / "out", loss=loss, steps=2)
    pictures, texts = [row["image"] for row in rows()], ["a red cat", "a blue cat"]

    def said(clip: bridge.CLIP) -> torch.Tensor:
        return clip.probabilities(clip.encode_image(pictures), clip.encode_text(texts))

    found = bridge.CLIP(tmp_path / "out", device="cpu")
    assert found.scoring is not None and found.scoring.sigmoid == (loss == "sigmoid")
    assert torch.allclose(said(found), said(done.clip), atol=1e-5)
    back = train(
        tmp_path / "out", tmp_path / "back", loss="infonce" if kind == "clip" else "sigmoid"
    )
    again = bridge.CLIP(tmp_path / "back", device="cpu")
    assert torch.allclose(said(again), said(back.clip), atol=1e-5)


def test_the_limit_of_clips_scale_is_none_of_siglips(tmp_path: Path) -> None:
    """SigLIP SO400M at 384 has 112.3 (open_clip issue 746), which was cut to 100 at once."""
    KINDS["siglip"].make(tmp_path / "siglip")
    clip = bridge.CLIP(tmp_path / "siglip", device="cpu")
    clip.scoring = Scoring(112.3, -12.9, sigmoid=True)
    done = train(clip, tmp_path / "out", steps=2, learning_rate=1e-9)
    assert [row["scale"] for row in done.log] == pytest.approx([112.3] * 2, rel=1e-5)
    found = bridge.CLIP(tmp_path / "out", device="cpu").scoring
    assert found is not None and found.scale == pytest.approx(112.3, rel=1e-5)


@pytest.mark.parametrize("options", [{"hardness": 0.5}, {"popularity": True}, {"bank": 4}])
def test_what_is_of_infonce_is_not_left_out_in_silence(
    options: dict[str, Any], tmp_path: Path
) -> None:
    KINDS["siglip"].make(tmp_path / "siglip")
    with pytest.raises(OptionError, match="trained with the sigmoid loss"):
        train(tmp_path / "siglip", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_towers_that_no_model_of_transformers_holds_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    KINDS["multilingual"].make(tmp_path / "words")
    mixed = bridge.CLIP(folder, text=tmp_path / "words", device="cpu")
    with pytest.raises(UnsupportedModelError, match="no model of transformers holds"):
        train(mixed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- forms that are one


def test_parts_are_the_whole(folder: Path, tmp_path: Path) -> None:
    whole = train(folder, tmp_path / "whole")
    parts = train(folder, tmp_path / "parts", micro_batch=3, graph_memory=0.0)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    assert [r["grad_norm"] for r in parts.log] == pytest.approx(
        [r["grad_norm"] for r in whole.log], rel=1e-3
    )


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "lora", "ema": 0.9}, {"bank": 5, "patch_masking": 0.5, "unmasked_ratio": 0.2}],
    ids=["full", "lora with an average", "bank and masks"],
)
def test_a_killed_run_goes_on_to_the_same_losses(
    options: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**options, "steps": 9, "batch_size": 4, "save_every": 2, "popularity": True}
    straight = train(folder, tmp_path / "straight", **settings)
    take = run_module.Steps.take
    moments = random.Random(str(options)).sample(range(9), 3)
    killed = 0

    def dies(self: Any, step: int, batch: Any) -> dict[str, float]:
        nonlocal killed
        if moments and step >= min(moments):
            moments.remove(min(moments))
            killed += 1
            raise Killed
        return take(self, step, batch)

    monkeypatch.setattr(run_module.Steps, "take", dies)
    while moments:
        with pytest.raises(Killed):
            train(folder, tmp_path / "out", **settings)
    assert killed == 3
    done = train(folder, tmp_path / "out", **settings)
    assert done.log == straight.log
    assert changed(tmp_path / "straight", tmp_path / "out") == set()
    assert not (tmp_path / "out" / CHECKPOINT).exists()


def test_another_run_does_not_go_on_in_its_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "save_clip", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(folder, tmp_path / "out")
    with pytest.raises(OptionError, match=r"a run with learning_rate 0\.01, and this one has 0\.1"):
        train(folder, tmp_path / "out", learning_rate=0.1)
    with pytest.raises(OptionError, match="a run with data "):
        train(folder, tmp_path / "out", [*rows()[:-1], {**rows()[-1], "text": "a dog"}])


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path, **options: Any):
    """Leaves in ``out`` a run of `train` that was killed before a step."""
    take = run_module.Steps.take

    def dies(self: Any, at: int, batch: Any) -> dict[str, float]:
        if at == step:
            raise Killed
        return take(self, at, batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_module.Steps, "take", dies)
        train(folder, out, save_every=2, **options)


def test_what_is_measured_after_wise_ft_is_there_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 2, "evaluation": rows()}
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(run_module, "save_clip", lambda *_: 1 / 0)
        train(folder, tmp_path / "out", wise_ft=0.1, **options)
    done = train(folder, tmp_path / "out", wise_ft=0.5, **options)
    assert [row.get("note") for row in done.evaluations] == [None, None, "after wise_ft"]
    straight = train(folder, tmp_path / "straight", wise_ft=0.5, **options)
    assert done.evaluations == straight.evaluations


def test_a_set_that_comes_late_was_not_measured_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(4, monkeypatch, folder, tmp_path / "out")
    more = {"save_every": 2, "evaluate_every": 6, "evaluation": {"new": rows()}}
    done = train(folder, tmp_path / "out", **more)
    last = f"{100 * done.evaluations[-1]['text_to_image@1']:.1f} %"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| new | not measured | {last} | not measured |" in card


# ---------------------------------------------------------------- data and figures


def test_the_card_says_rank_and_strength(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "out", mode="lora", steps=1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| lora | 8 |" in card and "| lora_alpha | 16.0 |" in card and "captioning" not in card
    train(folder, tmp_path / "own", mode="lora", steps=1, lora=2, lora_alpha=3.0)
    card = (tmp_path / "own" / "README.md").read_text()
    assert "| lora | 2 |" in card and "| lora_alpha | 3.0 |" in card


def test_the_folder_says_what_was_gained(folder: Path, tmp_path: Path) -> None:
    old = [{**row, "text": f"*{row['text']}*"} for row in rows()]
    done = train(
        folder,
        tmp_path / "out",
        steps=20,
        evaluation={"new": rows(), "old | one": old},
        evaluate_every=10,
        save_every=10,
    )
    assert [(row["step"], row["set"]) for row in done.evaluations] == [
        (step, name) for step in (0, 10, 20) for name in ("new", "old | one")
    ]
    new = [row["text_to_image@1"] for row in done.evaluations if row["set"] == "new"]
    assert new[-1] >= 0.75 > new[0]
    out = tmp_path / "out"
    assert json.loads((out / "evaluations.json").read_text()) == list(done.evaluations)
    card = (out / "README.md").read_text()
    assert f"| new | {100 * new[0]:.1f} % | {100 * new[-1]:.1f} % |" in card
    assert "old \\| one" in card and "mode full" in card
    for name in ("loss.png", "retrieval.png"):
        assert Image.open(out / name).width > 300


def test_how_often_a_caption_is_seen_is_counted_over_all_that_are_drawn(folder: Path) -> None:
    data = [{**row, "text": None, "captions": [row["text"], "a cat"]} for row in rows()]
    pairs = read_pairs(data)
    clip = bridge.CLIP(folder, device="cpu")
    options = ClipTrainOptions(popularity=True)
    batches = Batches(pairs, lambda _: range(8), (clip.text, clip.image), options, lambda *_: None)
    with batches.reading(1, 0, 1) as get:
        found = get(0).log_q
    assert found is not None
    want = [1 / 2 if pair.caption(0, 0) == "a cat" else 1 / 16 for pair in pairs]
    assert set(want) == {1 / 2, 1 / 16}
    assert found.exp().tolist() == pytest.approx(want)


def test_retrieval_counts_equal_captions_as_right(folder: Path, tmp_path: Path) -> None:
    same = [{**row, "text": "a cat"} for row in rows()]
    done = train(folder, tmp_path / "out", steps=1, evaluation=same)
    assert all(row["text_to_image@1"] == 1 for row in done.evaluations)


def test_unreadable_pictures_are_skipped_counted_and_listed(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, rgb in COLOURS.items():
        Image.new("RGB", (64, 64), rgb).save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(f"a {name} cat")
    (data / "red.png").write_bytes(b"no picture")
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    noise.save(data / "blue.png")
    whole = (data / "blue.png").read_bytes()
    (data / "blue.png").write_bytes(whole[: len(whole) // 2])  # its header is fine
    done = train(folder, tmp_path / "out", data, batch_size=7)
    assert {Path(where).name for where, _ in done.skipped} == {"red.png", "blue.png"}
    listed = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert [each["row"] for each in listed] == [where for where, _ in done.skipped]
    assert len(done.log) == FAST["steps"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "  "}, r"row 2: the caption is empty"),
        ({"text": None}, r"row 2 has the fields 'image', 'text'; its caption is missing"),
        ({"text": 5}, r"row 2: its 'text' holds a int; a caption is a text"),
        ({"text": b"a cat"}, r"row 2: its 'text' holds a bytes"),
        ({"text": None, "captions": ["a cat", None]}, r"row 2: its 'captions' holds a NoneType"),
        ({"image": []}, r"row 2 has 0 pictures; a pair is one picture"),
    ],
)
def test_bad_rows_are_told(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = rows()
    data[1] = {**data[1], **change}
    with pytest.raises(DataError, match=message):
        train("no/such-model", tmp_path / "out", data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1; give 2 or more, or loss='sigmoid'"),
        ({"batch_size": 9}, "there are 8 rows; give 8 at most"),
        ({"mode": "lokr"}, "mode of training"),
        ({"loss": "sigmoid", "bank": 4}, "of InfoNCE"),
        ({"loss": "coca", "mode": "lora"}, "goes with mode='full' or 'lit', not 'lora'"),
        ({"lora": 4}, "goes with mode='lora'"),
        ({"captioning": 1.0}, "captioning goes with loss='coca'"),
        ({"patch_masking": 1.0}, "patch_masking is 1.0"),
        ({"bath_size": 4}, "Did you mean 'batch_size'"),
        ({"mode": "distill"}, "student goes with mode='distill'"),
        ({"wise_ft": 1.5}, "wise_ft is 1.5"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_options_are_told(
    options: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        train(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "config.json").exists()


def test_where_no_picture_is_found_the_first_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row .*8 are left out, the first as row 1: .*no\.png"):
        train("none", tmp_path / "out", [{**row, "image": "no.png"} for row in rows()])


def test_one_pair_at_a_time_by_the_sigmoid_loss(folder: Path, tmp_path: Path) -> None:
    done = train(folder, tmp_path / "out", batch_size=1, loss="sigmoid", steps=2)
    assert done.clip.scoring is not None and done.clip.scoring.sigmoid


def test_numbers_that_are_none_leave_the_last_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = run_module.Steps._encode
    calls = 0

    def breaks(self: Any, part: Any) -> Any:
        nonlocal calls
        calls += 1
        made = encode(self, part)
        if calls == 5:
            made.pairs.image.data[0, 0] = float("nan")
        return made

    monkeypatch.setattr(run_module.Steps, "_encode", breaks)
    with pytest.raises(NumbersError, match=r"step 5 has a loss of nan .* after step 4"):
        train(folder, tmp_path / "out", save_every=2)
    state = load_file(tmp_path / "out" / CHECKPOINT)
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert len(json.loads((tmp_path / "out" / "log.json").read_text())) == 4
    calls = 4
    with pytest.raises(NumbersError, match=r"step 5 has a loss of nan .* after step 4"):
        train(folder, tmp_path / "out", save_every=200)  # which counts from the run's other setting
    straight = train(folder, tmp_path / "straight", save_every=2)
    assert train(folder, tmp_path / "out", save_every=2).losses == straight.losses


# ---------------------------------------------------------------- afterwards


def test_wise_ft_lies_between(folder: Path, tmp_path: Path) -> None:
    for mode in ("full", "lora"):
        whole, half = tmp_path / mode, tmp_path / f"half-{mode}"
        train(folder, whole, mode=mode)
        train(folder, half, mode=mode, wise_ft=0.5)
        start, end, between = weights(folder), weights(whole), weights(half)
        for name, tensor in between.items():
            want = torch.lerp(start[name], end[name], 0.5)
            assert torch.allclose(tensor, want, atol=1e-5), name
    made = interpolate(folder, tmp_path / "full", 0.5, tmp_path / "made")
    for name, tensor in weights(made).items():
        assert torch.allclose(tensor, weights(tmp_path / "half-full")[name], atol=1e-5), name
    with pytest.raises(OptionError, match="alpha is 2"):
        interpolate(folder, tmp_path / "full", 2, tmp_path / "more")


def test_wise_ft_of_0_is_the_start(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "out", wise_ft=0.0, steps=3)
    start = weights(folder)
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.allclose(tensor, start[name], atol=1e-6), name


def test_a_student_learns_to_land_where_its_teacher_does(folder: Path, tmp_path: Path) -> None:
    student = train(folder, tmp_path / "student", mode="scratch", steps=1)
    texts = [{"text": f"a {name} cat", "translation": f"{name} dog"} for name in COLOURS]
    done = train(folder, tmp_path / "out", texts, mode="distill", student=student.folder, steps=120)
    assert done.losses[-1] < 0.1 * done.losses[0]
    both = bridge.CLIP(folder, text=tmp_path / "out", device="cpu")
    found = both.encode_text([row["translation"] for row in texts])
    want = bridge.CLIP(folder, device="cpu").encode_text([row["text"] for row in texts])
    assert (normalize(found) * normalize(want)).sum(1).min() > 0.9
    assert torch.allclose(done.clip.encode_text(["red dog"]), both.encode_text(["red dog"]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ema": 0.9, "wise_ft": 0.5}, "has no ema, wise_ft; leave them out"),
        ({"micro_batch": 2}, "has no micro_batch; leave it out"),
        ({"loss": "sigmoid"}, "has no loss"),
        ({"patch_masking": 0.5}, "has no patch_masking"),
        ({"evaluation": [{"text": "a"}]}, "has no evaluation, open_clip or recipe"),
        ({"open_clip": True}, "has no evaluation, open_clip or recipe"),
        ({"recipe": Recipe(schedule=lambda *_: 1.0)}, "has no evaluation, open_clip or recipe"),
    ],
)
def test_a_student_is_not_taught_by_what_is_given_in_vain(
    options: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=said):
        train(folder, tmp_path / "out", [], mode="distill", student=folder, **options)


@pytest.mark.parametrize("translation", [{"fr": "un chat"}, ["un chat"], 5])
def test_a_translation_that_is_not_a_text_is_told(translation: Any, tmp_path: Path) -> None:
    """As the packages of parallel texts have it, a mapping by language; it was read past."""
    texts = [{"text": "a cat", "translation": translation}]
    with pytest.raises(DataError, match="row 1: its 'translation' is a"):
        train("none", tmp_path / "out", texts, mode="distill", student="none")


def test_the_card_of_a_student_says_what_was_done(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": f"a {name} cat"}) for name in COLOURS))
    named = ["-m", str(folder), "--mode", "distill", "--student", str(folder), "--device", "cpu"]
    assert main(["train-clip", str(data), "-o", str(tmp_path / "out"), *named, "--steps", "1"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| weight_decay | 0.1 |" in card and "same_caption" not in card


def test_the_command_trains_and_tells(folder: Path, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, rgb in COLOURS.items():
        Image.new("RGB", (40, 32), rgb).save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(f"a {name} cat")
    common = ["-m", str(folder), "--steps", "4", "--batch-size", "8", "--device", "cpu"]
    more = ["--learning-rate", "0.01", "--evaluate", f"cats={data}"]
    out = tmp_path / "out"
    assert main(["train-clip", str(data), "-o", str(out), *common, *more]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 4 steps, loss " in said and "cats: text_to_image@1 " in said
    assert bridge.CLIP(out, device="cpu").width == 24
    assert main(["train-clip", str(data), "-o", str(out), *common]) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert main(["train-clip", str(data), "-o", "x", "--evaluate", "cats"]) == 2
    assert "give NAME=DATA" in capsys.readouterr().err
    twice = ["--evaluate", "a=one.csv", "--evaluate", "a=two.csv"]
    assert main(["train-clip", str(data), "-o", "x", *twice]) == 2
    assert "has the name 'a' twice" in capsys.readouterr().err
    assert main(["train-clip", str(data), "-o", "x", "--dtype", "bfloat16"]) == 2
    assert "unrecognized arguments: --dtype" in capsys.readouterr().err


def test_masks_end_before_the_run_does() -> None:
    options = ClipTrainOptions(patch_masking=0.5, unmasked_ratio=0.2)
    assert [options.masking_at(step, 10) for step in (0, 7, 8, 9)] == [0.5, 0.5, 0, 0]


# ---------------------------------------------------------------- what options cannot say


class Brightness(FurtherLoss):
    """Learns how bright a picture is from its patches of two layers; a head for them is dropped."""

    layers = (-1, -2)

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(48, 1)

    def target(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, torch.Tensor]:
        return {"bright": torch.tensor([row["bright"] for row in rows])}

    def forward(
        self, patches: tuple[torch.Tensor, ...], target: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        found = self.head(torch.cat([each.mean(1) for each in patches], 1))[:, 0]
        return torch.nn.functional.mse_loss(found, target["bright"])


def bright_rows(step: int = 0) -> list[dict[str, Any]]:
    bright = [sum(rgb) / 765 for rgb in COLOURS.values()]
    some = [{**row, "bright": value} for row, value in zip(rows(), bright, strict=True)]
    random.Random(step).shuffle(some)
    return some[:4]


def test_rows_that_a_function_makes_are_those_of_a_table(folder: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def make(step: int) -> list[dict[str, Any]]:
        asked.append(step)
        return bright_rows(step)

    done = train(folder, tmp_path / "made", make, batch_size=4, steps=3)
    assert asked == [0, 1, 2]  # each once
    table = train(folder, tmp_path / "table", bright_rows(), batch_size=4, steps=1)
    assert table.losses[0] == pytest.approx(done.losses[0], rel=1e-6)
    again = train(folder, tmp_path / "again", bright_rows, batch_size=4, steps=3)
    assert again.losses == done.losses


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": None}, OptionError, "say batch_size and steps of the run"),
        ({"batch_size": 4, "popularity": True}, OptionError, "a function has no end"),
        ({"batch_size": 8}, DataError, r"data\(0\) gives 4 rows, and batch_size is 8"),
    ],
)
def test_what_a_function_of_rows_cannot_do_is_told(
    options: dict[str, Any], error: type[Exception], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train(folder, tmp_path / "out", bright_rows, **options)


def test_a_recipe_has_its_own_loss_optimizer_and_schedule(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    further = Brightness()
    start = copy.deepcopy(further)
    recipe = Recipe(
        optimizer=lambda own: torch.optim.AdamW(own.values(), lr=0.02, betas=(0.9, 0.99)),
        schedule=lambda step, steps: 1 - step / steps,
        further=further,
    )
    options = {"batch_size": 4, "steps": 5, "save_every": 1}
    done = train(folder, tmp_path / "out", bright_rows, recipe=recipe, **options)
    rates = [row["learning_rate"] for row in done.log]
    assert rates == pytest.approx([0.02, 0.016, 0.012, 0.008, 0.004])
    plain = train(folder, tmp_path / "plain", bright_rows, batch_size=4, steps=1)
    clip = bridge.CLIP(folder, device="cpu")
    pixels = torch.stack([clip.preprocess(row["image"]) for row in bright_rows(0)])
    patches = clip.image.encode(pixels, start.layers).patches
    own = start(patches, start.target(bright_rows(0))).item()
    assert done.losses[0] == pytest.approx(plain.losses[0] + own, rel=1e-5)
    assert not torch.equal(further.head.weight, start.head.weight)
    assert not any("further" in name or "head" in name for name in weights(tmp_path / "out"))
    halves = train(
        folder, tmp_path / "halves", bright_rows, micro_batch=2, graph_memory=0.0,
        recipe=dataclasses.replace(recipe, further=start), **options,
    )  # fmt: skip
    assert halves.losses == pytest.approx(done.losses, rel=1e-4)


def test_a_recipe_chooses_what_is_trained(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(trained=lambda name: name.startswith("image.visual_projection"))
    train(folder, tmp_path / "out", mode="lit", recipe=recipe)
    assert sides(changed(folder, tmp_path / "out")) == {"visual_projection", "logit_scale"}


def test_only_adamw_goes_on_from_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(optimizer=lambda own: torch.optim.SGD(own.values(), lr=0.1))  # type: ignore
    with pytest.raises(OptionError, match=r"recipe\.optimizer gives a SGD"):
        train(folder, tmp_path / "out", recipe=recipe)


def test_another_optimizer_does_not_go_on_with_a_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_adam(**changes: Any) -> Recipe:
        given = {"lr": 0.01, **changes}
        return Recipe(optimizer=lambda own: torch.optim.AdamW(own.values(), **given))

    stop_at(4, monkeypatch, folder, tmp_path / "out", recipe=with_adam())
    for other in (with_adam(lr=0.5), with_adam(weight_decay=0.9), Recipe()):
        with pytest.raises(OptionError, match="holds a run with optimizer"):
            train(folder, tmp_path / "out", save_every=2, recipe=other)
    straight = train(folder, tmp_path / "straight", recipe=with_adam())
    assert train(folder, tmp_path / "out", save_every=2, recipe=with_adam()).log == straight.log
    with pytest.raises(OptionError, match="amsgrad, whose state checkpoints do not hold"):
        train(folder, tmp_path / "more", recipe=with_adam(amsgrad=True))


# ---------------------------------------------------------------- a locked image tower


def pictures_seen(clip: bridge.CLIP) -> list[int]:
    """Lists, from now on, how many pictures go through the image tower at a time."""
    seen: list[int] = []
    vision = clip.image.module
    embeddings = getattr(vision, "vision_model", vision).embeddings
    embeddings.register_forward_hook(lambda _, args, out: seen.append(len(out)))
    return seen


def test_a_locked_tower_sees_each_picture_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"mode": "lit", "batch_size": 4, "steps": 12, "micro_batch": 3, "ema": 0.9}
    clip = bridge.CLIP(folder, device="cpu")
    seen = pictures_seen(clip)
    kept = train(clip, tmp_path / "kept", **options)  # six epochs of eight pictures
    assert sum(seen) == 8 and max(seen) == 3
    monkeypatch.setattr(kept_states, "MOST_BYTES", 0)
    clip = bridge.CLIP(folder, device="cpu")
    seen = pictures_seen(clip)
    anew = train(clip, tmp_path / "anew", **options)
    assert sum(seen) == 48
    assert kept.losses == pytest.approx(anew.losses, rel=1e-6)
    monkeypatch.setattr(run_module.Run, "_kept_states", lambda *_: None)
    plain = train(folder, tmp_path / "plain", **options)
    assert kept.losses == pytest.approx(plain.losses, rel=1e-6)


def test_what_is_kept_is_bounded(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(kept_states, "MOST_BYTES", 5 * 24 * 4)  # five states of 24 values
    clip = bridge.CLIP(folder, device="cpu")
    seen = pictures_seen(clip)
    train(clip, tmp_path / "out", mode="lit", batch_size=8, steps=3)
    assert seen == [8, 3, 3]


def test_a_picture_that_is_masked_by_chance_is_computed_each_time(
    folder: Path, tmp_path: Path
) -> None:
    clip = bridge.CLIP(folder, device="cpu")
    seen = pictures_seen(clip)
    train(clip, tmp_path / "out", mode="lit", patch_masking=0.5, steps=3)
    assert sum(seen) == 24


# ---------------------------------------------------------------- open_clip's layout


def open_clip_kinds(folder: Path) -> dict[str, Path]:
    """A plain folder, one whose text side is open_clip's own, and a CoCa."""
    made = {"plain": folder / "plain", "coca": folder / "coca"}
    KINDS["open_clip"].make(made["plain"])
    made["coca"].mkdir()
    write_coca(made["coca"])
    return made


@pytest.mark.parametrize("kind", ["plain", "coca"])
@pytest.mark.parametrize("mode", ["full", "lora", "probe"])
def test_a_folder_of_open_clips_is_trained_and_written_in_its_layout(
    kind: str, mode: str, tmp_path: Path
) -> None:
    source = open_clip_kinds(tmp_path)[kind]
    rate = {"full": 1e-3, "lora": 1e-2, "probe": 1e-2}[mode]
    done = train(source, tmp_path / "out", mode=mode, steps=8, learning_rate=rate)
    assert done.losses[-1] < done.losses[0]
    assert not (tmp_path / "out" / "config.json").exists()
    before, after = (
        {name.removeprefix("text."): each for name, each in load_file(p / OPEN_CLIP).items()}
        for p in (source, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    ends = {
        "full": lambda name: not name.startswith("text_decoder."),
        "lora": lambda name: "resblocks." in name or name == "logit_scale",
        "probe": lambda name: name.endswith(("proj", "projection", "projection.weight", "scale")),
    }
    assert moved and all(map(ends[mode], moved))
    assert any("visual." in name for name in moved) and any("visual." not in name for name in moved)
    found = bridge.CLIP(tmp_path / "out", device="cpu")
    pictures, texts = [row["image"] for row in rows()], ["a red cat", "", "a blue cat"]
    assert torch.allclose(found.encode_image(pictures), done.clip.encode_image(pictures), atol=1e-6)
    assert torch.allclose(found.encode_text(texts), done.clip.encode_text(texts), atol=1e-6)
    assert found.scoring == done.clip.scoring
    assert "library_name: open_clip" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(OptionError, match="holds a model already"):
        train(source, tmp_path / "out")


@pytest.mark.parametrize("mode", ["lora", "probe"])
def test_no_tower_is_left_out_in_silence(mode: Any, tmp_path: Path) -> None:
    clip = bridge.CLIP(open_clip_kinds(tmp_path)["plain"], device="cpu")
    trainee = Trainee(clip, sigmoid=False)
    trainee.image = made(ResNet, ResNetShape((1, 1, 1, 1), 8, 4, 32, 24))
    with (
        pytest.raises(UnsupportedModelError, match=f"ResNet has no .* mode='{mode}' would train"),
        trained_parts(trainee, ClipTrainOptions(mode=mode)),
    ):
        pass


def test_a_sigmoid_loss_gives_open_clips_layout_a_bias(tmp_path: Path) -> None:
    source = open_clip_kinds(tmp_path)["plain"]
    done = train(source, tmp_path / "out", loss="sigmoid", steps=2)
    told = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]
    assert told["init_logit_bias"] == done.clip.scoring.bias
    assert bridge.CLIP(tmp_path / "out", device="cpu").scoring == done.clip.scoring
    again = train(tmp_path / "out", tmp_path / "more", loss="infonce", steps=2)
    told = json.loads((tmp_path / "more" / "open_clip_config.json").read_text())["model_cfg"]
    assert "init_logit_bias" not in told and not again.clip.scoring.sigmoid


def test_what_open_clips_layout_cannot_take_back_is_told_before_training(tmp_path: Path) -> None:
    source = open_clip_kinds(tmp_path)["plain"]
    with pytest.raises(UnsupportedModelError, match="no random start here"):
        train(source, tmp_path / "out", mode="scratch")
    with pytest.raises(UnsupportedModelError, match="writes no captions"):
        train(source, tmp_path / "out", loss="coca")
    clip = bridge.CLIP(source, device="cpu")
    (source / "open_clip_config.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"has no open_clip_config\.json"):
        train(clip, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- captioning


def test_a_coca_learns_to_caption(tmp_path: Path) -> None:
    source = open_clip_kinds(tmp_path)["coca"]
    options = {"loss": "coca", "batch_size": 8, "steps": 4, "learning_rate": 5e-3}
    done = train(source, tmp_path / "out", **options)
    in_parts = {**options, "steps": 1, "micro_batch": 3, "graph_memory": 0.0}
    halves = train(source, tmp_path / "halves", **in_parts)
    assert halves.losses[0] == pytest.approx(done.losses[0], rel=1e-5)
    assert halves.log[0]["grad_norm"] == pytest.approx(done.log[0]["grad_norm"], rel=1e-4)
    plain = train(source, tmp_path / "mute", **{**options, "captioning": 0.0, "steps": 1})
    contrast = train(source, tmp_path / "contrast", **{**options, "loss": "infonce", "steps": 1})
    assert plain.losses[0] == pytest.approx(contrast.losses[0], rel=1e-5)
    coca = open_captioner(tmp_path / "out", device="cpu")
    before = open_captioner(source, device="cpu")

    def caption_loss(which: Any) -> float:
        ids = which.text.tokenize([row["text"] for row in rows()]).ids
        tokens = which.picture_tokens([row["image"] for row in rows()])
        logits = which.logits(tokens, ids)[:, :-1]
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0
        ).item()

    assert done.losses[0] == pytest.approx(contrast.losses[0] + 2 * caption_loss(before), rel=1e-4)
    assert caption_loss(coca) < 0.8 * caption_loss(before)


def test_a_coca_with_a_locked_image_side_still_learns_to_caption(tmp_path: Path) -> None:
    source = open_clip_kinds(tmp_path)["coca"]
    train(source, tmp_path / "out", loss="coca", mode="lit", steps=2)
    before, after = (load_file(p / OPEN_CLIP) for p in (source, tmp_path / "out"))
    moved = {n.partition(".")[0] for n, t in after.items() if not torch.equal(t, before[n])}
    assert moved == {"text", "text_decoder", "logit_scale"}
