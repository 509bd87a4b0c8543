"""Text in, token plans out. No torch, no weights.

``parse`` reads a prompt in a dialect, ``at_step`` and ``intervals`` say what it is over the steps
of a run, ``translate`` writes it in another dialect. ``plan`` gives one tower's ids with their
place in the source, and ``plan_report`` shows what becomes of a prompt.
"""

from bridge.prompt.dialect import DIALECTS, Dialect
from bridge.prompt.prompt import Flat, Interval, Part, Prompt, at_step, intervals, parse
from bridge.prompt.report import TokenReport, TokenRow, TowerReport, plan_report, report_of
from bridge.prompt.syntax import Span, check_paired, check_prompts, check_text
from bridge.prompt.token_plan import (
    NORMALISATIONS,
    Reader,
    Token,
    TokenPlan,
    TruncationWarning,
    Window,
    normalised,
    plan,
    plan_many,
)
from bridge.prompt.translation import Loss, Translation, translate
from bridge.prompt.wildcards import expand
from bridge.prompt.windows import LONG_PROMPTS, LongPrompt

__all__ = [
    "DIALECTS",
    "LONG_PROMPTS",
    "NORMALISATIONS",
    "Dialect",
    "Flat",
    "Interval",
    "LongPrompt",
    "Loss",
    "Part",
    "Prompt",
    "Reader",
    "Span",
    "Token",
    "TokenPlan",
    "TokenReport",
    "TokenRow",
    "TowerReport",
    "Translation",
    "TruncationWarning",
    "Window",
    "at_step",
    "check_paired",
    "check_prompts",
    "check_text",
    "expand",
    "intervals",
    "normalised",
    "parse",
    "plan",
    "plan_many",
    "plan_report",
    "report_of",
    "translate",
]
