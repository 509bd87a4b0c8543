"""The tab Ask: questions about an uploaded or a drawn picture, answered as a chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from demos.asking import NO_WORDS, Turn, answer, read_question
from demos.limits import ASK, QUICK
from demos.look_panel import LookPanel, look_panel
from demos.messages import explain, problem, show_alert
from demos.models import Models
from demos.uploads import picture_of, uploaded

QUESTIONS = [
    "what is on the left?",
    "how many cats are there?",
    "what colour is the apple?",
    "is there a dog?",
    "which style is it?",
    "what is the background colour?",
    "describe the picture.",
]

# For models that are not known here.
OTHER_QUESTIONS = [
    "describe the picture.",
    "what is in the foreground?",
    "which colours are there?",
    "what could be its title?",
]

_EMPTY = "Upload a picture, or draw one and press “Ask about this picture”. Then ask."
_NO_PICTURE = "There is no picture yet. Upload one, or draw one first."


@dataclass(frozen=True)
class AskTab:
    """The parts of the tab that the rest of the app is wired to."""

    picture: gr.Image
    chat: gr.Chatbot
    turns: gr.State
    status: gr.HTML
    question: gr.Textbox
    look: LookPanel


def ask_tab(models: Models) -> AskTab:
    """Lay out the tab and wire its own events, inside an open `gr.Blocks`."""
    questions = QUESTIONS if models.answers_emoji else OTHER_QUESTIONS
    with gr.Row(elem_classes="bridge-grid"):
        with gr.Column(elem_classes="bridge-words"):
            picture = gr.Image(
                label="Picture",
                format="png",
                sources=["upload", "clipboard"],
                height=320,
                alt_text="The picture that is asked about",
                elem_id="picture",
            )
            status = gr.HTML(elem_id="ask-status")
        with gr.Column(elem_classes="bridge-picture"):
            chat = gr.Chatbot(
                label="Answers",
                height=380,
                placeholder=_EMPTY,
                render_markdown=False,
                feedback_options=None,
                buttons=[],
                elem_id="chat",
            )
            with gr.Row(elem_classes="bridge-line"):
                question = gr.Textbox(
                    label="Question",
                    value="",
                    placeholder=questions[0],
                    lines=1,
                    max_lines=4,
                    scale=5,
                    elem_id="question",
                )
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", min_width=100, elem_id="ask")
                clear = gr.Button("Clear", min_width=100, elem_id="clear")
            panel = look_panel(models, status)
        with gr.Column(elem_classes="bridge-more"):
            examples = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=[[text] for text in questions],
                label="Examples: a click asks",
                elem_id="ask-examples",
            )

    turns = gr.State([])
    panel.wire(picture, turns)

    def run(given: Any, asked: Any, earlier: list[Turn]) -> Iterator[dict[Any, Any]]:
        try:
            path = uploaded(given)
            if path is None:
                yield {status: problem(_NO_PICTURE)}
                return
            asked = read_question(asked)
            seen = picture_of(path)
            yield {chat: messages(earlier, (asked, "…")), status: "", question: ""}
            said = ""
            for said in answer(models, seen, asked, earlier):
                yield {chat: messages(earlier, (asked, said))}
            told = said or NO_WORDS
            yield {
                chat: messages(earlier, (asked, told)),
                turns: [*earlier, (asked, told)],
            }
        except Exception as error:
            # The question goes back into its box, so that it can be put right.
            yield {chat: messages(earlier), status: explain(error), question: _again(asked)}

    def check(given: Any) -> dict[Any, Any]:
        begun_anew: dict[Any, Any] = {chat: [], turns: []}
        try:
            path = uploaded(given)
            if path is None:
                return {**begun_anew, status: ""}
            return {**begun_anew, picture: picture_of(path), status: ""}
        except Exception as error:
            return {**begun_anew, picture: None, status: explain(error)}

    def wipe() -> dict[Any, Any]:
        return {picture: None, chat: [], turns: [], status: "", question: ""}

    form = [picture, question, turns]
    shown = [chat, turns, status, question]
    changes = [
        picture.upload(
            check,
            picture,
            [picture, chat, turns, status],
            preprocess=False,
            api_visibility="private",
            **QUICK,
        ),
        picture.clear(wipe, None, [picture, *shown], api_visibility="private", **QUICK),
        chat.clear(lambda: ([], ""), None, [turns, status], api_visibility="private", **QUICK),
        clear.click(wipe, None, [picture, *shown], api_visibility="private", **QUICK),
        gr.on(
            [question.submit, ask.click],
            run,
            form,
            shown,
            preprocess=False,
            show_progress="hidden",
            api_name="ask",
            **ASK,
        ),
        examples.click(
            lambda sample: sample[0] if sample else "",
            examples,
            question,
            api_visibility="private",
            **QUICK,
        ).then(
            run,
            form,
            shown,
            preprocess=False,
            show_progress="hidden",
            api_visibility="private",
            **ASK,
        ),
    ]
    panel.follow(turns, *changes)
    for each in changes:
        each.then(None, None, None, js=show_alert("ask-status"))
    return AskTab(picture, chat, turns, status, question, panel)


def _again(asked: Any) -> str:
    """A question for the box that it came from; half a character cannot be sent back."""
    return asked.encode("utf-8", "replace").decode() if isinstance(asked, str) else ""


def messages(turns: Sequence[Turn], newest: Turn | None = None) -> list[dict[str, str]]:
    """Turns as the chat shows them."""
    shown = [*turns, newest] if newest else list(turns)
    return [
        {"role": role, "content": text}
        for turn in shown
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
