"""The answerer: emoji-clip's image tower → mlp2x_gelu → a small LLaMA, as LLaVA-1.5.

The tower stays frozen; its penultimate patch states, class token dropped, are the soft
tokens (Liu et al. 2023). The language model is ours and starts from nothing, so projector
and language model train together; LLaVA's first stage only exists to spare a trained LLM.

A second, dense loss asks each soft token on a thing for the words of that thing and its tint,
through the language model's own embeddings. To match a word of a question with what is seen
then takes one look, which the model had else to find by itself, late if ever ("is there a
cat?" stood at chance after all else was learnt).

A scene allows about ten questions. Half of the scenes are learnt as separate one-turn chats
that share their image tokens: one sequence, a mask that hides the other questions, and
positions that restart after the image. The other half are chats of several turns.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import (
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from bridge.emoji.art import Sprites
from bridge.emoji.concepts import CONCEPTS
from bridge.emoji.questions import questions
from bridge.emoji.scenes import TINTS, Scene, draw_scene
from bridge.emoji.train.data import (
    GRID,
    PATCH,
    PatchTruth,
    patch_truth,
    pictures,
    scene_batch,
    scene_rng,
)
from bridge.emoji.train.loop import Recipe, Run, load_averaged, plain_attention
from bridge.emoji.train.whitening import whitening
from bridge.vlm.layout import (
    IGNORE_LABEL,
    IMAGE_TOKEN,
    build_processor,
    build_tokenizer,
    chat_text,
    training_example,
)

BATCH = 24
SOFT = GRID * GRID
VOCAB_SIZE = 1536
MAX_TURNS = 4
DENSE_WEIGHT = 0.1


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The language model's vocabulary, learnt from chats about scenes; that of ``folder`` if it
    has one, since a model that goes on training must keep its ids."""
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    rng = random.Random(8)

    def chats() -> Iterator[str]:
        for _ in range(12_000):
            scene = draw_scene(rng)
            for held_out in (False, True):
                asked = questions(scene, rng, held_out=held_out)
                turns = [(as_typed(q.text, rng), q.answer) for q in asked]
                yield chat_text(turns, with_answers=True)

    words = build_tokenizer(chats(), VOCAB_SIZE)
    words.save_pretrained(folder)
    return words


def build(clip: CLIPModel, words: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """An untrained LLaVA around a copy of ``clip``'s image tower; 3.5 M parameters beside it."""
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=words.model_max_length,
        tie_word_embeddings=True,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=SOFT,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    share_tower(model, clip)
    return model


def share_tower(model: LlavaForConditionalGeneration, clip: CLIPModel) -> None:
    """Give ``model`` the image tower of ``clip``, frozen."""
    tower = model.model.vision_tower
    names = {k.removeprefix("vision_model."): v for k, v in clip.vision_model.state_dict().items()}
    tower.load_state_dict({k: names[k.removeprefix("vision_model.")] for k in tower.state_dict()})
    tower.requires_grad_(False)


@torch.no_grad()
def whiten(model: LlavaForConditionalGeneration, images: torch.Tensor) -> None:
    """Set the projector's first layer to whiten the tower's patch states, then mix at random.

    A few directions of the residual stream are many times larger than those that tell things
    apart; a projector that starts blind to that spends its time finding it out. ``images`` are
    (B, 3, 128, 128) in [-1, 1].
    """
    seen = model.model.vision_tower(images, output_hidden_states=True)
    states = seen.hidden_states[-2][:, 1:].flatten(0, 1).float()
    mean, rows, _ = whitening(states)
    first = model.model.multi_modal_projector.linear_1
    mix = torch.randn(first.out_features, len(mean)) / len(mean) ** 0.5
    first.weight.copy_(mix @ rows)
    first.bias.copy_(-first.weight @ mean)


def as_typed(text: str, rng: random.Random) -> str:
    """A question as people type it: often with a capital, sometimes without its mark."""
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    return text[:-1] if rng.random() < 0.15 else text


def packed_example(
    words: PreTrainedTokenizerFast, scene: Scene, rng: random.Random
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Ids, labels, positions and segment numbers of one scene's questions.

    Segment 0 is what every question may look at (the beginning and the image); a token sees
    segment 0 and its own segment. A chat of several turns is one segment.
    """
    # A second draw of the kinds that are learnt last: to match a word with what is seen.
    asked = questions(scene, rng)
    asked += [q for q in questions(scene, rng) if q.kind in ("exists", "binding", "position")]
    turns = [(as_typed(q.text, rng), q.answer) for q in asked]
    if rng.random() < 0.5:
        chat, taught = training_example(words, turns[: rng.randint(1, MAX_TURNS)], SOFT)
        return chat, taught, list(range(len(chat))), [0] * len(chat)
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    for number, turn in enumerate(turns, start=1):
        own_ids, own_labels = training_example(words, [turn], SOFT)
        image = words.convert_tokens_to_ids(IMAGE_TOKEN)
        after = len(own_ids) - own_ids[::-1].index(image)
        start = 0 if number == 1 else after
        ids += own_ids[start:]
        labels += own_labels[start:]
        positions += range(start, len(own_ids))
        segments += [0 if place < after else number for place in range(start, len(own_ids))]
    return ids, labels, positions, segments


def collate(
    examples: list[tuple[list[int], list[int], list[int], list[int]]], pad: int
) -> dict[str, torch.Tensor]:
    """Right-padded ids, labels, positions (B, T) and the mask (B, 1, T, T), True = may look."""
    length = max(len(e[0]) for e in examples)

    def stack(part: int, fill: int) -> torch.Tensor:
        return torch.tensor([e[part] + [fill] * (length - len(e[part])) for e in examples])

    segments = stack(3, -1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    return {
        "ids": stack(0, pad),
        "labels": stack(1, IGNORE_LABEL),
        "positions": stack(2, 0),
        "mask": (causal & same)[:, None],
    }


def shares(words: PreTrainedTokenizerFast, nouns: list[str]) -> torch.Tensor:
    """(len(nouns), vocabulary): one row a noun, equal shares for the tokens it is written in."""
    table = torch.zeros(len(nouns), len(words))
    for row, noun in enumerate(nouns):
        ids = words(f" {noun}", add_special_tokens=False).input_ids
        table[row].index_add_(0, torch.tensor(ids), torch.full((len(ids),), 1 / len(ids)))
    return table


class SoftWords:
    """The dense loss: what words each soft token should stand for."""

    def __init__(self, words: PreTrainedTokenizerFast) -> None:
        self.things = shares(words, [concept.one for concept in CONCEPTS])
        self.tints = shares(words, list(TINTS))

    def loss(self, soft: torch.Tensor, embeddings: torch.Tensor, truth: PatchTruth) -> torch.Tensor:
        """Cross-entropy of the words that soft tokens (B, 64, D) on things are nearest to."""
        on_thing = truth.concept < len(CONCEPTS)
        wanted = self.things[truth.concept[on_thing]]
        tint = truth.tint[on_thing]  # 0 for natural colours, which have no word
        wanted[tint > 0] = (wanted[tint > 0] + self.tints[tint[tint > 0] - 1]) / 2
        # At one length, as the language model's first norm takes them.
        logits = F.rms_norm(soft[on_thing].float(), soft.shape[-1:]) @ embeddings.T
        return F.cross_entropy(logits, wanted)


def recipe(
    model: LlavaForConditionalGeneration, words: PreTrainedTokenizerFast, sprites: Sprites
) -> Recipe:
    inner = model.model
    plain_attention(model)
    soft_words = SoftWords(words)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = scene_rng(41, step)
        scenes = scene_batch(rng, BATCH)
        batch = collate([packed_example(words, s, rng) for s in scenes], words.pad_token_id)
        ids, labels = batch["ids"], batch["labels"]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                seen = inner.vision_tower(pictures(scenes, sprites), output_hidden_states=True)
                patches = seen.hidden_states[-2][:, 1:]
            soft = inner.multi_modal_projector(patches)
            embeds = inner.language_model.embed_tokens(ids)
            spots = (ids == model.config.image_token_index)[..., None]
            embeds = embeds.masked_scatter(spots, soft.to(embeds.dtype))
            bias = torch.zeros(batch["mask"].shape).masked_fill(~batch["mask"], -1e4)
            out = inner.language_model(
                inputs_embeds=embeds,
                attention_mask=bias.bfloat16(),
                position_ids=batch["positions"],
                use_cache=False,
            ).last_hidden_state
            taught = labels[:, 1:] != IGNORE_LABEL
            logits = model.lm_head(out[:, :-1][taught]).float()
        target = labels[:, 1:][taught]
        entropy = F.cross_entropy(logits, target)
        right = (logits.argmax(-1) == target).float().mean().item()
        dense = soft_words.loss(soft, inner.language_model.embed_tokens.weight, patch_truth(scenes))
        figures = {
            "answer_ce": entropy.item(),
            "token_right": right,
            "soft_word_ce": dense.item(),
        }
        return entropy + DENSE_WEIGHT * dense, figures

    matrices = frozenset(
        name
        for name, p in model.named_parameters()
        if p.ndim == 2 and (".layers." in name or "linear_2" in name) and p.requires_grad
    )
    return Recipe(
        "llava", model, loss, lr=1.5e-3, weight_decay=0.02, warmup=100, ema=0.998, muon=matrices
    )


def export(run: Run, clip: CLIPModel, words: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the LLaVA folder in half precision: model, processor, tokenizer, chat template."""
    model = build(clip, words)
    load_averaged(run, model)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.half().save_pretrained(folder)
    build_processor(words, PATCH * GRID, PATCH).save_pretrained(folder)
