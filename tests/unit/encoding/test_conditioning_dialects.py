"""Weighted and long prompts through ``bridge.condition``: against compel, and against the tools'
formulas applied here to plain encoder calls. One pass a tower, whatever is asked.

The tolerance is 1e-5 of the largest entry, as in test_conditioning.py: the same modules in
float32, with sums in another order.
"""

from __future__ import annotations

import math
import warnings
from importlib.metadata import version
from typing import Any

import pytest
import torch
from compel import Compel, CompelForSD, CompelForSDXL, SplitLongTextMode
from support.comparisons import Compared, relative
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.encoding.emphasis import EMPHASES
from bridge.errors import OptionError, PromptError
from bridge.prompt import LONG_PROMPTS, LongPrompt, TruncationWarning

TOLERANCE = 1e-5
COMPEL = f"compel {version('compel')}"
# Neither is on the package index; their formulas are applied to plain encoder calls.
WEBUI, COMFYUI = "stable-diffusion-webui's formula", "ComfyUI's formula"
LONG = "two (red:1.3) apples, left of [a cat]. " * 12


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny_sd_pipeline("sd15")


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny_sdxl_pipeline(force_zeros=False)


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert relative(found, wanted) <= TOLERANCE


# ---------------------------------------------------------------- compel

COMPEL_PROMPTS = [
    "a cat",
    "",
    "a cat++ and a dog",
    "a (red apple)1.4 left of the cat",
    "a red-- cat",
    "a (red cat)0.5 and (two apples)0.3 and a dog+",
    "a cat--- left of (the (dog)1.2 in red)0.8",
    'a "red cat"++ in the photo',
]


@pytest.mark.parametrize("text", COMPEL_PROMPTS)
def test_one_tower_is_compels(sd: Any, text: str, compared: Compared) -> None:
    compel = Compel(tokenizer=sd.tokenizer, text_encoder=sd.text_encoder)
    with torch.no_grad():
        wanted = compel(text)
    found = bridge.condition(text, "a dog--", model=sd, dialect="compel")
    compared("compel's weights, one tower", COMPEL, found.prompt_embeds, wanted, TOLERANCE)
    with torch.no_grad():
        assert_near(found.negative_prompt_embeds, compel("a dog--"))


PARTS = [
    '("a cat", "a red dog").blend(0.7, 0.3)',
    '("a cat", "a red+ dog").blend(1.4, 0.6, no_normalize)',
    '("a cat", "a red dog", "two apples").and()',
    '("a cat++", "(a red dog)0.5").and(0.8, 1.2)',
]


# Weights of an .and() are an error in CompelForSDXL.
@pytest.mark.parametrize("text", [*COMPEL_PROMPTS, *PARTS[:3], "a cat " * 50])
def test_two_towers_are_compels(sdxl: Any, text: str, compared: Compared) -> None:
    """The pooled state is that of the text as written, marks included."""
    wanted = CompelForSDXL(sdxl)(text, negative_prompt="a dog--")
    found = bridge.condition(text, "a dog--", model=sdxl, dialect="compel")
    for what, ours, theirs in (
        ("compel's weights, two towers", found.prompt_embeds, wanted.embeds),
        ("compel's weights, two towers", found.negative_prompt_embeds, wanted.negative_embeds),
        ("compel's pooled states", found.pooled_prompt_embeds, wanted.pooled_embeds),
        (
            "compel's pooled states",
            found.negative_pooled_prompt_embeds,
            wanted.negative_pooled_embeds,
        ),
    ):
        compared(what, COMPEL, ours, theirs, TOLERANCE)
    assert [source.window for source in found.traces[0].pooled] == [0] * len(found.plans[0][1::2])


@pytest.mark.filterwarnings("ignore:Of a .swap")
@pytest.mark.parametrize(
    "text",
    [
        f'("a cat", "{"a red dog, " * 30}").and(0.7, 1.2)',  # one window, and three
        '("a cat").and(0.5)',
        "a (red cat)1.2.swap(dog) of the (house).swap(two apples, t_start=0.3)",
        '("a cat.swap(dog)", "a dog").and()',
    ],
)
def test_parts_and_swaps_are_compels(sd: Any, text: str, compared: Compared) -> None:
    wanted = CompelForSD(sd)(text, negative_prompt="a dog")
    found = bridge.condition(text, "a dog", model=sd, dialect="compel")
    for ours, theirs in (
        (found.prompt_embeds, wanted.embeds),
        (found.negative_prompt_embeds, wanted.negative_embeds),
    ):
        compared("compel's and and swap", COMPEL, ours, theirs, TOLERANCE)


@pytest.mark.parametrize("text", PARTS)
def test_blends_and_conjunctions_are_compels(sd: Any, text: str, compared: Compared) -> None:
    compel = Compel(tokenizer=sd.tokenizer, text_encoder=sd.text_encoder)
    with torch.no_grad():
        wanted = compel(text)
    found = bridge.condition(text, "ugly", model=sd, dialect="compel")
    compared("compel's blend and and", COMPEL, found.prompt_embeds, wanted, TOLERANCE)
    # The negative is filled up with the empty prompt.
    length = found.prompt_embeds.shape[1] // 77
    with torch.no_grad():
        negative = torch.cat([compel("ugly"), *[compel("")] * (length - 1)], 1)
    assert_near(found.negative_prompt_embeds, negative)
    towers = [plan.tower for plan in found.plans[0]]
    assert towers == [f"text_encoder, part {i + 1}" for i in range(len(towers))]


def test_prompts_of_unequal_parts_go_into_one_batch(sdxl: Any) -> None:
    prompts = [PARTS[2], "a cat", PARTS[0]]
    both = bridge.condition(prompts, model=sdxl, dialect="compel")
    assert both.prompt_embeds.shape[:2] == (3, 3 * 77)
    assert [len(plans) for plans in both.plans] == [6, 2, 4]
    alone = bridge.condition(prompts[0], model=sdxl, dialect="compel")
    assert_near(both.prompt_embeds[:1], alone.prompt_embeds)
    cat = bridge.condition("a cat", model=sdxl, dialect="compel")
    assert_near(both.prompt_embeds[1:2, :77], cat.prompt_embeds)
    assert_near(both.pooled_prompt_embeds[1:2], cat.pooled_prompt_embeds)
    with pytest.raises(PromptError, match="prompt_2 cannot go"):
        bridge.condition(PARTS[0], model=sdxl, prompt_2="a dog", dialect="compel")


@pytest.mark.parametrize(
    ("mode", "long_prompt"),
    [
        (SplitLongTextMode.SENTENCES, None),  # what CompelForSD takes
        (
            SplitLongTextMode.SENTENCES | SplitLongTextMode.COPY_FIRST_CLS_TOKEN,
            LongPrompt("sentences", "first_eos"),
        ),
    ],
    ids=["its default", "first EOS copied"],
)
def test_long_prompts_are_compels(
    sd: Any, mode: SplitLongTextMode, long_prompt: LongPrompt | None, compared: Compared
) -> None:
    compel = Compel(
        tokenizer=sd.tokenizer,
        text_encoder=sd.text_encoder,
        truncate_long_prompts=False,
        split_long_text_mode=mode,
    )
    text = "two red apples, left of a cat. the dog+ in (an apple)0.6. " * 8
    # One fragment goes on in a further window, over a border that leaves padding before it.
    text += f"({'a red apple in the photo. ' * 12})0.7 a dog"
    with torch.no_grad():
        wanted = compel(text)
    found = bridge.condition(text, model=sd, dialect="compel", long_prompt=long_prompt)
    assert found.prompt_embeds.shape[1] > 77
    compared("long prompts, split at sentences", COMPEL, found.prompt_embeds, wanted, TOLERANCE)


# ---------------------------------------------------------------- the webui and ComfyUI


def encoded(pipe: Any, rows: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return pipe.text_encoder(torch.tensor(rows)).last_hidden_state


def window_of(pipe: Any, content: list[int]) -> list[int]:
    bos, eos = pipe.tokenizer.bos_token_id, pipe.tokenizer.eos_token_id
    return [bos, *content, *[eos] * (76 - len(content))]


def ids_of(pipe: Any, text: str) -> list[int]:
    return pipe.tokenizer(text).input_ids[1:-1]


def test_a_weighted_prompt_is_the_webuis(sd: Any, compared: Compared) -> None:
    parts = [("a ", 1.0), ("cat", 1.3), (" and ", 1.0), ("red dog", 1 / 1.1)]
    content, weights = [], [1.0]
    for text, weight in parts:
        ids = ids_of(sd, text)
        content += ids
        weights += [weight] * len(ids)
    z = encoded(sd, [window_of(sd, content)])
    scale = torch.tensor(weights + [1.0] * (77 - len(weights)))
    wanted = z * scale[:, None]
    wanted = wanted * (z.mean() / wanted.mean())
    found = bridge.condition("a (cat:1.3) and [red dog]", model=sd)
    compared("a1111 weights", WEBUI, found.prompt_embeds, wanted, TOLERANCE)


def test_a_long_prompt_is_the_webuis(sd: Any, compared: Compared) -> None:
    """Eleven tokens a sentence; the second window starts after a comma near the border."""
    sentence = "two red apples, left of a cat and the dog "
    content = ids_of(sd, sentence * 12)
    comma = ids_of(sd, ",")[0]
    cuts, start = [], 0
    while start < len(content):
        end = min(start + 75, len(content))
        if end < len(content):
            back = next((i for i in range(end - 1, end - 21, -1) if content[i] == comma), None)
            end = end if back is None else back + 1
        cuts.append(content[start:end])
        start = end
    assert len(cuts) > 1 and len(cuts[0]) < 75
    z = encoded(sd, [window_of(sd, part) for part in cuts])
    wanted = torch.cat(list(z))[None]
    found = bridge.condition(sentence * 12, "a dog", model=sd, align="empty")
    compared("long prompts, cut after commas", WEBUI, found.prompt_embeds, wanted, TOLERANCE)
    # The short negative is filled up with empty windows.
    empty = encoded(sd, [window_of(sd, [])])[0]
    dog = encoded(sd, [window_of(sd, ids_of(sd, "a dog"))])[0]
    negative = torch.cat([dog, *[empty] * (len(cuts) - 1)])[None]
    compared(
        "negatives filled up with empty windows", WEBUI, found.negative_prompt_embeds, negative,
        TOLERANCE,
    )  # fmt: skip


def test_a_weighted_prompt_is_comfyuis(sd: Any, compared: Compared) -> None:
    """An explicit weight replaces the one around it."""
    parts = [("a ", 1.0), ("cat ", 1.1), ("red", 1.5), (" dog", 1.1), (" and the", 1.0)]
    content, weights = [], [1.0]
    for text, weight in parts:
        ids = ids_of(sd, text)
        content += ids
        weights += [weight] * len(ids)
    z, e = encoded(sd, [window_of(sd, content), window_of(sd, [])])
    scale = torch.tensor(weights + [1.0] * (77 - len(weights)))[:, None]
    found = bridge.condition("a (cat (red:1.5) dog) and the", model=sd, dialect="comfy")
    wanted = (e + scale * (z - e))[None]
    compared("comfy weights, nested", COMFYUI, found.prompt_embeds, wanted, TOLERANCE)


# ---------------------------------------------------------------- long prompts


def test_ways_with_long_prompts_agree_where_they_should(sdxl: Any) -> None:
    def made(name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            return bridge.condition(LONG, "a dog", model=sdxl, emphasis="none", long_prompt=name)

    found = {name: made(name) for name in LONG_PROMPTS}
    windows = {name: len(cond.plans[0][0].windows) for name, cond in found.items()}
    assert windows["truncate"] == 1 and windows["sd_embed"] == windows["lpw"] > 1
    for name, cond in found.items():
        k = windows[name]
        length = {"truncate": 77, "average": 77, "lpw": 75 * k + 2}.get(name, 77 * k)
        assert cond.prompt_embeds.shape == cond.negative_prompt_embeds.shape
        assert cond.prompt_embeds.shape == (1, length, cond.prompt_embeds.shape[2])
    hard, cut = found["sd_embed"].prompt_embeds, found["truncate"].prompt_embeds
    assert_near(hard[:, :77], cut)
    k = windows["lpw"]
    inner = [hard[:, 77 * i + 1 : 77 * i + 76] for i in range(k)]
    assert_near(found["lpw"].prompt_embeds, torch.cat([hard[:, :1], *inner, hard[:, -1:]], 1))
    whole = found["a1111"].prompt_embeds
    mean = whole.reshape(windows["a1111"], 77, -1).mean(0)
    assert_near(found["average"].prompt_embeds[0], mean)
    # Pooled: the first window's, but sd_embed's the last, and the mean of all.
    assert_near(found["a1111"].pooled_prompt_embeds, pooled_of(sdxl, found["a1111"], 0))
    assert_near(found["sd_embed"].pooled_prompt_embeds, pooled_of(sdxl, found["sd_embed"], -1))


def pooled_of(pipe: Any, cond: Any, window: int) -> torch.Tensor:
    ids = torch.tensor([cond.plans[0][1].windows[window].ids])
    with torch.no_grad():
        return pipe.text_encoder_2(ids).text_embeds


def test_towers_of_unequal_windows_are_brought_to_one_length(sdxl: Any) -> None:
    found = bridge.condition("a cat", model=sdxl, prompt_2="cat " * 100, long_prompt="a1111")
    assert [len(plan.windows) for plan in found.plans[0]] == [1, 2]
    assert found.prompt_embeds.shape[1] == found.negative_prompt_embeds.shape[1] == 154


def test_windows_go_into_a_stock_pipeline(sd: Any) -> None:
    cond = bridge.condition(LONG, "a dog", model=sd)
    made = sd(**cond.kwargs(), num_inference_steps=1, output_type="np").images
    assert made.shape[0] == 1


# ---------------------------------------------------------------- one pass


@pytest.mark.parametrize("emphasis", sorted(EMPHASES))
def test_one_pass_a_tower_whatever_is_asked(sdxl: Any, emphasis: str) -> None:
    calls: list[int] = []
    hooks = [
        tower.register_forward_pre_hook(lambda _module, args: calls.append(len(args[0])))
        for tower in (sdxl.text_encoder, sdxl.text_encoder_2)
    ]
    prompts = [LONG, "a (cat:1.5) and [a (dog:0.3)]", "", "a BREAK (red:0.5)"]
    try:
        found = bridge.condition(
            prompts, ["(ugly:1.2)", "", LONG, "b"], model=sdxl, emphasis=emphasis
        )
    finally:
        for hook in hooks:
            hook.remove()
    assert len(calls) == 2
    assert torch.isfinite(found.prompt_embeds).all()
    # Each prompt is what it is alone.
    alone = bridge.condition(prompts[1], LONG, model=sdxl, emphasis=emphasis)
    assert_near(found.prompt_embeds[1:2], alone.prompt_embeds)


# ---------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"dialect": "a111"}, "No dialect 'a111'.*'a1111'"),
        ({"emphasis": "comfi"}, "No emphasis 'comfi'.*'comfy'"),
        ({"token_normalization": "men"}, "'mean'"),
        ({"long_prompt": "cut"}, "No long_prompt 'cut'"),
        ({"long_prompt": LongPrompt("commas")}, "split 'commas'"),
        ({"long_prompt": LongPrompt("comma", join="sum")}, "join 'sum'"),
        ({"long_prompt": LongPrompt("comma", backtrack=-1)}, "backtrack must .* not -1"),
        ({"long_prompt": LongPrompt("comma", backtrack=1.5)}, "backtrack must .* not 1.5"),
    ],
)
def test_choices_are_checked_before_a_model_loads(choice: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        bridge.condition("a cat", model="/no/such/folder", **choice)


def test_prompts_that_are_no_single_prompt_are_refused_with_a_caret(sd: Any) -> None:
    with pytest.raises(PromptError, match=r"changes from step to step[\s\S]*\n {6}\^\^\^"):
        bridge.condition("a red [cat:dog:0.5]", model=sd)
    with pytest.raises(PromptError, match="several parts"):
        bridge.condition("a cat AND a dog", model=sd)
    with pytest.raises(PromptError, match=r"ends in ':30'[\s\S]*\n {18}\^\^\^"):
        bridge.condition("a clock showing 12:30", model=sd)


def test_plain_prompts_are_taken_as_they_are(sd: Any) -> None:
    text = "a (cat:1.5) [x|y] AND BREAK"
    found = bridge.condition(text, model=sd, dialect="plain")
    wanted, _ = sd.encode_prompt(text, "cpu", 1, False)
    assert_near(found.prompt_embeds, wanted)


def test_normalisation_comes_before_emphasis(sd: Any) -> None:
    text = "a (zebra:1.5) cat"
    spread = bridge.condition(text, model=sd, token_normalization="length", dialect="comfy")
    (plan,) = spread.plans[0]
    zebra = [t.weight for t in plan.tokens if t.weight != 1]
    assert len(zebra) > 1 and zebra[0] == pytest.approx(1 + 0.5 / math.sqrt(len(zebra)))
    whole = bridge.condition(text, model=sd, dialect="comfy")
    assert not torch.allclose(spread.prompt_embeds, whole.prompt_embeds)
