"""Whoever makes floats names their dtype: torch's default belongs to the whole process.

transformers and diffusers set it while they load a model in half precision, so that another
thread's ``torch.tensor([0.3])`` is rounded without a word.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator

import pytest
import torch
from support.places import ROOT
from support.public_doors import Door, digest, doors

from bridge.errors import OffManifoldWarning

SOURCES = [
    path
    for folder in ("bridge", "demos", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# All that torch makes of a shape or of plain numbers. (`from_numpy` takes numpy's dtype, `*_like`
# and `new_*` another tensor's, `randint` and `randperm` give whole numbers.)
MAKERS = frozenset(
    {"tensor", "as_tensor", "asarray", "scalar_tensor", "zeros", "ones", "full", "empty", "eye",
     "empty_strided", "arange", "linspace", "logspace", "rand", "randn", "normal", "hann_window",
     "hamming_window", "bartlett_window", "blackman_window", "kaiser_window"}
)  # fmt: skip
# The modules of torch.nn that have parameters.
PARAMETRIC = frozenset(
    name
    for name, found in vars(torch.nn).items()
    if isinstance(found, type) and "dtype" in inspect.signature(found.__init__).parameters
)


def unnamed(source: str) -> list[int]:
    """The lines of calls that make floats by the process's default dtype."""
    tree = ast.parse(source)
    makers = {f"torch.{name}" for name in MAKERS}
    modules = {f"{nn}.{name}" for nn in ("nn", "torch.nn") for name in PARAMETRIC}
    wanted = makers | modules
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            wanted |= {each.asname or each.name for each in node.names if each.name in MAKERS}
    return sorted([*_calls(tree, wanted), *_subclasses(tree, modules), *_old(tree)])


def _calls(tree: ast.AST, wanted: set[str]) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in wanted:
            named = any(each.arg == "dtype" for each in node.keywords)
            yield from () if named else (node.lineno,)


def _subclasses(tree: ast.AST, modules: set[str]) -> Iterator[int]:
    """The constructor of a class that is such a module, called from its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and {ast.unparse(b) for b in node.bases} & modules:
            yield from _calls(node, {"super().__init__"})


def _old(tree: ast.AST) -> Iterator[int]:
    """What takes no dtype, or asks for the default or sets it."""
    names = {"torch.Tensor", "torch.FloatTensor", "torch.get_default_dtype",
             "torch.set_default_dtype", "torch.set_default_tensor_type"}  # fmt: skip
    yield from _calls(tree, names)


def test_every_float_is_made_in_a_named_dtype() -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        for line in unnamed(path.read_text(encoding="utf-8"))
    ]
    assert lines == [], "say dtype=, whole numbers too"


def test_the_check_sees_what_it_looks_for() -> None:
    bad = (
        "torch.tensor([0.5])",
        "torch.zeros(3, device=x.device)",
        "nn.Linear(3, 4)",
        "torch.nn.LayerNorm(3)",
        "from torch import ones\nones(3)",
        "class A(nn.Linear):\n def __init__(self):\n  super().__init__(3, 4)",
        "torch.Tensor([1.0])",
    )
    for text in bad:
        assert unnamed(text), text
    good = ("torch.zeros(3, dtype=x.dtype)", "nn.GELU()", "nn.ModuleList([])", "x.new_zeros(3)")
    for text in good:
        assert not unnamed(text), text


@pytest.fixture(scope="module")
def every_door(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Door]:
    return doors(tmp_path_factory.mktemp("doors"))


def in_half(door: Door) -> object:
    """What a door gives while the process's default dtype is a loader's."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        return door()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.models
def test_results_do_not_depend_on_the_default_dtype(every_door: dict[str, Door]) -> None:
    """As a race, but with the loader's half precision there for the whole call."""
    differ = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OffManifoldWarning)
        for name, door in every_door.items():
            if digest(door()) != digest(in_half(door)):
                differ.append(name)
    assert not differ
