"""The app: draw a picture from words, ask about it, compare it, study its phrasing.

`demos/app.py --help` names its options.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Run as a script, Python looks for modules beside this file, not in the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Gradio and huggingface_hub read these at import. The app tells nobody anything.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from bridge.threads import is_shared, thread_settings

# OpenMP reads it when torch loads, just below.
os.environ.update(thread_settings(os.environ, shared=is_shared()))

from bridge.checks import needed
from bridge.errors import BridgeError, MissingDependencyError

try:
    needed("gradio", "app", "the app")
except MissingDependencyError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"bridge: {error}")

import gradio as gr
from starlette.middleware import Middleware

from bridge.prompt import TruncationWarning
from demos.ask_tab import ask_tab
from demos.compare_tab import compare_tab
from demos.comparing import gathered, read_file
from demos.door import Door
from demos.draw_tab import draw_tab
from demos.gates import Gates
from demos.hosts import hosts_for, is_loopback
from demos.limits import MOST_SESSIONS, MOST_UPLOAD, MOST_WAITING, QUICK
from demos.messages import explain
from demos.models import Models
from demos.sessions import sweeping
from demos.study_tab import study_tab
from demos.theme import CSS, theme
from demos.title import title_html
from demos.uploads import picture_of

TITLE = "bridge: words into pictures, pictures into words"
# In the page's head, since Gradio rewrites the selectors of its own ``css`` option one by one
# and breaks those in media queries and in :has().
_SCRIPTS = "".join(
    f"<script>{(Path(__file__).parent / name).read_text(encoding='utf-8')}</script>"
    for name in ("weight_keys.js", "focus.js")
)
_HEAD = f'<meta name="color-scheme" content="light dark"><style>{CSS}</style>{_SCRIPTS}'


def _focused(box: str) -> str:
    """JavaScript that takes the keyboard to a box of a tab that is just opened, whose contents
    are mounted a moment after."""
    return f"""() => {{
  let left = 40;
  const seek = () => {{
    const box = document.querySelector('{box}');
    if (box && box.offsetParent) box.focus();
    else if (left--) setTimeout(seek, 50);
  }};
  seek();
}}"""


def build(models: Models) -> gr.Blocks:
    """The whole app, ready to launch. Loads no model."""
    with Door(title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as app:
        gr.HTML(title_html(models), elem_id="bridge-title")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Draw", id="draw"):
                drawn = draw_tab(models)
            with gr.Tab("Ask", id="ask"):
                asked = ask_tab(models)
            with gr.Tab("Compare", id="compare"):
                compared = compare_tab(models)
            with gr.Tab("Study", id="study"):
                study_tab(models)

        def hand_over(shown: Any, index: Any) -> dict[Any, Any]:
            begun_anew: dict[Any, Any] = {asked.chat: [], asked.turns: []}
            try:
                chosen = chosen_picture(shown, index)
                if chosen is None:
                    return {asked.status: ""}
                picture = picture_of(chosen[1])
            except BridgeError as error:
                return {tabs: gr.Tabs(selected="ask"), asked.status: explain(error)}
            return {
                **begun_anew,
                tabs: gr.Tabs(selected="ask"),
                asked.picture: picture,
                asked.status: "",
            }

        def hand_to_compare(shown: Any, index: Any, there: Any) -> dict[Any, Any]:
            """Beside those that are there already."""
            opened = {tabs: gr.Tabs(selected="compare")}
            try:
                chosen = chosen_picture(shown, index)
                if chosen is None:
                    return {compared.status: ""}
                name, path = chosen
                pictures: list[Any] = [*gathered(there), (picture_of(path), name)]
            except BridgeError as error:
                return {**opened, compared.status: explain(error)}
            return {**opened, compared.pictures: pictures, compared.status: ""}

        drawn.compare.click(
            hand_to_compare,
            [drawn.gallery, drawn.selected, compared.pictures],
            [tabs, compared.pictures, compared.status],
            preprocess=False,
            api_visibility="private",
            **QUICK,
        ).then(None, None, None, js=_focused("#compare-labels textarea"))
        handed = drawn.ask.click(
            hand_over,
            [drawn.gallery, drawn.selected],
            [tabs, asked.picture, asked.chat, asked.turns, asked.status],
            preprocess=False,
            api_visibility="private",
            **QUICK,
        )
        handed.then(None, None, None, js=_focused("#question textarea"))
        asked.look.follow(asked.turns, handed)
    # Without the queue an event would wait for no lane.
    app.queue(api_open=False, max_size=MOST_WAITING)
    return app


def chosen_picture(shown: Any, index: Any) -> tuple[str, Path] | None:
    """The name and file of a gallery's picture, of the last if there are fewer.

    Raises ImageError.
    """
    if not isinstance(shown, list) or not shown:
        return None
    place = min(index, len(shown) - 1) if isinstance(index, int) and index >= 0 else 0
    return read_file(shown[place])


def warm(models: Models) -> None:
    """Load the models; a failure is told here, and again to whoever uses them."""
    try:
        models.warm()
    except Exception as error:
        explain(error)
        print(f"bridge: a model could not be loaded: {error}", file=sys.stderr)


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} is no port; give a whole number from 0 to 65535, 0 for a free one"
    )


def _login(text: str) -> tuple[str, str]:
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        # The text itself is not shown: it may be the password.
        raise argparse.ArgumentTypeError(
            "a name and a password are wanted, with a colon between them, such as anna:secret"
        )
    return name, password


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; browsers open the app by it, or by localhost. 0.0.0.0 is every "
        "address of this machine: then any IP address and the machine's own names are answered",
    )
    parser.add_argument("--port", type=_port, default=7860, help="0 takes a free one")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name that browsers may open the app by, such as that of a proxy",
    )
    parser.add_argument(
        "--auth",
        type=_login,
        metavar="USER:PASSWORD",
        help="ask for a name and a password; other users of this machine may see them here",
    )
    parser.add_argument("--share", action="store_true", help="a public link, through gradio.live")
    parser.add_argument("--open", action="store_true", help="open a browser window")
    parser.add_argument("--model", default="emoji-xl", help="draws: name, folder or hub id")
    parser.add_argument("--vlm", default="emoji-llava", help="answers: name, folder or hub id")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; without it, CUDA if there is one")
    return parser.parse_args(arguments)


def serve(models: Models, given: argparse.Namespace) -> gr.Blocks:
    """Serve the app in threads of its own, and return at once. Loads no model."""
    app = build(models)
    hosts = hosts_for(given.host, given.allow_host)
    try:
        _, _, shared = app.launch(
            # In brackets, as addresses on the web have IPv6.
            server_name=f"[{given.host.strip('[]')}]"
            if ":" in given.host.strip("[]")
            else given.host,
            server_port=given.port or None,
            share=given.share,
            auth=given.auth,
            inbrowser=given.open,
            prevent_thread_lock=True,
            max_file_size=MOST_UPLOAD,
            state_session_capacity=MOST_SESSIONS,
            enable_monitoring=False,
            footer_links=[],
            theme=theme(),
            head=_HEAD,
            ssr_mode=False,
            run_history=False,
            app_kwargs={"middleware": [Middleware(Gates, hosts=hosts)], "lifespan": sweeping},
        )
    except OSError as error:
        raise SystemExit(
            f"bridge: cannot listen on {given.host} port {given.port}: {error} "
            "Is another app running there? --port takes another number, 0 a free one."
        ) from None
    if shared:
        hosts.add(urlsplit(shared).netloc)
    if given.auth is None and (shared or not is_loopback(given.host)):
        where = shared or f"{given.host} port {app.server_port}"
        print(
            f"bridge: warning: whoever reaches {where} can use this app; "
            "--auth USER:PASSWORD asks for a password.",
            file=sys.stderr,
        )
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted. The server is up first; the models load behind it."""
    given = options(arguments)
    # The token report shows on the page what this would say in the terminal.
    warnings.filterwarnings("ignore", category=TruncationWarning)
    models = Models(given.model, given.vlm, given.device)
    app = serve(models, given)
    threading.Thread(target=warm, args=(models,), name="bridge-warm", daemon=True).start()
    app.block_thread()


if __name__ == "__main__":
    main()
