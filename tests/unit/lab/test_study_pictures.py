"""The pictures of a study: seeds, tower choices, heat maps, drift, the judge and the report."""

from __future__ import annotations

import csv
import html.parser
import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_models import text_config, tiny_image_tower, tiny_sd_pipeline, tiny_sdxl_pipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import bridge
from bridge.adapters import label_swap
from bridge.cli import main
from bridge.encoding import open_model
from bridge.errors import OptionError
from bridge.lab import overlay
from bridge.lab.cache_keys import pipeline_key
from bridge.lab.picture_tables import pixel_distance
from bridge.lab.tower_choices import ablated, choices_of
from bridge.lab.variants import Variant
from bridge.towers import TEXT_FAMILIES, TextTower

PROMPT = "a red cat"
NASTY = '<script>alert("&")</script> cat'
DRAW: dict[str, Any] = {"steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = tiny_sdxl_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import CLIPImageProcessorPil

    from bridge.towers import open_image_tower

    folder = tmp_path_factory.mktemp("eye")
    tiny_image_tower().save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return open_image_tower(folder)


@pytest.fixture(scope="module")
def found(pipe: Any, eye: Any) -> Any:
    return bridge.study(
        PROMPT, variants={"mine": ["a blue dog", NASTY, PROMPT]}, model=pipe, seeds=[3, 5],
        choices="all", image_tower=eye, judge=lambda image, prompt: {"right": prompt == PROMPT},
        **DRAW,
    )  # fmt: skip


def pixels(image: Any) -> Any:
    return np.asarray(image, dtype=np.int16)


# ---------------------------------------------------------------- pictures


def test_pictures_are_the_pipelines_own(pipe: Any, found: Any) -> None:
    cond = bridge.condition("a blue dog", model=pipe, dialect="plain")
    for seed in (3, 5):
        wanted = pipe(
            **cond.kwargs(), num_inference_steps=2, guidance_scale=3.0,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]  # fmt: skip
        row = found.pictures[
            (found.pictures.text == "a blue dog")
            & (found.pictures.choice == "whole")
            & (found.pictures.seed == seed)
        ]
        # Drawn in a batch of two, so a pixel may round to its neighbour.
        assert abs(pixels(found.drawn[row.index[0]].image) - pixels(wanted)).max() <= 1


def test_every_variant_choice_and_seed_has_its_row(found: Any) -> None:
    choices = ["whole", "text_encoder", "text_encoder_2", "pooled"]
    assert list(found.pictures.choice.unique()) == choices
    # The prompt, two other texts, and the prompt once more among the own ones.
    assert len(found.pictures) == len(found.drawn) == 4 * len(choices) * 2
    same = found.pictures[found.pictures.text == PROMPT]
    assert (same.pixel_distance == 0).all()
    assert same.tower_distance.to_list() == pytest.approx([0] * len(same), abs=1e-6)
    other = found.pictures[found.pictures.text == "a blue dog"]
    assert (other.pixel_distance > 0).all()
    base = found.drawn[0].image
    at = other[(other.choice == "whole") & (other.seed == 3)].index[0]
    wanted = np.sqrt(((pixels(base) - pixels(found.drawn[at].image)) ** 2).mean()) / 255
    assert other.pixel_distance[at] == pytest.approx(wanted)


def test_heat_maps_come_with_the_whole_model(pipe: Any, found: Any) -> None:
    for row, drawn in zip(found.pictures.to_dict("records"), found.drawn, strict=True):
        assert bool(drawn.heat) == (row["choice"] == "whole")
        if row["text"] == "a blue dog" and drawn.heat:
            assert set(drawn.heat) == {"blue", "dog"}
            assert drawn.heat["dog"].shape == (8, 8)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


def test_the_judge_is_told_the_prompt_and_given_intervals(found: Any) -> None:
    assert found.pictures.judge_right.eq(1).all()
    row = found.verdicts[(found.verdicts.operation == "mine")].iloc[0]
    assert (row["mean"], row["high"], row["pictures"]) == (1, 1, 6) and 0.5 < row["low"] < 1


def test_a_judge_that_gives_nothing_useful_is_refused(pipe: Any) -> None:
    with pytest.raises(OptionError, match="judge gave a float"):
        bridge.study(PROMPT, variants="case", model=pipe, judge=lambda i, p: 0.5, **DRAW)  # type: ignore[arg-type,return-value]


def test_drawing_that_was_cut_off_goes_on(pipe: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "variants": {"mine": ["a dog", "two dogs"]}, "model": pipe, "cache": tmp_path, **DRAW,
    }  # fmt: skip
    calls: list[int] = []
    limit = [3]  # UNet calls until it is cut off: in the middle of the second picture

    def count(*_: Any) -> None:
        calls.append(1)
        if len(calls) > limit[0]:
            raise KeyboardInterrupt

    handle = pipe.unet.register_forward_pre_hook(count)
    try:
        with pytest.raises(KeyboardInterrupt):
            bridge.study(PROMPT, **options)
        calls.clear()
        limit[0] = 1000
        resumed = bridge.study(PROMPT, **options)
        assert len(calls) == 2 * 2  # the second and third picture, two steps each
        calls.clear()
        again = bridge.study(PROMPT, **options)
        assert not calls
        # Other steps are another picture.
        bridge.study(PROMPT, **{**options, "steps": 1, "variants": {"mine": ["a dog"]}})
        assert len(calls) == 2
    finally:
        handle.remove()
    for a, b in zip(resumed.drawn, again.drawn, strict=True):
        assert a.image.tobytes() == b.image.tobytes()
        assert a.heat.keys() == b.heat.keys()
        assert all(torch.equal(a.heat[word], b.heat[word]) for word in a.heat)


def test_pictures_that_are_kept_are_of_their_dialect_and_choice(pipe: Any, tmp_path: Path) -> None:
    dialects = ("plain", "a1111")
    options: dict[str, Any] = {
        "variants": [Variant("mine", "a (cat:1.9)", dialect=dialect) for dialect in dialects],
        "model": pipe, "choices": ["whole", "pooled"], "heat": False, **DRAW, "steps": 1,
    }  # fmt: skip
    plain, made, kept = (
        [each.image.tobytes() for each in bridge.study(PROMPT, **options, cache=cache).drawn]
        for cache in (None, tmp_path, tmp_path)
    )
    assert made == kept == plain
    assert len(set(plain)) == len(plain) == 3 * 2


def test_a_model_changed_is_another_model() -> None:
    made = tiny_sd_pipeline()
    before = pipeline_key(made)
    assert pipeline_key(tiny_sd_pipeline()) == before
    made.scheduler.register_to_config(prediction_type="v_prediction")
    assert pipeline_key(made) != before
    assert pipeline_key(tiny_sd_pipeline(seed=1)) != before


def test_a_model_loaded_in_another_process_is_the_same() -> None:
    """diffusers lists the arguments left out in the order of a set, another in each process."""
    made = tiny_sd_pipeline()
    before = None
    for left_out in (["a", "b"], ["b", "a"]):
        for part in (made.unet, made.vae, made.scheduler):
            part.register_to_config(_use_default_values=left_out)
        before = before or pipeline_key(made)
    assert pipeline_key(made) == before


def test_what_no_parameter_says_makes_another_model() -> None:
    made = tiny_sd_pipeline()
    marks = [pipeline_key(made)]
    layer = made.unet.conv_in
    layer.disable_adapters, layer.active_adapters = False, ["style"]  # as peft's layers have them
    layer.scaling = {"style": 1.0}
    marks.append(pipeline_key(made))
    layer.scaling = {"style": 0.5}
    marks.append(pipeline_key(made))
    layer.disable_adapters = True
    marks.append(pipeline_key(made))
    made.unet.enable_freeu(0.9, 0.2, 1.4, 1.6)
    marks.append(pipeline_key(made))
    made.scheduler = type("Other", (type(made.scheduler),), {}).from_config(made.scheduler.config)
    marks.append(pipeline_key(made))
    with torch.no_grad():
        made.text_encoder.get_input_embeddings().weight[-1, 1:] += 1
    marks.append(pipeline_key(made))
    assert len(set(marks)) == len(marks)


# ---------------------------------------------------------------- towers


def test_ablation_keeps_exactly_one_part(pipe: Any) -> None:
    kit = open_model(pipe)
    cond = bridge.condition("a cat", "a dog", model=pipe)
    assert choices_of(kit) == ("whole", "text_encoder", "text_encoder_2", "pooled")
    assert ablated(cond, kit, "whole") is cond
    first, second, pooled = (ablated(cond, kit, choice) for choice in choices_of(kit)[1:])
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        whole = getattr(cond, name)
        assert torch.equal(getattr(first, name)[..., :32], whole[..., :32])
        assert not getattr(first, name)[..., 32:].any()
        assert torch.equal(getattr(second, name)[..., 32:], whole[..., 32:])
        assert not getattr(second, name)[..., :32].any()
        assert not getattr(pooled, name).any()
    for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
        assert not getattr(first, name).any() and not getattr(second, name).any()
        assert torch.equal(getattr(pooled, name), getattr(cond, name))
    assert choices_of(open_model(tiny_sd_pipeline())) == ("whole",)
    with pytest.raises(OptionError, match="no tower choice 'third'"):
        bridge.study("a cat", variants="case", model=pipe, choices=["third"])


def test_swaps_are_labelled(pipe: Any, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(found.towers.swap) == ["native", "native"]
    assert list(found.towers.component) == ["text_encoder", "text_encoder_2"]
    other = tiny_sdxl_pipeline(seed=1)

    def labelled(module: Any, family: str = "clip") -> tuple[str, str]:
        tower = TextTower.from_modules(module, other.tokenizer, name="new")
        swap = label_swap(replace(tower, family=family), pipe)
        assert swap.reason
        return swap.label, swap.components[0] if swap.components else ""

    assert labelled(other.text_encoder) == ("same-width", "text_encoder")
    assert labelled(other.text_encoder_2) == ("same-width", "text_encoder_2")
    # The first tower's weights under a class with a projection are the first tower still.
    config = text_config(pipe.tokenizer, eos_token_id=2)
    projected = CLIPTextModelWithProjection(config)
    state = {f"text_model.{n}": t for n, t in pipe.text_encoder.state_dict().items()}
    state = {n.replace("text_model.text_model.", "text_model."): t for n, t in state.items()}
    projected.load_state_dict(state, strict=False)
    assert labelled(projected) == ("native", "text_encoder")
    assert labelled(CLIPTextModel(text_config(other.tokenizer, hidden_size=64)))[0] == "adapter"
    clip = TEXT_FAMILIES["clip"]
    monkeypatch.setitem(TEXT_FAMILIES, "pooled-only", replace(clip, tokens=False))
    assert labelled(other.text_encoder, "pooled-only")[0] == "incompatible"


def test_a_tower_of_the_same_width_draws_in_its_place(pipe: Any) -> None:
    other = tiny_sdxl_pipeline(seed=1)
    tower = TextTower.from_modules(other.text_encoder, other.tokenizer, name="other")
    found = bridge.study(
        PROMPT, towers=tower, variants={"mine": ["a dog"]}, model=pipe, choices=["whole", "other"],
        **DRAW,
    )  # fmt: skip
    cond = bridge.condition(PROMPT, model=pipe, dialect="plain", towers={"text_encoder": tower})
    wanted = pipe(
        **cond.kwargs(), num_inference_steps=2, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    whole, swapped = found.images[:2]
    assert list(found.pictures.choice[:2]) == ["whole", "other"]
    assert pixel_distance(swapped, wanted) == 0 < pixel_distance(swapped, whole)
    assert set(found.drawn[1].heat) == {"red", "cat"}
    with pytest.raises(OptionError, match="no tower choice 'third'"):
        bridge.study(PROMPT, towers=tower, variants="case", model=pipe, choices="third")


# ---------------------------------------------------------------- the report


class Page(html.parser.HTMLParser):
    """What a browser would see: tags, their addresses, and open elements."""

    VOID = ("meta", "img", "br", "line", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_report_is_one_escaped_page_without_network(found: Any) -> None:
    text = found.html()
    page = Page()
    page.feed(text)
    assert not page.open
    assert "script" not in page.tags and "link" not in page.tags
    assert "&lt;script&gt;" in text and NASTY not in text
    assert page.links and all(link.startswith("data:image/webp;base64,") for link in page.links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme" in text and "width=device-width" in text
    pictures = page.tags.count("img")
    assert pictures == len(found.drawn) + sum(len(each.heat) for each in found.drawn)


def test_an_overlay_is_hot_where_the_map_is() -> None:
    image = Image.new("RGB", (40, 24), (90, 120, 60))
    heat = torch.zeros(3, 5)
    heat[1, 3] = 2.0
    shown = pixels(overlay(image, heat))
    assert shown.shape == (24, 40, 3)
    place = np.unravel_index(shown.sum(-1).argmax(), shown.shape[:2])
    assert 8 <= place[0] < 16 and 24 <= place[1] < 32
    assert pixel_distance(image, overlay(image, torch.zeros(3, 5))) > 0  # grey, and no NaN


# ---------------------------------------------------------------- the command


def test_the_command_writes_what_the_library_finds(
    pipe: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("tiny")
    Path("mine.txt").write_text("a blue dog\n\na dog\n", encoding="utf-8")
    done = main(
        ["study", PROMPT, "-m", "tiny", "--own", "mine.txt", "--steps", "1", "-o", "r.html",
         "-o", "t.csv", "--cache", "kept"]
    )  # fmt: skip
    assert done == 0, capsys.readouterr().err
    assert capsys.readouterr().out.split() == ["r.html", "t.csv"]
    assert "data:image/webp" in Path("r.html").read_text("utf-8")
    assert len(Path("t.csv").read_text("utf-8").splitlines()) == 1 + 2 * 3
    assert list(Path("kept").rglob("*.png"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--variants", ""],
        ["--variants", "negaton"],
        ["--variants", "language", "--names", "de,tlh"],
        ["--towers", "emojy-1"],
        ["-o", "report.pdf"],
        ["-o", "nowhere/report.html"],
        ["--variants", "language", "--names", "missing.json"],
        ["--own", "missing.txt"],
        ["-m", "emoji-xl", "-n", "0"],
        ["-m", "emoji-xl", "-n", "-3"],
    ],
)
def test_a_bad_command_is_one_line(arguments: list[str], capsys: Any, tmp_path: Path) -> None:
    assert main(["study", PROMPT, *arguments]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("bridge: error: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--names", "de,ja"], "--names"),
        (["--names", "de", "--variants", "case,negation"], "--names"),
        (["--image-tower", "emojy-1"], "--image-tower"),
        (["--choices", "all", "-n", "1", "--steps", "20"], "--choices, --images, --steps"),
        (["--guidance", "5"], "--guidance"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    arguments: list[str], told: str, capsys: Any
) -> None:
    assert main(["study", PROMPT, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {told} " in line


@pytest.mark.models
def test_languages_by_comma_whatever_folders_there_are(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("de").mkdir()
    for names, texts in (("de", ["rot Katze"]), ("de, fr", ["rot Katze", "chat rouge"])):
        command = ["study", PROMPT, "--towers", "emoji-1", "--variants", "language"]
        assert main([*command, "--names", names, "-o", "t.csv"]) == 0, capsys.readouterr().err
        with Path("t.csv").open(encoding="utf-8", newline="") as table:
            found = [row["text"] for row in csv.DictReader(table) if row["operation"] == "language"]
        assert found == texts


@pytest.mark.models
def test_no_line_of_progress_is_left(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for arguments, done in ((["--towers", "emoji-1"], 0), (["--towers", "emojy-1"], 2)):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(["study", "a cat", "--variants", "case", *arguments]) == done
        shown, _, last = terminal.getvalue().rpartition("\r\033[K")
        assert (last == "") == (done == 0) and ("emoji-1 reads" in shown) == (done == 0)
