"""A model folder's code never runs, whatever the folder says and whoever answers "y"."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.places import ROOT

ROOMS = ("bridge", "demos", "benchmarks")
# Who takes trust_remote_code in transformers and diffusers. Where it is left out, transformers
# asks on standard input whether a folder's code may run. (Of a model's generate it is taken too.)
ASKING = ("from_pretrained", "from_config", "from_model_id", "load_custom_generate", "download")
ASKING_FUNCTIONS = ("hf_pipeline", "AutoPipeline")


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def takes_it(call: ast.Call) -> bool:
    """Whether a call is one of transformers or diffusers that could run a folder's code."""
    called = call.func
    if isinstance(called, ast.Name):
        return called.id in ASKING_FUNCTIONS
    if not isinstance(called, ast.Attribute):
        return False
    if called.attr == "generate":  # a language model's; bridge.generate draws
        owner = ast.unparse(called.value)
        return owner.endswith("llm") or owner in ("model", "stock")
    of_transformers = called.attr == "pipeline" and ast.unparse(called.value) == "transformers"
    return called.attr in ASKING or of_transformers


def names_it(call: ast.Call) -> bool:
    values = [word.value for word in call.keywords if word.arg == "trust_remote_code"]
    return [isinstance(v, ast.Constant) and v.value is False for v in values] == [True]


def test_every_call_says_that_no_code_may_run() -> None:
    found = [
        (f"{path.relative_to(ROOT)}:{call.lineno}", names_it(call))
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for call in calls(path)
        if takes_it(call)
    ]
    assert len(found) > 20, "the calls are not found any more"
    assert [place for place, named in found if not named] == []


@pytest.mark.parametrize(
    ("line", "asks", "says"),
    [
        ("AutoTokenizer.from_pretrained(folder)", True, False),
        ("AutoTokenizer.from_pretrained(folder, trust_remote_code=False)", True, True),
        ("AutoTokenizer.from_pretrained(folder, trust_remote_code=True)", True, False),
        ("AutoTokenizer.from_pretrained(folder, trust_remote_code=wish)", True, False),
        ("getattr(transformers, kind).from_pretrained(folder, **options)", True, False),
        ("AutoModel.from_config(config)", True, False),
        ("transformers.pipeline('text-generation')", True, False),
        ("self.llm.generate(ids)", True, False),
        ("bridge.generate('a cat')", False, False),
        ("CLIPConfig.from_dict(values)", False, False),
    ],
)
def test_the_rule_sees_what_it_should(line: str, asks: bool, says: bool) -> None:
    (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)
               and takes_it(node) == asks and not isinstance(node.func, ast.Name))  # fmt: skip
    assert names_it(call) == says
