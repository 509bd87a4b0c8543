"""``speed`` and ``app``: how long a picture takes, and how long the app takes to serve.

A picture is timed from prompt to PIL image, one at a time, by bridge and by the stock diffusers
pipeline on the same loaded weights, in turn, after one warm-up each: what else the machine
does falls on both alike, so the ratio is worth more than the seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from benchmarks.results import ROOT, Row, median_row, report, results_file, save, show
from bridge.errors import BridgeError
from bridge.runtime import resolve_device

_PROMPT = "two red apples left of a cat"
_PATIENCE = 180.0


def run_speed(args: argparse.Namespace) -> None:
    """Time both sides; writes speed.json."""
    from bridge.diffusion import generate, load_pipeline

    pipe = load_pipeline(args.model, device=args.device)
    pipe.set_progress_bar_config(disable=True)

    def ours() -> Any:
        return generate(
            _PROMPT, model=pipe, seed=1, steps=args.steps, guidance_scale=args.guidance
        ).images

    def stock() -> Any:
        return pipe(_PROMPT, num_inference_steps=args.steps, guidance_scale=args.guidance).images

    rows = compare("speed/picture", ours, stock, args.repeats)
    show(rows)
    load = os.getloadavg()[0]
    notes = {"load_average": round(load, 2)}
    table = report(args.command, rows, pipe.device, **notes)
    save(results_file(args.out, "speed.json", (args.model, "emoji-xl")), table)


def compare(
    name: str, ours: Callable[[], Any], stock: Callable[[], Any], repeats: int
) -> list[Row]:
    """Seconds of both sides and of their ratio, measured in turn."""
    pairs = []
    ours(), stock()
    for _ in range(repeats):
        pairs.append((seconds(ours), seconds(stock)))
    return [
        median_row(f"{name}/bridge", [a for a, _ in pairs], "s"),
        median_row(f"{name}/stock_diffusers", [b for _, b in pairs], "s"),
        median_row(f"{name}/bridge_over_stock", [a / b for a, b in pairs], "x"),
    ]


def seconds(action: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def run_app(args: argparse.Namespace) -> None:
    """Time three starts of the app until its page answers; writes app.json."""
    times = [app_ready() for _ in range(3)]
    rows = [median_row("app/ready", times, "s", 2)]
    show(rows)
    load = round(os.getloadavg()[0], 2)
    # The app, another process, takes the device that is found without a wish.
    on = resolve_device()
    save(args.out / "app.json", report(args.command, rows, on, load_average=load))


def app_ready() -> float:
    """Seconds from the command to the first page served. Raises BridgeError when it ends or
    does not serve within three minutes."""
    port = free_port()
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    begun = time.perf_counter()
    app = subprocess.Popen(
        [sys.executable, "demos/app.py", "--port", str(port)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while time.perf_counter() - begun < _PATIENCE:
            if app.poll() is not None:
                raise BridgeError(f"demos/app.py ended with status {app.returncode}")
            if _serves(port):
                return time.perf_counter() - begun
            time.sleep(0.1)
        raise BridgeError(f"demos/app.py did not serve within {_PATIENCE:.0f} s")
    finally:
        app.send_signal(signal.SIGINT)
        try:
            app.wait(10)
        except subprocess.TimeoutExpired:
            app.kill()
            app.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serves(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
            return bool(page.status == 200 and page.read(1))
    except (urllib.error.URLError, OSError):
        return False
