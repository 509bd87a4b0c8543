"""`make docs`: the documents of the repository and an API reference, as a site in build/site.

The generator reads build/pages, a copy of the documents in the repository's own layout, with the
files that they link to: so each link works on GitHub and in the site as it stands. Beside them lie
the pages of the reference, a room each, written here from the names that a room makes public; their
text is the docstrings' (mkdocstrings). All of it is read from the source, nothing is imported.

Why zensical: Material for MkDocs ends in May 2027 and MkDocs 1 is not maintained, while zensical is
by Material's authors, reads the same mkdocs.yml and refuses dead links, anchors and references. Its
support of mkdocstrings is young, so the version is pinned (constraints.txt). `mkdocs build` with
Material makes the same site of the same files.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES, SITE = ROOT / "build/pages", ROOT / "build/site"
PACKAGE = "bridge"
DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
KINDS = {"Functions": "function", "Classes": "class", "Tables and types": "table"}
_ADDRESS = r"""["']?((?:https?:)?//[^"'\s)>]+)"""
_LOAD = re.compile(
    rf"<(?:script|img|iframe|source)\b[^>]*?\bsrc={_ADDRESS}"
    rf"|<link\b[^>]*?\bhref={_ADDRESS}|(?:url\(|@import ){_ADDRESS}"
)
_LINK = re.compile(r"""(?:\]\(|\b(?:src|srcset|href)=")([^)#\s"]+)""")


# ---------------------------------------------------------------- what is public


@dataclass(frozen=True)
class Name:
    """A public name of a room, and what it is a name of."""

    path: str  # as it is imported from the room: "bridge.encoding.Encoder"
    home: str  # where it is defined: "bridge.encoding.encoder.Encoder"
    kind: str  # "function", "class" or "table"
    says: str  # the docstring's first sentence


@cache
def source(module: str) -> ast.Module:
    """A module of the repository, parsed."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Where statements import names from: pairs of a module and a name."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def lazy(module: str) -> list[tuple[str, str]]:
    """What a module imports for type checkers."""
    return [
        found
        for node in source(module).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for found in imports(node.body)
    ]


def public(module: str) -> list[str]:
    """The names of ``__all__``: as they are listed, or those that `bridge.lazy` makes it of."""
    for node in source(module).body:
        if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node.targets[0]):
            if isinstance(node.value, ast.List):
                return list(ast.literal_eval(node.value))
            return sorted(name for home, name in lazy(module) if home != module)
    return []


def rooms(module: str = PACKAGE) -> list[str]:
    """The public modules of a package that are not in its ``__all__``."""
    return sorted(f"{module}.{name}" for home, name in lazy(module) if home == module)


def defined(module: str, name: str, path: str) -> Name:
    """A name, followed to where it is defined."""
    for node in source(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            if "overload" in map(ast.unparse, node.decorator_list):
                continue
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            return Name(path, f"{module}.{name}", kind, first_sentence(ast.get_docstring(node)))
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in map(ast.unparse, targets):
                return Name(path, f"{module}.{name}", "table", text_below(module, node))
    for home, each in [*imports(source(module).body), *lazy(module)]:
        if each == name:
            return defined(home, name, path)
    raise LookupError(f"{path}: {module} neither defines nor imports {name}")


def text_below(module: str, node: ast.stmt) -> str:
    """The string that documents an assignment, as editors and mkdocstrings read it."""
    body = source(module).body
    below = body[body.index(node) + 1] if node is not body[-1] else None
    if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
        return first_sentence(str(below.value.value))
    return ""


def first_sentence(docstring: str | None) -> str:
    first = " ".join((docstring or "").strip().partition("\n\n")[0].split())
    return re.split(r"(?<=[^.]\.) (?=[A-Z`(])|: (?=[a-z])", first)[0].rstrip(".:")


# ---------------------------------------------------------------- the reference


def reference() -> dict[str, str]:
    """The pages of the reference, by file name: one of `bridge` itself, one for each room.

    Each thing is described once, on the page of the room that it comes from, under its shortest
    public name; the other pages have it in their tables.
    """
    shortest: dict[str, str] = {}
    for module in (PACKAGE, *rooms()):
        for name in public(module):
            found = defined(module, name, f"{module}.{name}")
            shortest.setdefault(found.home, found.path)
    described: set[str] = set()
    untitled = {"show_root_heading": "false", "show_root_toc_entry": "false"}
    pages = {}
    for module in (*rooms(), PACKAGE):  # bridge last: it has what no room has
        lines = [f"# {module}\n", *section(module, 2, shortest, described, **untitled)]
        for inner in rooms(module) if module != PACKAGE else ():
            lines += section(inner, 3, shortest, described, heading_level=2)
        pages[f"{module.rpartition('.')[2]}.md"] = "\n".join(lines)
    return pages


def section(
    module: str, level: int, shortest: dict[str, str], described: set[str], **heading: object
) -> Iterator[str]:
    """A module's docstring, tables of its names, and those not yet in ``described``, to which they
    are added."""
    yield directive(module, members="[]", **heading)
    names = [defined(module, name, f"{module}.{name}") for name in public(module)]
    for title, kind in KINDS.items():
        for row, each in enumerate(each for each in names if each.kind == kind):
            if row == 0:
                yield f"\n| {title} | |\n| --- | --- |"
            shown = each.path.rpartition(".")[2]
            yield f"| [`{shown}`][{shortest.get(each.home, each.path)}] | {each.says} |"
    for each in sorted(names, key=lambda each: [*KINDS.values()].index(each.kind)):
        if each.home not in described:
            described.add(each.home)
            yield directive(shortest.get(each.home, each.path), heading_level=level)


def directive(path: str, **options: object) -> str:
    """What mkdocstrings puts a docstring in the place of."""
    lines = [f"      {name}: {value}" for name, value in options.items()]
    return "\n".join([f"\n::: {path}", "    options:", *lines, ""])


# ---------------------------------------------------------------- the site


def examples() -> str:
    """The page of the scripts in examples/, each under what its docstring says."""
    parts = ["# Examples\n\nScripts to copy, one a task; the tests run each of them."]
    for file in sorted((ROOT / "examples").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        told = ast.get_docstring(ast.parse(text)) or file.stem
        title = re.split(r"[:.?](?:\s|$)", told)[0]
        code = text.split('"""', 2)[2].strip()
        parts.append(f"## {title}\n\n`examples/{file.name}`: {told}\n\n```python\n{code}\n```")
    return "\n\n".join(parts) + "\n"


def notebooks() -> str:
    """The page of the notebooks, cell by cell, without outputs."""
    parts = ["# Notebooks\n\nThe slow tests run each of them."]
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        parts.append(f"`notebooks/{file.name}`")
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "code":
                parts.append(f"```python\n{text}\n```")
            else:
                parts.append(re.sub(r"^(#+ )", r"#\1", text, flags=re.M))
    return "\n\n".join(parts) + "\n"


# A folder that documents link to has a page of what lies in it.
FOLDERS = {"examples": examples, "notebooks": notebooks}


def linked(page: Path) -> Iterator[tuple[str, Path]]:
    """What of the repository a page links to or shows: links, and where they lead."""
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:|//", link):
            continue
        target = (page.parent / link).resolve()
        if not target.is_file() and str(target.relative_to(ROOT)) not in FOLDERS:
            shown = page.relative_to(ROOT)
            raise SystemExit(f"{shown} links to {link}, which is no file and none of FOLDERS")
        yield link, target


def lay_out(pages: Path) -> None:
    """Make ``pages``: the documents, what they link to, and the reference."""
    shutil.rmtree(pages, ignore_errors=True)
    waiting = [*(ROOT / name for name in DOCUMENTS), *sorted((ROOT / "docs").glob("*.md"))]
    copied: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in copied:
            continue
        copied.add(file)
        place = pages / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        for link, target in linked(file) if file.suffix == ".md" else ():
            if target.is_file():
                waiting.append(target)
            else:
                text = place.read_text(encoding="utf-8")
                text = text.replace(f"]({link})", f"]({link.rstrip('/')}/index.md)")
                place.write_text(text, encoding="utf-8")
    shutil.copyfile(ROOT / "tools/docs_site.css", pages / "site.css")
    for name, page in FOLDERS.items():
        (pages / name).mkdir(exist_ok=True)
        (pages / name / "index.md").write_text(page(), encoding="utf-8")
    (pages / "reference").mkdir()
    for name, text in reference().items():
        (pages / "reference" / name).write_text(text, encoding="utf-8")


def loaded_from_elsewhere(site: Path) -> list[str]:
    """What the site's pages would load from another host; a link to follow is none of it."""
    return sorted(
        f"{file.relative_to(site)}: {''.join(found)}"
        for file in site.rglob("*")
        if file.suffix in (".html", ".css")
        for found in _LOAD.findall(file.read_text(encoding="utf-8"))
    )


def main() -> None:
    lay_out(PAGES)
    zensical = Path(sys.executable).with_name("zensical")
    done = subprocess.run(
        [zensical, "build", "--strict", "--clean"], cwd=ROOT, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    print(said, end="")
    # `--strict` knows nothing of what is wrong with a docstring.
    wrong = [line for line in said.splitlines() if line.startswith(("griffe:", "mkdocstrings:"))]
    wrong += loaded_from_elsewhere(SITE)
    if done.returncode or wrong:
        raise SystemExit("\n".join(["the site is not right:", *wrong]))
    print(
        f"the site is in {SITE.relative_to(ROOT)}; open index.html, or, with its search: "
        f"python -m http.server -d {SITE.relative_to(ROOT)}"
    )


if __name__ == "__main__":
    main()
