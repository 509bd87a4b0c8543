"""The panel under the chat that shows what the last answer looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from demos.asking import NO_WORDS, Turn
from demos.limits import ASK, QUICK
from demos.looking import (
    BLANKED,
    KINDS,
    NEAREST,
    Look,
    kind_of,
    look,
    look_html,
    word_choices,
    word_of,
)
from demos.messages import explain, note, scrolled, show_alert
from demos.models import Models
from demos.uploads import picture_of, uploaded


@dataclass(eq=False)
class Sight:
    """What one visitor has looked at. Events run side by side and share it, so that a look that
    takes long can see that the panel was closed meanwhile."""

    looks: dict[str, tuple[list[Turn], Look]] = field(default_factory=dict)  # kind -> of what, it
    closings: int = 0


@dataclass(frozen=True, eq=False)
class LookPanel:
    """A button, and what it opens: the way of looking, the word, the picture."""

    models: Models
    status: gr.HTML  # where errors are told
    button: gr.Button
    panel: gr.Column
    kind: gr.Radio
    word: gr.Radio
    figure: gr.HTML
    sight: gr.State  # a Sight, the same object in every event of a visitor

    def wire(self, picture: gr.Image, turns: gr.State) -> None:
        """Show the last of ``turns``."""
        shown = [self.panel, self.word, self.figure, self.status]
        opened = gr.on(
            [self.button.click, self.kind.input],
            self._open,
            [picture, turns, self.kind, self.word, self.sight],
            shown,
            preprocess=False,
            show_progress="hidden",
            api_visibility="private",
            **ASK,
        )
        # The picture comes below the fold on most screens, and what went wrong above it.
        for script in (scrolled("#look-figure", "nearest"), show_alert("ask-status")):
            opened.then(None, None, None, js=script)
        self.word.input(
            self._pick,
            [self.kind, self.word, self.sight],
            self.figure,
            preprocess=False,
            api_visibility="private",
            **QUICK,
        )

    def follow(self, turns: gr.State, *changes: Any) -> None:
        """Close the panel after each event that changes ``turns``: it shows another answer."""
        for change in changes:
            change.then(
                self._close,
                [turns, self.sight],
                [self.button, self.panel, self.kind],
                show_progress="hidden",
                api_visibility="private",
                **QUICK,
            )

    def _close(self, turns: list[Turn], sight: Sight) -> dict[Any, Any]:
        sight.closings += 1
        sight.looks.clear()
        return {
            self.button: gr.Button(interactive=bool(turns) and turns[-1][1] != NO_WORDS),
            self.panel: gr.Column(visible=False),
            self.kind: BLANKED,
        }

    def _open(
        self,
        given: Any,
        turns: list[Turn],
        kind: Any,
        word: Any,
        sight: Sight,
    ) -> Iterator[dict[Any, Any]]:
        begun = sight.closings
        try:
            kind, path = kind_of(kind), uploaded(given)
            if path is None or not turns:
                return
            of, found = sight.looks.get(kind, (None, None))
            if found is None or of != turns:
                yield {self.panel: gr.Column(visible=True), self.figure: note("Looking…")}
                found = look(self.models, picture_of(path), turns, kind)
                if sight.closings != begun:
                    return  # the picture of an answer that is no longer the last
                sight.looks[kind] = (turns, found)
            picked = word_of(word, found)
            yield {
                self.panel: gr.Column(visible=True),
                # The lens is of the picture, whatever was answered: there is no word to pick.
                self.word: gr.Radio(
                    choices=word_choices(found), value=picked, visible=kind != NEAREST
                ),
                self.figure: look_html(found, picked),
                self.status: "",
            }
        except Exception as error:
            if sight.closings != begun:
                return
            yield {self.panel: gr.Column(visible=False), self.status: explain(error)}

    def _pick(self, kind: Any, word: Any, sight: Sight) -> str:
        if kind not in list(sight.looks):  # a list, since what is sent need not be hashable
            return ""
        seen = sight.looks[kind][1]
        return look_html(seen, word_of(word, seen))


def look_panel(models: Models, status: gr.HTML) -> LookPanel:
    """Lay the panel out, closed, inside an open `gr.Blocks`."""
    button = gr.Button("What it looked at", interactive=False, size="sm", elem_id="look")
    with gr.Column(visible=False, elem_id="look-panel") as panel:
        kind = gr.Radio(list(KINDS), value=BLANKED, label="How to look", elem_id="look-kind")
        word = gr.Radio([], label="Word of the answer", elem_id="look-word")
        figure = gr.HTML(elem_id="look-figure")
    return LookPanel(models, status, button, panel, kind, word, figure, gr.State(Sight()))
