"""Looking inside: every number against the same one computed by hand, one forward at a time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_checkpoints import PINPOINTS, tiny_blip2, tiny_next
from support.tiny_pairs import LLMS, picture, plain_tokenizer, tiny_pair
from torch import nn

from bridge.errors import OptionError, PromptError, UnsupportedModelError
from bridge.towers import rollout
from bridge.vlm import (
    BridgeVLM,
    answer_without,
    attention_rollout,
    heat_overlay,
    lens,
    lens_overlay,
    load_vlm,
    occlusion,
    side_by_side,
)
from bridge.vlm.chat import chat_text
from bridge.vlm.explain.answers import split_words
from bridge.vlm.explain.occlusion import sliding_windows
from bridge.vlm.explain.pictures import cell_tokens, views_of

QUESTION, ANSWER = "what is on the left?", "two red apples, a cat"
HISTORY = [("is there a dog?", "no")]
WORDS = ("two", "red", "apples,", "a", "cat")
# Log-probabilities of 5 to 60, fp32 sums in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def vlm() -> BridgeVLM:
    return tiny_pair("clip", "Llama")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> BridgeVLM:
    return load_vlm(tiny_next(tmp_path_factory.mktemp("next") / "tiny-next"), device="cpu")


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> BridgeVLM:
    return load_vlm(tiny_blip2(tmp_path_factory.mktemp("blip2") / "tiny-blip2"), device="cpu")


def pixels_of(vlm: BridgeVLM, seed: int = 0) -> torch.Tensor:
    return vlm.image_processor(images=[picture(seed)], return_tensors="pt")["pixel_values"]


def row_by_hand(vlm: BridgeVLM, soft: torch.Tensor) -> tuple[torch.Tensor, list[int], int]:
    """Embeddings (T, D) of the chat with its answer, the answer's ids, and where they begin."""
    before, after = chat_text([*HISTORY, (QUESTION, "")], with_answers=False).split("<image>")
    answer = vlm.tokenizer(f" {ANSWER}</s>", add_special_tokens=False)["input_ids"]
    first = vlm.tokenizer(before)["input_ids"]
    last = vlm.tokenizer(after, add_special_tokens=False)["input_ids"]
    embed = vlm.llm.get_input_embeddings()
    parts = [embed(torch.tensor(first)), soft, embed(torch.tensor([*last, *answer]))]
    return torch.cat(parts), answer, len(first) + len(soft) + len(last)


@torch.inference_mode()
def words_by_hand(vlm: BridgeVLM, soft: torch.Tensor) -> np.ndarray:
    """(W,) log-probabilities of the words from one forward of one row."""
    row, answer, start = row_by_hand(vlm, soft)
    logits = vlm.llm(inputs_embeds=row[None]).logits[0].log_softmax(-1)
    sums: list[float] = []
    for place, token in enumerate(answer[:-1]):  # without the end token
        if vlm.tokenizer.decode([token]).startswith(" "):
            sums.append(0.0)
        sums[-1] += float(logits[start + place - 1, token])
    return np.array(sums)


# -- occlusion -------------------------------------------------------------------------


def test_an_occluded_window_is_a_forward_without_it(vlm: BridgeVLM) -> None:
    got = occlusion(vlm, picture(), QUESTION, ANSWER, history=HISTORY, window=2, stride=1, batch=4)
    assert got.words == WORDS
    assert got.windows.shape == (9, 4, 4)
    pixels = pixels_of(vlm)
    assert np.allclose(
        got.log_probs, words_by_hand(vlm, vlm.soft_tokens(pixels)[0]), atol=TOLERANCE
    )
    mean = pixels.mean((2, 3), keepdim=True)
    for top in range(3):
        for left in range(3):
            blank = pixels.clone()
            blank[:, :, 8 * top : 8 * top + 16, 8 * left : 8 * left + 16] = mean
            want = words_by_hand(vlm, vlm.soft_tokens(blank)[0])
            assert np.allclose(got.blanked[3 * top + left], want, atol=TOLERANCE)
    assert np.abs(got.drops).max() > 0.01  # blanking does tell


@pytest.mark.parametrize("feature", ["patch", "cls_patch", "drop_first"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_a_blanked_state_is_the_mean_patch_state(tower: str, feature: Any) -> None:
    vlm = tiny_pair(tower, select_feature=feature)
    got = occlusion(
        vlm, picture(), QUESTION, ANSWER, history=HISTORY, fill="state", window=1, stride=1
    )
    with torch.inference_mode():
        seen = vlm.vision(pixels_of(vlm), output_hidden_states=True).hidden_states[-2]  # type: ignore[misc]
    classes = 1 if tower == "clip" else 0
    dropped = {"patch": classes, "cls_patch": 0, "drop_first": 1}[feature]
    patches = seen[:, max(classes, dropped) :]
    for patch in (1, 15):
        states = seen.clone()
        states[:, classes + patch] = patches.mean(1)
        soft = vlm.projector(states[:, dropped:])[0]  # type: ignore[misc]
        want = words_by_hand(vlm, soft)
        assert np.allclose(got.blanked[patch], want, atol=TOLERANCE), patch
    if tower == "siglip" and feature == "drop_first":  # the first patch has no state to blank
        assert np.allclose(got.blanked[0], got.log_probs, atol=TOLERANCE)


def test_occlusion_takes_any_language_model() -> None:
    for name in LLMS:
        got = occlusion(tiny_pair("siglip", name), picture(), QUESTION, ANSWER, window=2, stride=2)
        assert got.drops.shape == (4, 5)
        assert np.isfinite(got.drops).all()


def test_cells_are_means_over_the_windows_that_cover_them(vlm: BridgeVLM) -> None:
    got = occlusion(vlm, picture(), QUESTION, ANSWER, window=3, stride=1)
    for row, column in np.ndindex(4, 4):
        over = [k for k in range(4) if got.windows[k, row, column]]
        assert got.cells(1)[row, column] == pytest.approx(np.mean([got.drops[k, 1] for k in over]))
    assert np.allclose(got.cells(), sum(got.cells(word) for word in range(5)))
    assert np.array_equal(got.cells("red"), got.cells(1))
    assert np.array_equal(got.cells(-1), got.cells("cat"))
    for strange in (5, -6, 1.0, "apples"):
        with pytest.raises(OptionError, match="by its number: 0 'two', 1 'red', 2 'apples,'"):
            got.cells(strange)


def test_a_word_that_is_there_twice_goes_by_its_number(vlm: BridgeVLM) -> None:
    got = occlusion(vlm, picture(), QUESTION, "a cat, a dog", window=2, stride=2)
    with pytest.raises(OptionError, match="several words 'a'; give one by its number: 0 'a'"):
        got.cells("a")
    assert np.array_equal(got.cells("dog"), got.cells(3))


def test_without_an_answer_the_models_own_is_weighed(vlm: BridgeVLM) -> None:
    own = vlm.answer(picture(), QUESTION)
    got = occlusion(vlm, picture(), QUESTION)
    assert got.answer == own
    assert "".join("".join(got.words).split()) == "".join(own.split())


def test_tiled_pictures_are_blanked_before_they_are_tiled(tiled: BridgeVLM) -> None:
    image = picture(size=(64, 40))
    got = occlusion(tiled, image, QUESTION, ANSWER, window=2, stride=2)
    values = np.asarray(image).copy()
    values[20:, :32] = np.rint(values.reshape(-1, 3).mean(0))
    want = occlusion(tiled, Image.fromarray(values), QUESTION, ANSWER, window=2, stride=2)
    assert np.allclose(got.blanked[2], want.log_probs, atol=TOLERANCE)
    with pytest.raises(OptionError, match="one view"):
        occlusion(tiled, image, QUESTION, ANSWER, fill="state")


@pytest.mark.parametrize(
    ("grid", "side", "stride"), [((8, 8), 2, 1), ((5, 7), 3, 2), ((1, 4), 4, 1)]
)
def test_windows_cover_every_patch(grid: tuple[int, int], side: int, stride: int) -> None:
    masks = sliding_windows(grid, side, stride)
    assert masks.any(0).all()
    assert {int(mask.sum()) for mask in masks} == {min(side, grid[0]) * min(side, grid[1])}


# -- the answer without patches --------------------------------------------------------


def test_the_answer_without_patches(vlm: BridgeVLM) -> None:
    same = answer_without(vlm, picture(), QUESTION, [], history=HISTORY, max_new_tokens=8)
    assert same.before == same.after
    assert same.before == vlm.answer(picture(), QUESTION, history=HISTORY, max_new_tokens=8)
    assert np.allclose(same.log_probs_before, same.log_probs_after, atol=TOLERANCE)
    everything = [(row, column) for row in range(4) for column in range(4)]
    none = answer_without(vlm, picture(), QUESTION, everything, max_new_tokens=8)
    pixels = pixels_of(vlm)
    flat = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    prompt = vlm.prompt_ids([(QUESTION, "")], 16)
    ids = vlm._generate(vlm.embed([prompt], vlm.soft_tokens(flat)), 8)
    assert none.after == vlm.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert none.after != none.before
    assert np.asarray(none.picture).reshape(-1, 3).std(0).max() == 0


# -- attention rollout -----------------------------------------------------------------


def rollout_by_hand(attentions: list[np.ndarray]) -> np.ndarray:
    flow = np.eye(attentions[0].shape[-1])
    for layer in attentions:  # from the first layer up
        flow = (0.5 * layer.mean(0) + 0.5 * np.eye(len(flow))) @ flow
    return flow


def test_rollout_is_the_product_of_the_layers() -> None:
    maps = torch.rand(3, 2, 6, 6).tril().double()
    maps = maps / maps.sum(-1, keepdim=True)
    got = rollout(list(maps)).numpy()
    assert np.allclose(got, rollout_by_hand(list(maps.numpy())), atol=1e-12)
    assert np.allclose(got.sum(1), 1, atol=1e-12)
    assert np.allclose(rollout(list(maps), [4, 1]).numpy(), got[[4, 1]], atol=1e-12)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Gemma", "GPT2", "OPT"])
def test_words_roll_out_to_soft_tokens(name: str) -> None:
    vlm = tiny_pair("clip", name)
    got = attention_rollout(vlm, picture(), QUESTION, ANSWER, history=HISTORY)
    assert got.words == WORDS
    assert np.allclose(got.soft.sum(1) + got.text, 1, atol=1e-9)
    with torch.inference_mode():
        row, answer, start = row_by_hand(vlm, vlm.soft_tokens(pixels_of(vlm))[0])
        plain = type(vlm.llm)._from_config(vlm.llm.config, attn_implementation="eager").eval()
        plain.load_state_dict(vlm.llm.state_dict())
        maps = plain(inputs_embeds=row[None], output_attentions=True).attentions
    flow = rollout_by_hand([layer[0].double().numpy() for layer in maps])
    first = len(vlm.tokenizer("USER: ")["input_ids"])
    groups: list[list[int]] = []
    for place, token in enumerate(answer[:-1]):
        if vlm.tokenizer.decode([token]).startswith(" "):
            groups.append([])
        groups[-1].append(start + place - 1)
    want = np.stack([flow[group].mean(0) for group in groups])[:, first : first + 16]
    assert np.allclose(got.soft, want, atol=1e-6)
    assert got.cells(2).shape == (4, 4)
    assert np.array_equal(got.cells(got.words[2]), got.cells(2))
    with pytest.raises(OptionError, match=f"no word {len(got.words)}; give one by its"):
        got.cells(len(got.words))
    with pytest.raises(OptionError, match="no view 1; give one from 0 to 0"):
        got.cells(0, view=1)
    assert np.allclose(got.cells(2).ravel(), got.soft[2])


def test_the_language_model_is_left_as_it_is(vlm: BridgeVLM) -> None:
    config = vlm.llm.config.to_dict()
    implementation = vlm.llm.config._attn_implementation
    places = {name: p.data_ptr() for name, p in vlm.llm.named_parameters()}
    attention_rollout(vlm, picture(), QUESTION, ANSWER)
    assert vlm.llm.config._attn_implementation == implementation != "eager"
    assert vlm.llm.config.to_dict() == config
    assert {name: p.data_ptr() for name, p in vlm.llm.named_parameters()} == places


# -- the lens --------------------------------------------------------------------------


class Planted(nn.Module):
    """A projector whose soft tokens are given rows, scaled and a little off."""

    kind, vision_width, llm_width = "planted", 24, 32

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, states: torch.Tensor, grid: Any = None) -> torch.Tensor:
        return self.rows.expand(len(states), -1, -1)

    def n_soft_tokens(self, states: Any) -> int:
        return len(self.rows)

    def options(self) -> dict[str, Any]:
        return {}


def planted(vlm: BridgeVLM) -> tuple[BridgeVLM, list[str]]:
    texts = pieces(vlm)
    known = [i for i, text in enumerate(texts) if len(text.strip()) > 2 and texts.count(text) == 1]
    ids = [i for i in known if texts[i] not in vlm.tokenizer.all_special_tokens][:8] * 2
    assert len(ids) == 16
    table = vlm.llm.get_input_embeddings().weight.detach()
    rows = 3 * table[ids] + 0.05 * table.std() * torch.randn(16, 32)
    return replace(vlm, projector=Planted(rows)), [texts[i].strip() for i in ids]


@pytest.mark.parametrize("method", ["embeddings", "centred"])
def test_the_lens_finds_planted_words(vlm: BridgeVLM, method: Any) -> None:
    made, texts = planted(vlm)
    got = lens(made, picture(), method=method, top=3)
    assert [each[0].text for each in got.words] == texts
    assert all(a.score >= b.score for each in got.words for a, b in pairwise(each))
    assert got.words[0][0].score > 0.9
    assert got.cells().tolist() == np.array(texts).reshape(4, 4).tolist()
    assert sum(n for _, n in got.counts()) == 16


@torch.inference_mode()
@pytest.mark.parametrize("name", ["Llama", "GPT2", "OPT"])
def test_the_logit_lens_reads_what_would_be_written(name: str) -> None:
    vlm = tiny_pair("siglip", name)
    start = len(vlm.tokenizer("USER: ")["input_ids"])
    head = vlm.llm.get_input_embeddings()(torch.tensor(vlm.tokenizer("USER: ")["input_ids"]))
    row = torch.cat([head, vlm.soft_tokens(pixels_of(vlm))[0]])
    out = vlm.llm(inputs_embeds=row[None], output_hidden_states=True)
    base: Any = vlm.llm.base_model
    norm = {"Llama": lambda: base.norm, "GPT2": lambda: base.ln_f}.get(
        name, lambda: base.decoder.final_layer_norm
    )()
    for layer, logits in (
        (-1, out.logits[0, start:]),
        (1, vlm.llm.get_output_embeddings()(norm(out.hidden_states[1][0, start:]))),
    ):
        got = lens(vlm, picture(), method="logits", layer=layer, top=20)
        want = logits.softmax(-1)
        for token in (0, 7, 15):
            for word in got.words[token][:5]:
                values = want[token][torch.tensor([t.strip() == word.text for t in pieces(vlm)])]
                assert float((values - word.score).abs().min()) < 1e-5


def pieces(vlm: BridgeVLM) -> list[str]:
    size = vlm.llm.get_input_embeddings().weight.shape[0]
    return [vlm.tokenizer.decode([i]) if i < len(vlm.tokenizer) else "" for i in range(size)]


# -- where soft tokens stand -----------------------------------------------------------


@pytest.mark.parametrize(
    ("tower", "feature", "tokens"),
    [
        ("clip", "patch", range(16)),
        ("clip", "cls_patch", range(1, 17)),
        ("dinov2_registers", "cls_patch", range(5, 21)),
        ("siglip", "drop_first", range(-1, 15)),
    ],
)
def test_cells_know_their_soft_tokens(tower: str, feature: Any, tokens: range) -> None:
    vlm = tiny_pair(tower, select_feature=feature)
    assert cell_tokens(vlm.projector, vlm.count(32, 32), "x") == (tuple(tokens), (4, 4))
    seen = lens(vlm, picture())
    assert (seen.cells()[0, 0] == "") == (tokens[0] < 0)


def test_pooled_tokens_have_larger_cells() -> None:
    options = {"pixel_shuffle": {"scale": 2}, "average_pool": {"stride": 3}}
    for name, chosen in options.items():
        vlm = tiny_pair("clip", projector=name, projector_options=chosen)
        assert lens(vlm, picture()).cells().shape == (2, 2)
        assert attention_rollout(vlm, picture(), QUESTION, ANSWER).cells().shape == (2, 2)


@pytest.mark.parametrize("size", [(50, 40), (20, 90), (200, 20)])
def test_tiles_become_one_plane(tiled: BridgeVLM, size: tuple[int, int]) -> None:
    aspect: Any = tiled.aspect
    preprocessed, (count,) = tiled.views([picture(size=size)])
    assert preprocessed is not None
    whole, plane = views_of(tiled, preprocessed)
    assert whole.grid == (4, 4)
    views, n_view = preprocessed.pixel_values.shape[0], 16
    # Each soft token marked by its view and place; a newline by 0.
    marks = torch.arange(1, views * n_view + 1).view(views, n_view, 1).float()
    packed = replace(aspect, newline=torch.zeros(1)).pack(marks, (size[1], size[0]))[:, 0].numpy()
    assert (whole.cells(packed).ravel() == np.arange(1, 17)).all()
    cells = plane.cells(packed)
    assert (cells > n_view).all()
    assert cells.size + 16 + plane.grid[0] == count
    down, across = aspect.tiles((size[1], size[0]))
    assert [down * 32, across * 32] in PINPOINTS
    assert plane.picture.size == (plane.grid[1] * 8, plane.grid[0] * 8)


@pytest.mark.parametrize("look", [lens, lambda v, p: attention_rollout(v, p, QUESTION)])
@pytest.mark.parametrize("kind", ["blip2", "perceiver", "qformer"])
def test_tokens_without_a_place_are_refused(blip2: BridgeVLM, look: Any, kind: str) -> None:
    # As many latents as patches, which says nothing of their places.
    options = {"perceiver": {"latents": 16}, "qformer": {"queries": 16}}
    model = (
        blip2
        if kind == "blip2"
        else tiny_pair("clip", projector=kind, projector_options=options[kind])
    )
    with pytest.raises(UnsupportedModelError, match="stand for no place"):
        look(model, picture())
    assert np.isfinite(occlusion(model, picture(), QUESTION, ANSWER).drops).all()


# -- words, sides, overlays, bad input -------------------------------------------------


@pytest.mark.parametrize("text", ["two  red\napples", "café 🍎 naïve", "x", "don't. stop"])
def test_words_are_what_white_space_parts(text: str) -> None:
    tokenizer = plain_tokenizer()
    ids = tokenizer(f" {text}</s>", add_special_tokens=False)["input_ids"]
    words = split_words(tokenizer, ids, 0)
    assert [word.text for word in words] == text.split()
    told = [place for word in words for place in word.tokens]
    assert told == sorted(set(told))


def test_side_by_side_weighs_every_answer(vlm: BridgeVLM) -> None:
    other = replace(tiny_pair("siglip"), name="other")
    got = side_by_side([vlm, other, vlm], picture(), QUESTION)
    assert got.names == (vlm.name, "other", vlm.name)
    assert got.answers[0] == got.answers[2] == vlm.answer(picture(), QUESTION)
    assert got.agree == (len(set(got.answers)) == 1)
    assert np.allclose(got.log_probs[0], got.log_probs[2])
    own = occlusion(vlm, picture(), QUESTION, got.answers[1]).log_probs.sum()
    assert got.log_probs[0, 1] == pytest.approx(own, abs=TOLERANCE)
    with pytest.raises(OptionError, match="two or more"):
        side_by_side([vlm], picture(), QUESTION)


def test_heat_lies_where_the_cells_are() -> None:
    grey = Image.new("RGB", (32, 16), (200, 200, 200))
    cells = np.zeros((2, 4))
    cells[0, 0], cells[1, 3] = 2.0, -2.0
    cells[0, 3] = np.nan
    made = np.asarray(heat_overlay(grey, cells, side=64)).astype(int)
    assert made.shape == (32, 64, 3)
    warm, cold, clear, hollow = made[8, 8], made[24, 56], made[24, 24], made[8, 56]
    assert warm[0] > warm[2] + 60
    assert cold[2] > cold[0] + 60
    assert np.ptp(clear) <= 2
    assert np.ptp(hollow) < np.ptp(cold)
    assert (np.asarray(heat_overlay(grey, cells * 0)) == clear).all()
    # A cell of zero stays clear up to its border, whatever its neighbours are.
    beside = np.array([[4.0, 0.0], [-4.0, 1e-9]])
    painted = np.asarray(heat_overlay(grey, beside, side=64)).astype(int)
    assert (painted[:, 32:] == clear).all()
    assert (painted[:, :31] != clear).any(-1).mean() > 0.9
    half = np.asarray(heat_overlay(grey, cells, scale=4.0, side=64)).astype(int)
    assert 0 < half[8, 8, 0] - half[8, 8, 2] < warm[0] - warm[2]


def test_words_are_written_into_their_cells(vlm: BridgeVLM) -> None:
    words = np.array([["", "cat"], ["", "pneumonoultramicroscopic"]], dtype=object)
    made = np.asarray(lens_overlay(picture(), words, side=200).convert("L")).astype(int)
    bare = np.asarray(lens_overlay(picture(), np.full((2, 2), ""), side=200).convert("L"))
    assert made.shape == bare.shape
    dark = (made < 60) & (bare > made + 40)
    assert not dark[:, :96].any()
    assert dark[:78, 104:].any()
    assert dark[84:, 104:].any()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"fill": "black"}, OptionError, "'colour' or 'state'"),
        ({"window": 5}, OptionError, "from 1 to 4"),
        ({"window": 1, "stride": 2}, OptionError, "skips"),
        ({"answer": "  "}, PromptError, "no word"),
        ({"answer": "a </s> b"}, PromptError, "control token"),
        ({"question": ""}, PromptError, "empty"),
    ],
)
def test_bad_input_is_told(vlm: BridgeVLM, options: Any, error: Any, words: str) -> None:
    given = {"question": QUESTION, "answer": ANSWER, **options}
    with pytest.raises(error, match=words):
        occlusion(vlm, picture(), given.pop("question"), given.pop("answer"), **given)


def test_more_bad_input(vlm: BridgeVLM) -> None:
    with pytest.raises(OptionError, match="2 pictures"):
        lens(vlm, [picture(), picture(1)])
    with pytest.raises(OptionError, match="'sideways'"):
        lens(vlm, picture(), method="sideways")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="layer is 9"):
        lens(vlm, picture(), method="logits", layer=9)
    for patch in [(4, 0), (0, -1), 3, (1, 2, 3)]:
        with pytest.raises(OptionError, match="4 rows and 4 columns"):
            answer_without(vlm, picture(), QUESTION, [patch])  # type: ignore[list-item]


def test_a_model_of_text_alone_sees_nothing(tmp_path: Path) -> None:
    text = replace(tiny_pair(), vision=None, projector=None)
    for look in (lens, lambda v, p: occlusion(v, p, QUESTION)):
        with pytest.raises(UnsupportedModelError, match="text alone"):
            look(text, picture())
