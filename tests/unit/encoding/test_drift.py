"""Where a pooled state was read, and the warning when weights leave what towers give."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from support.tiny_models import tiny_clip_tokenizer, tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.encoding import Drift, OffManifoldWarning, load_conditioning, save_conditioning
from bridge.encoding.emphasis import EMPHASES
from bridge.encoding.trace import LENGTH_LIMIT, MEAN_LIMIT, drifts_of, figures_of, pooled_place
from bridge.prompt import LongPrompt, parse, plan


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny_sdxl_pipeline()


def drift_of(text: str, states: torch.Tensor, emphasis: str) -> Drift:
    """The drift of states ``(k, 77, D)`` under a formula that needs no further rows."""
    found = plan(parse(text, "a1111"), tiny_clip_tokenizer(), split="comma")
    weighed = EMPHASES[emphasis].apply(found, states, states[:0])
    (drift,) = drifts_of([found], [figures_of(found, states, weighed)])
    assert drift is not None
    return drift


# ---------------------------------------------------------------- figures


def test_the_figures_are_those_of_the_formulas() -> None:
    states = torch.rand(1, 77, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    plain = drift_of("a (cat:1.5) (dog:0.6)", states, "no_norm")
    # 0.6 is further from 1 than 1.5 is.
    assert plain.word == "dog"
    assert plain.length == pytest.approx(0.6) and plain.rest == pytest.approx(1)
    moved = 0.5 * states[0, 2].sum() - 0.4 * states[0, 3].sum()
    assert plain.mean == pytest.approx((moved / states.numel() / states.std()).item(), rel=1e-3)
    restored = drift_of("a (cat:1.5) (dog:0.6)", states, "a1111")
    factor = (states.mean() / (states.mean() + moved / states.numel())).item()
    assert restored.rest == pytest.approx(factor, rel=1e-5)
    assert restored.length == pytest.approx(0.6 * factor, rel=1e-5)
    assert restored.mean == pytest.approx(0, abs=1e-5)
    assert not plain.reasons and not restored.reasons


def test_the_word_of_a_later_window_is_named() -> None:
    states = torch.rand(2, 77, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    assert drift_of("cat " * 80 + "(red:0.9) (dog:1.4)", states, "no_norm").word == "dog"


def test_a1111s_mean_near_zero_is_said() -> None:
    """One word holds nearly the whole mean, so that weighing it turns or explodes all the rest."""
    states = torch.randn(1, 77, 6, generator=torch.Generator().manual_seed(1))
    states -= states.mean()
    states[0, 2] += 0.1  # the mean is now 0.1 / 77, less than what the word holds
    held = states[0, 2].sum() / states.sum()
    at_zero = 1 - 1 / held.item()  # the weight that leaves a mean of 0
    assert math.isfinite(at_zero)
    drift = drift_of(f"a (cat:{at_zero + 0.001:.6f})", states, "a1111")
    assert abs(drift.rest) > 100
    assert any("states of weight 1 were multiplied" in reason for reason in drift.reasons)
    turned = drift_of(f"a (cat:{1 - 1.5 / held.item():.6f})", states, "a1111")
    assert turned.rest < 0 and turned.reasons
    assert not drift_of("a (cat:1.2)", states, "no_norm").reasons


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_off(value: float) -> None:
    assert Drift("t", value, 0, 1).reasons
    assert Drift("t", 1, value, 1).reasons
    assert Drift("t", 1, 0, value).reasons
    assert not Drift("t", LENGTH_LIMIT, MEAN_LIMIT, 1 / LENGTH_LIMIT).reasons


def test_a_state_of_length_nothing_is_off() -> None:
    assert "0 times" in drift_of("a (cat:0)", torch.rand(1, 77, 6), "no_norm").reasons[0]


# ---------------------------------------------------------------- the pooled state


def test_the_pooled_state_is_where_transformers_reads_it(sdxl: Any) -> None:
    text = "cat " * 80
    for long, windows in (
        (LongPrompt("hard"), [0]),
        (LongPrompt("hard", pooled="last"), [1]),
        (LongPrompt("hard", pooled="mean"), [0, 1]),
    ):
        cond = bridge.condition(text, model=sdxl, long_prompt=long)
        sources = cond.traces[0].pooled
        assert [(s.tower, s.window, s.windows) for s in sources] == [
            ("text_encoder_2", number, 2) for number in windows
        ]
        assert [s.place for s in sources] == [76 if number == 0 else 6 for number in windows]
        assert {s.piece for s in sources} == {"<|endoftext|>"}
        # The states there, normed and projected, are the pooled state.
        ids = [list(cond.plans[0][1].windows[s.window].ids) for s in sources]
        with torch.no_grad():
            last = sdxl.text_encoder_2(torch.tensor(ids)).last_hidden_state
            rows = torch.stack([last[i, s.place] for i, s in enumerate(sources)])
            wanted = sdxl.text_encoder_2.text_projection(rows).mean(0, keepdim=True)
        torch.testing.assert_close(cond.pooled_prompt_embeds, wanted, rtol=1e-5, atol=1e-5)


def test_old_configs_read_at_the_highest_id() -> None:
    assert pooled_place([9, 4, 10, 9, 9], 9) == 0
    assert pooled_place([8, 4, 9, 9], 9) == 2
    assert pooled_place([8, 4, 9, 9], 2) == 2
    # An added token above EOS takes its place (transformers#24650).
    assert pooled_place([8, 4, 12, 9, 9], 2) == 2
    assert pooled_place([8, 4, 4], 9) == 0


def test_recipes_without_a_pooled_state_name_none() -> None:
    cond = bridge.condition("a (cat:1.2)", model=tiny_sd_pipeline("sd15"))
    assert cond.traces[0].pooled == () and len(cond.traces[0].drifts) == 1


# ---------------------------------------------------------------- the report


def test_the_report_shows_it_as_text_html_and_dict(sdxl: Any, tmp_path: Any) -> None:
    with pytest.warns(OffManifoldWarning):
        cond = bridge.condition(["a (cat:4)", "a dog"], model=sdxl, emphasis="no_norm")
    report = cond.report()
    text = report.text()
    assert "pooled state: text_encoder_2, window 1 of 1, <|endoftext|> at 3" in text
    assert "emphasis in text_encoder: length ×4 ('cat'), " in text and "off the manifold" in text
    html = report.html()
    assert html.count('role="alert"') == 2 and "&lt;|endoftext|&gt; at 3" in html
    first, second = json.loads(json.dumps(report.to_dict()))["prompts"]
    assert first["drifts"][0]["length"] == pytest.approx(4) and first["drifts"][0]["reasons"]
    assert first["pooled"][0]["place"] == 3 and second["drifts"] == []
    # Rows keep theirs, zeros have none, and a file gives them back.
    assert cond.rows(1, 2).traces == cond.traces[1:] and cond.negative_traces == ()
    saved = load_conditioning(save_conditioning(cond, tmp_path / "c.safetensors"))
    assert saved.traces == cond.traces and saved.report().text() == text
