"""docs/migrate.md as it stands: each pair of blocks, the peer's and ours, on the same weights.

A section is two blocks: the peer's, in ``py`` (or ``text``, what is typed into its page), then
ours. Both run in an empty folder; what is swapped in them is the names of models, and nothing else.
LLaVA's ``generate`` does not run under transformers 5 (see llava_peer.py): its class gets a greedy
search over its own forward.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_peer import in_real_words, load_comfy
from llava_peer import llava
from parity_support import Equal
from peers import clone, on_path, package
from PIL import Image
from support.comparisons import relative
from support.llava_folders import save_original
from support.places import ROOT
from webui_peer import load_webui

import bridge
from bridge.embedded import weights_dir

PAGE = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
SECTIONS = {
    section.partition("\n")[0]: FENCED.findall(section)
    for section in re.split(r"^### ", PAGE.partition("\n## How it is compared")[0], flags=re.M)[1:]
}
NAMED = (
    ("cond.prompt_embeds", "embeds"),
    ("cond.negative_prompt_embeds", "negative"),
    ("cond.pooled_prompt_embeds", "pooled"),
    ("cond.negative_pooled_prompt_embeds", "negative_pooled"),
)


def labelled(name: str) -> tuple[tuple[str, str], ...]:
    """A conditioning of ours, and compel's `LabelledConditioning` of the same name."""
    return tuple(
        (f"{name}.{ours}", f"{name}.{theirs}")
        for ours, theirs in (
            ("prompt_embeds", "embeds"),
            ("negative_prompt_embeds", "negative_embeds"),
            ("pooled_prompt_embeds", "pooled_embeds"),
            ("negative_pooled_prompt_embeds", "negative_pooled_embeds"),
        )
    )


@dataclass(frozen=True)
class Case:
    """What is compared of a pair: ours, theirs; and which peer must be there."""

    compared: tuple[tuple[str, str], ...]
    tolerance: float = 1e-5
    peer: str = "diffusers"


CLIP_PAIRS = (("images", "images"), ("texts", "texts"), ("shares", "shares"))
CASES = {
    "Weights in SDXL": Case((*NAMED, ("image", "image")), peer="compel"),
    "Blends, and prompts of any length": Case(
        (*labelled("blend"), *labelled("long")), peer="compel"
    ),
    "Long weighted prompts in SDXL": Case(NAMED, tolerance=2e-3, peer="sd_embed"),
    "encode_prompt": Case(NAMED),
    "A second prompt, and clip skip": Case(NAMED),
    "A batch with a seed": Case((("images[0]", "images[0]"), ("images[1]", "images[1]"))),
    "The two boxes": Case(NAMED, peer="webui"),
    "CLIP Text Encode": Case(NAMED, peer="comfyui"),
    "One question, by LLaVA's own scripts": Case((("answer", "answer"),), peer="llava"),
    "One question, by transformers": Case(
        (("answer", "answer"), ("same", "answer")), peer="transformers"
    ),
    "Which text fits a picture": Case(CLIP_PAIRS, peer="open_clip"),
    "A classifier of many templates": Case(
        (("weights", "weights"), ("best", "best")), peer="open_clip"
    ),
}


@dataclass
class Weights:
    """What stands in for the models that the blocks name, and what a peer is given beside it."""

    ours: dict[str, str] = field(default_factory=dict)
    theirs: dict[str, str] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)


def test_each_section_of_the_page_is_a_pair_and_is_run() -> None:
    assert {*SECTIONS} == {*CASES} and len(CASES) >= 10
    for title, blocks in SECTIONS.items():
        assert [language for language, _ in blocks] in (["py", "python"], ["text", "python"]), title


@pytest.mark.models
@pytest.mark.parametrize("title", CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_pair_gives_the_same(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, equal: Equal
) -> None:
    case, ((language, theirs), (_, ours)) = CASES[title], SECTIONS[title]
    monkeypatch.chdir(tmp_path)
    with equal(f"docs/migrate.md: {title}") as count, weights(case.peer, tmp_path) as stand_in:
        mine = run(ours, stand_in.ours, {})
        if language == "text":
            found = typed(case.peer, theirs, mine, stand_in)
        else:
            found = run(theirs, stand_in.theirs, {"torch": torch, "Image": Image, **stand_in.given})
        for left, right in case.compared:
            a, b = eval(left, dict(mine)), eval(right, dict(found))
            count.check(same(a, b, case.tolerance), f"{left}, {right}: {apart(a, b)}")


def run(code: str, names: dict[str, str], given: dict[str, Any]) -> dict[str, Any]:
    """The names that a block leaves behind."""
    for name, instead in names.items():
        assert name in code, f"the block does not name {name}"
        code = code.replace(name, instead)
    space = {"__name__": "__main__", **given}
    exec(compile(code, "docs/migrate.md", "exec"), space)
    return space


def apart(a: Any, b: Any) -> Any:
    if isinstance(a, torch.Tensor):
        return relative(a, b) if a.shape == b.shape else (a.shape, b.shape)
    if isinstance(a, Image.Image):
        return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())
    return 0 if a == b else (a, b)


def same(a: Any, b: Any, tolerance: float) -> bool:
    found = apart(a, b)
    if isinstance(found, tuple):
        return False
    if isinstance(a, torch.Tensor):
        return float(found) <= tolerance
    return int(found) <= (1 if isinstance(a, Image.Image) else 0)


@contextmanager
def weights(peer: str, folder: Path) -> Iterator[Weights]:
    """The models of one peer's blocks, and its modules on the path while they run."""
    with ExitStack() as stack:
        if peer in ("compel", "diffusers", "webui"):
            if peer == "compel":
                package("compel")
            pipe = bridge.load_pipeline("emoji-xl")
            pipe.set_progress_bar_config(disable=True)
            yield Weights(given={"pipe": pipe})
        elif peer in ("sd_embed", "comfyui"):
            pipe = in_real_words("sdxl", clone("comfyui"))
            pipe.save_pretrained(folder / "tiny")
            if peer == "sd_embed":
                stack.enter_context(on_path(clone("sd_embed") / "src"))
            stack.enter_context(torch.no_grad())
            yield Weights({"emoji-xl": str(folder / "tiny")}, given={"pipe": pipe})
        elif peer == "llava":
            made = save_original(folder, "llava-v1.5-7b")
            stack.enter_context(llava_in_float32())
            names = {"liuhaotian/llava-v1.5-7b": str(made)}
            yield Weights({'"emoji-llava"': repr(str(made))}, names)
        elif peer == "transformers":
            yield Weights({}, {"llava-hf/llava-1.5-7b-hf": str(weights_dir() / "emoji-llava")})
        else:
            package("open_clip")
            from bridge.contrastive import save_open_clip

            saved = save_open_clip(bridge.CLIP("emoji-1", device="cpu"), folder / "open_clip")
            yield Weights(
                {},
                {
                    '"ViT-B-32", pretrained="laion2b_s34b_b79k"': repr(f"local-dir:{saved}"),
                    'get_tokenizer("ViT-B-32")': f"get_tokenizer({f'local-dir:{saved}'!r})",
                },
            )


@contextmanager
def llava_in_float32() -> Iterator[None]:
    """The peer's loader on the CPU in float32, and a greedy search over its forward.

    Ids become a text by transformers 5's tokenizer, as ours do: random weights answer in broken
    UTF-8, whose bytes SentencePiece spells otherwise.
    """
    with llava() as peer, pytest.MonkeyPatch.context() as patch:
        loader = peer.builder.load_pretrained_model

        def load(path: str, base: None, name: str) -> Any:
            tokenizer, model, processor, length = loader(path, base, name, device="cpu")
            model = model.float().eval()
            model.get_vision_tower().float()
            patch.setattr(type(model), "generate", greedy)
            tokenizer.batch_decode = bridge.load_vlm(path, device="cpu").tokenizer.batch_decode
            return tokenizer, model, processor, length

        patch.setattr(peer.builder, "load_pretrained_model", load)
        yield


@torch.inference_mode()
def greedy(
    model: Any, ids: torch.Tensor, *, max_new_tokens: int, do_sample: bool, **given: Any
) -> torch.Tensor:
    """The ids of an answer, the likeliest each time, to the end of text."""
    assert not do_sample
    asked = ids.shape[1]
    while ids.shape[1] < asked + max_new_tokens and ids[0, -1] != model.config.eos_token_id:
        token = model(input_ids=ids, **given).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, token], dim=1)
    return ids[:, asked:]


def typed(peer: str, text: str, mine: dict[str, Any], stand_in: Weights) -> dict[str, Any]:
    """What a tool with a page makes of a prompt and a negative, as its files write them."""
    prompt, _, negative = text.strip().partition("\nNegative prompt: ")
    pipe = stand_in.given["pipe"]
    with torch.no_grad():
        if peer == "comfyui":
            comfy = load_comfy()
            tokenizer, encoder = comfy.tokenizer("sdxl"), comfy.encoder("sdxl", pipe)
            read = [
                encoder.encode_token_weights(tokenizer.tokenize_with_weights(each))[:2]
                for each in (prompt, negative)
            ]
        else:
            webui = load_webui(pipe.tokenizer)
            first = webui.clip_of_sdxl(pipe.tokenizer, pipe.text_encoder)
            second = webui.open_clip_of_sdxl(pipe.text_encoder_2)
            read = []
            for each in (prompt, negative):
                states, pooled = second([each])
                read.append((torch.cat([first([each]), states], dim=-1), pooled))
    (embeds, pooled), (negative_embeds, negative_pooled) = read
    return {
        "embeds": embeds,
        "pooled": pooled,
        "negative": negative_embeds,
        "negative_pooled": negative_pooled,
    }
