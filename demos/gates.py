"""Requests that are refused before Gradio sees them."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from bridge.errors import ImageError
from demos.hosts import Hosts
from demos.limits import MOST_REQUEST, MOST_UPLOAD, UNREADABLE
from demos.uploads import admitted

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_API = "/gradio_api/"
# Where Gradio hands out files: "file=PATH", and "file/PATH" of its older versions.
_FILE = (f"{_API}file=", f"{_API}file/")
# Of Gradio, and never asked for by the app's page: they fetch, record, and keep on the disk.
_UNUSED = tuple(f"{_API}{name}" for name in ("proxy=", "deep_link", "process_recording", "vibe-"))

_STRANGE_HOST = (
    "This app does not go by the name in your browser's address bar. Open it by the address that "
    "it was started with; to open it by another name, start it with --allow-host and that name."
)


class TooLong(Exception):
    """A request whose body goes on after its bound."""


@dataclass(frozen=True)
class Gates:
    """In front of a whole server (ASGI): HTTP, its streams, and websockets alike."""

    app: App
    hosts: Hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        refusal = self._refusal(scope)
        if refusal:
            return await _refuse(scope, send, *refusal)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        begun = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        most = _most(scope)
        try:
            await self.app(scope, _bounded(receive, most), sending)
        except TooLong:
            if not begun:
                await _refuse(scope, send, 413, _too_long(most))
        except Exception as error:
            if begun or not scope["path"].startswith(_API):
                raise
            # Gradio trusts what its page sends: an event that there is not is a KeyError.
            print(f"bridge: a request was refused: {type(error).__name__}", file=sys.stderr)
            await _refuse(scope, send, 400, UNREADABLE)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the words to refuse a request with, by its head alone."""
        hosts = _headers(scope, b"host")
        if len(hosts) != 1 or not self.hosts.answer_to(hosts[0]):
            return 421, _STRANGE_HOST
        path = scope["path"]
        if path.startswith(_UNUSED):
            return 404, "Not found."
        if path.startswith(_FILE):
            try:
                admitted(path[len(_FILE[0]) :])
            except ImageError as error:
                return 403, str(error)
        length = _headers(scope, b"content-length")
        if length and length[0].isdecimal() and int(length[0][:20]) > _most(scope):
            return 413, _too_long(_most(scope))
        return None


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _most(scope: Scope) -> int:
    """How many bytes a request's body may have."""
    # Beside the file, a form has its own few lines.
    return MOST_UPLOAD + 65_536 if scope["path"].startswith(f"{_API}upload") else MOST_REQUEST


def _too_long(most: int) -> str:
    return f"This request is too long; the app takes at most {most >> 20} MiB of it."


def _bounded(receive: Receive, most: int) -> Receive:
    """``receive``, up to ``most`` bytes; a body need not say beforehand how long it is."""
    had = 0

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal had
        message = await receive()
        had += len(message.get("body", b""))
        if had > most:
            raise TooLong
        return message

    return receiving


async def _refuse(scope: Scope, send: Send, status: int, words: str) -> None:
    if scope["type"] == "websocket":
        # Before it is accepted, this is HTTP's 403.
        await send({"type": "websocket.close", "code": 1008, "reason": words[:120]})
        return
    body = json.dumps({"detail": words}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
