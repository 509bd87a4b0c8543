"""What a user guesses: a keyword that is nearly right, and what an editor is told."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from types import FunctionType
from typing import Any, ForwardRef, Literal, get_args, get_origin

import pytest

import bridge
from bridge.cleaning import _CLEANERS
from bridge.contrastive.losses import SAME_CAPTION
from bridge.contrastive.measuring import TASKS
from bridge.contrastive.train.options import LOSSES, MODES, ClipTrainKeywords, ClipTrainOptions
from bridge.encoding.algebra import METHODS
from bridge.encoding.emphasis import EMPHASES
from bridge.errors import BridgeError, KeywordError, OptionError
from bridge.lab.variants.operations import OPERATIONS
from bridge.prompt import DIALECTS, LONG_PROMPTS, NORMALISATIONS
from bridge.runtime import _DTYPES
from bridge.vlm.conversations import CONVERSATIONS
from bridge.vlm.explain.lens import _METHODS as LENSES
from bridge.vlm.train.options import TrainKeywords, TrainOptions

RAISED = {"BridgeError"}
"""Public classes that a user does not make or call."""
ROOMS = ("adapters", "contrastive", "diffusion", "encoding", "lab", "prompt", "vlm")


def functions_of_rooms() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public functions of the rooms."""
    for room in ROOMS:
        package = importlib.import_module(f"bridge.{room}")
        for name in package.__all__:
            # A projector's options are its own, and it has an error for them.
            if inspect.isroutine(getattr(package, name)) and name != "build_projector":
                yield name, getattr(package, name)


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


EVERY = {**dict(functions_of_rooms()), **DOORS}


@pytest.mark.parametrize("name", EVERY)
def test_a_keyword_that_is_nearly_right_names_the_nearest(name: str) -> None:
    door = EVERY[name]
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


# ---------------------------------------------------------------- what an editor completes

OPEN = {
    # texts
    "prompt", "negative_prompt", "prompts", "prompt_2", "negative_prompt_2", "prompt_3",
    "negative_prompt_3", "question", "questions", "caption_question", "choices", "unrelated",
    "texts", "chat_template", "image_token", "names", "labels", "templates", "label", "captions",
    "truth", "answer",
    # names that anybody gives: of models, parts, files, places
    "name", "model", "towers", "tower", "adapter", "vision", "llm", "base", "path", "folder",
    "data", "output", "image_folder", "feature_folder", "cache", "text", "image", "images",
    "evaluation", "student", "image_tower", "train", "tuned", "start", "out", "vision_tower",
    "device", "revision", "textual_inversions", "loras", "histories", "history", "chats", "rows",
    "messages", "turns", "adapters",
    # results that bridge itself makes
    "recipe", "source", "fingerprints", "addons", "warnings", "settings", "kind", "modules",
    "skipped",
    # what an error calls the text that is checked; classes of diffusers and transformers
    "what", "beside", "pipelines", "activation", "tokenizers",
    # a name of PROJECTORS, mlp1x_gelu to mlp16x_gelu, or one of the caller's own
    "projector",
}  # fmt: skip
"""Parameters that any text may be given for. A new option of a closed set is not among them: it is
a Literal, and ``CLOSED`` has its table."""

CLOSED = {
    "dialect": tuple(DIALECTS),
    "emphasis": tuple(EMPHASES),
    "token_normalization": NORMALISATIONS,
    "long_prompt": tuple(LONG_PROMPTS),
    "align": ("repeat", "empty"),
    "clean": tuple(_CLEANERS),
    "rule": ("new", "old"),
    "dtype": ("auto", *_DTYPES),
    "variants": tuple(OPERATIONS),
    "conversation": tuple(CONVERSATIONS),
    "method": METHODS,
    "normalise": ("none", "tokens", "bytes"),
    "padding": ("left", "right"),
    "select_feature": ("patch", "cls_patch", "drop_first"),
    "stage": (1, 2),
    "mixed_precision": ("bf16", "no"),
    "mode": MODES,
    "loss": LOSSES,
    "same_caption": SAME_CAPTION,
    "task": (*TASKS, "all"),
    "lens.method": LENSES,
}
"""An option's values; one of a function alone that another has with other values by both names."""


@cache
def names_in(module: str) -> dict[str, Any]:
    """What annotations of a file may name, its imports for type checkers too."""
    found = dict(vars(importlib.import_module(module)))
    for node in ast.parse(inspect.getsource(importlib.import_module(module))).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module, "exec"), found)
    return found


# Where the options are declared that others spell out.
DECLARED = (
    "bridge.encoding.options",
    "bridge.vlm.train.options",
    "bridge.contrastive.train.options",
    "bridge.diffusion.drawing",
)


def resolved(annotation: Any, module: str) -> Any:
    """An annotation as objects."""
    text = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation
    if not isinstance(text, str):
        return annotation
    for place in (module, *DECLARED):
        try:
            return eval(text, names_in(place))
        except NameError:
            continue
    raise NameError(f"{text} in {module}")


def literals(kind: Any, module: str) -> list[Any]:
    """The values of every Literal in a type, in order."""
    kind = resolved(kind, module)
    if get_origin(kind) is Literal:
        return [*get_args(kind)]
    return [value for part in get_args(kind) if part is not Ellipsis
            for value in literals(part, module)]  # fmt: skip


def takes_text(kind: Any, module: str) -> bool:
    kind = resolved(kind, module)
    if get_origin(kind) in (Literal, Mapping, dict, Callable):  # of mappings, keys are labels
        return False
    inner = [part for part in get_args(kind) if part is not Ellipsis]
    return kind is str or any(takes_text(part, module) for part in inner)


OPTIONS = [
    (name, parameter)
    for name, door in EVERY.items()
    for parameter in inspect.signature(door).parameters.values()
    if parameter.name != "self"
]


def taking_names(option: str) -> list[tuple[str, list[Any]]]:
    """The doors that take names for an option, each with those of its Literal."""
    door, _, name = option.rpartition(".")
    found = [
        (each, parameter.annotation, EVERY[each].__module__)
        for each, parameter in OPTIONS
        if parameter.name == name and (each == door if door else f"{each}.{name}" not in CLOSED)
    ]
    return [
        (each, literals(kind, module))
        for each, kind, module in found
        if literals(kind, module) or takes_text(kind, module)
    ]


@pytest.mark.parametrize("option", CLOSED)
def test_an_option_of_a_closed_set_is_the_literal_of_its_table(option: str) -> None:
    there = taking_names(option)
    assert there
    for name, found in there:
        assert {*found} == {*CLOSED[option]}, (name, found)
        if option not in ("dtype", "variants"):  # others than names come too
            assert [*dict.fromkeys(found)] == [*CLOSED[option]], (name, found)


@pytest.mark.parametrize("option", ["model", "towers", "adapter", "image_tower", "device", "seed"])
def test_what_a_user_gives_most_is_no_any(option: str) -> None:
    there = [(name, each) for name, each in OPTIONS if each.name == option]
    assert there
    for name, parameter in there:
        if name not in ("from_llava", "from_blip2"):  # objects of transformers, which has no types
            assert resolved(parameter.annotation, EVERY[name].__module__) is not Any, name


@pytest.mark.parametrize(
    "options, names", [(TrainOptions, TrainKeywords), (ClipTrainOptions, ClipTrainKeywords)]
)
def test_keywords_of_a_trainer_are_the_fields_of_its_options(options: type, names: type) -> None:
    """Python has no way to write one off the other that type checkers read."""
    wanted = "\n".join(f"    {each.name}: {each.type}" for each in fields(options))
    found = "\n".join(
        f"    {name}: {kind.__forward_arg__}" for name, kind in names.__annotations__.items()
    )
    assert found == wanted, f"the body of {names.__name__} has to be:\n\n{wanted}"


def test_no_other_option_is_any_text() -> None:
    found = [
        f"{name}({parameter.name}: {parameter.annotation})"
        for name, parameter in OPTIONS
        if parameter.name not in {*OPEN, *CLOSED}
        and takes_text(parameter.annotation, EVERY[name].__module__)
    ]
    assert not found
