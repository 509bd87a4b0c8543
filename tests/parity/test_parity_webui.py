"""stable-diffusion-webui 1.10.1 beside bridge: its parser, its schedules as its sampler looks them
up, and its conditioning of SD 1.5 (clip skip and negatives too) and SDXL.

States are compared at 1e-5 of the largest entry: the same modules in float32, whose sums come in
another order where several windows run in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import corpus
import pytest
import torch
from parity_support import Equal, conditioned, plain, same
from peers import clone, package
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline
from transformers import CLIPTokenizer
from webui_peer import OldTokenizer, Webui, load_webui

import bridge
from bridge.errors import PromptError
from bridge.prompt import LongPrompt, at_step, parse, plan

# The real vocabularies, in Forge's clone.
VOCABULARIES = "backend/huggingface/stabilityai/stable-diffusion-xl-base-1.0"


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
            (text, float(weight))
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
            weight = -1.0 if span.breaks else span.weight
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


@pytest.fixture(scope="module")
def old_tokenizer() -> Iterator[OldTokenizer]:
    made = OldTokenizer(clone("forge") / VOCABULARIES / "tokenizer")
    yield made
    made.close()


@pytest.mark.parametrize("tower", ["tokenizer", "tokenizer_2"])
def test_cleaning(webui: Webui, old_tokenizer: OldTokenizer, tower: str, equal: Equal) -> None:
    """Texts that need mending, in both tools' real vocabularies: SD 1's tower, SDXL's second."""
    tokenizer = CLIPTokenizer.from_pretrained(clone("forge") / VOCABULARIES / tower)
    peer = webui.clip(old_tokenizer, torch.nn.Module())
    if tower == "tokenizer_2":
        webui.sd_hijack_open_clip.tokenizer = package("open_clip").tokenizer._tokenizer
        peer = webui.open_clip_of_sdxl(torch.nn.Module())
    with equal(f"stable-diffusion-webui: cleaning, {tower}") as count:
        for text in corpus.draw("odd", 800):
            if "#" in text:  # a comment, which the page takes out before
                continue
            found = plan(parse(text, "a1111"), tokenizer, split="comma").windows
            wanted = [chunk.tokens for chunk in peer.tokenize_line(text)[0]]
            wanted = [ids[: ids.index(peer.id_end) + 1] for ids in wanted]
            mine = [[token.id for token in window.tokens] for window in found]
            count.check(mine == wanted, f"{text!r}: {mine} {wanted}")


def test_schedules_call_by_call(webui: Webui, equal: Equal) -> None:
    """What each call of the model is given: the peer's schedule, looked up as its sampler does."""
    parser = webui.prompt_parser
    with equal("stable-diffusion-webui: edits by call") as count:
        for number, prompt in enumerate(corpus.draw("scheduled", 600)):
            calls = (20, 40, 7)[number % 3]
            _, flat, _ = parser.get_multicond_prompt_list([prompt])
            (entries,) = parser.get_learned_conditioning_prompt_schedules(flat, calls)
            texts = {end: torch.tensor([float(place)]) for place, (end, _) in enumerate(entries)}
            known = [parser.ScheduledPromptConditioning(end, texts[end]) for end, _ in entries]
            mine = parse(prompt, "a1111")
            for call in range(calls):
                place = int(parser.reconstruct_cond_batch([known], call).item())
                wanted = [
                    text for text, _ in parser.parse_prompt_attention(entries[place][1]) if text
                ]
                found = at_step(mine, call + 1, calls).parts[0]
                if "".join(wanted) != found.text:
                    count.check(False, f"{prompt!r}, call {call} of {calls}: {found.text} {wanted}")
                    break
            else:
                count.check(True, prompt)


@pytest.mark.filterwarnings("ignore::UserWarning")  # hostile weights leave the manifold
def test_states_of_sd15(webui: Webui, sd: Any, equal: Equal) -> None:
    embedder = webui.clip(sd.tokenizer, sd.text_encoder)
    with equal("stable-diffusion-webui: SD 1.5") as count, torch.no_grad():
        for prompt in plain("a1111", 1400):
            found = conditioned(prompt, "", model=sd, align="empty")
            if found is not None:
                count.check(same(found.prompt_embeds, embedder([prompt])), repr(prompt))


@pytest.mark.parametrize("backtrack", [0, 3, 74])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_comma_padding_backtrack(webui: Webui, sd: Any, backtrack: int, equal: Equal) -> None:
    embedder = webui.clip(sd.tokenizer, sd.text_encoder)
    webui.opts.comma_padding_backtrack = backtrack
    long = LongPrompt("comma", backtrack=backtrack)
    try:
        with equal(f"stable-diffusion-webui: comma_padding_backtrack {backtrack}") as count:
            for prompt in plain("a1111", 400):
                found = conditioned(prompt, "", model=sd, align="empty", long_prompt=long)
                if found is None or len(found.plans[0][0].windows) == 1:
                    continue
                with torch.no_grad():
                    count.check(same(found.prompt_embeds, embedder([prompt])), repr(prompt))
    finally:
        webui.opts.comma_padding_backtrack = 20


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_states_of_edits(webui: Webui, sd: Any, equal: Equal) -> None:
    """Each text of a schedule by itself. The peer encodes all that a prompt says in one batch, and
    restores its mean over that."""
    embedder = webui.clip(sd.tokenizer, sd.text_encoder)
    parser = webui.prompt_parser
    with equal("stable-diffusion-webui: states of edits") as count, torch.no_grad():
        for prompt in corpus.draw("scheduled", 120):
            prompt = f"{prompt}, (red:1.5)"
            (entries,) = parser.get_learned_conditioning_prompt_schedules([prompt], 7)
            texts = [text for _, text in entries]
            mine = bridge.schedule(prompt, "", steps=7, model=sd, align="empty")
            drawn = 0
            for (end, text), together in zip(entries, embedder(texts), strict=True):
                if drawn == 7:  # its sampler counts from 0, and so never gets to the last
                    break
                drawn = min(end + 1, 7)
                found = mine.at(drawn).prompt_embeds
                count.check(same(found, embedder([text])), f"{prompt!r}, call {drawn}")
                if not same(found[0], together):
                    count.differs_by("the webui restores the mean over all that it encodes at once")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_clip_skip_of_prompt_and_negative(webui: Webui, sd: Any, equal: Equal) -> None:
    embedder = webui.clip(sd.tokenizer, sd.text_encoder)
    prompts = list(plain("a1111", 300))
    try:
        with equal("stable-diffusion-webui: clip skip") as count, torch.no_grad():
            for prompt, negative in zip(prompts, reversed(prompts), strict=True):
                webui.opts.CLIP_stop_at_last_layers = 2 + len(prompt) % 2
                skip = webui.opts.CLIP_stop_at_last_layers - 1
                found = conditioned(prompt, negative, model=sd, clip_skip=skip, align="empty")
                if found is None:
                    continue
                for text, states in (
                    (prompt, found.prompt_embeds),
                    (negative, found.negative_prompt_embeds),
                ):
                    wanted = embedder([text])
                    own = states[:, : wanted.shape[1]]  # the shorter is filled up
                    count.check(same(own, wanted), repr(text))
    finally:
        webui.opts.CLIP_stop_at_last_layers = 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_states_of_sdxl(equal: Equal) -> None:
    pipe = tiny_sdxl_pipeline()
    # To open_clip "!" is a word as any other; the second tower's tokenizer pads with it.
    webui = load_webui(pipe.tokenizer)
    towers = (
        webui.clip_of_sdxl(pipe.tokenizer, pipe.text_encoder),
        webui.open_clip_of_sdxl(pipe.text_encoder_2),
    )
    webui.opts.CLIP_stop_at_last_layers = 2  # which SDXL ignores
    with equal("stable-diffusion-webui: SDXL") as count, torch.no_grad():
        for prompt in plain("a1111", 1000):
            found = conditioned(prompt, "", model=pipe, align="empty")
            if found is None:
                continue
            first = towers[0]([prompt])
            second, pooled = towers[1]([prompt])
            wanted = torch.cat([first, second], -1)
            both = same(found.prompt_embeds, wanted) and same(found.pooled_prompt_embeds, pooled)
            count.check(both, repr(prompt))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parts_of_an_and(webui: Webui, sd: Any, equal: Equal) -> None:
    """Parts of unequal length, as the peer stacks them."""
    embedder = webui.clip(sd.tokenizer, sd.text_encoder)
    prompts = list(plain("a1111", 300))
    parser = webui.prompt_parser
    with equal("stable-diffusion-webui: parts of AND") as count, torch.no_grad():
        for one, two in zip(prompts, reversed(prompts), strict=True):
            prompt = f"{one} AND {two}"
            _, texts, _ = parser.get_multicond_prompt_list([prompt])
            wanted = parser.stack_conds([embedder([text])[0] for text in texts])
            try:
                found = bridge.compose(prompt, "", model=sd).parts.prompt_embeds
            except PromptError as error:
                if "changes from step to step" in str(error):
                    continue
                raise
            if len(found) == len(wanted):  # equal parts are one to the peer
                count.check(same(found[:, : wanted.shape[1]], wanted), prompt)
