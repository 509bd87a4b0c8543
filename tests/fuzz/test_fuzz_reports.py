"""Reports of hostile files and prompts run no script in a real browser."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fuzz_support import Fuzz
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.lora_files import random_deltas, write_lora
from support.tiny_models import tiny_sdxl_pipeline

import bridge
from bridge.contrastive import Evaluation, Unreadable
from bridge.contrastive.evaluation import classification
from bridge.contrastive.linear_probe import LinearProbe, Probe
from bridge.contrastive.report import confusion_svg, reliability_svg
from bridge.contrastive.report import page as evaluation_page
from bridge.encoding import load_conditioning, save_conditioning, tokenizers_of
from bridge.errors import BridgeError
from bridge.lab.result import TABLES, Study
from bridge.lab.variant_pictures import VariantPicture
from bridge.lab.variants import ORIGINAL, Variant
from bridge.prompt import plan_report
from bridge.towers import TextTower
from demos.study_page import pictures_html, tables_html
from demos.studying import Studied

pytestmark = pytest.mark.browser
pytest_plugins = ["support.app_pages"]

# {} becomes the call that tells that a script ran.
PAYLOADS = (
    "<script>{}</script>",
    "<img src=x onerror={}>",
    '"><svg onload={}>',
    "'><iframe srcdoc='<script>parent.{}</script>'>",
    "</style><script>{}</script>",
    "</title></textarea><script>{}</script>",
    "--><input autofocus onfocus={}>",
    '" onmouseover={} style="position:fixed;inset:0" x="',
    "<details open ontoggle={}>",
    "<!--<script>--><script>{}</script>",
)


class Sources:
    """What reports are made of, made once: a conditioning's file and a study."""

    def __init__(self, folder: Path) -> None:
        pipe = tiny_sdxl_pipeline()
        lora = write_lora(
            folder / "style.safetensors",
            "kohya",
            {"text_encoder": random_deltas(pipe.text_encoder, 2, 1)},
            others={"lora_unet_x.lora_down.weight": torch.zeros(2, 2)},
        )
        cond = bridge.condition("a (cat:2) " * 60, "b", model=pipe, loras=lora)
        whole = save_conditioning(cond, folder / "whole.safetensors")
        cut = bridge.condition("a cat " * 60, model=pipe, long_prompt="truncate")
        self.tokenizers = tokenizers_of(pipe)
        self.files = [whole, save_conditioning(cut, folder / "cut.safetensors")]
        self.path = folder / "hostile.safetensors"
        towers = [TextTower.from_modules(pipe.text_encoder, pipe.tokenizer, name="one")]
        self.study = bridge.study("two red apples", towers=towers, variants={"mine": ["a cat"]})


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("reports"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all strings, numbers and nulls in a JSON value."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))
    else:
        yield path


def of_conditioning(rng: random.Random, sources: Sources, hostile: str) -> str:
    """The report of a file in whose header fields are hostile; "" where it is refused."""
    file = rng.choice(sources.files)
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["bridge"])
    every = list(leaves(header))
    # By the names of the fields: most places are tokens, and all fields are to be seen.
    named = sorted({str(path[-1]) for path in every if isinstance(path[-1], str)})
    wanted = set(named if rng.random() < 0.3 else rng.sample(named, 2))
    text_alone = rng.random() < 0.6
    for path in every:
        at = header
        for key in path[:-1]:
            at = at[key]
        # Texts stay as long as places in them need, and the recipe stays one.
        if path[-1] in wanted and path[-1] not in ("recipe", "format"):
            if isinstance(at[path[-1]], str):
                at[path[-1]] = hostile + at[path[-1]]
            elif not text_alone:
                at[path[-1]] = hostile
    save_file(load_file(file), sources.path, {"bridge": json.dumps(header)})
    try:
        return load_conditioning(sources.path).report().html()
    except BridgeError:
        return ""


def of_prompt(rng: random.Random, sources: Sources, hostile: str) -> str:
    dialect = rng.choice(("a1111", "comfy", "plain"))
    text = hostile + "🎈" if dialect == "plain" else f"(a cat:1.3) {hostile}"
    try:
        return plan_report(text, sources.tokenizers, dialect).html()
    except BridgeError:
        return ""


def hostile_study(sources: Sources, hostile: str) -> Study:
    """The study with the payload in every text of every table, and in pictures."""

    def said(value: Any) -> Any:
        return hostile + value if isinstance(value, str) and value != ORIGINAL else value

    study = sources.study
    tables = {name: getattr(study, name).map(said) for name in TABLES}
    picture = Image.new("RGB", (8, 8))
    prompt = said("two red apples")
    tables["pictures"] = pd.DataFrame(
        [
            {
                "prompt": prompt, "operation": said("mine"), "text": said("a cat"),
                "dialect": said("plain"), "choice": said("pooled"), "seed": 1,
                "pixel_distance": 0.5, said("judge_x"): said("y"),
            }
        ]
    )  # fmt: skip
    variant = Variant(said("mine"), said("a cat"), said("detail"), said("plain"))
    drawn = VariantPicture(variant, said("pooled"), 1, picture, {said("cat"): torch.zeros(2, 2)})
    settings = {**study.settings, "prompts": [prompt], "model": hostile, hostile: hostile}
    return replace(
        study,
        **tables,
        drawn=(drawn,),
        settings={**settings, "seeds": [hostile], "guidance_scale": hostile},
    )


def of_study(rng: random.Random, sources: Sources, hostile: str) -> str:
    study = hostile_study(sources, hostile)
    if rng.random() < 0.5:
        return study.html() + study._repr_html_()
    pieces = {
        tower: dict.fromkeys(study.table["text"], (hostile,))
        for tower in study.towers["tower"].to_list()
    }
    studied = Studied(study, pieces, 1.0)
    return tables_html(studied) + pictures_html(studied, hostile + "cat")


def of_evaluation(rng: random.Random, sources: Sources, hostile: str) -> str:
    """The page of a measured CLIP, and its charts, of labels and paths that are hostile."""
    labels = [f"{hostile}{at}" for at in range(rng.choice((2, 50)))]
    targets = torch.arange(60) % len(labels)
    scores = torch.randn(60, len(labels), generator=torch.Generator().manual_seed(0))
    figures = classification(scores, targets, labels, sigmoid=False)
    picture = sources.path.with_name("picture.png")
    Image.new("RGB", (8, 8)).save(picture)
    found = Evaluation(
        hostile, hostile, (picture,) * 60, (Unreadable(0, hostile, hostile),), figures,
        probe=LinearProbe(figures, Probe(scores, scores[0], 1.0), 3, ()),
        probe_places=tuple(range(60)), notes=(hostile,),
    )  # fmt: skip
    charts = confusion_svg(figures)
    if figures.calibration is not None:
        charts += reliability_svg(figures.calibration)
    return evaluation_page([found], {hostile: hostile}) + charts


KINDS: tuple[Callable[[random.Random, Sources, str], str], ...] = (
    of_conditioning, of_conditioning, of_conditioning, of_prompt, of_study, of_evaluation,
)  # fmt: skip


def test_no_report_runs_a_script(fuzz: Fuzz, browser: Any, sources: Sources) -> None:
    page = browser.new_page()
    with fuzz("report pages in which a script ran", 80) as run:
        shown: dict[int, str] = {}
        for rng in run.draws():
            kind, payload = rng.choice(KINDS), rng.choice(PAYLOADS)
            html = kind(rng, sources, payload.format(f"window.ran.push({run.seed})"))
            if html:
                shown[run.seed] = f"<section>{html}</section>"
                run.expect("&lt;div" not in html, "escaped twice")
        for some in batched(shown.values(), 40):
            for run.seed in scripts_run(page, some):
                run.fail("a script ran")
        assert len(shown) > run.tried / 2, "most files were refused, and nothing was shown of them"
    # The trap itself works.
    assert scripts_run(page, [f"<p>{PAYLOADS[1].format('window.ran.push(7)')}</p>"]) == [7]
    assert scripts_run(page, [f"<p>{PAYLOADS[0].format('window.ran.push(8)')}</p>"]) == [8]


def batched(items: Iterable[str], count: int) -> Iterator[list[str]]:
    rest = iter(items)
    while some := list(islice(rest, count)):
        yield some


def scripts_run(page: Any, fragments: Sequence[str]) -> list[int]:
    """The seeds whose payload ran on a page of all fragments."""
    page.set_content(f"<!doctype html><script>window.ran = []</script>{''.join(fragments)}")
    page.mouse.move(100, 100)
    page.wait_for_timeout(200)
    return sorted(set(page.evaluate("window.ran")))
