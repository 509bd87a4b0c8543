"""The app on a free port, with tiny models, and a visitor who calls its endpoints without a page.

A test file asks for the fixtures by ``pytest_plugins = ["support.app_calls"]``.
"""

from __future__ import annotations

import base64
import io
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from demos.app import options, serve
from demos.models import Models
from support.app_pages import free_port
from support.tiny_models import tiny_sdxl_pipeline
from support.tiny_vlm import tiny_llava

SECONDS = 120
# What differs from one run to the next: ids, times.
_TIMES = re.compile(r"\d+(\.\d+)? s\b")


@dataclass(frozen=True)
class Endpoint:
    """One event of the app, as its own configuration tells of it."""

    number: int
    name: str | None
    kinds: tuple[str, ...]  # of the inputs, such as "textbox"
    values: tuple[Any, ...]  # what the page would send if nothing were touched

    @property
    def open_inputs(self) -> list[int]:
        """The inputs that a request fills; a state is kept by the server."""
        return [place for place, kind in enumerate(self.kinds) if kind != "state"]


@dataclass
class Visitor:
    """A session of its own with the app at ``url``."""

    url: str
    session: str = field(default_factory=lambda: secrets.token_hex(8))

    @cached_property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=SECONDS, trust_env=False)

    def endpoints(self) -> list[Endpoint]:
        """Every event that runs on the server, named or not."""
        config = self.client.get("config").raise_for_status().json()
        parts = {part["id"]: part for part in config["components"]}
        found = []
        for event in config["dependencies"]:
            if not event["backend_fn"]:
                continue
            inputs = [parts[number] for number in event["inputs"]]
            found.append(
                Endpoint(
                    event["id"],
                    event["api_name"] or None,
                    tuple(part["type"] for part in inputs),
                    tuple(_first_value(part) for part in inputs),
                )
            )
        return found

    def join(self, number: int, data: Any, **more: Any) -> httpx.Response:
        body = {"fn_index": number, "data": data, "session_hash": self.session, **more}
        return self.client.post(
            "gradio_api/queue/join",
            content=json.dumps(body),
            headers={"content-type": "application/json"},
        )

    def messages(self, number: int, data: Any, **more: Any) -> list[dict[str, Any]]:
        """Call an endpoint by its number; all that it says, the last message last."""
        joined = self.join(number, data, **more)
        if joined.status_code != 200:
            return [{"refused": joined.status_code, "text": joined.text}]
        # A session hears of all its events; "unexpected_error" is of none.
        ours = (joined.json()["event_id"], None)
        heard: list[dict[str, Any]] = []
        query = {"session_hash": self.session}
        with self.client.stream("GET", "gradio_api/queue/data", params=query) as lines:
            for line in lines.iter_lines():
                told = json.loads(line[5:]) if line.startswith("data:") else {}
                if told and told.get("event_id") in ours:
                    heard.append(told)
                    if told["msg"] in ("process_completed", "unexpected_error"):
                        break
        return heard

    def call(self, number: int, data: Any, **more: Any) -> str:
        """The end of a call as text, without what differs from one call to the next."""
        return end_of(self.messages(number, data, **more))

    def run(self, number: int, data: Any) -> httpx.Response:
        """The older door, which has no queue."""
        body = {"fn_index": number, "data": data, "session_hash": self.session}
        return self.client.post("gradio_api/run/predict", json=body)

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Upload a file; what the page would then send as its value."""
        answer = self.client.post("gradio_api/upload", files={"files": (name, content)})
        return as_file(answer.raise_for_status().json()[0], orig_name=name)


def end_of(messages: list[dict[str, Any]]) -> str:
    """The last message of a call as text, without what differs from one call to the next."""
    last = messages[-1]
    output = last.get("output") or {}
    told = {key: output[key] for key in ("data", "error") if key in output}
    rest = {key: last[key] for key in ("refused", "text", "success") if key in last}
    return _TIMES.sub("", json.dumps({**rest, **told}, ensure_ascii=False))


def as_file(path: str, **more: Any) -> dict[str, Any]:
    """A file as Gradio's page sends it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def png_of(colour: tuple[int, int, int], side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def pictures_in(visitor: Visitor, heard: object) -> list[np.ndarray]:
    """Every picture that an answer holds, or holds the address of."""
    text = json.dumps(heard, ensure_ascii=False)
    found = []
    for data in re.findall(r"data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)", text):
        found.append(base64.b64decode(data))
    for path in set(re.findall(r'"path": "([^"]+)"', text)):
        answer = visitor.client.get(f"gradio_api/file={path}")
        if answer.status_code == 200:
            found.append(answer.content)
    shown = []
    for content in found:
        try:
            shown.append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=int))
        except OSError:
            continue
    return shown


def shows(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    """Is a hundredth of the picture near ``colour``, which no drawn picture is full of?"""
    near = np.abs(picture - np.array(colour)).max(axis=-1) <= 12
    return bool(near.mean() > 0.01)


def _first_value(part: dict[str, Any]) -> Any:
    kind, props = part["type"], part["props"]
    if kind == "textbox":
        return props.get("value") or "a cat"
    if kind == "dataset":
        return 0
    if kind in ("image", "gallery", "state"):
        return None
    return props.get("value")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Tiny random models behind the app's real loading code."""
    folder = tmp_path_factory.mktemp("models")
    tiny_sdxl_pipeline().save_pretrained(folder / "draws")
    return Models(str(folder / "draws"), str(tiny_llava(folder)))


def with_short_work(endpoint: Endpoint, data: list[Any]) -> list[Any]:
    """``data`` for an endpoint, with one step and the seed as given where it draws."""
    if "slider" not in endpoint.kinds:
        return data
    short = {"checkbox": False, "slider": 1}
    return [short.get(kind, value) for kind, value in zip(endpoint.kinds, data, strict=True)]


@pytest.fixture(scope="module")
def served(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of the app as ``demos/app.py --port N`` serves it, and its upload cache."""
    cache = tmp_path_factory.mktemp("served") / "gradio"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        app = serve(tiny, options(["--port", str(free_port())]))
        yield app.local_url, cache
        app.close()


@pytest.fixture
def visitor(served: tuple[str, Path]) -> Visitor:
    return Visitor(served[0])
