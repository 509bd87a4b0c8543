"""The tab Draw: a prompt becomes pictures, seen while they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from bridge.diffusion.options import default_guidance
from demos.drawing import Drawn, Stops, Wish, draw
from demos.limits import DRAW, QUICK, STOP, TYPING
from demos.messages import explain, kept, note, show_alert, warning
from demos.models import Models
from demos.pictures import columns_for, progress_html
from demos.tokens import token_html

EXAMPLES = [
    "two red apples left of a cat, blue background, noto style",
    "a dog above a pizza",
    "three stars, fluent style",
    "a blue car right of a tree, yellow background",
    "a big ghost, purple background, twemoji style",
    "four bananas",
]

# For models that are not known here: what any of them has seen.
OTHER_EXAMPLES = [
    "a red bicycle leaning on a white wall",
    "a bowl of oranges on a wooden table, morning light",
    "a lighthouse on a cliff at dusk, oil painting",
    "a (blue:1.2) car parked beside a green tree",
]

KEYS_HINT = (
    '<p class="bridge-note"><kbd>Ctrl</kbd> + <kbd>↑</kbd> or <kbd>↓</kbd> pulls the weight of '
    "the word at the cursor.</p>"
)


@dataclass(frozen=True)
class Pictured:
    """What the gallery shows: of which prompt, and each picture's seed."""

    prompt: str = ""
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class DrawTab:
    """The parts of the tab that the rest of the app is wired to."""

    gallery: gr.Gallery
    selected: gr.State
    ask: gr.Button
    compare: gr.Button
    status: gr.HTML


def draw_tab(models: Models) -> DrawTab:
    """Lay out the tab and wire its own events, inside an open `gr.Blocks`."""
    prompts = EXAMPLES if models.draws_emoji else OTHER_EXAMPLES
    with gr.Row(elem_classes="bridge-grid"):
        with gr.Column(elem_classes="bridge-words"):
            prompt = gr.Textbox(
                label="Prompt",
                value="",
                placeholder=prompts[0],
                lines=1,  # one line, so that Enter draws; it still grows with the text
                max_lines=5,
                autofocus=True,
                elem_id="prompt",
            )
            with gr.Row():
                start = gr.Button("Draw", variant="primary", elem_id="draw")
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
            tokens = gr.HTML(elem_id="tokens", label="Tokens")
            gr.HTML(KEYS_HINT, elem_id="keys")
        with gr.Column(elem_classes="bridge-picture"):
            status = gr.HTML(elem_id="draw-status")
            gallery = gr.Gallery(
                label="Pictures",
                columns=1,
                height="min(620px, 96vw)",
                object_fit="contain",
                format="png",
                type="pil",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="pictures",
            )
            with gr.Row():
                ask = gr.Button("Ask about this picture", interactive=False, elem_id="ask-about")
                compare = gr.Button("Compare this picture", interactive=False, elem_id="compare-it")
        with gr.Column(elem_classes="bridge-more"):
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                negative = gr.Textbox(
                    label="Negative prompt",
                    value="",
                    info="What should not be there.",
                    max_lines=3,
                    elem_id="negative",
                )
                with gr.Row():
                    rolled = gr.Checkbox(
                        label="🎲 New seed every time", value=True, min_width=150, elem_id="dice"
                    )
                    # Without a minimum: bridge itself says which seeds there are.
                    seed = gr.Number(
                        label="Seed", value=0, precision=0, min_width=150, elem_id="seed"
                    )
                steps = gr.Slider(1, 50, value=20, step=1, label="Steps")
                guidance = gr.Slider(
                    1,
                    15,
                    value=default_guidance(models.draws),
                    step=0.5,
                    label="Guidance",
                    info="How hard to follow the words.",
                )
                count = gr.Slider(1, 8, value=1, step=1, label="Pictures at once")
            examples = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=[[text] for text in prompts],
                label="Examples: a click draws",
                elem_id="draw-examples",
            )

    selected = gr.State(0)
    pictured = gr.State(Pictured())
    stops = Stops()
    onward = (ask, compare)

    def run(
        prompt: str,
        negative: str,
        rolled: bool,
        seed: float | None,
        steps: float,
        guidance: float,
        count: float,
        before: Pictured,
        request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:
        halted = stops.begin(str(request.session_hash))
        idle = {start: gr.Button(visible=True), stop: gr.Button(visible=False)}
        try:
            wish = Wish(prompt, negative, None if rolled else seed, steps, guidance, count)
            for report in draw(models, wish, halted):
                if isinstance(report, Drawn):
                    yield {**idle, **finished(report, prompt)}
                else:
                    yield {
                        status: progress_html(report, prompt),
                        gallery: gr.Gallery(visible=False),
                        # Hidden, not disabled: a drawing that fails need not know whether
                        # there were pictures before.
                        **dict.fromkeys(onward, gr.Button(visible=False)),
                        start: gr.Button(visible=False),
                        stop: gr.Button(visible=True),
                    }
        except Exception as error:
            yield {
                **idle,
                status: explain(error) + (kept(_still(before)) if before.seeds else ""),
                gallery: gr.Gallery(visible=True),
                **dict.fromkeys(onward, gr.Button(visible=True)),
            }
        finally:
            stops.end(halted)

    def finished(drawn: Drawn, prompt: str) -> dict[Any, Any]:
        captions = [f"Seed {number}: {prompt[:200]}" for number in drawn.seeds]
        n = len(drawn.images)
        return {
            status: note(summary(drawn)) + "".join(map(warning, drawn.warnings)),
            gallery: gr.Gallery(
                value=list(zip(drawn.images, captions, strict=True)),
                columns=columns_for(n),
                preview=n == 1,
                elem_classes="bridge-one" if n == 1 else "",
                selected_index=0 if n == 1 else None,
                visible=True,
            ),
            **dict.fromkeys(onward, gr.Button(visible=True, interactive=True)),
            selected: 0,
            # What was rolled stays at hand: without the tick it draws the same again.
            seed: drawn.seeds[0],
            pictured: Pictured(prompt, drawn.seeds),
        }

    def halt(request: gr.Request) -> None:
        stops.stop(str(request.session_hash))

    def select(now: Pictured, event: gr.EventData) -> dict[Any, Any]:
        # Not gr.SelectData, which takes for granted that the page sent it.
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(now.seeds):
            return {selected: index if isinstance(index, int) else 0}
        return {selected: index, seed: now.seeds[index]}

    gr.on(
        [prompt.change, steps.change],
        lambda text, steps: token_html(models, text, steps),
        [prompt, steps],
        tokens,
        show_progress="hidden",
        # While one report is made only the latest text waits: typing is never queued up.
        trigger_mode="always_last",
        api_visibility="private",
        **TYPING,
    )
    form = [prompt, negative, rolled, seed, steps, guidance, count, pictured]
    shown = [status, gallery, *onward, start, stop, selected, seed, pictured]
    drawn = gr.on(
        [prompt.submit, start.click],
        run,
        form,
        shown,
        show_progress="hidden",
        api_name="draw",
        **DRAW,
    )
    drawn_example = examples.click(
        lambda sample: sample[0] if sample else "",
        examples,
        prompt,
        api_visibility="private",
        **QUICK,
    ).then(
        run,
        form,
        shown,
        show_progress="hidden",
        api_visibility="private",
        **DRAW,
    )
    for each in (drawn, drawn_example):
        each.then(None, None, None, js=show_alert("draw-status"))
    stop.click(halt, None, None, api_visibility="private", **STOP)
    seed.input(lambda: False, None, rolled, api_visibility="private", **QUICK)
    gallery.select(
        select,
        pictured,
        [selected, seed],
        show_progress="hidden",
        api_visibility="private",
        **QUICK,
    )
    return DrawTab(gallery, selected, ask, compare, status)


def summary(drawn: Drawn) -> str:
    """What was drawn, in how long, and with which seeds."""
    what = "1 picture" if len(drawn.images) == 1 else f"{len(drawn.images)} pictures"
    first, last = drawn.seeds[0], drawn.seeds[-1]
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    steps = "1 step" if drawn.steps_done == 1 else f"{drawn.steps_done} steps"
    stopped = f", stopped after {steps}" if drawn.stopped else ""
    return f"{what} in {drawn.seconds:.1f} s{stopped} · {seeds}"


def _still(before: Pictured) -> str:
    what = "This is still the picture" if len(before.seeds) == 1 else "These are still the pictures"
    prompt = before.prompt.strip()
    return f"{what} of “{prompt if len(prompt) <= 80 else prompt[:80] + '…'}”."
