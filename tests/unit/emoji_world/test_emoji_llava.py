"""The answerer's recipe: questions packed into one sequence are learnt as if asked alone.

Everything is compared in fp32 with stock ``LlavaForConditionalGeneration`` on each
conversation by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.tiny_world import scenes_at, synthetic_sprites, tiny_vae
from torch.nn import functional as F
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from bridge.vlm.chat import chat_text
from bridge.vlm.train.batches import IGNORE_LABEL
from emoji_world.concepts import CONCEPTS
from emoji_world.llava_folder import build_tokenizer, training_example
from emoji_world.questions import questions
from emoji_world.render import render_scene
from emoji_world.scenes import TINTS, Scene
from emoji_world.train import llava
from emoji_world.train.data import patch_truth, pictures, scene_batch, scene_rng
from emoji_world.train.loop import Run
from emoji_world.train.packed_chats import MAX_TURNS, MORE_YES_NO, Chats, as_typed, collate
from emoji_world.train.soft_words import SoftWords, as_fitted, word_targets
from emoji_world.train.vae import as_drawn

Example = tuple[list[int], list[int], list[int], list[int]]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """The recipe's kind of vocabulary from fewer chats."""
    rng = random.Random(8)
    chats = []
    for scene in scenes_at(8, 150):
        turns = [(q.text, q.answer) for q in questions(scene, rng)]
        chats.append(chat_text(turns, with_answers=True))
    return build_tokenizer(chats, 600)


def tiny_tower() -> CLIPModel:
    """A CLIPModel whose image side has the recipe's 8 x 8 grid, and little else."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 128,
        "patch_size": 16,
        "projection_dim": 16,
    }
    text = {
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


@pytest.fixture(scope="module")
def model(words: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    tower = tiny_tower()
    torch.manual_seed(1)
    built = llava.build(tower, words)
    with torch.no_grad():  # wider than at the start of training, so that attention matters
        for name, parameter in built.named_parameters():
            if "vision_tower" not in name and parameter.ndim == 2:
                parameter.mul_(4)
    return built.eval()


def learnt(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """The turns an example draws, in its order: every kind, and more yes/no questions."""
    asked = questions(scene, rng)
    for _ in range(MORE_YES_NO):
        asked += [q for q in questions(scene, rng) if q.answer in ("yes", "no")]
    return [(as_typed(q.text, rng), q.answer) for q in asked]


def some_examples(words: PreTrainedTokenizerFast) -> list[tuple[Scene, list[list], Example]]:
    """Scenes, the conversations that their example stands for, and the example."""
    made = []
    for seed, scene in enumerate(scenes_at(3, 5)):
        example = llava.packed_example(words, scene, random.Random(seed))
        again = random.Random(seed)
        turns = learnt(scene, again)
        if again.random() < 0.5:
            chats = [turns[: again.randint(1, MAX_TURNS)]]
        else:
            chats = [[turn] for turn in turns]
        made.append((scene, chats, example))
    assert {len(chats) == 1 for _, chats, _ in made} == {True, False}
    return made


def alone(
    model: LlavaForConditionalGeneration, ids: list[int], picture: torch.Tensor
) -> torch.Tensor:
    """The stock model's logits (T, V) of one conversation with its picture."""
    told = torch.tensor([ids])
    with torch.no_grad():
        out = model(input_ids=told, pixel_values=picture, attention_mask=torch.ones_like(told))
    return out.logits[0]


def packed(model: LlavaForConditionalGeneration, batch: Chats, soft: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) of a collated batch, computed as the recipe does but in fp32."""
    inner = model.model
    embeds = inner.language_model.embed_tokens(batch.ids)
    spots = (batch.ids == model.config.image_token_index)[..., None]
    embeds = embeds.masked_scatter(spots, soft)
    mask = batch.may_look()
    bias = torch.zeros(mask.shape).masked_fill(~mask, -1e4)
    with torch.no_grad():
        out = inner.language_model(
            inputs_embeds=embeds,
            attention_mask=bias,
            position_ids=batch.positions,
            use_cache=False,
        )
        return model.lm_head(out.last_hidden_state)


def soft_tokens(model: LlavaForConditionalGeneration, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        seen = model.model.vision_tower(images, output_hidden_states=True)
        return model.model.multi_modal_projector(seen.hidden_states[-1][:, 1:])


# ---------------------------------------------------------------- packing


def test_packed_questions_read_as_if_asked_alone(
    words: PreTrainedTokenizerFast, model: LlavaForConditionalGeneration
) -> None:
    made = some_examples(words)
    images = pictures([scene for scene, _, _ in made], synthetic_sprites())
    batch = collate([example for _, _, example in made], words.pad_token_id)
    assert len({len(example[0]) for _, _, example in made}) > 1  # some rows are padded
    logits = packed(model, batch, soft_tokens(model, images))
    compared = 0
    for row, (_, chats, (ids, labels, positions, segments)) in enumerate(made):
        for number, chat in enumerate(chats, start=1):
            own_ids, own_labels = training_example(words, chat, llava.SOFT)
            expected = alone(model, own_ids, images[row : row + 1])
            chosen = [i for i, s in enumerate(segments) if s in (0, number)]
            assert [ids[i] for i in chosen] == own_ids
            assert [positions[i] for i in chosen] == list(range(len(own_ids)))
            # What is learnt of the question is what would be learnt of it alone.
            own = [i for i, s in enumerate(segments) if s == number or len(chats) == 1]
            assert [labels[i] for i in own] == own_labels[len(own_labels) - len(own) :]
            torch.testing.assert_close(logits[row, chosen], expected, atol=1e-5, rtol=1e-5)
            compared += 1
    assert compared >= 10
    # The check can fail: without the mask the later questions read the earlier ones.
    blind = replace(batch, segments=torch.zeros_like(batch.segments))
    unmasked = (packed(model, blind, soft_tokens(model, images)) - logits).abs().max().item()
    assert unmasked > 1e-2


def test_the_recipes_loss_is_that_of_the_stock_model_on_each_conversation(
    words: PreTrainedTokenizerFast,
    model: LlavaForConditionalGeneration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llava, "BATCH", 4)
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())
    # fp32 all through: the recipe's mask alone is made in bf16.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    monkeypatch.setattr(llava, "as_fitted", lambda targets: targets)
    sprites = synthetic_sprites()
    painter = tiny_vae()
    recipe = llava.recipe(model, words, sprites, painter)
    torch.manual_seed(5)
    loss, figures = recipe.loss(0)

    rng = scene_rng(41, 0)
    scenes = scene_batch(rng, 4)
    total, right, count = 0.0, 0, 0
    torch.manual_seed(5)
    shown = as_drawn(painter, pictures(scenes, sprites))
    worded = word_targets(words, model.get_input_embeddings(), scenes[1:2])
    for number, (scene, picture) in enumerate(zip(scenes, shown, strict=True)):
        hook = None
        if number == 1:  # read in words: these stand where the projector's would
            hook = model.model.multi_modal_projector.register_forward_hook(lambda *_: worded)
        turns = learnt(scene, rng)
        several = rng.random() < 0.5
        chats = [turns[: rng.randint(1, MAX_TURNS)]] if several else [[t] for t in turns]
        for chat in chats:
            ids, labels = training_example(words, chat, llava.SOFT)
            logits = alone(model, ids, picture[None])[:-1]
            target = torch.tensor(labels[1:])
            total += F.cross_entropy(
                logits, target, ignore_index=IGNORE_LABEL, reduction="sum"
            ).item()
            right += (logits.argmax(-1) == target).sum().item()
            count += (target != IGNORE_LABEL).sum().item()
        if hook is not None:
            hook.remove()
    assert figures["answer_ce"] == pytest.approx(total / count, rel=1e-5)
    # What is left of the loss is the supervised attention's, which is >= -log of its mean.
    dense = llava.DENSE_WEIGHT * figures["soft_word_ce"]
    look = (loss.item() - total / count - dense) / llava.LOOK_WEIGHT
    assert look >= -math.log(figures["looked_right"] + 1e-4) - 1e-5
    assert look < -math.log(1e-4) + 1e-5
    assert figures["token_right"] == pytest.approx(right / count, abs=1e-6)


def test_words_are_read_as_a_fit_would_give_them() -> None:
    """Between half of a target's length and all of it, apart by at most half of what they vary."""
    torch.manual_seed(0)
    targets = torch.randn(200, 64, 48)
    given = as_fitted(targets)
    kept = (given * targets).sum((1, 2)) / targets.square().sum((1, 2))
    assert 0.48 < kept.min() < 0.56 and 0.94 < kept.max() < 1.02
    blurred = (given - kept[:, None, None] * targets).std((1, 2)) / targets.std()
    assert blurred.min() < 0.05 and 0.44 < blurred.max() < 0.52


def test_labels_are_answers_alone(words: PreTrainedTokenizerFast) -> None:
    for _, chats, (_, labels, _, _) in some_examples(words):
        taught = [label for label in labels if label != IGNORE_LABEL]
        text = words.decode(taught)
        said = [answer for chat in chats for _, answer in chat]
        assert [piece.strip() for piece in text.split("</s>")] == [*said, ""]


def test_packing_holds_the_picture_once(words: PreTrainedTokenizerFast) -> None:
    image = words.convert_tokens_to_ids("<image>")
    for _, chats, (ids, labels, positions, segments) in some_examples(words):
        assert ids.count(image) == llava.SOFT
        assert len(ids) == len(labels) == len(positions) == len(segments)
        assert max(positions) < words.model_max_length
        assert set(segments) == ({0} if len(chats) == 1 else set(range(len(chats) + 1)))


def test_collate_pads_what_nobody_looks_at() -> None:
    short: Example = ([7, 8], [-100, 8], [0, 1], [0, 1])
    long: Example = ([7, 8, 9, 6], [-100, 8, -100, 6], [0, 1, 1, 2], [0, 1, 2, 2])
    batch = collate([short, long], 3)
    assert batch.ids.tolist() == [[7, 8, 3, 3], [7, 8, 9, 6]]
    assert batch.labels.tolist() == [[-100, 8, -100, -100], [-100, 8, -100, 6]]
    assert batch.positions.tolist() == [[0, 1, 0, 0], [0, 1, 1, 2]]
    assert batch.may_look().shape == (2, 1, 4, 4) and batch.may_look().dtype == torch.bool
    assert batch.may_look()[0, 0, :2].tolist() == [
        [True, False, False, False],
        [True, True] + 2 * [False],
    ]
    assert batch.may_look()[1, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 1, 1],
    ]
    assert batch.may_look().any(-1).all()  # a row that sees nothing would turn into NaN


# ---------------------------------------------------------------- questions as typed


def test_questions_are_typed_with_and_without_a_capital_and_a_mark() -> None:
    rng = random.Random(1)
    question = "how many cats are there here?"
    typed = [as_typed(question, rng) for _ in range(4000)]
    forms = {question, question[:-1], "H" + question[1:], "H" + question[1:-1]}
    assert set(typed) == forms  # nothing else of the text changes
    capital = sum(text.startswith("H") for text in typed) / len(typed)
    bare = sum(not text.endswith("?") for text in typed) / len(typed)
    assert capital == pytest.approx(0.4, abs=0.03) and bare == pytest.approx(0.15, abs=0.03)
    assert as_typed("a?", random.Random(3)) == as_typed("a?", random.Random(3))


def test_a_folders_tokenizer_is_made_once_and_then_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def from_fewer(chats: Iterator[str], size: int) -> PreTrainedTokenizerFast:
        assert size == llava.VOCAB_SIZE
        seen.extend(itertools.islice(chats, 120))
        return build_tokenizer(seen, 450)

    monkeypatch.setattr(llava, "build_tokenizer", from_fewer)
    made = llava.tokenizer(tmp_path)
    assert any("USER: <image>\nWhat" in text for text in seen)  # it learns what people type

    def refuse(*_: object) -> PreTrainedTokenizerFast:
        raise AssertionError("the folder has a tokenizer")

    monkeypatch.setattr(llava, "build_tokenizer", refuse)
    again = llava.tokenizer(tmp_path)
    assert again.get_vocab() == made.get_vocab()
    assert [again(text).input_ids for text in seen[:20]] == [made(t).input_ids for t in seen[:20]]
    assert again.model_max_length == made.model_max_length


# ---------------------------------------------------------------- whitening


@pytest.fixture(params=["tiny", pytest.param("shipped", marks=pytest.mark.models)])
def tower(request: pytest.FixtureRequest) -> CLIPModel:
    """A random image tower, and the trained one."""
    if request.param == "tiny":
        return tiny_tower()
    folder = request.getfixturevalue("embedded")("emoji-clip")
    return CLIPModel.from_pretrained(folder, dtype=torch.float32)


def patch_states(model: LlavaForConditionalGeneration, images: torch.Tensor) -> torch.Tensor:
    """The patch states that the projector reads, one row a patch."""
    with torch.no_grad():
        seen = model.model.vision_tower(images, output_hidden_states=True)
    return seen.hidden_states[-1][:, 1:].flatten(0, 1)


def test_it_reads_the_penultimate_states_of_a_tower_without_the_last_layer(
    words: PreTrainedTokenizerFast, tower: CLIPModel
) -> None:
    depth = tower.config.vision_config.num_hidden_layers
    built = llava.build(tower, words)
    images = pictures(scenes_at(9, 3), synthetic_sprites())
    with torch.no_grad():
        seen = tower.vision_model(images, output_hidden_states=True)
    wanted = seen.hidden_states[-2][:, 1:]
    assert torch.equal(llava.patch_states(built, images), wanted)
    assert torch.equal(patch_states(built, images), wanted.flatten(0, 1))
    assert not torch.equal(wanted, seen.hidden_states[-1][:, 1:])
    assert built.config.vision_config.num_hidden_layers == depth - 1
    assert tower.config.vision_config.num_hidden_layers == len(seen.hidden_states) - 1 == depth


def test_the_whitened_projector_sees_uncorrelated_states_of_unit_variance(
    words: PreTrainedTokenizerFast, tower: CLIPModel
) -> None:
    torch.manual_seed(4)
    built = llava.build(tower, words)
    images = pictures(scenes_at(6, 24), synthetic_sprites())
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    torch.manual_seed(5)
    llava.whiten(built, images)
    states = patch_states(built, images)
    first = built.model.multi_modal_projector.linear_1
    with torch.no_grad():
        out = first(states)
    # The layer is a whitening and then a random mix, drawn from the seed; undo the mix.
    torch.manual_seed(5)
    mix = torch.randn(first.out_features, first.in_features) / first.in_features**0.5
    white = torch.linalg.lstsq(mix.double(), out.T.double()).solution.T
    assert white.mean(0).abs().max() < 1e-2
    # A hundredth of the mean variance is added, so that what hardly varies is not blown up.
    values = torch.linalg.eigvalsh(torch.cov(states.T.double()))
    expected = values / (values + 0.01 * values.mean())
    covariance = torch.cov(white.T)
    torch.testing.assert_close(covariance, torch.diag(expected), atol=2e-2, rtol=0)
    assert (expected > 0.9).any() and covariance.diagonal().max() < 1.01
    # What it is for: before, a few directions drown the others.
    assert values[-1] / values.median() > 3 * expected[-1] / expected.median()
    # Only that layer is set, and the layout stays the stock one.
    after = built.state_dict()
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    layer = "model.multi_modal_projector.linear_1"
    assert changed == {f"{layer}.weight", f"{layer}.bias"}


def test_a_whitened_model_is_loaded_by_stock_as_it_is(
    words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    torch.manual_seed(6)
    built = llava.build(tiny_tower(), words)
    images = pictures(scenes_at(7, 4), synthetic_sprites())
    llava.whiten(built, images)
    built.eval().save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids, _ = training_example(words, [("what is this?", "a cat")], llava.SOFT)
    assert torch.equal(alone(loaded, ids, images[:1]), alone(built, ids, images[:1]))


def test_going_on_takes_the_tower_of_today(words: PreTrainedTokenizerFast) -> None:
    built = llava.build(tiny_tower(), words)
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    today = tiny_tower()
    with torch.no_grad():
        for parameter in today.vision_model.parameters():
            parameter.add_(0.5)
    built.requires_grad_(True)
    llava.share_tower(built, today)
    state = today.vision_model.state_dict()
    for name, tensor in built.state_dict().items():
        _, inside, own = name.partition("vision_tower.")
        wanted = state[own.removeprefix("vision_model.")] if inside else before[name]
        assert torch.equal(tensor, wanted), name
    assert not any(p.requires_grad for p in built.model.vision_tower.parameters())
    # A copy: what happens to the CLIPModel later does not reach the answerer.
    with torch.no_grad():
        today.vision_model.embeddings.class_embedding.zero_()
    assert built.model.vision_tower.get_parameter(
        next(n for n, _ in built.model.vision_tower.named_parameters() if "class_embedding" in n)
    ).any()


@pytest.fixture
def whole_tower(
    words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> LlavaForConditionalGeneration:
    """The answerer as it was once: with the tower's last layer, reading the one before."""
    torch.manual_seed(7)
    with monkeypatch.context() as patched:
        patched.setattr(llava, "lower_layers", lambda tower: tower)
        built = llava.build(tiny_tower(), words)
    built.config.vision_feature_layer = -2
    return built


def test_going_on_from_a_folder_with_the_whole_tower_leaves_the_last_layer(
    words: PreTrainedTokenizerFast, whole_tower: LlavaForConditionalGeneration, tmp_path: Path
) -> None:
    whole_tower.save_pretrained(tmp_path)
    loaded = llava.load(tmp_path, tiny_tower(), words)
    before = dict(whole_tower.named_parameters())
    after = dict(loaded.named_parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in after.items())
    assert {name for name in before if name not in after} == {
        name for name in before if "vision_tower.encoder.layers.2." in name
    }
    images = pictures(scenes_at(9, 2), synthetic_sprites())
    wanted = llava.patch_states(whole_tower, images)
    assert torch.equal(llava.patch_states(loaded, images), wanted)


def test_a_run_with_the_whole_tower_is_not_taken_up(
    words: PreTrainedTokenizerFast, whole_tower: LlavaForConditionalGeneration, tmp_path: Path
) -> None:
    Run(llava.recipe(whole_tower, words, synthetic_sprites(), tiny_vae()), tmp_path).save()
    built = llava.build(tiny_tower(), words)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*vision_tower\.encoder\.layers\.2"):
        Run(llava.recipe(built, words, synthetic_sprites(), tiny_vae()), tmp_path)


# ---------------------------------------------------------------- recipe and export


def test_muon_trains_the_matrices_of_the_layers_alone(
    words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava, "BATCH", 2)
    built = llava.build(tiny_tower(), words)
    chosen = llava.recipe(built, words, synthetic_sprites(), tiny_vae()).muon
    parameters = dict(built.named_parameters())
    assert chosen and all(parameters[n].ndim == 2 and parameters[n].requires_grad for n in chosen)
    parts = ("embed_tokens", "lm_head", "linear_1", "vision_tower")
    assert not any(part in name for name in chosen for part in parts)
    layers = [n for n, p in parameters.items() if "language_model.layers." in n and p.ndim == 2]
    assert set(layers) < chosen
    assert {n for n in chosen if n not in layers} == {"model.multi_modal_projector.linear_2.weight"}


def test_soft_words_are_those_of_thing_and_tint(words: PreTrainedTokenizerFast) -> None:
    """By the loss of every patch worked out alone, and least where soft tokens are the words."""
    wanted = SoftWords(words)
    truth = patch_truth(scenes_at(12, 5))
    torch.manual_seed(4)
    embeddings = torch.randn(len(words), 48)
    soft = torch.randn(5, llava.SOFT, 48)

    def shares(noun: str) -> torch.Tensor:
        ids = words(" " + noun, add_special_tokens=False).input_ids
        return sum((torch.eye(len(words))[i] for i in ids), torch.zeros(len(words))) / len(ids)

    total, count, taught = 0.0, 0, soft.clone()
    for i, j in product(range(5), range(llava.SOFT)):
        concept, tint = int(truth.concept[i, j]), int(truth.tint[i, j])
        if concept == len(CONCEPTS):
            continue
        target = shares(CONCEPTS[concept].one)
        if tint:
            target = (target + shares(TINTS[tint - 1])) / 2
        state = soft[i, j] / soft[i, j].square().mean().sqrt()
        total -= (target * (embeddings @ state).log_softmax(0)).sum().item()
        count += 1
        taught[i, j] = target @ embeddings
    loss = wanted.loss(soft, embeddings, truth)
    assert loss.item() == pytest.approx(total / count, rel=1e-4)
    assert wanted.loss(taught, embeddings, truth) < 0.6 * loss


def test_a_step_trains_all_but_the_tower(
    words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava, "BATCH", 2)
    torch.manual_seed(2)
    tower = tiny_tower()
    built = llava.build(tower, words)
    recipe = llava.recipe(built, words, synthetic_sprites(), tiny_vae())
    loss, figures = recipe.loss(0)
    assert torch.isfinite(loss) and 0 <= figures["token_right"] <= 1
    loss.backward()
    for name, parameter in built.named_parameters():
        held = "vision_tower" in name
        assert parameter.requires_grad != held, name
        assert (parameter.grad is None) == held, name
    state = tower.vision_model.state_dict()
    for name, tensor in built.model.vision_tower.state_dict().items():
        assert torch.equal(tensor, state[name.removeprefix("vision_model.")]), name


def test_the_exported_folder_is_stock_llava(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    torch.manual_seed(3)
    tower = tiny_tower()
    built = llava.build(tower, words)
    run = Run(llava.recipe(built, words, synthetic_sprites(), tiny_vae()), tmp_path / "runs")
    for name in run.average:
        if "vision_tower" not in name:
            run.average[name].mul_(0.5)
    averaged = {name: tensor.clone() for name, tensor in run.average.items()}
    llava.export(run, tower, words, tmp_path / "emoji-llava")

    loaded, notes = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "emoji-llava", dtype=torch.float16, output_loading_info=True
    )
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, averaged[name].half()), name
    embeddings = loaded.model.language_model.embed_tokens.weight
    assert loaded.lm_head.weight.data_ptr() == embeddings.data_ptr()
    config = loaded.config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "default")
    assert loaded.generation_config.eos_token_id == words.eos_token_id

    processor = AutoProcessor.from_pretrained(tmp_path / "emoji-llava")
    scene = scenes_at(4, 1)[0]
    picture = Image.fromarray(render_scene(scene, synthetic_sprites()))
    prompt = chat_text([("what is this?", "")], with_answers=False)
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    expected = pictures([scene], synthetic_sprites())
    torch.testing.assert_close(inputs["pixel_values"], expected, atol=1e-5, rtol=0)
    assert (inputs["input_ids"] == config.image_token_index).sum() == llava.SOFT
    asked, _ = training_example(words, [("what is this?", "x")], llava.SOFT)
    ids = inputs["input_ids"][0].tolist()
    assert asked[: len(ids)] == ids  # what answering sees is how training's chats begin
