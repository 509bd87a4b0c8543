"""What one visitor may ask of the running app, and that he is told the bound."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.app_calls import Endpoint, Visitor, png_of, with_short_work
from support.app_pages import free_port

import demos.sessions
from demos.app import options, serve
from demos.limits import MOST_SESSIONS
from demos.models import Models

pytest_plugins = ["support.app_calls"]

LONG = "7" * 4_001
PARTS = " AND ".join(["a cat"] * 17)


def endpoint(visitor: Visitor, name: str) -> Endpoint:
    return next(each for each in visitor.endpoints() if each.name == name)


def typing_of(visitor: Visitor) -> Endpoint:
    return next(each for each in visitor.endpoints() if each.kinds == ("textbox", "slider"))


def filled(made: Endpoint, place: int, value: Any) -> list[Any]:
    data = with_short_work(made, list(made.values))
    data[place] = value
    return data


@pytest.fixture(scope="module")
def huge() -> bytes:
    """A small file of 49 megapixels."""
    stream = io.BytesIO()
    Image.new("RGB", (7000, 7000), (9, 9, 9)).save(stream, "WEBP", lossless=True, method=0)
    assert len(stream.getvalue()) < 20_000
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "place", "value", "told"),
    [
        ("draw", 0, LONG, "Prompt has 4,001 characters; this app takes at most 4,000."),
        ("draw", 1, LONG, "Negative prompt has 4,001 characters; this app takes at most 4,000."),
        ("draw", 0, PARTS, "Prompt joins 17 parts by AND; this app draws at most 16."),
        ("study", 0, LONG, "Prompt has 4,001 characters; this app takes at most 4,000."),
        ("study", 0, "a cat " * 100, "600 characters; this page takes phrasings of at most 400."),
        ("study", 1, PARTS, "A phrasing joins 17 parts by AND; this app draws at most 16."),
        (
            "study",
            1,
            "a\n" * 999,
            "1000 phrasings with the prompt, and this page takes at most 300",
        ),
        ("study", 1, "7" * 200_000, "200,000 characters; this app takes at most 120,000."),
        ("ask", 1, LONG, "The question has 4,001 characters; this app takes at most 4,000."),
        ("compare", 1, "7" * 20_001, "20,001 characters; this app takes at most 20,000."),
        ("compare", 1, "\n".join(map(str, range(51))), "51 texts, and this page takes at most 50"),
        ("compare", 1, "7" * 201, "201 characters; this page takes texts of at most 200."),
    ],
)
def test_a_bound_is_told(visitor: Visitor, name: str, place: int, value: str, told: str) -> None:
    asked = endpoint(visitor, name)
    data = filled(asked, place, value)
    if name in ("ask", "compare"):
        mine = visitor.upload("mine.png", png_of((1, 2, 3)))
        data[0] = mine if name == "ask" else [{"image": mine, "caption": None}]
    assert told in visitor.call(asked.number, data)


def test_as_much_as_is_told_is_taken(visitor: Visitor) -> None:
    draw = endpoint(visitor, "draw")
    assert "1 picture in" in visitor.call(draw.number, filled(draw, 0, PARTS[len("a cat AND ") :]))
    assert "bridge-tokens" in visitor.call(typing_of(visitor).number, ["a " * 2_000, 20])


@pytest.mark.parametrize("word", ["a", "ä", "((", "[a|", "\0", "a AND "])
def test_a_million_typed_characters_cost_nothing(visitor: Visitor, word: str) -> None:
    typed = word * (1_000_000 // len(word))
    began = time.monotonic()
    told = visitor.call(typing_of(visitor).number, [typed, 20])
    # Seen: 0.1 s; it was 29 to 53 s. The wall is that of a machine with much else to do.
    assert time.monotonic() - began < 10
    assert f"Prompt has {len(typed):,} characters; this app takes at most 4,000." in told


@pytest.mark.parametrize("word", ["(a:1.1)", "((((", "[a|b]", "[a:b:3]", "\\(", "💡", "__a", "ä("])
def test_the_longest_prompt_is_reported_soon(visitor: Visitor, word: str) -> None:
    began = time.monotonic()
    told = visitor.call(typing_of(visitor).number, [(word * 4_000)[:4_000], 20])
    assert time.monotonic() - began < 20  # seen: up to 1 s
    assert "bridge-tokens" in told or "bridge-problem" in told
    assert "went wrong" not in told


def test_a_request_that_says_no_length_is_bounded_too(visitor: Visitor) -> None:
    def body() -> Any:
        for _ in range(16):
            yield b" " * (1 << 20)

    headers = {"content-type": "application/json"}
    answer = visitor.client.post("gradio_api/queue/join", content=body(), headers=headers)
    assert answer.status_code in (400, 413)


# -- pictures --------------------------------------------------------------------------


def test_a_huge_picture_is_refused_by_its_header(visitor: Visitor, huge: bytes) -> None:
    told = " has 7000 x 7000 pixels, and this app takes pictures of at most 16,000,000"
    mine, big = visitor.upload("mine.png", png_of((1, 2, 3))), visitor.upload("huge.webp", huge)
    ask = endpoint(visitor, "ask")
    assert '"success": true' in visitor.call(ask.number, [mine, "what is it?", None])
    tried = 0
    for each in visitor.endpoints():
        if each.kinds and each.kinds[0] in ("image", "gallery"):
            data = list(each.values)
            data[0] = [{"image": big, "caption": None}] if each.kinds[0] == "gallery" else big
            assert told in visitor.call(each.number, data), each
            tried += 1
    assert tried >= 4


def test_a_huge_picture_costs_no_memory(huge: bytes, tmp_path: Path) -> None:
    file = tmp_path / "huge.webp"
    file.write_bytes(huge)
    script = """if True:
        import resource, sys
        from bridge.errors import ImageError
        from demos.uploads import picture_of
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            picture_of(sys.argv[1])
        except ImageError as error:
            print(error)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
    """
    run = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True
    )
    *_, told, megabytes = run.stdout.splitlines()
    assert "at most 16,000,000" in told
    assert int(megabytes) < 60  # decoded, its pixels alone are 147


# -- lanes -----------------------------------------------------------------------------


def test_typing_and_stop_wait_for_no_drawing(visitor: Visitor) -> None:
    draw = endpoint(visitor, "draw")
    stop = [each for each in visitor.endpoints() if each.name and each.name.startswith("halt")]
    stop = stop or [each for each in visitor.endpoints() if not each.kinds]
    others = [Visitor(visitor.url) for _ in range(6)]
    ended: list[str] = []

    def draws(other: Visitor) -> None:
        data = filled(draw, 4, 50)
        data[-1] = 8
        ended.append(other.call(draw.number, data))

    threads = [threading.Thread(target=draws, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert "bridge-tokens" in visitor.call(typing_of(visitor).number, ["a cat", 20])
    typed_before = len(ended)
    for other in others:
        for each in stop:
            Visitor(visitor.url, other.session).join(each.number, [])
    for thread in threads:
        thread.join()
    assert typed_before < len(others)
    assert any("stopped after" in told for told in ended), [told[:200] for told in ended]


def test_every_event_waits_in_a_lane_with_a_bound(visitor: Visitor) -> None:
    config = visitor.client.get("config").json()
    events = [each for each in config["dependencies"] if each["backend_fn"]]
    assert events and all(each["queue"] is not False for each in events)


# -- visitors --------------------------------------------------------------------------


def test_an_idle_visitor_is_forgotten(
    tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(demos.sessions, "_SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(demos.sessions, "IDLE_SECONDS", 0.0)
    app = serve(tiny, options(["--port", str(free_port())]))
    try:
        assert app.state_session_capacity == MOST_SESSIONS
        for _ in range(20):
            visitor = Visitor(app.local_url)
            assert "bridge-tokens" in visitor.call(0, ["a cat", 20])
        kept = (
            app.app.state_holder.session_data,
            app.app.state_holder.time_last_used,
            app._queue.pending_event_ids_session,
            app._queue.pending_messages_per_session,
        )
        deadline = time.monotonic() + 60
        while any(kept) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(kept)
        assert "bridge-tokens" in visitor.call(0, ["a cat", 20])  # and is welcome again
    finally:
        app.close()
