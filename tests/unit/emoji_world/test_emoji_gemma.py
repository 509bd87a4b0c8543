"""The recipe of the answerer with a real language model, on a tiny random Gemma 3."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.tiny_gemma import Parts, tiny_parts
from support.tiny_world import scenes_at, synthetic_sprites
from torch.nn import functional as F
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from bridge.training.lora import lora_layers
from bridge.vlm import BridgeVLM, load_llm, load_vision, load_vlm
from bridge.vlm.lora import add_lora
from bridge.vlm.projectors import build_projector
from bridge.vlm.train.batches import IGNORE_LABEL
from emoji_world.llava_folder import chat_encoder
from emoji_world.questions import questions
from emoji_world.render import render_scene
from emoji_world.train import gemma
from emoji_world.train.data import pictures, scene_batch, scene_rng
from emoji_world.train.head_loss import head_loss
from emoji_world.train.loop import Run
from emoji_world.train.packed_chats import packed
from emoji_world.train.soft_words import SoftWords, occurring, word_ids
from emoji_world.train.whitening import whitening

SIZE_LIMIT = 1_200_000


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """The tiny parts in the place of those that the recipe names."""
    made = tiny_parts(tmp_path / "parts")
    monkeypatch.setattr(gemma, "TOWER", str(made.tower))
    monkeypatch.setattr(gemma, "LLM", str(made.llm))
    monkeypatch.setattr(gemma, "LOOKS", 1)
    monkeypatch.setattr(gemma, "BATCH", 2)
    return made


def exact(parts: Parts) -> tuple[BridgeVLM, gemma.Trained]:
    """As `gemma.start` makes it, but in fp32, and with a LoRA that says something."""
    tower, processor = load_vision(parts.tower, device="cpu")
    llm, tokenizer = load_llm(parts.llm, device="cpu")
    vlm = gemma.join(tower, llm, tokenizer, processor)
    seen = gemma.look(vlm, synthetic_sprites())
    add_lora(llm, gemma.RANK, gemma.ALPHA, seed=0, only=gemma.LAYERS)
    torch.manual_seed(6)
    for layer in lora_layers(llm).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    return vlm, gemma.trained(vlm, gemma.fitted(vlm, seen), seen)


# ---------------------------------------------------------------- parts of the recipe


def test_a_whitened_projector_is_the_same_map() -> None:
    torch.manual_seed(0)
    states = torch.randn(500, 6) * torch.tensor([50.0, 5, 1, 1, 0.2, 0.1]) + 3
    plain = build_projector("linear", 6, 4)
    mean, rows, _ = whitening(states)
    whitened = gemma.Whitened(plain, mean, rows)  # type: ignore[arg-type]
    wanted = plain(states)
    torch.testing.assert_close(whitened(states), wanted, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        whitened.weight.mul_(2)  # it is trained ...
    torch.testing.assert_close(whitened.plain()(states), whitened(states), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whitened.plain()(states), wanted, atol=0.1)


def test_the_closed_form_begins_with_words(parts: Parts) -> None:
    """Soft tokens are nearer to the words for what is there than one constant token could be."""
    vlm, module = exact(parts)
    ((scenes, states),) = gemma.look(vlm, synthetic_sprites())
    table = vlm.llm.get_input_embeddings()
    with torch.no_grad():
        wanted = gemma.word_targets(vlm.tokenizer, table, scenes)
        found = module.projector(states)
    error = (found - wanted).square().mean()
    assert error < 0.9 * (wanted - wanted.mean((0, 1))).square().mean()
    # Gemma scales its embeddings, and soft tokens stand among scaled ones.
    ids = word_ids(vlm.tokenizer, f"{scenes[0].background} background {scenes[0].style}")
    scaled = table.weight[ids].mean(0) * 32**0.5
    assert any(torch.allclose(row, scaled, rtol=1e-4, atol=1e-4) for row in wanted[0])


def test_the_loss_through_the_head_is_cross_entropy() -> None:
    torch.manual_seed(0)
    states = torch.randn(150, 8, requires_grad=True)  # more than one stretch
    head, target = torch.randn(40, 8), torch.randint(40, (150,))
    loss, right = head_loss(states, head, target)
    (3 * loss).backward()
    assert states.grad is not None
    found, states.grad = states.grad, None
    wanted = F.cross_entropy(states @ head.T, target)
    (3 * wanted).backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(found, states.grad)
    share = ((states @ head.T).argmax(-1) == target).float().mean()
    assert right.item() == pytest.approx(share.item()) and not right.requires_grad


def test_few_words_of_a_vocabulary_are_told_apart_as_among_all(parts: Parts) -> None:
    _, tokenizer = load_llm(parts.llm, device="cpu")
    among = occurring(tokenizer)
    assert among == sorted(set(among)) and len(among) < len(tokenizer)
    few, every = SoftWords(tokenizer, among), SoftWords(tokenizer)
    assert torch.equal(every.things[:, among], few.things)
    assert torch.allclose(few.things.sum(1), torch.ones(len(few.things)))


# ---------------------------------------------------------------- chats and loss


def test_what_is_learnt_is_what_answering_sees(parts: Parts) -> None:
    vlm, _ = exact(parts)
    rng = random.Random(1)
    encode = chat_encoder(vlm.writer, gemma.SOFT)
    for scene in scenes_at(4, 6):
        turns = [(q.text, q.answer) for q in questions(scene, rng)][:2]
        ids, labels = encode(turns)
        asked = vlm.prompt_ids(turns, gemma.SOFT)
        assert ids[: len(asked)] == asked  # up to the last answer
        taught = [label for label in labels if label != IGNORE_LABEL]
        said = vlm.tokenizer.decode(taught).split(vlm.tokenizer.eos_token)
        assert [text.strip() for text in said] == [*(answer for _, answer in turns), ""]


def test_the_loss_is_that_of_each_conversation_alone(parts: Parts) -> None:
    vlm, module = exact(parts)
    sprites = synthetic_sprites()
    loss, figures = gemma.recipe(vlm, module, sprites).loss(3)

    rng = scene_rng(51, 3)
    scenes = scene_batch(rng, 2)
    encode = chat_encoder(vlm.writer, gemma.SOFT)
    total, right, count, kinds = 0.0, 0.0, 0, set()
    for scene, shown in zip(scenes, pictures(scenes, sprites), strict=True):
        ids, labels, positions, segments = packed(encode, vlm.image_token_id, scene, rng)
        kinds.add(max(segments) > 0)
        with torch.no_grad():
            soft = module.projector(gemma.patch_states(vlm, shown[None]))[0]
        for number in range(1, max(max(segments), 1) + 1):
            places = [i for i, s in enumerate(segments) if s in (0, number)]
            own = torch.tensor([ids[i] for i in places])
            target = torch.tensor([labels[i] for i in places])[1:]
            assert [positions[i] for i in places] == list(range(len(places)))
            embeds = vlm.llm.get_input_embeddings()(own.masked_fill(own == vlm.image_token_id, 0))
            embeds[own == vlm.image_token_id] = soft
            with torch.no_grad():
                told = vlm.llm(inputs_embeds=embeds[None], use_cache=False).logits[0, :-1]
            total += F.cross_entropy(told, target, reduction="sum").item()
            right += (told.argmax(-1) == target).sum().item()
            count += int((target != IGNORE_LABEL).sum())
    assert True in kinds  # some of it is packed
    assert figures["answer_ce"] == pytest.approx(total / count, rel=1e-4)
    assert figures["token_right"] == pytest.approx(right / count, abs=1e-6)
    dense = gemma.DENSE_WEIGHT * figures["soft_word_ce"]
    assert loss.item() == pytest.approx(total / count + dense, rel=1e-4)


# ---------------------------------------------------------------- runs


class Clock:
    """Stands in for time.monotonic; every loss takes a second."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    hands = Clock()
    monkeypatch.setattr(time, "monotonic", hands)
    return hands


def begun(
    root: Path, clock: Clock, shipped: Path | None = None
) -> tuple[Run, BridgeVLM, gemma.Trained]:
    sprites = synthetic_sprites()
    vlm, module = gemma.start(Path(), shipped, sprites, torch.device("cpu"))
    recipe = replace(gemma.recipe(vlm, module, sprites), decay_lr=False)
    loss = recipe.loss

    def timed(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        clock.now += 1
        return loss(step)

    recipe.loss = timed
    return Run(recipe, root), vlm, module


def test_a_resumed_run_is_a_straight_one(parts: Parts, tmp_path: Path, clock: Clock) -> None:
    straight, _, module = begun(tmp_path / "straight", clock)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    straight.train(4 / 60)
    assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters())
    first, *_ = begun(tmp_path / "stopped", clock)
    first.train(2 / 60)
    second, vlm, again = begun(tmp_path / "stopped", clock)
    assert second.step == 2
    second.train(4 / 60)
    assert second.step == straight.step == 4
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name]), name
    assert all(not p.requires_grad for n, p in vlm.llm.named_parameters() if "lora_" not in n)
    state = load_file(tmp_path / "stopped" / "gemma" / "state.safetensors")
    kept = {name.removeprefix("module.") for name in state if name.startswith("module.")}
    assert kept == set(again.state_dict())  # nothing of the language model itself
    assert all(name.startswith(("projector.", "lora.")) for name in kept)


def test_what_is_exported_answers_and_goes_on(parts: Parts, tmp_path: Path, clock: Clock) -> None:
    run, vlm, module = begun(tmp_path / "run", clock)
    run.train(2 / 60)
    folder = tmp_path / "emoji-gemma"
    gemma.export(run, vlm, module, folder)
    loaded = load_vlm(folder, device="cpu")
    shown = Image.fromarray(render_scene(scenes_at(3, 1)[0], synthetic_sprites()))
    joined = replace(
        loaded,
        projector=module.projector.plain().half().float().eval(),
        llm=load_llm(parts.llm, device="cpu")[0],
    )
    add_lora(joined.llm, gemma.RANK, gemma.ALPHA, seed=0, only=gemma.LAYERS)
    for name, layer in lora_layers(joined.llm).items():
        other = lora_layers(vlm.llm)[name]
        assert other.lora_B.dtype == torch.float16 and other.lora_B.any()
        layer.load_state_dict(
            {**layer.state_dict(), "lora_A": other.lora_A, "lora_B": other.lora_B}
        )
    chat = [[("what is this?", "")]]
    assert torch.equal(loaded.logits([shown], chat), joined.logits([shown], chat))
    assert isinstance(loaded.answer(shown, "what is this?", max_new_tokens=3), str)
    # Without a checkpoint a run goes on from the folder.
    _, _, again = begun(tmp_path / "another", clock, folder)
    found = again.projector.plain()
    torch.testing.assert_close(found.weight, joined.projector.weight, atol=1e-4, rtol=1e-3)
    for name, weight in module.lora.items():
        assert torch.equal(again.lora[name], weight.float())


def test_the_shipped_folder_stays_small() -> None:
    """By Gemma 3 270M's own shapes, without its weights."""
    config = Gemma3TextConfig(
        vocab_size=8,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        pad_token_id=0,
    )
    with torch.device("meta"):
        llm = Gemma3ForCausalLM(config)
    names = add_lora(llm, gemma.RANK, gemma.ALPHA, seed=0, only=gemma.LAYERS)
    assert len(names) == 3 * 18
    lora = sum(p.numel() for p in llm.parameters() if p.requires_grad)
    projector = sum(p.numel() for p in build_projector("linear", 192, 640).parameters())  # type: ignore[attr-defined]
    assert lora == 18 * gemma.RANK * ((640 + 1024) + (640 + 256) + (1024 + 640))
    assert 2 * (lora + projector) < 0.9 * SIZE_LIMIT  # names and configs take the rest
    wider = sum(p.numel() for p in build_projector("mlp2x_gelu", 192, 640).parameters())  # type: ignore[attr-defined]
    assert 2 * (lora + wider) > SIZE_LIMIT  # why it is a linear one
