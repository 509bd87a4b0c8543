"""Fixtures for tests in a browser: the app, run as a user runs it, and a fresh page of it.

A test file asks for them by ``pytest_plugins = ["support.app_pages"]``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from support.places import ROOT

# Long, since CI may have two busy cores; a wait ends as soon as what it waits for is there.
START_SECONDS = 240
PATIENCE = 240_000  # milliseconds
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def wait_until_served(url: str, app: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if app.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=30):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the app did not start:\n{log.read_text()}")


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[str, Path]]:
    """The address of the app, run as a user runs it, and the file of what it prints."""
    log = folder / "log.txt"
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "demos" / "app.py"), "--port", str(port), *options],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "GRADIO_TEMP_DIR": str(log.parent / "gradio")},
        )
        try:
            url = f"http://127.0.0.1:{port}/"
            wait_until_served(url, process, log)
            yield url, log
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def app(
    embedded: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The app with the models that ship: its address, and the file of what it prints."""
    for name in ("emoji-xl", "emoji-llava"):
        embedded(name)
    with served(tmp_path_factory.mktemp("app")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        # Without one on the path, Playwright's own is meant (tools/browser.sh installs either).
        chromium = playwright.chromium.launch(executable_path=found, args=SWITCHES)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, app: tuple[str, Path]) -> Iterator[Any]:
    """A fresh page of the app; in the end, nothing may have been asked of another host."""
    url, log = app
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.set_default_navigation_timeout(PATIENCE)
    asked_outside: list[str] = []

    def watch(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            asked_outside.append(request.url)

    page.on("request", watch)
    page.goto(url)
    page.wait_for_selector("#prompt textarea")
    yield page
    context.close()
    assert not asked_outside
    assert "Traceback" not in log.read_text()
