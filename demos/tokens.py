"""The token report under the prompt, made anew at every keystroke."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bridge.prompt import TokenReport, plan_report
from demos.messages import explain
from demos.models import Models

# diffusers' names of the towers, in words.
_TOWERS = {"text_encoder": "Tower 1", "text_encoder_2": "Tower 2", "text_encoder_3": "Tower 3"}


def token_html(models: Models, prompt: str, steps: float | None = 20) -> str:
    """Which tokens each tower reads, at which of the run's steps, how many of its context, and
    what is cut off."""
    if not prompt.strip():
        return ""
    try:
        report = plan_report(prompt, models.tokenizers(), steps=max(1, int(steps or 1)))
        return _joined(report).html()
    except Exception as error:
        return explain(error)


def _joined(report: TokenReport) -> TokenReport:
    """Towers that read the very same tokens become one, so that nothing is said twice."""
    groups: dict[Any, list[Any]] = {}
    for tower in report.towers:
        groups.setdefault(replace(tower, name=""), []).append(tower)
    towers = tuple(
        replace(same[0], name=" and ".join(_TOWERS.get(t.name, t.name) for t in same))
        for same in groups.values()
    )
    return replace(report, towers=towers)
