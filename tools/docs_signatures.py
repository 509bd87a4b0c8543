"""What mkdocstrings cannot read off a file, for the reference of `make docs`.

A griffe extension: ``**options: Unpack[SomeOptions]`` is spelt out in the signature, as an editor
shows it; a row "height, width:" of an Args section gets the type of its first name; and blocks of
reStructuredText become Markdown's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from textwrap import indent
from typing import Any

from griffe import (
    Alias,
    Class,
    DocstringSectionAttributes,
    DocstringSectionParameters,
    Expr,
    ExprName,
    ExprSubscript,
    Extension,
    Function,
    Module,
    Object,
    Parameter,
    ParameterKind,
)


class Signatures(Extension):
    """See above; it acts once the whole package is read."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        for found in inside(pkg):
            if found.docstring is not None:
                found.docstring.value = as_markdown(found.docstring.value)
            if isinstance(found, Function):
                spell_out(found, pkg)
        for found in inside(pkg):
            type_rows(found, pkg)


def inside(parent: Object) -> Iterator[Object]:
    """Everything that a package defines."""
    yield parent
    for member in parent.members.values():
        if not isinstance(member, Alias):
            yield from inside(member)


def as_markdown(text: str) -> str:
    """Literal blocks and tables of reStructuredText, as they are aligned in the source."""
    rule = "^[ ]*=+ +=+\n"
    table = re.compile(f"{rule}(.*?){rule}", re.M | re.S)
    text = table.sub(lambda found: indent(found[1], " " * 4), text + "\n")
    text = re.sub(r"^[ ]*::[ ]*\n", "", text, flags=re.M)
    return re.sub(r"::[ ]*$", ":", text, flags=re.M)


def spell_out(function: Function, package: Module) -> None:
    """Put the keys of ``Unpack[...]`` in the place of ``**options``."""
    for parameter in list(function.parameters):
        if parameter.kind is not ParameterKind.var_keyword:
            continue
        name = re.fullmatch(r"Unpack\[(\w+)\]", str(parameter.annotation))
        if name is None:
            continue
        path = function.resolve(name[1]).removeprefix(f"{package.name}.")
        options = package[path]
        del function.parameters[parameter.name]
        known = defaults(function, package)
        for key in keys_of(options):
            if key.name not in function.parameters:
                function.parameters.add(
                    Parameter(
                        key.name,
                        kind=ParameterKind.keyword_only,
                        annotation=key.annotation,
                        default=known.get(key.name, "None"),
                    )
                )


def keys_of(options: Class) -> Iterator[Any]:
    """The keys of a TypedDict and of those that it extends, which come first."""
    for base in options.resolved_bases:
        yield from keys_of(base)
    yield from options.attributes.values()


def defaults(function: Function, package: Module) -> dict[str, str]:
    """What keys mean that are left out: those of the dataclass that the decorator `takes_fields`
    names, else those that the decorator `takes` spells out."""
    for decorator in function.decorators:
        named = re.fullmatch(r"takes_fields\((\w+)\)", str(decorator.value))
        if named is not None:
            fields = package[function.resolve(named[1]).removeprefix(f"{package.name}.")]
            return {name: str(each.value) for name, each in fields.attributes.items()}
    told = ast.literal_eval(str(package["encoding.options.DEFAULTS"].value))
    return {name: repr(value) for name, value in told.items()}


def type_rows(found: Object, package: Module) -> None:
    """Types of rows of several names, off the signature; griffe has the second of an Attributes
    section for the type of the first. Where the signature has bridge's own name of a type, the row
    says what it stands for."""
    if found.docstring is None:
        return
    for section in found.docstring.parsed:
        if isinstance(section, DocstringSectionAttributes):
            for row in section.value:
                if row.name.endswith(","):
                    row.name, row.annotation = f"{row.name} {row.annotation}", None
        elif isinstance(section, DocstringSectionParameters):
            for row in section.value:
                first = row.name.partition(",")[0].lstrip("*")
                if row.annotation is None:
                    row.annotation, row.value = typed(found, first)
                row.annotation = written_out(row.annotation, package)


def typed(found: Object, name: str) -> tuple[Any, Any]:
    """The type and default of a function's parameter, a constructor's, or a dataclass's field."""
    function = found.members.get("__init__") if isinstance(found, Class) else found
    if isinstance(function, Function):
        if name in function.parameters:
            return function.parameters[name].annotation, function.parameters[name].default
    elif isinstance(function or found, Class) and name in found.attributes:
        return found.attributes[name].annotation, found.attributes[name].value
    return None, None


def written_out(kind: Any, package: Module) -> Any:
    """A type with the members of a ``Literal`` or union in the place of the name of it."""
    if not isinstance(kind, Expr):
        return kind
    if isinstance(kind, ExprSubscript) and str(kind.left) == "Union":
        members = kind.slice.elements
        return " | ".join(str(written_out(each, package)).strip("'\"") for each in members)
    parts = []
    for part in kind.iterate(flat=True):
        alias = alias_of(part, package) if isinstance(part, ExprName) else None
        parts.append(str(part) if alias is None else str(written_out(alias, package)))
    text = "".join(parts)
    return kind if text == str(kind) else text


def alias_of(name: ExprName, package: Module) -> Expr | None:
    """What a name of a type stands for, if it is one that the package assigns."""
    path = name.canonical_path
    if not path.startswith(f"{package.name}."):
        return None
    found = package[path.removeprefix(f"{package.name}.")]
    is_assigned = found.is_attribute and isinstance(found.value, Expr)
    return found.value if is_assigned else None
