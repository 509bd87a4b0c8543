"""HTML comes from literal templates whose values are escaped in one place, `bridge.markup`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support.places import ROOT

from bridge.markup import fill, joined

FILES = [*sorted((ROOT / "bridge").rglob("*.py")), ROOT / "demos" / "study_page.py"]
# A tag with attributes, or one that closes: `<lora:name:0.8>` and `<end>` are no HTML.
TAG = re.compile(r"</[a-z]+[0-9]?>|<[a-z]+[0-9]? [a-z-]+=")


def test_values_are_escaped_and_markup_is_not() -> None:
    inner = fill("<b>{}</b>", '<i a="1">')
    assert inner == "<b>&lt;i a=&#34;1&#34;&gt;</b>"
    assert fill("<p>{} {n:.2f}</p>", inner, n=0.5) == f"<p>{inner} 0.50</p>"
    assert joined(["<a>", inner], "<br>") == f"&lt;a&gt;<br>{inner}"


def test_no_html_is_made_by_hand() -> None:
    assert [fault for path in FILES for fault in faults(path)] == []


def faults(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            text = "{}".join(
                str(part.value) for part in node.values if isinstance(part, ast.Constant)
            )
            if TAG.search(text):
                yield f"{path}:{node.lineno}: an f-string with tags"
        filled = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fill"
        if filled and not isinstance(node.args[0], ast.Constant):
            yield f"{path}:{node.lineno}: a template that is no literal"
