"""The tab Compare: pictures beside texts, and how near each is to each in a CLIP's space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from bridge.embedded import IMAGE_TOWER
from demos.compare_page import languages, matrices_html, summary_html
from demos.comparing import HEAD, OWN, WORDINGS, Request, compare, readers
from demos.limits import COMPARE, MOST_COMPARED, QUICK
from demos.messages import explain, note, scrolled
from demos.models import Models

EXAMPLES = [
    "cat\ndog\napple\nbanana\ncar\nkey",
    "two red apples left of a cat\na cat left of two red apples\na cat, blue background",
    "Hund\nchat\nリンゴ\n钥匙\n장미",
]


@dataclass(frozen=True)
class CompareTab:
    """The parts of the tab that the rest of the app is wired to."""

    pictures: gr.Gallery
    status: gr.HTML


def compare_tab(models: Models) -> CompareTab:
    """Lay out the tab and wire its own events, inside an open `gr.Blocks`."""
    there = readers().values()
    with gr.Row(elem_classes="bridge-halves"):
        with gr.Column():
            pictures = gr.Gallery(
                label=f"Pictures, up to {MOST_COMPARED}",
                file_types=["image"],
                sources=["upload", "clipboard"],
                format="png",
                columns=4,
                height=260,
                object_fit="contain",
                allow_preview=False,
                buttons=[],
                interactive=True,
                elem_id="compare-pictures",
            )
            labels = gr.Textbox(
                label="Labels or captions",
                value=EXAMPLES[0],
                info="One a line.",
                lines=6,
                max_lines=12,
                elem_id="compare-labels",
            )
        with gr.Column():
            examples = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=[[text] for text in EXAMPLES],
                sample_labels=[", ".join(text.splitlines()) for text in EXAMPLES],
                label="Examples: a click writes them",
                elem_id="compare-examples",
            )
            reads = gr.CheckboxGroup(
                [(f"{each.name}: {languages(each)}", each.name) for each in there],
                value=[each.name for each in there if each.name == IMAGE_TOWER],
                label="Models that compare",
                info="Two or more stand side by side.",
                elem_id="compare-models",
            )
            wording = gr.Radio(
                list(WORDINGS.items()),
                value=HEAD,
                label="How a text is put",
                info="The head is fitted to names of things; captions go as written.",
                elem_id="compare-wording",
            )
            sentences = gr.Textbox(
                label="Sentences of your own",
                value="a picture of a {}",
                info="One a line, with {} for the text's place; several are averaged.",
                lines=2,
                max_lines=8,
                visible=False,
                elem_id="compare-sentences",
            )
    start = gr.Button("Compare", variant="primary", elem_id="compare")
    status = gr.HTML(elem_id="compare-status")
    results = gr.HTML(elem_id="compare-results")

    def run(
        pictures: Any, labels: Any, reads: Any, wording: Any, sentences: Any
    ) -> Iterator[dict[Any, Any]]:
        yield {status: note("Comparing…")}
        try:
            found = compare(models, Request(pictures, labels, reads, wording, sentences))
            yield {status: summary_html(found), results: matrices_html(found)}
        except Exception as error:
            # What was compared before is gone: it may be of other pictures and texts.
            yield {status: explain(error), results: ""}

    wording.change(
        lambda picked: gr.Textbox(visible=picked == OWN),
        wording,
        sentences,
        show_progress="hidden",
        api_visibility="private",
        **QUICK,
    )
    examples.click(
        lambda sample: sample[0] if sample else "",
        examples,
        labels,
        api_visibility="private",
        **QUICK,
    )
    start.click(
        run,
        [pictures, labels, reads, wording, sentences],
        [status, results],
        # Else Gradio would open the pictures itself, and end at the first that it cannot.
        preprocess=False,
        show_progress="hidden",
        api_name="compare",
        **COMPARE,
    ).then(None, None, None, js=scrolled("#compare-status", "start"))
    return CompareTab(pictures, status)
