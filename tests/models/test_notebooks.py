"""The notebooks: kept without outputs, and every cell runs, with the weights that ship.

Cells run one after another in a fresh process, in an empty folder and without a display; what a
cell ends with is shown as Jupyter would show it. Jupyter itself is not needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# The sources of the cells come as JSON; a cell that fails ends the process with its number.
RUN_CELLS = """
import ast, json, sys
space = {"__name__": "__main__"}
for number, source in enumerate(json.loads(sys.stdin.read()), 1):
    print("cell", number, file=sys.stderr, flush=True)
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), space)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), space)
        for way in ("_repr_png_", "_repr_html_", "__repr__"):
            if value is not None and hasattr(value, way):
                shown = getattr(value, way)()
                assert shown, f"cell {number} shows nothing by {way}"
                print(f"cell {number} shows", type(value).__name__)
                break
"""
# What is drawn or learnt, and said.
SAID = {
    "four_dialects_two_towers": ("compel   two", "a1111    two · red ×1.21", "shows Image"),
    "word_by_word": ("what is on the right? -> a cat", "after:", "shows Image"),
    "a_projector_in_five_minutes": ("12 pairs are held out", "loss ", "shows Image"),
}


def cells_of(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"])


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS} == {*SAID}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_it_gave(path: Path) -> None:
    """So that a change of a cell is the only change that git sees."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["language_info"] == {"name": "python"}  # and no version of it
    cells = notebook["cells"]
    assert [cell["id"] for cell in cells] == [f"{path.stem}-{k + 1}" for k in range(len(cells))]
    assert cells[0]["cell_type"] == "markdown"
    for cell in cells:
        assert not cell["metadata"], cell["id"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    sources = ["".join(c["source"]) for c in cells_of(path) if c["cell_type"] == "code"]
    around = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "Agg",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN_CELLS],
        input=json.dumps(sources),
        cwd=tmp_path,
        env=around,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for each in SAID[path.stem]:
        assert each in done.stdout, done.stdout[-4000:]
    if path.stem == "a_projector_in_five_minutes":
        right = done.stdout.partition("held out: ")[2].split()
        assert int(right[0]) >= int(right[2]) // 2, done.stdout  # 0 before
