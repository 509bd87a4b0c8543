"""compel beside bridge: its parser, and what its CompelForSD and CompelForSDXL make.

The tiny towers are seen through the byte-level vocabulary of tests/support/tiny_models.py. States
are compared at 1e-5 of the largest entry, float32.
"""

from __future__ import annotations

from typing import Any

import corpus
import pytest
import torch
from compel_peer import Parts, read_by_compel
from parity_support import Equal
from peers import package
from support.comparisons import relative
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.errors import PromptError
from bridge.prompt import parse
from bridge.prompt.prompt import first_step

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def compel() -> Any:
    # compel's grammar looks at a place under many rules; remembered, it is ten times as fast.
    package("pyparsing").ParserElement.enable_packrat(None)
    return package("compel")


def read_by_us(prompt: str) -> tuple[str, Parts]:
    flat = first_step(parse(prompt, "compel"))
    parts: Parts = []
    for part in flat.parts:
        found: list[tuple[str, float]] = []
        for span in part.spans:
            if found and span.joined:
                found[-1] = (found[-1][0] + span.text, found[-1][1])
            else:
                found.append((span.text, round(span.weight, 9)))
        parts.append((part.weight, found))
    return flat.kind, parts


@pytest.mark.filterwarnings("ignore:Of a .swap")
def test_the_parser(compel: Any, equal: Equal) -> None:
    parser = compel.compel.PromptParser()
    with equal("compel: parser") as count:
        for prompt in corpus.draw("compel", 1000):
            try:
                wanted = read_by_compel(parser, prompt)
            except Exception as error:
                wanted = ("refused", [(0.0, [(type(error).__name__, 0.0)])])
            try:
                found = read_by_us(prompt)
            except PromptError as error:
                found = ("refused", [(0.0, [(str(error), 0.0)])])
            same = found == wanted or (found[0] == wanted[0] == "refused")
            count.check(same, f"{prompt!r}: {found} {wanted}")


@pytest.mark.parametrize("kind", ["SD 1.5", "SDXL"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # weights off the manifold, swaps
def test_states(compel: Any, kind: str, equal: Equal) -> None:
    xl = kind == "SDXL"
    pipe: Any = tiny_sdxl_pipeline() if xl else tiny_sd_pipeline("sd15")
    peer = (compel.CompelForSDXL if xl else compel.CompelForSD)(pipe)
    # compel makes its grammar anew for each prompt, which takes most of the time.
    parser = compel.compel.PromptParser()
    for each in vars(peer).values():
        each.parse_prompt_string = parser.parse_conjunction
    with equal(f"compel: {kind}") as count, torch.no_grad():
        for prompt in corpus.draw("compel", 400):
            try:
                wanted = peer(prompt, negative_prompt="ugly, (red)0.5")
            except Exception:
                continue  # what compel cannot encode; the parser's row has what it cannot read
            try:
                found = bridge.condition(prompt, "ugly, (red)0.5", model=pipe, dialect="compel")
            except PromptError as error:
                count.check(False, f"{prompt!r}: {error}")
                continue
            longer = wanted.embeds.shape[1] - (own := found.prompt_embeds.shape[1])
            if ".swap(" in prompt and longer > 0:
                # What is filled up for the replacement; the text's own states are the same.
                assert relative(found.prompt_embeds, wanted.embeds[:, :own]) <= TOLERANCE
                count.differs_by("an empty window for a longer replacement of .swap()")
                continue
            pairs = [
                (found.prompt_embeds, wanted.embeds),
                (found.negative_prompt_embeds, wanted.negative_embeds),
                (found.pooled_prompt_embeds, wanted.pooled_embeds),
                (found.negative_pooled_prompt_embeds, wanted.negative_pooled_embeds),
            ]
            same = [
                a.shape == b.shape and relative(a, b) <= TOLERANCE
                for a, b in pairs
                if a is not None and b is not None
            ]
            count.check(all(same), f"{prompt!r}: {same}")
