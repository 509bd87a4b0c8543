"""Every endpoint of the running app: what a visitor may send that its page never would."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz_support import Fuzz, Run
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

from bridge.embedded import IMAGE_TOWER

pytest_plugins = ["support.app_calls"]

SECRET = (201, 33, 147)
SECONDS = 60
INSIDE = "went wrong inside bridge"


@pytest.fixture(scope="module")
def endpoints(served: tuple[str, Path]) -> list[Endpoint]:
    return [each for each in Visitor(served[0]).endpoints() if each.open_inputs]


@pytest.fixture
def chatting(served: tuple[str, Path], endpoints: list[Endpoint]) -> Iterator[Visitor]:
    """A visitor with a picture and a chat, so that every event has something to work on."""
    visitor = Visitor(served[0])
    ask = next(each for each in endpoints if each.name == "ask")
    mine = visitor.upload("mine.png", png_of((12, 190, 60)))
    assert '"success": true' in visitor.call(ask.number, [mine, "what is it?", None])
    yield visitor
    visitor.client.close()


# -- pictures of the server's disk -----------------------------------------------------


def disguised(rng: random.Random, path: str, cache: Path) -> str:
    """Another name of a file, as a path, an address or a link."""
    inside = f"{cache}/{rng.choice(('a', '.', 'links', '..', '/'))}"
    ways = [
        path,
        f"{inside}/{'../' * rng.randrange(1, 20)}{path[1:]}",
        f"{'../' * rng.randrange(20)}{path[1:]}",
        f"{cache}/links/{rng.choice(('file.png', 'folder/secret.png'))}",
        f"{rng.choice(('file:', 'FILE:', 'http:', ''))}{'/' * rng.randrange(5)}{path[1:]}",
        path.replace("/", rng.choice(("//", "/./", "\\", "%2f", "/a/../"))),
        f"/proc/self/root{path}",
        f"/proc/self/cwd/{'../' * 20}{path[1:]}",
        f"{path}{rng.choice(('', '/', '/.', chr(0), '?', '#', ' ', '%00'))}",
        f"/gradio_api/file={path}",
        f"{cache}{path}",
    ]
    return rng.choice(ways)


def written(rng: random.Random, path: str) -> Any:
    """A file as some value of a request."""
    value: Any = {"path": path}
    if rng.random() < 0.7:
        value = as_file(path)
    if rng.random() < 0.4:
        value["url"] = rng.choice((path, f"/gradio_api/file={path}", f"file://{path}", None))
    if rng.random() < 0.3:
        value["is_stream"] = rng.random() < 0.5
    if rng.random() < 0.2:
        value["meta"] = rng.choice(({}, None, [], {"_type": "x"}, "gradio.FileData"))
    if rng.random() < 0.2:
        value["orig_name"] = rng.choice(("a.png", path, 3, None))
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        value = rng.choice(([value], {"image": value, "caption": None}, {"value": value}))
    if rng.random() < 0.3:
        value = [{"image": value, "caption": None}]
    return value if rng.random() < 0.9 else path


def test_pictures_of_the_disk(
    fuzz: Fuzz, served: tuple[str, Path], chatting: Visitor, endpoints: list[Endpoint],
    tmp_path: Path,
) -> None:  # fmt: skip
    cache = served[1]
    (cache / "links").mkdir(parents=True)
    secret = tmp_path / "secret.png"
    (cache / "links" / "file.png").symlink_to(secret)
    (cache / "links" / "folder").symlink_to(tmp_path)
    with fuzz("pictures of the server's disk that a visitor can read", 60) as run:
        for rng in run.draws():
            secret.write_bytes(png_of(SECRET))
            path = disguised(rng, str(secret), cache)
            with run.within(SECONDS):
                if rng.random() < 0.2:
                    route = rng.choice(("gradio_api/file=", "gradio_api/file/", "file=", "static/"))
                    answer = chatting.client.get(f"{chatting.url}{route}{path.replace(chr(0), '')}")
                    run.expect(png_of(SECRET) not in answer.content, f"{route}{path} is handed out")
                    continue
                endpoint = rng.choice(endpoints)
                data = with_short_work(endpoint, list(endpoint.values))
                data[rng.choice(endpoint.open_inputs)] = written(rng, path)
                heard = chatting.messages(endpoint.number, data)
                found = pictures_in(chatting, heard)
                run.expect(not any(shows(each, SECRET) for each in found), f"{endpoint} {data}")
                if "slider" not in endpoint.kinds:  # else text is drawn, which is no secret
                    secret.unlink()
                    again = chatting.call(endpoint.number, data)
                    run.expect(end_of(heard) == again, f"tells what exists: {endpoint} {data}")


# -- wrong values ----------------------------------------------------------------------


def anything(rng: random.Random, depth: int = 0) -> Any:
    """Some JSON."""
    plain: list[Any] = [
        None, True, False, 0, -1, 3, 10**6, 2**63, -(10**30), 1.5, 1e308, float("nan"),
        float("inf"), float("-inf"), "", "a cat", "\0", "\ud800", "7" * 5_000, "a AND " * 40,
        "((((" * 200, "<lora:x:1>", "<script>", "Blanked parts", "Attention", "1", "[a:b:c]",
        "own", "clip-7", "a {}", "{0}{}", "cat\ncat", "a\n" * 60, "a" * 201, [IMAGE_TOWER],
        [IMAGE_TOWER] * 9, [{"image": None}] * 17,
    ]  # fmt: skip
    if depth > 2 or rng.random() < 0.7:
        return rng.choice(plain)
    if rng.random() < 0.1:
        return nested(rng.choice((10, 100, 300)))
    if rng.random() < 0.5:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ("path", "url", "meta", "image", "value", "caption", "_type", "__type__", "a")
    return {rng.choice(keys): anything(rng, depth + 1) for _ in range(rng.randrange(4))}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def judge(run: Run, heard: list[dict[str, Any]], what: str) -> None:
    """Every call ends, and in a result or in one error that has words."""
    last = heard[-1] if heard else {}
    told = json.dumps(heard, ensure_ascii=False)
    run.expect(INSIDE not in told, f"internal error: {what}")
    if "refused" in last:
        run.expect(last["refused"] < 500, f"{last}: {what}")
    else:
        run.expect(last.get("msg") == "process_completed", f"no end: {last}: {what}")
        if not last.get("success"):
            run.expect(bool(last.get("output", {}).get("error")), f"no words: {last}: {what}")


def test_wrong_values(
    fuzz: Fuzz, chatting: Visitor, endpoints: list[Endpoint], capfd: pytest.CaptureFixture[str]
) -> None:
    mine = chatting.upload("mine.png", png_of((12, 190, 60)))
    with fuzz("wrong values at every endpoint of the app", 100) as run:
        for rng in run.draws():
            endpoint = rng.choice(endpoints)
            data = with_short_work(endpoint, list(endpoint.values))
            if endpoint.kinds[0] in ("image", "gallery") and rng.random() < 0.7:
                data[0] = mine if endpoint.kinds[0] == "image" else [{"image": mine}]
            for place in rng.sample(
                endpoint.open_inputs, rng.randint(1, len(endpoint.open_inputs))
            ):
                data[place] = anything(rng)
            with run.within(SECONDS):
                judge(run, chatting.messages(endpoint.number, data), f"{endpoint} {data}")
            run.expect("Traceback" not in capfd.readouterr().err, f"traceback: {endpoint} {data}")


def test_wrong_requests(
    fuzz: Fuzz, chatting: Visitor, endpoints: list[Endpoint], capfd: pytest.CaptureFixture[str]
) -> None:
    with fuzz("wrong values at every endpoint of the app", 40) as run:
        for rng in run.draws():
            endpoint = rng.choice([each for each in endpoints if "slider" not in each.kinds])
            body: dict[str, Any] = {"fn_index": endpoint.number, "data": list(endpoint.values)}
            for key in rng.sample(("fn_index", "data", "event_data", "trigger_id", "extra"), 2):
                body[key] = anything(rng)
            with run.within(SECONDS):
                judge(
                    run,
                    chatting.messages(body.pop("fn_index"), body.pop("data"), **body),
                    str(body),
                )
            run.expect("Traceback" not in capfd.readouterr().err, f"traceback: {body}")
