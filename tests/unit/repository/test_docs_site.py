"""What `make docs` shows: every document, every public name, and docstrings that it can read.

The site itself is built by `make docs`, whose generator is not among what the tests install; its
pages are laid out here as for it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.places import ROOT

import bridge
from tools import docs_site

ROOMS = [name for name in dir(bridge) if inspect.ismodule(getattr(bridge, name))]
PAGES = {"bridge": bridge, **{name: importlib.import_module(f"bridge.{name}") for name in ROOMS}}
REFERENCE = docs_site.reference()


def named(path: str) -> Any:
    """What a dotted name of the reference is, as a user gets it after ``import bridge``."""
    return reduce(getattr, path.split(".")[1:], bridge)


def described(page: str) -> list[str]:
    """The names that a page has the docstrings of; its own modules are not among them."""
    paths = re.findall(r"^::: (\S+)$", REFERENCE[page], re.M)
    return [path for path in paths if not inspect.ismodule(named(path))]


def test_each_room_has_a_page() -> None:
    assert {*REFERENCE} == {f"{name}.md" for name in PAGES}


@pytest.mark.parametrize("room", PAGES)
def test_a_page_has_every_public_name_of_its_room(room: str) -> None:
    listed = dict(re.findall(r"^\| \[`(\w+)`\]\[([\w.]+)\] \|", REFERENCE[f"{room}.md"], re.M))
    assert {*PAGES[room].__all__} <= {*listed}
    for name in PAGES[room].__all__:
        assert named(listed[name]) is getattr(PAGES[room], name), name


def test_the_reference_describes_each_name_once_and_nothing_else() -> None:
    paths = [path for page in REFERENCE for path in described(page)]
    assert len(paths) == len({*paths})
    public = {
        f"{module.__name__}.{name}"
        for room in PAGES.values()
        for module in (room, *inner_rooms(room))
        for name in module.__all__
    }
    assert {*paths} <= public
    # Several names of one thing have one description.
    things = [named(path) for path in paths]
    assert all(any(named(path) is each for each in things) for path in public)


def inner_rooms(room: Any) -> Iterator[Any]:
    """The modules that ``dir`` of a room shows and that list their names."""
    for name in dir(room) if room is not bridge else ():
        found = getattr(room, name)
        of_room = inspect.ismodule(found) and found.__name__ == f"{room.__name__}.{name}"
        if of_room and hasattr(found, "__all__"):
            yield found


def test_every_name_says_what_it_is() -> None:
    for page, text in REFERENCE.items():
        assert not re.findall(r"^\| \[(.*)\] \|\s*\|$", text, re.M), page


def test_every_document_is_in_the_sites_menu_once() -> None:
    def places(menu: Any) -> Iterator[str]:
        for entry in menu:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else places(value)

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    shown = [*places(config["nav"])]
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    wanted = {str(each.relative_to(ROOT)) for each in documents}
    wanted |= {f"reference/{name}" for name in REFERENCE}
    wanted |= {"benchmarks/results/README.md", *(f"{name}/index.md" for name in docs_site.FOLDERS)}
    assert len(shown) == len({*shown})
    assert {*shown} == wanted, "the menu is `nav` of mkdocs.yml"


def test_every_example_is_on_its_page_whole() -> None:
    page = docs_site.examples()
    files = [*(ROOT / "examples").glob("*.py")]
    assert len(files) == page.count("\n## ") == page.count("\n```python\n")
    for file in files:
        imports_and_code = file.read_text(encoding="utf-8").split('"""\n\n', 1)[1]
        assert f"```python\n{imports_and_code}```" in page, file.name


def test_links_lead_somewhere_in_the_site(tmp_path: Path) -> None:
    docs_site.lay_out(tmp_path / "pages")
    pages = [*(tmp_path / "pages").rglob("*.md")]
    assert len(pages) > 20
    for page in pages:
        for link in re.findall(r"(?:\]\(|src=\")([^)#\s\"]+)", page.read_text(encoding="utf-8")):
            if not link.startswith(("http:", "https:")):
                assert (page.parent / link).is_file(), (page, link)


def test_what_would_be_loaded_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://a.org">x</a><img src="b.webp"><script src=assets/c.js></script>'
        '<link rel="stylesheet" href="./d.css"><script async src="https://cdn.org/e.js"></script>'
        "<link href=//fonts.org/f rel=preconnect>"
    )
    (tmp_path / "g.css").write_text("a { background: url(https://h.org/i.png) url('j.png') }")
    found = docs_site.loaded_from_elsewhere(tmp_path)
    assert [each.partition(": ")[2] for each in found] == [
        "//fonts.org/f", "https://cdn.org/e.js", "https://h.org/i.png",
    ]  # fmt: skip


# ---------------------------------------------------------------- docstrings

SECTION = re.compile(r"^(Args|Attributes|Raises):\n((?:(?: {4}.*)?\n)+)", re.M)
ROW = re.compile(r"^ {4}(\S.*)$", re.M)
FREE = {"options", "encoding", "args"}
"""What ``**options`` is called where a docstring says of all of them at once whose they are."""


def documented() -> Iterator[tuple[str, Any, str]]:
    """Name, object and docstring of all that the reference describes, public methods too."""
    for page in REFERENCE:
        for path in described(page):
            found = named(path)
            yield path, found, found.__doc__ or ""
            if isinstance(found, type):
                for name, method in vars(found).items():
                    if inspect.isfunction(method) and not name.startswith("_"):
                        yield f"{path}.{name}", method, method.__doc__ or ""


DOCUMENTED = [(path, found, inspect.cleandoc(text) + "\n") for path, found, text in documented()]


def test_rows_of_docstrings_are_a_name_and_what_it_is() -> None:
    """A row of another form is text of the section to a reader and lost to the reference."""
    rows = [
        (path, row)
        for path, _, text in DOCUMENTED
        for _, section in SECTION.findall(text)
        for row in ROW.findall(section)
    ]
    assert len(rows) > 500
    wrong = [each for each in rows if not re.match(r"[*\w]+(, [*\w]+)*: \S", each[1])]
    assert not wrong


def test_what_docstrings_say_of_arguments_are_arguments() -> None:
    wrong = []
    for path, found, text in DOCUMENTED:
        for title, section in SECTION.findall(text):
            if title != "Args" or not callable(found):
                continue
            has = {*inspect.signature(found).parameters} | FREE
            names = [name for row in ROW.findall(section)
                     for name in row.partition(":")[0].replace("*", "").split(", ")]  # fmt: skip
            wrong += [(path, name) for name in names if name not in has]
    assert not wrong
