"""Long-CLIP: towers of 248 positions, the stretch that makes them, towers of unequal context.

The stretch is worked out again in plain Python. Conditioning is compared with the towers run
directly; 1e-5 of the largest entry, as in test_conditioning.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.comparisons import relative
from support.tiny_models import tiny_clip_tokenizer, tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.encoding import tokenizers_of
from bridge.encoding.planning import beyond
from bridge.errors import OptionError, UnsupportedModelError
from bridge.prompt import LongPrompt, TruncationWarning, parse, plan, plan_report
from bridge.towers import stretch_positions
from bridge.towers.clip_modules import stretch

UNTIMED = settings(deadline=None, max_examples=30)
TOLERANCE = 1e-5
LONG = "cat " * 240
LONGER = "cat " * 300


def long_clip(pipe: Any) -> Any:
    """The pipeline with a Long-CLIP-shaped first tower; its tokenizer still says 77."""
    pipe.text_encoder = stretch_positions(pipe.text_encoder)
    pipe.register_modules(text_encoder=pipe.text_encoder)
    return pipe


@pytest.fixture(scope="module")
def sd() -> Any:
    return long_clip(tiny_sd_pipeline("sd15"))


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return long_clip(tiny_sdxl_pipeline())


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert relative(found, wanted) <= TOLERANCE


# ---------------------------------------------------------------- the stretch


@given(st.integers(3, 40), st.integers(0, 8), st.integers(1, 5), st.integers(0, 9))
@UNTIMED
def test_the_stretch_is_the_papers(length: int, keep: int, factor: int, seed: int) -> None:
    keep = min(keep, length - 2)
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(length, 2, generator=generator, dtype=torch.float64).float()
    new = stretch(old, keep + factor * (length - keep), keep)
    p = old.tolist()
    wanted = p[:keep]
    for i in range(keep, length):
        after = p[i + 1] if i + 1 < length else [2 * p[-1][d] - p[-2][d] for d in (0, 1)]
        for j in range(factor):
            wanted.append([((factor - j) * p[i][d] + j * after[d]) / factor for d in (0, 1)])
    torch.testing.assert_close(new, torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_77_become_248_and_the_first_20_stay() -> None:
    old = torch.randn(77, 8)
    new = stretch(old)
    assert new.shape == (248, 8)
    assert torch.equal(new[:20], old[:20])
    assert torch.equal(new[20::4], old[20:])
    torch.testing.assert_close(new[22], (old[20] + old[21]) / 2)
    torch.testing.assert_close(new[247], old[76] + 0.75 * (old[76] - old[75]))
    assert stretch(old.half()).dtype == torch.float16


@pytest.mark.parametrize(
    ("to", "keep", "said"),
    [(250, 20, "134, 191, 248"), (20, 20, "134, 191, 248"), (248, 76, "keep"), (248, -1, "keep")],
)
def test_lengths_that_do_not_fit_are_refused(to: int, keep: int, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        stretch(torch.zeros(77, 2), to, keep)


def test_a_stretched_tower_is_a_tower(tmp_path: Any) -> None:
    pipe = tiny_sdxl_pipeline()
    for tower in (pipe.text_encoder, pipe.text_encoder_2):
        before = copy.deepcopy(tower.state_dict())
        made = stretch_positions(tower)
        assert type(made) is type(tower) and made.config.max_position_embeddings == 248
        assert not made.training
        for name, tensor in tower.state_dict().items():
            assert torch.equal(tensor, before[name])
        made.save_pretrained(tmp_path / type(tower).__name__)
        again = type(tower).from_pretrained(tmp_path / type(tower).__name__)
        ids = torch.randint(0, 500, (1, 248))
        with torch.no_grad():
            near(again(ids)[0], made(ids)[0])
            # Short prompts are what they were: the first 20 positions are the same.
            near(made(ids[:, :20])[0], tower(ids[:, :20])[0])
    state = stretch_positions(pipe.text_encoder.state_dict())
    assert state.keys() == stretch_positions(pipe.text_encoder).state_dict().keys()
    text, image = "positional_embedding", "visual.positional_embedding"
    both = stretch_positions({text: torch.zeros(77, 2), image: torch.ones(5, 2)})
    assert both[text].shape == (248, 2) and both[image].shape == (5, 2)
    with pytest.raises(UnsupportedModelError, match="no text positions"):
        stretch_positions({"weight": torch.zeros(2)})
    with pytest.raises(UnsupportedModelError, match="not a CLIP text tower"):
        stretch_positions(torch.nn.Linear(2, 2))


# ---------------------------------------------------------------- one tower


def test_windows_of_246_in_plan_report_and_states(sd: Any, tmp_path: Any) -> None:
    sd.save_pretrained(tmp_path)
    for model in (sd, str(tmp_path)):
        ((_, tokenizer),) = tokenizers_of(model)
        (tower,) = plan_report(LONG, [("text_encoder", tokenizer)]).towers
        assert (tower.limit, tower.used, tower.windows) == (248, 242, 1)
        cond = bridge.condition(LONG, "a (dog:1.2)", model=model, dialect="plain")
        ids = [sd.tokenizer(LONG, padding="max_length", max_length=248).input_ids]
        with torch.no_grad():
            wanted = sd.text_encoder(torch.tensor(ids)).last_hidden_state
        near(cond.prompt_embeds, wanted)
        assert cond.negative_prompt_embeds.shape == (1, 248, 32)
        assert "242 of 248 tokens" in cond.report().text()
        assert not cond.report().is_cut
        two = bridge.condition(LONGER, model=model)
        assert two.prompt_embeds.shape == (1, 496, 32)
        assert [window.used for window in two.plans[0][0].windows] == [248, 56]
    # The pipeline's own tokenizer is as it was.
    assert sd.tokenizer.model_max_length == 77


def test_long_prompts_are_cut_off_at_246(sd: Any) -> None:
    with pytest.warns(TruncationWarning, match="54 tokens do not fit the 248"):
        cond = bridge.condition(LONGER, model=sd, long_prompt="truncate")
    assert cond.prompt_embeds.shape[1] == 248


# ---------------------------------------------------------------- towers of unequal context


def direct(pipe: Any, number: int, text: str, context: int) -> torch.Tensor:
    """The penultimate states of one window of a tower, run directly."""
    tokenizer = (pipe.tokenizer, pipe.tokenizer_2)[number]
    tower = (pipe.text_encoder, pipe.text_encoder_2)[number]
    ids = tokenizer(text, padding="max_length", max_length=context, truncation=True).input_ids
    with torch.no_grad():
        return tower(torch.tensor([ids]), output_hidden_states=True).hidden_states[-2][0]


def test_short_prompts_are_filled_up_with_empty_windows(sdxl: Any) -> None:
    """The default: 248 states of the first tower beside 77 + 77 + 77 + 17 of the second."""
    cond = bridge.condition("a cat", "red", model=sdxl)
    assert cond.prompt_embeds.shape == cond.negative_prompt_embeds.shape == (1, 248, 80)
    for found, text in ((cond.prompt_embeds[0], "a cat"), (cond.negative_prompt_embeds[0], "red")):
        near(found[:, :32], direct(sdxl, 0, text, 248))
        empty = direct(sdxl, 1, "", 77)
        near(found[:, 32:], torch.cat([direct(sdxl, 1, text, 77), empty, empty, empty[:17]]))
    made = sdxl(**cond.kwargs(), num_inference_steps=1, output_type="np").images
    assert made.shape[0] == 1


def test_each_tower_deals_a_long_prompt_to_windows_of_its_own(sdxl: Any) -> None:
    cond = bridge.condition(LONG, model=sdxl, dialect="plain", long_prompt="sd_embed")
    assert [len(plan.windows) for plan in cond.plans[0]] == [1, 4]
    # 4 * 77 is the longer: the first tower is filled up.
    assert cond.prompt_embeds.shape == (1, 308, 80)
    near(cond.prompt_embeds[0, :248, :32], direct(sdxl, 0, LONG, 248))
    near(cond.prompt_embeds[0, 248:, :32], direct(sdxl, 0, "", 248)[:60])
    near(cond.prompt_embeds[0, :77, 32:], direct(sdxl, 1, LONG, 77))
    near(cond.prompt_embeds[0, 231:, 32:], direct(sdxl, 1, "cat " * 15, 77))


def test_zeros_and_cut_are_the_other_rules(sdxl: Any) -> None:
    zeros = bridge.condition("a cat", model=sdxl, long_prompt=LongPrompt("comma", uneven="zeros"))
    near(zeros.prompt_embeds[0, :77, 32:], direct(sdxl, 1, "a cat", 77))
    assert zeros.prompt_embeds.shape == (1, 248, 80)
    assert (zeros.prompt_embeds[0, 77:, 32:] == 0).all()
    # ComfyUI's SDXL; what is lost is said.
    cut = bridge.condition("a cat", model=sdxl, dialect="comfy")
    assert cut.prompt_embeds.shape == (1, 77, 80) and not cut.report().is_cut
    near(cut.prompt_embeds[0, :, :32], direct(sdxl, 0, "a cat", 248)[:77])
    long = LongPrompt(None, uneven="cut")
    with pytest.warns(TruncationWarning) as caught:
        lost = bridge.condition("cat " * 100, model=sdxl, long_prompt=long)
    said = [str(warning.message) for warning in caught]
    assert any("24 tokens of text_encoder come after the 77 states" in text for text in said)
    assert lost.plans[0][0].cut_tokens == 24 and lost.report().is_cut


@pytest.mark.parametrize(
    ("join", "lost"),
    [
        # 240 tokens in windows of 75, with a BOS and an EOS around each window ...
        ("concat", {77: 240 - 75, 100: 240 - 75 - 22, 152: 240 - 75 - 74}),
        # ... or around all of them.
        ("no_bos_between", {77: 240 - 76, 100: 240 - 99, 152: 240 - 151}),
        ("average", {77: 0, 100: 0, 152: 0}),
    ],
)
def test_tokens_beyond_the_length_are_counted_as_windows_are_joined(
    join: str, lost: dict[int, int]
) -> None:
    found = plan(parse(LONG, "plain"), tiny_clip_tokenizer(), split="hard")
    assert {length: len(beyond(found, length, join)) for length in lost} == lost


def test_every_join_and_rule_gives_one_length_and_one_pass(sdxl: Any) -> None:
    calls: list[int] = []
    towers = (sdxl.text_encoder, sdxl.text_encoder_2)
    hooks = [t.register_forward_pre_hook(lambda m, a: calls.append(len(a[0]))) for t in towers]
    try:
        for join, length in (
            ("concat", 308), ("first_eos", 308), ("no_bos_between", 302), ("average", 248),
        ):  # fmt: skip
            for uneven in ("fill", "zeros"):
                long = LongPrompt("hard", join, uneven=uneven)
                encoder = bridge.Encoder(sdxl, cache=0)
                cond = encoder([LONG, "a (cat:1.2)"], "red", long_prompt=long)
                assert cond.prompt_embeds.shape == (2, length, 80)
                assert cond.negative_prompt_embeds.shape == (2, length, 80)
                assert torch.isfinite(cond.prompt_embeds).all()
    finally:
        for hook in hooks:
            hook.remove()
    assert len(calls) == 2 * 8


def test_a_rule_that_does_not_exist() -> None:
    with pytest.raises(OptionError, match=r"No long_prompt.uneven 'fil'.*'fill'"):
        bridge.condition("a", model="/no/such", long_prompt=LongPrompt("comma", uneven="fil"))
