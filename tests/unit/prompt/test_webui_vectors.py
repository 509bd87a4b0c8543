"""a1111 prompts as stable-diffusion-webui's own parser reads them, from tests/data/webui.json."""

from __future__ import annotations

import json

from support.places import DATA

from bridge.prompt import at_step, parse

SAID = json.loads((DATA / "webui.json").read_text(encoding="utf-8"))


def test_texts_and_weights_are_equal_to_the_last_bit() -> None:
    assert len(SAID["weights"]) > 20
    for prompt, wanted in SAID["weights"].items():
        found: list[list[object]] = []
        for span in at_step(parse(prompt), 1, SAID["calls"]).parts[0].spans:
            if found and span.joined and not span.breaks:
                found[-1][0] = f"{found[-1][0]}{span.text}"
            else:
                found.append(["BREAK", -1] if span.breaks else [span.text, span.weight])
        assert found == wanted, prompt


def test_each_call_draws_what_the_sampler_looks_up() -> None:
    assert len(SAID["drawn"]) == 25
    for prompt, wanted in SAID["drawn"].items():
        for call, text in enumerate(wanted, 1):
            found = at_step(parse(prompt), call, SAID["calls"]).parts[0]
            alone = parse(text)
            assert found.text == "".join(span.text for span in alone.spans), (prompt, call)
