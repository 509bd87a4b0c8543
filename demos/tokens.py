"""The token report under the prompt, made anew at every keystroke."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bridge.diffusion.options import MAX_STEPS
from bridge.prompt import TokenReport, plan_report
from demos.limits import read_text, read_whole
from demos.messages import explain
from demos.models import Models

# diffusers' names of the towers, in words.
_TOWERS = {"text_encoder": "Tower 1", "text_encoder_2": "Tower 2", "text_encoder_3": "Tower 3"}


def token_html(models: Models, prompt: Any, steps: Any = 20) -> str:
    """Which tokens each tower reads, at which of the run's steps, how many of its context, and
    what is cut off."""
    try:
        prompt = read_text(prompt, "prompt")
        if not prompt.strip():
            return ""
        run = min(max(read_whole(steps, "steps"), 1), MAX_STEPS)
        report = plan_report(prompt, models.tokenizers(), steps=run)
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
