"""stable-diffusion-webui 1.10.1 beside bridge: its parser, and its conditioning of SD 1.5 and SDXL.

States are compared at 1e-5 of the largest entry: the same modules in float32, whose sums come in
another order where several windows run in one batch.
"""

from __future__ import annotations

from typing import Any

import corpus
import pytest
import torch
from comparisons import relative
from parity_support import Equal
from tiny_models import tiny_sd_pipeline
from webui_peer import Webui, load_webui

import bridge
from bridge.errors import PromptError
from bridge.prompt import at_step, parse

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny_sd_pipeline("sd15")


@pytest.fixture(scope="module")
def webui(sd: Any) -> Webui:
    return load_webui(sd.tokenizer)


Pieces = list[tuple[str, float]]


def read_by_webui(webui: Webui, prompt: str) -> list[Pieces]:
    """The weighted texts of each part at the first step, by the peer: AND, edits, brackets."""
    parts, flat, _ = webui.prompt_parser.get_multicond_prompt_list([prompt])
    schedules = webui.prompt_parser.get_learned_conditioning_prompt_schedules(flat, 20)
    return [
        [
            (text, round(float(weight), 6))
            for text, weight in webui.prompt_parser.parse_prompt_attention(schedules[index][0][1])
            if text
        ]
        for index, _ in parts[0]
    ]


def read_by_us(prompt: str) -> list[Pieces]:
    """The same of ours: texts of one weight, and breaks."""
    parts = []
    for part in at_step(parse(prompt, "a1111"), 1, 20).parts:
        found: Pieces = []
        for span in part.spans:
            weight = -1.0 if span.breaks else round(span.weight, 6)
            if found and span.joined and not span.breaks:
                found[-1] = (found[-1][0] + span.text, weight)
            else:
                found.append(("BREAK" if span.breaks else span.text, weight))
        parts.append(found)
    return parts


def test_the_parser(webui: Webui, equal: Equal) -> None:
    with equal("stable-diffusion-webui: parser") as count:
        for kind in ("a1111", "scheduled"):
            for prompt in corpus.draw(kind, 2500):
                wanted, found = read_by_webui(webui, prompt), read_by_us(prompt)
                count.check(found == wanted, f"{prompt!r}: {found} {wanted}")


@pytest.mark.filterwarnings("ignore::UserWarning")  # hostile weights leave the manifold
def test_states_of_sd15(webui: Webui, sd: Any, equal: Equal) -> None:
    embedder = webui.clip(sd.tokenizer, sd.text_encoder)
    with equal("stable-diffusion-webui: SD 1.5") as count, torch.no_grad():
        for prompt in corpus.draw("a1111", 1400):
            read = at_step(parse(prompt, "a1111"), 1, 20)
            if len(read.parts) > 1 or read.parts[0].weight != 1:
                continue  # no single conditioning; the parser's row has it
            wanted = embedder([prompt])
            try:
                found = bridge.condition(prompt, model=sd).prompt_embeds
            except PromptError as error:
                if "changes from step to step" in str(error):
                    continue
                raise
            same = found.shape == wanted.shape and relative(found, wanted) <= TOLERANCE
            count.check(same, repr(prompt))
