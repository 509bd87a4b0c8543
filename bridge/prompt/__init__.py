"""Text in, token plans out. No torch, no weights.

``parse`` reads a prompt, ``plan`` gives one tower's ids with their place in the source, and
``plan_report`` shows what becomes of a prompt.
"""

from bridge.prompt.check import check_paired, check_prompts, check_text
from bridge.prompt.plan import Token, TokenPlan, TruncationWarning, plan, plan_many
from bridge.prompt.report import TokenReport, TokenRow, TowerReport, plan_report, report_of
from bridge.prompt.syntax import DIALECTS, Prompt, Span, parse

__all__ = [
    "DIALECTS",
    "Prompt",
    "Span",
    "Token",
    "TokenPlan",
    "TokenReport",
    "TokenRow",
    "TowerReport",
    "TruncationWarning",
    "check_paired",
    "check_prompts",
    "check_text",
    "parse",
    "plan",
    "plan_many",
    "plan_report",
    "report_of",
]
