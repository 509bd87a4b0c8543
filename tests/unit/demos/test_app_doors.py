"""Nobody reads the server's disk, has it fetch an address, or reaches it by a borrowed name.

Every endpoint of the running app is called, named or not, with files of many kinds in every
input. What must hold is stronger than that no picture comes back: the answer to a file that
exists is the answer to one that does not.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.app_calls import (
    Endpoint,
    Visitor,
    as_file,
    end_of,
    pictures_in,
    png_of,
    shows,
    with_short_work,
)
from support.app_pages import free_port

from demos.app import options, serve
from demos.hosts import hosts_for
from demos.models import Models
from demos.uploads import NOT_UPLOADED

pytest_plugins = ["support.app_calls"]

SECRET = (201, 33, 147)
OWN = (12, 190, 60)


class Listener:
    """A server that serves the planted picture, and counts who asks for it."""

    def __init__(self) -> None:
        self.asked = 0
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.asked += 1
                self.send_response(200)
                self.send_header("content-type", "image/png")
                self.end_headers()
                self.wfile.write(png_of(SECRET))

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret.png"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def planted(served: tuple[str, Path], tmp_path: Path) -> dict[str, str]:
    """Names of a picture outside the upload cache: as it is, roundabout, and by links in it."""
    cache = served[1]
    secret = tmp_path / "secret.png"
    secret.write_bytes(png_of(SECRET))
    inside = cache / f"inside-{tmp_path.name}"
    inside.mkdir(parents=True)
    (inside / "link.png").symlink_to(secret)
    (inside / "folder").symlink_to(tmp_path)
    up = "../" * len(inside.parts)
    return {
        "absolute": str(secret),
        "dots": f"{inside}/{up}{str(secret).lstrip('/')}",
        "relative": f"../../../../../../../../..{secret}",
        "link": str(inside / "link.png"),
        "folder link": str(inside / "folder" / "secret.png"),
        "file url": f"file://{secret}",
        "quoted": str(secret).replace("s", "%73"),
        "quoted dots": f"{inside}/{up.replace('.', '%2e')}{str(secret).lstrip('/')}",
    }


def as_values(path: str, kind: str) -> list[Any]:
    """A file as each of the values that Gradio, or anybody, writes for it."""
    bare, full = {"path": path}, as_file(path)
    routed = as_file(path, url=f"/gradio_api/file={path}", orig_name=path, is_stream=True)
    shapes: list[Any] = [bare, full, routed, {"url": path}]
    if kind == "gallery":
        return [[{"image": shape, "caption": None}] for shape in shapes] + [[bare], path]
    shapes += [[full], {"value": full}]
    # In a field that takes words, a path is words.
    return [*shapes, path] if kind in ("image", "dataset", "radio") else shapes


def asked_chat(visitor: Visitor) -> None:
    """Ask about an own picture, so that a chat is there to be looked into."""
    ask = next(each for each in visitor.endpoints() if each.name == "ask")
    told = visitor.call(ask.number, [visitor.upload("mine.png", png_of(OWN)), "what is it?", None])
    assert '"success": true' in told and "bridge-problem" not in told


def with_value(endpoint: Endpoint, place: int, value: Any) -> list[Any]:
    data = with_short_work(endpoint, list(endpoint.values))
    data[place] = value
    return data


def test_an_own_upload_is_shown_and_asked_about(visitor: Visitor) -> None:
    mine = visitor.upload("mine.png", png_of(OWN))
    for endpoint in visitor.endpoints():
        if endpoint.kinds and endpoint.kinds[0] in ("image", "gallery"):
            given = [{"image": mine, "caption": None}] if "gallery" in endpoint.kinds else mine
            heard = visitor.messages(endpoint.number, with_value(endpoint, 0, given))
            assert heard[-1]["success"], heard
            if len(endpoint.open_inputs) == 1:  # not asked, but shown
                assert any(shows(picture, OWN) for picture in pictures_in(visitor, heard))
    asked_chat(visitor)


def test_no_endpoint_tells_a_file_of_the_server_from_none(
    visitor: Visitor, planted: dict[str, str]
) -> None:
    asked_chat(visitor)
    requests = [
        (endpoint, with_value(endpoint, place, value))
        for endpoint in visitor.endpoints()
        for place in endpoint.open_inputs
        for name, path in planted.items()
        # Other names than the plainest only where a file is meant to be.
        if name == "absolute" or endpoint.kinds[place] in ("image", "gallery")
        for value in as_values(path, endpoint.kinds[place])
    ]
    assert len(requests) > 300
    there = [visitor.messages(endpoint.number, data) for endpoint, data in requests]
    for request, heard in zip(requests, there, strict=True):
        found = pictures_in(visitor, heard)
        assert not any(shows(picture, SECRET) for picture in found), request
    Path(planted["absolute"]).unlink()
    for (endpoint, data), heard in zip(requests, there, strict=True):
        told = end_of(heard)
        assert told == visitor.call(endpoint.number, data), (endpoint, data)
        if any(isinstance(value, dict) and value.keys() & {"path", "url"} for value in data):
            assert NOT_UPLOADED in told, (endpoint, data)


def test_no_route_hands_out_a_file_from_outside(visitor: Visitor, planted: dict[str, str]) -> None:
    requests = [
        (method, f"{visitor.url}{route}{path}")
        for route in ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/")
        for method in ("GET", "HEAD")
        for path in planted.values()
    ]
    there = [visitor.client.request(*request) for request in requests]
    Path(planted["absolute"]).unlink()
    for request, answer in zip(requests, there, strict=True):
        again = visitor.client.request(*request)
        assert answer.status_code in (403, 404, 405), (request, answer.status_code)
        assert (answer.status_code, answer.text) == (again.status_code, again.text), request


def test_the_server_fetches_nothing_for_a_visitor(visitor: Visitor, listener: Listener) -> None:
    asked_chat(visitor)
    for endpoint in visitor.endpoints():
        for place in endpoint.open_inputs:
            for value in as_values(listener.url, endpoint.kinds[place]):
                heard = visitor.messages(endpoint.number, with_value(endpoint, place, value))
                assert not any(shows(each, SECRET) for each in pictures_in(visitor, heard))
    for route in ("file=", "file/", "proxy="):
        answer = visitor.client.get(f"{visitor.url}gradio_api/{route}{listener.url}")
        assert answer.status_code in (403, 404)
    assert listener.asked == 0


def test_a_huge_data_address_is_refused(visitor: Visitor) -> None:
    check = next(each for each in visitor.endpoints() if each.kinds == ("image",))
    url = "data:image/png;base64," + "A" * (12 << 20)
    for value in ({"url": url}, {"path": None, "url": url}, as_file(url), url):
        assert visitor.join(check.number, [value]).status_code == 413
    assert NOT_UPLOADED in visitor.call(check.number, [{"url": url[:1000]}])


def test_events_run_only_in_their_lanes(visitor: Visitor) -> None:
    for endpoint in visitor.endpoints():
        assert visitor.run(endpoint.number, list(endpoint.values)).status_code == 404
        if endpoint.name:
            direct = visitor.client.post(
                f"gradio_api/api/{endpoint.name}", json={"data": list(endpoint.values)}
            )
            assert direct.status_code == 404


def test_what_the_page_never_asks_for_is_closed(visitor: Visitor) -> None:
    for method, route in (
        ("GET", "gradio_api/deep_link?session_hash=a"),
        ("POST", "gradio_api/process_recording"),
        ("POST", "gradio_api/vibe-edit/"),
        ("GET", "gradio_api/proxy=https://example.org/"),
        ("GET", "monitoring"),
        ("GET", "monitoring/summary"),
    ):
        assert visitor.client.request(method, route).status_code in (403, 404), route


# -- names -----------------------------------------------------------------------------


def status_as(url: str, path: str, **headers: str) -> int:
    """The status of a request that comes under another name."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.get(f"{url}{path}", headers=headers).status_code


@pytest.mark.parametrize("path", ["", "config", "gradio_api/info", "gradio_api/heartbeat/a"])
def test_a_forged_host_with_a_matching_origin_is_refused(
    served: tuple[str, Path], path: str
) -> None:
    url = served[0]
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil"):
        assert status_as(url, path, Host=host, Origin=f"http://{host}") == 421


def test_own_names_are_answered(served: tuple[str, Path]) -> None:
    port = httpx.URL(served[0]).port
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "LOCALHOST", "localhost.", "[::1]:80"):
        assert status_as(served[0], "config", Host=host) == 200, host


def test_a_forged_host_joins_no_queue(visitor: Visitor) -> None:
    joined = visitor.client.post(
        "gradio_api/queue/join",
        json={"fn_index": 0, "data": ["a"], "session_hash": "x"},
        headers={"Host": "evil.example", "Origin": "http://evil.example"},
    )
    assert joined.status_code == 421
    assert "--allow-host" in joined.json()["detail"]


def test_two_hosts_or_none_are_refused(served: tuple[str, Path]) -> None:
    url = httpx.URL(served[0])
    for head in ("Host: localhost\r\nHost: evil.example\r\n", "", "Host:\r\n"):
        with socket.create_connection((url.host, url.port), timeout=60) as raw:
            raw.sendall(f"GET /config HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
            line = raw.makefile("rb").readline()
        assert line.split()[1] in (b"421", b"400"), (head, line)


def test_a_websocket_under_a_forged_name_is_refused(served: tuple[str, Path]) -> None:
    url = httpx.URL(served[0])
    ask = (
        "GET /gradio_api/queue/join HTTP/1.1\r\nHost: evil.example\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port), timeout=60) as raw:
        raw.sendall(ask.encode())
        assert int(raw.makefile("rb").readline().split()[1]) in (403, 421)


def test_on_all_addresses_numbers_and_own_names_are_answered() -> None:
    hosts = hosts_for("0.0.0.0", ["Draw.Example.org"])
    for name in ("192.168.1.7:7860", "[fe80::1]:7860", "localhost:1", "draw.example.org"):
        assert hosts.answer_to(name), name
    for name in ("evil.example", "1.evil.example", "", "draw.example.org.evil.example"):
        assert not hosts.answer_to(name), name


def test_on_one_address_only_that_is_answered() -> None:
    hosts = hosts_for("192.168.1.7")
    assert hosts.answer_to("192.168.1.7:7860") and hosts.answer_to("localhost")
    assert not hosts.answer_to("192.168.1.8")
    hosts.add("abc.gradio.live")
    assert hosts.answer_to("abc.gradio.live") and not hosts.answer_to("abd.gradio.live")


# -- passwords -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An app on all addresses that asks for a password."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("locked")))
        arguments = ["--host", "0.0.0.0", "--port", str(free_port()), "--auth", "anna:a:b"]
        app = serve(tiny, options([*arguments, "--allow-host", "draw.example"]))
        yield f"http://127.0.0.1:{app.server_port}/"
        app.close()


def test_a_password_is_asked_for(locked: str) -> None:
    visitor = Visitor(locked)
    assert visitor.client.get("config").status_code == 401
    assert visitor.client.get("gradio_api/info").status_code == 401
    assert visitor.join(0, ["a cat", 20]).status_code == 401
    refused = visitor.client.post("gradio_api/upload", files={"files": ("a.png", b"a")})
    assert refused.status_code == 401
    wrong = visitor.client.post("login", data={"username": "anna", "password": "a"})
    assert wrong.status_code == 400
    right = visitor.client.post("login", data={"username": "anna", "password": "a:b"})
    assert right.status_code == 200
    assert "bridge-tokens" in visitor.call(0, ["a cat", 20])


def test_allowed_names_and_numbers_reach_it_and_others_do_not(locked: str) -> None:
    assert status_as(locked, "config", Host="draw.example") == 401
    assert status_as(locked, "config", Host="10.0.0.5:7860") == 401
    assert status_as(locked, "config", Host="evil.example") == 421


@pytest.mark.parametrize("given", ["anna", "anna:", ":hush-hush", "", ":"])
def test_a_malformed_login_is_told_and_not_shown(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        options(["--auth", given])
    told = capsys.readouterr().err.splitlines()[-1]
    assert "a name and a password are wanted, with a colon between them" in told
    assert "hush-hush" not in told


def test_an_open_app_says_that_it_is_open(
    tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        app = serve(tiny, options(["--host", host, "--port", str(free_port())]))
        app.close()
        assert ("--auth USER:PASSWORD asks for a password" in capfd.readouterr().err) == warned
