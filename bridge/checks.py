"""What is checked everywhere: numbers, names out of a table, optional packages. No torch.

``True`` is an ``int`` to Python and never a number to us. ``is_...`` say whether a value will do,
for those whose error has words of its own; the others raise OptionError.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, TypeGuard, TypeVar

from bridge.errors import KeywordError, MissingDependencyError, OptionError, first_line

Door = TypeVar("Door", bound=Callable[..., Any])
Value = TypeVar("Value")

# What other tools call what has another name here.
_ELSEWHERE_CALLED: dict[str, str] = {
    "auto1111": "a1111",
    "automatic1111": "a1111",
    "comfyui": "comfy",
    "diffusers": "plain",
    "lora_rank": "lora",
    "lr": "learning_rate",
    "pipe": "model",
    "pipeline": "model",
    "r": "lora",
    "rank": "lora",
    "syntax": "dialect",
    "webui": "a1111",
}


def is_whole(value: object, least: int | None = None, most: int | None = None) -> TypeGuard[int]:
    """Whether a value is an ``int`` within the limits, both included."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return (least is None or value >= least) and (most is None or value <= most)


def is_finite(
    value: object, least: float = -math.inf, most: float = math.inf
) -> TypeGuard[int | float]:
    """Whether a value is a number, of NumPy too, neither NaN nor infinite, within the limits."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value) and least <= float(value) <= most
    except OverflowError:  # a whole number of hundreds of digits
        return False


def whole(value: object, name: str, least: int, most: int, unit: str = "") -> int:
    """A whole number within the limits, both included; also one of NumPy, as seeds and sizes often
    are.

    Args:
        value: what was given.
        name: of the option.
        least, most: the limits.
        unit: what is counted, such as " of patches".

    Raises:
        OptionError: anything else.
    """
    number = int(value) if isinstance(value, Integral) else value
    if isinstance(value, bool) or not is_whole(number, least, most):
        raise OptionError(f"{name} is {value!r}; give a whole number{unit} from {least} to {most}")
    return number


def finite(value: object, what: str) -> float:
    """A finite number. Raises OptionError, in which ``what`` names it."""
    if not is_finite(value):
        raise OptionError(f"{what} must be a finite number, not {value!r}.")
    return float(value)


def either(first: Value | None, second: Value | None, names: str) -> Value | None:
    """What one of two names of an option was given. Raises OptionError where both were; ``names``
    has the two."""
    if first is not None and second is not None:
        raise OptionError(f"{names} say the same; give one of them.")
    return second if first is None else first


def choice(value: object, names: Iterable[str], what: str) -> None:
    """Refuse what is none of ``names``; the nearest is named. Raises OptionError."""
    names = tuple(names)
    if value not in names:
        hint = did_you_mean(str(value), names)
        raise OptionError(f"No {what} {value!r}; there is: {', '.join(names)}.{hint}")


def did_you_mean(name: str, names: Iterable[str], shown: Callable[[str], str] = repr) -> str:
    """A sentence that names what ``name`` is nearest to, after a space; "" where nothing is."""
    near = nearest(name, names, 1, shown=shown)
    return f" Did you mean {near}?" if near else ""


def nearest(
    name: str,
    names: Iterable[str],
    most: int = 3,
    cutoff: float = 0.6,
    shown: Callable[[str], str] = repr,
) -> str:
    """Those of ``names`` that are nearest to ``name``, as "'this' or 'that'"; "" for none. What
    other tools call by that name is nearer than what is spelt alike."""
    names = list(names)
    same = _ELSEWHERE_CALLED.get(name.lower())
    found = [same] if same in names else get_close_matches(name, names, most, cutoff)
    return " or ".join(map(shown, found))


def needed(module: str, extra: str, what: str) -> Any:
    """A module of a package that only some of bridge needs.

    Args:
        module: its full name.
        extra: of bridge, that installs it.
        what: needs it, for the message.

    Raises:
        MissingDependencyError: it does not import; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f"{what} needs the package {package}, which does not import here "
            f"({first_line(error)}); install it with: pip install 'bridge[{extra}]'"
        ) from error


def spelt_out(function: Door, options: Iterable[inspect.Parameter]) -> Door:
    """The function, whose signature has these keywords in the place of its ``**options``: for
    ``help``, for editors, and for ``keywords``."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own, *options]
    )
    return function


def takes_fields(kind: type) -> Callable[[Door], Door]:
    """A decorator of a function whose ``**options`` are the fields of a dataclass: they are spelt
    out in its signature, and checked as ``keywords`` does."""

    def decorate(function: Door) -> Door:
        more = (
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=each.default,
                annotation=each.type,
            )
            for each in fields(kind)
        )
        return keywords(spelt_out(function, more))

    return decorate


def keywords(door: Door, *, elsewhere: Mapping[str, str] = MappingProxyType({})) -> Door:
    """Have a public function refuse a keyword that it does not have, and name the nearest it has;
    and more arguments without a name than it takes.

    ``keywords`` is a decorator; of a class it is one of the constructor and of all public methods.
    What a function has is what its signature says, which may spell out more than its definition
    (``__signature__``).

    Args:
        door: a function, a method or a class.
        elsewhere: options of other doors, and what is said of each in the place of a nearest name.

    Raises, when it is called:
        KeywordError: which is an OptionError and a TypeError.
    """
    if not isinstance(door, type):
        return _with_keywords(door, elsewhere)
    for name, method in [*vars(door).items()]:
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(method, classmethod | staticmethod):
            inner = _with_keywords(method.__func__, elsewhere)
            setattr(door, name, type(method)(inner))
        elif inspect.isfunction(method) and not hasattr(method, "has_keywords"):
            setattr(door, name, _with_keywords(method, elsewhere))
    return door


def _too_many(shown: str, placed: Sequence[inspect.Parameter], given: int) -> str:
    names = [each.name for each in placed if each.name not in ("self", "cls")]
    given -= len(placed) - len(names)
    told = f" ({', '.join(names)})" if names else ""
    return (
        f"{shown}() takes {len(names)} argument{'s' * (len(names) != 1)} without a name{told}, and "
        f"{given} {'was' if given == 1 else 'were'} given; name the others, or give several as one "
        "list."
    )


def _with_keywords(function: Any, elsewhere: Mapping[str, str]) -> Any:
    shown = function.__qualname__.removesuffix(".__init__")
    if shown.endswith(".__call__"):
        shown = shown.removesuffix(".__call__").lower()  # as one calls it: encoder()
    parameters = inspect.signature(function).parameters.values()
    assert all(each.kind is not each.VAR_KEYWORD for each in parameters), "spell them out"
    has = [
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name != "self"
    ]
    known = frozenset(has)
    placed = [each for each in parameters if each.kind is not each.KEYWORD_ONLY]
    open_ended = any(each.kind is each.VAR_POSITIONAL for each in placed)
    most = math.inf if open_ended else len(placed)

    @wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        if len(args) > most:
            raise KeywordError(_too_many(shown, placed, len(args)))
        for name in given:
            if name in known:
                continue
            if name in elsewhere:
                raise KeywordError(f"{name} has no meaning for {shown}; {elsewhere[name]}.")
            hint = did_you_mean(name, has) or f" It has: {', '.join(has) or 'no keywords'}."
            raise KeywordError(f"{shown}() got an unexpected keyword argument {name!r}.{hint}")
        return function(*args, **given)

    checked.has_keywords = known  # type: ignore[attr-defined]
    return checked
