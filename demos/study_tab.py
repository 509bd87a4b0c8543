"""The tab Study: phrasings of a prompt side by side, as towers read and as the model draws them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from bridge.lab.variants import USUAL
from demos.drawing import Stops
from demos.limits import QUICK, STOP, STUDY, TYPING
from demos.messages import explain, kept, note, scrolled
from demos.models import TOWERS, Models
from demos.study_page import count_html, pictures_html, step_html, summary, tables_html
from demos.studying import CHOICES, MOST_DRAWN, Inquiry, Step, Stopped, Studied, heat_words, study

PROMPT = "a red cat left of a blue dog"
OWN = "a blue dog right of a red cat\na blue cat left of a red dog"


# What a page offers until it is told which model draws: all towers of the kinds that bridge draws
# with, so that a caller of the API, who opens no page, can name any.
_COMPONENTS = ("text_encoder", "text_encoder_2")
_REPORT, _TABLE = "Report (HTML)", "Table (CSV)"


def study_tab(models: Models) -> None:
    """Lay out the tab and wire its events, inside an open `gr.Blocks`."""
    towers_at_first = TOWERS if models.draws == "emoji-xl" else _COMPONENTS
    with gr.Row(elem_classes="bridge-halves"):
        with gr.Column():
            prompt = gr.Textbox(
                label="Prompt", value=PROMPT, lines=1, max_lines=4, elem_id="study-prompt"
            )
            own = gr.Textbox(
                label="Phrasings of your own", value=OWN, info="One a line.", lines=3, max_lines=12,
                elem_id="study-own",
            )  # fmt: skip
            operations = gr.CheckboxGroup(
                list(USUAL),
                label="Variants",
                info="Made from the prompt.",
                elem_id="study-variants",
            )
        with gr.Column():
            towers = gr.CheckboxGroup(
                list(towers_at_first),
                value=list(towers_at_first),
                label="Towers that read",
                elem_id="study-towers",
            )
            with gr.Group():
                draws = gr.Checkbox(
                    label="Draw", info=f"At most {MOST_DRAWN} phrasings.", elem_id="study-draw"
                )
                with gr.Column(visible=False) as brush:
                    heat = gr.Checkbox(
                        label="Heat maps", value=True, info="Where each word was looked at.",
                        elem_id="study-heat",
                    )  # fmt: skip
                    choices = gr.CheckboxGroup(
                        list(CHOICES.items()), value=["whole"], label="Drawn by",
                        elem_id="study-choices",
                    )  # fmt: skip
                    steps = gr.Slider(1, 30, value=8, step=1, label="Steps")
            seed = gr.Number(
                label="Seed", info="Of pictures and of shuffled words.", value=0, precision=0,
                elem_id="study-seed",
            )  # fmt: skip
    count = gr.HTML(count_html(Inquiry(PROMPT, OWN)), elem_id="study-count")
    start = gr.Button("Study", variant="primary", elem_id="study")
    stop = gr.Button("Stop", variant="stop", visible=False, elem_id="study-stop")
    status = gr.HTML(elem_id="study-status")
    with gr.Column(visible=False, elem_id="study-results") as results:
        tables = gr.HTML(elem_id="study-tables")
        word = gr.Radio([], label="Heat maps of the word", visible=False, elem_id="study-word")
        pictures = gr.HTML(elem_id="study-pictures")
        with gr.Row():
            page = gr.DownloadButton(_REPORT, min_width=140, elem_id="study-html")
            sheet = gr.DownloadButton(_TABLE, min_width=140, elem_id="study-csv")

    studied = gr.State(None)
    stops = Stops()

    def run(
        prompt: str,
        own: str,
        operations: list[str],
        towers: list[str],
        draws: bool,
        heat: bool,
        choices: list[str],
        steps: float,
        seed: float | None,
        before: Studied | None,
        request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:
        halted = stops.begin(str(request.session_hash))
        idle = {start: gr.Button(visible=True), stop: gr.Button(visible=False)}
        asked = Inquiry(prompt, own, operations, towers, draws, heat, choices, steps, seed)
        try:
            for report in study(models, asked, halted):
                if isinstance(report, Step):
                    yield {
                        status: step_html(report),
                        results: gr.Column(visible=False),
                        start: gr.Button(visible=False),
                        stop: gr.Button(visible=True),
                    }
                else:
                    # Gradio keeps a copy of its own, and deletes that when the app's time is up.
                    with tempfile.TemporaryDirectory() as folder:
                        yield {**idle, **finished(report, Path(folder))}
        except Stopped:
            yield {**idle, **still(before, note("Stopped."))}
        except Exception as error:
            yield {**idle, **still(before, explain(error))}
        finally:
            stops.end(halted)

    def still(before: Studied | None, told: str) -> dict[Any, Any]:
        """What is said, and beneath it the study before, if there was one, marked as such."""
        if before is None:
            return {status: told}
        prompt = before.study.settings["prompts"][0]
        return {
            status: told + kept(f"Below is still the earlier study of “{prompt}”."),
            results: gr.Column(visible=True),
            page: gr.DownloadButton(f"Earlier study: {_REPORT}"),
            sheet: gr.DownloadButton(f"Earlier study: {_TABLE}"),
        }

    def finished(found: Studied, folder: Path) -> dict[Any, Any]:
        words = heat_words(found.study)
        return {
            status: note(summary(found)),
            results: gr.Column(visible=True),
            tables: tables_html(found),
            word: gr.Radio(choices=words, value=words[0] if words else None, visible=bool(words)),
            pictures: pictures_html(found, words[0] if words else None),
            page: gr.DownloadButton(_REPORT, value=str(found.study.save(folder / "study.html"))),
            sheet: gr.DownloadButton(_TABLE, value=str(found.study.save(folder / "study.csv"))),
            studied: found,
        }

    def halt(request: gr.Request) -> None:
        stops.stop(str(request.session_hash))

    def fit() -> dict[Any, Any]:
        """Offer what the model has."""
        try:
            names, ways = models.tower_names(), models.choices()
        except Exception as error:
            return {status: explain(error)}
        offered = [(name, way) for name, way in CHOICES.items() if way in ways]
        return {
            towers: gr.CheckboxGroup(choices=list(names), value=list(names)),
            choices: gr.CheckboxGroup(choices=offered),
        }

    # Without triggers: when a page is opened.
    gr.on(
        None,
        fit,
        None,
        [towers, choices, status],
        show_progress="hidden",
        api_visibility="private",
        **QUICK,
    )

    def told(prompt: str, own: str, operations: list[str], draws: bool) -> str:
        return count_html(Inquiry(prompt, own, operations, draws=draws))

    counted = [prompt, own, operations, draws]
    gr.on(
        [each.change for each in counted],
        told,
        counted,
        count,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
        **TYPING,
    )
    draws.change(
        lambda ticked: gr.Column(visible=bool(ticked)),
        draws,
        brush,
        show_progress="hidden",
        api_visibility="private",
        **QUICK,
    )
    gr.on(
        [prompt.submit, start.click],
        run,
        [prompt, own, operations, towers, draws, heat, choices, steps, seed, studied],
        [status, results, tables, word, pictures, page, sheet, studied, start, stop],
        show_progress="hidden",
        api_name="study",
        **STUDY,
    ).then(None, None, None, js=scrolled("#study-status", "start"))
    stop.click(halt, None, None, api_visibility="private", **STOP)
    word.input(
        lambda found, picked: pictures_html(found, picked) if found else "",
        [studied, word],
        pictures,
        show_progress="hidden",
        api_visibility="private",
        **QUICK,
    )
