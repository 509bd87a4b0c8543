"""What a user guesses: a keyword that is nearly right, and what an editor is told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest

import bridge
from bridge.errors import BridgeError, KeywordError, OptionError

RAISED = {"BridgeError"}
"""Public classes that a user does not make or call."""


def doors() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, and of every public class the constructor and the public methods."""
    for name in bridge.__all__:
        found = getattr(bridge, name)
        if name in RAISED:
            continue
        if not isinstance(found, type):
            yield name, found
            continue
        for method in vars(found):
            if method in ("__init__", "__call__") or not method.startswith("_"):
                kinds = FunctionType | classmethod | staticmethod  # and no property
                if isinstance(inspect.getattr_static(found, method), kinds):
                    yield f"{name}.{method}", getattr(found, method)


DOORS = dict(doors())


def keywords_of(door: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(door).parameters.values()
    return [each.name for each in parameters if each.kind in kinds and each.name != "self"]


def test_the_doors_are_there() -> None:
    wanted = {"generate", "describe", "study", "train_vlm", "inject", "release", "load_pipeline"}
    assert {*wanted, "Encoder.__init__", "Region.__init__", "BridgeVLM.chat"} <= {*DOORS}


@pytest.mark.parametrize("name", DOORS)
def test_a_keyword_that_is_nearly_right_names_the_nearest(name: str) -> None:
    door = DOORS[name]
    shown = name.removesuffix(".__init__")
    if shown.endswith(".__call__"):
        shown = shown.removesuffix(".__call__").lower()
    for keyword in keywords_of(door):
        slip = f"{keyword}z"
        with pytest.raises(KeywordError) as caught:
            door(**{slip: 1})
        assert f"{shown}() got an unexpected keyword argument {slip!r}" in str(caught.value)
        assert f"Did you mean {keyword!r}?" in str(caught.value)
    with pytest.raises(KeywordError, match=r"argument 'zzzzzzzz'\. It has: .+"):
        door(zzzzzzzz=1)


def test_the_error_is_pythons_own_and_bridges() -> None:
    for kind in (TypeError, OptionError, BridgeError):
        with pytest.raises(kind, match="Did you mean 'num_images'"):
            bridge.generate("a cat", num_image=4)  # type: ignore[call-arg]
