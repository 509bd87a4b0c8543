"""Training a bridge: what is trained and what is not, resumption, precomputed features, LoRA."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_training import COLOURS, conversations, tiny_vlm

from bridge.errors import DataError, OptionError, UnsupportedModelError
from bridge.training import run_state
from bridge.training.lora import LoraLinear, lora_layers, take_lora
from bridge.training.optimization import rate_at
from bridge.training.run_state import CHECKPOINT
from bridge.vlm import BridgeVLM, TrainOptions, load_vlm, train_vlm
from bridge.vlm.lora import add_lora
from bridge.vlm.train import run as run_module
from bridge.vlm.train.trainable import groups, trained_parts
from bridge.vlm.views import OneView

# The tiny language model is random, and so wide that answers vary; a higher rate than LLaVA's.
FAST = {"learning_rate": 1e-2, "batch_size": 4, "samples": 0, "seed": 3}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Drawing takes longer than training here; the one test that looks at a curve has it."""
    if request.node.name != "test_the_folder_loads_and_answers_alike":
        monkeypatch.setattr(run_state, "draw_curve", lambda *_, **__: None)


def weights(vlm: BridgeVLM) -> dict[str, torch.Tensor]:
    parts = {"vision": vlm.vision, "projector": vlm.projector, "llm": vlm.llm}
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()  # type: ignore[union-attr]
    }


def changed(before: dict[str, torch.Tensor], vlm: BridgeVLM) -> set[str]:
    """The parts with any bit changed."""
    after = weights(vlm)
    assert before.keys() == after.keys()
    return {n.partition(".")[0] for n, t in after.items() if not torch.equal(t, before[n])}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of weights, in units of the largest weight of its tensor."""
    found = [
        float((one[n] - t).abs().max() / t.abs().max().clamp(min=1e-3)) for n, t in other.items()
    ]
    assert all(map(math.isfinite, found))  # max would pass over a NaN
    return max(found)


# -- what is trained ----------------------------------------------------------------------


def test_stage_1_trains_the_projector_and_no_other_bit(tmp_path: Path) -> None:
    vlm = tiny_vlm()
    before = weights(vlm)
    flags = [p.requires_grad for p in vlm.llm.parameters()]
    done = train_vlm(vlm, conversations(tmp_path / "data"), tmp_path / "out", steps=24, **FAST)
    assert changed(before, vlm) == {"projector"}
    assert done.vlm is vlm and len(done.losses) == 24
    assert sum(done.losses[-4:]) < 0.85 * sum(done.losses[:4])
    assert [p.requires_grad for p in vlm.llm.parameters()] == flags
    assert all(p.grad is None for p in vlm.llm.parameters())


def test_stage_2_trains_the_language_model_too_and_never_the_tower(tmp_path: Path) -> None:
    vlm = tiny_vlm()
    before = weights(vlm)
    data = conversations(tmp_path / "data")
    options = {**FAST, "learning_rate": 1e-3}
    done = train_vlm(vlm, data, tmp_path / "out", stage=2, steps=12, **options)
    assert changed(before, vlm) == {"projector", "llm"}
    assert done.losses[-1] < 0.7 * done.losses[0]


def test_lora_ends_up_in_plain_weights(tmp_path: Path) -> None:
    vlm = tiny_vlm()
    before = weights(vlm)
    data = conversations(tmp_path / "data")
    done = train_vlm(vlm, data, tmp_path / "out", stage=2, lora=2, steps=12, **FAST)
    after = weights(vlm)
    assert before.keys() == after.keys()
    moved = {n for n, t in after.items() if n.startswith("llm.") and not torch.equal(t, before[n])}
    linear = {n for n in before if n.startswith("llm.") and "_proj." in n}
    assert moved == linear
    for name in moved:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4) <= 2
    assert done.losses[-1] < 0.8 * done.losses[0]


def test_the_log_has_the_rate_that_was_given(tmp_path: Path) -> None:
    options = {**FAST, "stage": 2, "lora": 2, "warmup_ratio": 0.0}  # the projector has 2e-5
    done = train_vlm(tiny_vlm(), conversations(tmp_path / "data"), tmp_path / "out", **options)
    assert done.log[0]["learning_rate"] == FAST["learning_rate"]


def test_a_fresh_lora_changes_nothing_and_a_merged_one_says_the_same() -> None:
    llm = tiny_vlm().llm
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        plain = llm(ids).logits
    names = add_lora(llm, 2, 4.0, seed=0)
    with torch.no_grad():
        assert torch.equal(llm(ids).logits, plain)
        for name in names:
            layer = llm.get_submodule(name)
            assert isinstance(layer, LoraLinear)
            torch.nn.init.normal_(layer.lora_B, std=0.1)
        beside = llm(ids).logits
        take_lora(llm, merge=True)
        merged = llm(ids).logits
    assert not torch.allclose(beside, plain, rtol=1e-2)
    # fp32, the products summed in another order.
    assert torch.allclose(merged, beside, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("options", "scale"), [({}, 2.0), ({"lora_alpha": 3.0}, 0.75)])
def test_a_lora_acts_at_twice_its_size_unless_told(options: dict[str, Any], scale: float) -> None:
    vlm = tiny_vlm()
    with trained_parts(vlm, TrainOptions(stage=2, lora=4, **options)):
        assert {layer.scale for layer in lora_layers(vlm.llm).values()} == {scale}


def test_half_precision_is_trained_in_single_and_given_back(tmp_path: Path) -> None:
    """In bfloat16 a step of 1e-5 would be rounded away."""
    vlm = tiny_vlm()
    vlm.llm.bfloat16()
    vlm.projector.bfloat16()  # type: ignore[union-attr]
    data = conversations(tmp_path / "data")
    done = train_vlm(
        vlm, data, tmp_path / "out", stage=2, steps=6, **{**FAST, "learning_rate": 1e-3}
    )
    assert done.losses[-1] < done.losses[0]
    assert {p.dtype for p in vlm.llm.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in vlm.projector.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("max_grad_norm", "low", "high"),
    [
        (1.0, 1e-2, 1),
        (0.0, 1e-2, 1),  # no limit
        (1e-13, 0, 1e-5),  # so far below AdamW's epsilon, 1e-8, that nothing moves
    ],
)
def test_gradients_are_clipped(
    max_grad_norm: float, low: float, high: float, tmp_path: Path
) -> None:
    vlm = tiny_vlm()
    before, data = weights(vlm), conversations(tmp_path / "data")
    options = {**FAST, "warmup_ratio": 0.0, "max_grad_norm": max_grad_norm}
    train_vlm(vlm, data, tmp_path / "out", steps=3, **options)
    assert low <= apart(weights(vlm), before) < high


def test_weights_decay(tmp_path: Path) -> None:
    data, sizes = conversations(tmp_path / "data"), []
    for decay in (0.0, 10.0):
        vlm = tiny_vlm()
        options = {**FAST, "warmup_ratio": 0.0, "weight_decay": decay}
        train_vlm(vlm, data, tmp_path / str(decay), steps=3, **options)
        matrices = [p for p in vlm.projector.parameters() if p.ndim > 1]  # type: ignore[union-attr]
        sizes.append(sum(float(p.detach().square().sum()) for p in matrices))
    assert sizes[1] < 0.9 * sizes[0]


def test_biases_and_norms_do_not_decay() -> None:
    vlm, options = tiny_vlm(), TrainOptions(stage=2, weight_decay=0.1)
    with trained_parts(vlm, options):
        found = groups(vlm, options)
        decayed = {id(p) for group in found if group["weight_decay"] for p in group["params"]}
        every = [*vlm.projector.parameters(), *vlm.llm.parameters()]  # type: ignore[union-attr]
        assert {id(p) for p in every if p.ndim > 1} == decayed
        assert sum(len(group["params"]) for group in found) == len(every)


# -- resumption ---------------------------------------------------------------------------


class Stopped(Exception):
    """Stands for a run that is killed."""


@pytest.mark.parametrize(
    "extra", [{"stage": 1}, {"stage": 2, "learning_rate": 1e-3}, {"stage": 2, "lora": 2}]
)
def test_a_resumed_run_is_a_straight_one(
    extra: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2's dropout would tell if the random numbers of a step were others."""
    data = conversations(tmp_path / "data")
    kind = "Llama" if "lora" in extra else "GPT2"
    options: dict[str, Any] = {**FAST, **extra, "steps": 9, "save_every": 3}
    straight = tiny_vlm(kind)
    log = train_vlm(straight, data, tmp_path / "straight", **options).log
    if kind == "GPT2" and extra["stage"] == 2:
        assert straight.llm.config.resid_pdrop > 0

    take = run_module.Steps.take

    def stops(self: Any, step: int) -> Any:
        if step == 5:  # two steps after the last checkpoint
            raise Stopped
        return take(self, step)

    monkeypatch.setattr(run_module.Steps, "take", stops)
    cut = tmp_path / "cut"
    with pytest.raises(Stopped):
        train_vlm(tiny_vlm(kind), data, cut, **options)
    monkeypatch.undo()
    assert (cut / CHECKPOINT).is_file() and not (cut / "config.json").exists()
    torch.rand(7)  # a new program would stand elsewhere in the global random numbers
    resumed = tiny_vlm(kind)
    again = train_vlm(resumed, data, cut, **options).log
    assert again == log
    assert changed(weights(straight), resumed) == set()
    assert not (cut / CHECKPOINT).exists()
    assert json.loads((cut / "log.json").read_text()) == list(log)


def test_a_run_of_other_settings_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = conversations(tmp_path / "data")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run_module, "save_vlm", lambda *_: (_ for _ in ()).throw(Stopped))
        train_vlm(tiny_vlm(), data, tmp_path / "out", steps=2, **FAST)
    with pytest.raises(OptionError, match=r"out holds a run with steps 2, .* has 3"):
        train_vlm(tiny_vlm(), data, tmp_path / "out", steps=3, **FAST)
    with pytest.raises(OptionError, match="language model"):
        other = tiny_vlm()
        with torch.no_grad():
            other.llm.get_input_embeddings().weight += 1
        train_vlm(other, data, tmp_path / "out", steps=2, **FAST)
    train_vlm(tiny_vlm(), data, tmp_path / "out", steps=2, **FAST)
    with pytest.raises(OptionError, match="holds a model already"):
        train_vlm(tiny_vlm(), data, tmp_path / "out", steps=2, **FAST)


def test_the_random_numbers_of_the_caller_stay(tmp_path: Path) -> None:
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    train_vlm(tiny_vlm(), conversations(tmp_path / "data"), tmp_path / "out", steps=1, **FAST)
    assert torch.equal(torch.rand(3), want)


# -- batches and features -----------------------------------------------------------------


def test_gradient_accumulation_is_the_whole_batch(tmp_path: Path) -> None:
    data = conversations(tmp_path / "data")
    found = {}
    for micro in (4, 1):
        vlm = tiny_vlm()
        done = train_vlm(vlm, data, tmp_path / str(micro), steps=4, micro_batch=micro, **FAST)
        found[micro] = weights(vlm), done.log
    # fp32, gradients summed in another order.
    assert apart(found[4][0], found[1][0]) < 1e-4
    for one, other in zip(found[4][1], found[1][1], strict=True):
        # The gradient's norm too: Adam and clipping would hide a factor in it.
        assert one == pytest.approx(other, rel=1e-4)


def test_accelerates_own_accumulation_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch --gradient_accumulation_steps 4` sets it; each gradient was a quarter."""
    data = conversations(tmp_path / "data")
    plain = train_vlm(tiny_vlm(), data, tmp_path / "plain", steps=2, **FAST)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert train_vlm(tiny_vlm(), data, tmp_path / "launched", steps=2, **FAST).log == plain.log


def test_stored_features_are_live_features(tmp_path: Path) -> None:
    from bridge.vlm.train.data import read_data
    from bridge.vlm.train.feature_cache import LiveStates, StoredStates

    vlm = tiny_vlm("Llama", "siglip")
    pictures = [p for row in read_data(conversations(tmp_path / "data")) for p in row.pictures]
    stored = StoredStates(vlm, tmp_path / "features")
    assert stored.fill(pictures) == len(pictures) == 8
    assert stored.fill(pictures) == 0
    files = list((tmp_path / "features").rglob("*.safetensors"))
    assert len(files) == 8
    for live, kept in zip(LiveStates(vlm)(pictures), stored(pictures), strict=True):
        assert torch.equal(live, kept) and live.shape == (1, 16, 24)
    with torch.no_grad():
        next(vlm.vision.parameters()).mul_(1.5)  # type: ignore[union-attr]
    other = StoredStates(vlm, tmp_path / "features")
    assert other.fill(pictures[:2]) == 2, "states of another tower are others"
    assert not torch.equal(other(pictures[:1])[0], stored(pictures[:1])[0])


def test_features_of_other_choices_are_others(tmp_path: Path) -> None:
    from bridge.vlm.train.feature_cache import StoredStates

    vlm = tiny_vlm()
    processor = copy.deepcopy(vlm.image_processor)
    processor.image_mean = [0.1, 0.2, 0.3]
    changes: list[dict[str, Any]] = [
        {},
        {"select_layer": -1},
        {"select_feature": "cls_patch"},
        {"aspect": OneView((1, 2, 3))},
        {"image_processor": processor},
    ]
    folders = [StoredStates(replace(vlm, **change), tmp_path).folder for change in changes]
    assert len(set(folders)) == len(changes)
    assert StoredStates(tiny_vlm(), tmp_path).folder == folders[0]


def test_a_feature_folder_may_be_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data, options = conversations(tmp_path / "data"), {**FAST, "feature_folder": "~/features"}
    train_vlm(tiny_vlm(), data, "~/out", steps=1, **options)
    assert (tmp_path / "features").is_dir() and not (tmp_path / "~").exists()


def test_training_from_stored_features_is_training(tmp_path: Path) -> None:
    data = conversations(tmp_path / "data")
    kept, live = tiny_vlm(), tiny_vlm()
    train_vlm(kept, data, tmp_path / "kept", steps=4, **FAST)
    train_vlm(live, data, tmp_path / "live", steps=4, store_features=False, **FAST)
    assert apart(weights(kept), weights(live)) < 1e-4  # the tower saw batches of other sizes
    assert not (tmp_path / "live" / "features").exists()


def test_the_loss_is_that_of_answering(tmp_path: Path) -> None:
    """The summed loss of a batch is the log-probability of its answers by `BridgeVLM` itself."""
    from bridge.vlm.train.batches import encode, make_batch
    from bridge.vlm.train.data import read_data
    from bridge.vlm.train.feature_cache import LiveStates
    from bridge.vlm.train.trainable import Trainee

    vlm = tiny_vlm("Qwen2")
    rows = read_data(conversations(tmp_path / "data"))
    encoded = [encode(vlm.writer, row, [16] * len(row.pictures), None) for row in rows]
    trainee = Trainee(vlm, vlm.count(32, 32).layout)
    with torch.no_grad():
        batch = make_batch(encoded, LiveStates(vlm), vlm.pad_id, vlm.device)
        found = float(trainee(batch))
    want = 0.0
    for row in rows:
        for last in range(1, len(row.turns) + 1):
            turns = row.turns[:last]
            images = [p.load() for p in row.pictures]
            n_soft = [16] * len(images)
            asked = vlm.writer.ids(turns, n_soft)
            told = vlm.writer.ids(turns, n_soft, answer=turns[-1][1])
            with torch.no_grad():
                soft = vlm.picture_tokens(vlm.views(images)[0])
                logits = vlm.read(vlm.embed([told], soft))[0].log_softmax(-1)
            for place in range(len(asked), len(told)):
                want -= float(logits[place - 1, told[place]])
    assert found == pytest.approx(want, rel=1e-5)


# -- what comes out -----------------------------------------------------------------------


def test_the_folder_loads_and_answers_alike(tmp_path: Path) -> None:
    vlm = tiny_vlm()
    data = conversations(tmp_path / "data")
    options = {**FAST, "samples": 2, "sample_every": 2}
    train_vlm(vlm, data, tmp_path / "out", steps=4, **options)
    loaded = load_vlm(tmp_path / "out", device="cpu")
    picture = tmp_path / "data" / "0.png"
    question = "which colour is it?"
    want = vlm.logits([picture], [[(question, "")]])
    found = loaded.logits([picture], [[(question, "")]])[..., : want.shape[-1]]
    assert torch.allclose(found, want, rtol=1e-5, atol=1e-5)
    assert loaded.answer(picture, question) == vlm.answer(picture, question)
    samples = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [s["step"] for s in samples] == [2, 2, 4, 4]
    assert samples[-1]["answer"] == vlm.answer(
        tmp_path / "data" / "4.png", samples[-1]["question"], max_new_tokens=48
    )
    assert samples[0]["wanted"] in COLOURS
    assert (tmp_path / "out" / "loss.png").stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "training.json").read_text())["rows"] == 9


# -- bad options --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"stage": 3}, "stage is 3"),
        ({"lora": 4}, "lora is for stage 2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 4, "micro_batch": 3}, "not a multiple of micro_batch 3"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"mixed_precision": "fp16"}, "mixed_precision is 'fp16'"),
        ({"warmup_ratio": 2.0}, "warmup_ratio"),
        ({"epoch": 2}, "'epoch'. Did you mean 'epochs'"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    data = conversations(tmp_path / "data", 2)
    with pytest.raises(OptionError, match=match):
        train_vlm("no-such-model/at-all", data, tmp_path / "out", **options)


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    data = conversations(tmp_path / "data", 2)
    with pytest.raises(UnsupportedModelError, match="no linear layer"):
        train_vlm(tiny_vlm("GPT2"), data, tmp_path / "a", stage=2, lora=2, steps=1, **FAST)
    with pytest.raises(DataError, match="no row has a picture"):
        train_vlm(tiny_vlm(), [{"question": "a?", "answer": "b"}], tmp_path / "b", **FAST)


def test_the_learning_rate_is_transformers_cosine() -> None:
    from transformers import get_cosine_schedule_with_warmup

    options = TrainOptions(warmup_ratio=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 4, 40)
    for step in range(40):
        assert rate_at(step, 40, options.warmup_ratio) == pytest.approx(
            schedule.get_last_lr()[0], abs=1e-9
        )
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, (1e-3, 1e-3)),
        ({"stage": 2}, (2e-5, 2e-5)),
        ({"stage": 2, "lora": 8}, (2e-5, 2e-4)),
        ({"projector_learning_rate": 3e-4}, (3e-4, 1e-3)),
        (
            {"stage": 2, "lora": 8, "projector_learning_rate": 3e-4, "learning_rate": 1e-4},
            (3e-4, 1e-4),
        ),
    ],
)
def test_the_projector_may_have_a_rate_of_its_own(
    options: dict[str, Any], rates: tuple[float, float]
) -> None:
    assert TrainOptions(**options).rates == rates
