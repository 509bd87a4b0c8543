"""stable-diffusion-webui-forge beside the a1111 dialect: its text processing engines with clip skip
and its four emphases, of SD 1.5, SDXL, FLUX.1 and SD 3.

The engines are given the options of ``backend/diffusion_engine``; what it does with their states
(end to end, side by side) is done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import corpus
import pytest
import torch
from comfy_peer import in_real_words
from forge_peer import Forge, load_forge
from parity_support import Equal, conditioned, plain, same
from peers import clone

from bridge.prompt.parameters import parse_parameters

PADDING = "Forge reads the ! of the tower that pads with it as padding, as diffusers does"
BREAKS = "Forge gives T5 the text after a BREAK as a picture of its own"


@pytest.fixture
def forge() -> Forge:
    return load_forge()


@pytest.fixture
def pipe(kind: str) -> Any:
    return in_real_words(kind, clone("comfyui"))


def drawn(count: int, **options: Any) -> Iterator[tuple[str, Any]]:
    """Prompts that make one conditioning, and ours of each."""
    for prompt in plain("a1111", count):
        found = conditioned(prompt, "", align="empty", **options)
        if found is not None:
            yield prompt, found


@pytest.mark.parametrize("kind", ["sd15"])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("Original", "a1111"), ("No norm", "no_norm"), ("Ignore", "none")],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # hostile weights leave the manifold
def test_emphases(forge: Forge, pipe: Any, theirs: str, ours: str, equal: Equal) -> None:
    engine = forge.clip(pipe.tokenizer, pipe.text_encoder)
    forge.opts.emphasis = theirs
    with equal(f"Forge: emphasis {theirs}") as count, torch.no_grad():
        for prompt, found in drawn(250, model=pipe, emphasis=ours):
            count.check(same(found.prompt_embeds, engine([prompt])), repr(prompt))


@pytest.mark.parametrize("kind", ["sd15"])
def test_no_emphasis_is_plain_text(forge: Forge, pipe: Any, equal: Equal) -> None:
    engine = forge.clip(pipe.tokenizer, pipe.text_encoder)
    forge.opts.emphasis = "None"
    with equal("Forge: emphasis None") as count, torch.no_grad():
        for prompt in corpus.draw("a1111", 200):
            found = conditioned(prompt, "", model=pipe, dialect="plain", long_prompt="a1111")
            count.check(same(found.prompt_embeds, engine([prompt])), repr(prompt))


def skip_of(number: int, recipe: str) -> int:
    """What bridge makes of a clip skip in Forge's infotext."""
    text = f"a cat\nSteps: 20, Sampler: Euler, Clip skip: {number}, Version: f2.0.1v1.10.1"
    found = parse_parameters(text).clip_skip_for(recipe)
    assert found is not None
    return found


# Of SD 3 with a clip skip of 1 it takes the last layers without their norm, which has no option
# here; docs/conditioning.md says so.
SKIPS = [(kind, number) for kind in ("sd15", "sdxl", "sd3") for number in (1, 2, 3)]
SKIPS.remove(("sd3", 1))


@pytest.mark.parametrize(("kind", "number"), SKIPS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_clip_skip(forge: Forge, pipe: Any, kind: str, number: int, equal: Equal) -> None:
    options = {
        "sd15": {},
        "sdxl": {"layer": 2, "final_layer_norm": False},
        "sd3": {"final_layer_norm": False, "return_pooled": True, "text_projection": True},
    }[kind]
    engines = [forge.clip(pipe.tokenizer, pipe.text_encoder, **options)]
    if kind != "sd15":
        options |= {"return_pooled": True, "text_projection": True}
        second = forge.clip(pipe.tokenizer_2, pipe.text_encoder_2, "clip_g", **options)
        engines.append(second)
    for engine in engines:
        engine.clip_skip = number
    skip = skip_of(number, kind)
    with equal(f"Forge: {kind}, clip skip {number}") as count, torch.no_grad():
        for prompt, found in drawn(90, model=pipe, clip_skip=skip):
            if kind != "sd15" and "!" in prompt:
                count.differs_by(PADDING)
                continue
            results = [engine([prompt]) for engine in engines]
            pairs = [each if isinstance(each, tuple) else (each, None) for each in results]
            wanted = torch.cat([states for states, _ in pairs], -1)
            own = found.prompt_embeds[:, : wanted.shape[1], : wanted.shape[2]]
            pooled = [each for _, each in pairs if each is not None]
            both = not pooled or same(found.pooled_prompt_embeds, torch.cat(pooled, -1))
            count.check(both and same(own, wanted), repr(prompt))


@pytest.mark.parametrize("kind", ["flux", "sd3"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_t5(forge: Forge, pipe: Any, kind: str, equal: Equal) -> None:
    """T5 has 256 tokens in both, and more where a prompt has more."""
    tail = "_2" if kind == "flux" else "_3"
    engine = forge.t5(getattr(pipe, f"tokenizer{tail}"), getattr(pipe, f"text_encoder{tail}"))
    first = forge.clip(pipe.tokenizer, pipe.text_encoder, return_pooled=True)
    with equal(f"Forge: T5 of {kind}") as count, torch.no_grad():
        for prompt, found in drawn(300, model=pipe):
            wanted = engine([prompt])
            if len(wanted) > 1:
                count.differs_by(BREAKS)
                continue
            states = found.prompt_embeds[:, -wanted.shape[1] :]
            pooled = kind == "sd3" or same(found.pooled_prompt_embeds, first([prompt])[1])
            behind = found.prompt_embeds.shape[1] - wanted.shape[1]
            whole = behind == 0 if kind == "flux" else behind % 77 == 0
            count.check(whole and pooled and same(states, wanted), repr(prompt))
