"""The door to every event of the app: what a request sends is judged before Gradio reads it."""

from __future__ import annotations

import sys
from typing import Any

import gradio as gr

from bridge.errors import BridgeError
from demos.limits import UNREADABLE
from demos.uploads import screened


class Door(gr.Blocks):
    """Blocks whose events never see a file outside the upload cache.

    Gradio checks only files that say of themselves that they are files, follows no links, and
    fetches addresses. Whatever it then cannot read is one error, without a traceback: nobody
    gets there by the page.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any) -> Any:
        """As Gradio does, with every file of ``inputs`` checked first. Raises gr.Error."""
        try:
            return await super().preprocess_data(block_fn, screened(inputs), *rest)
        except BridgeError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from None
        except Exception as error:
            # Its words may hold anything that was sent; the terminal gets its kind.
            print(f"bridge: a request was refused: {type(error).__name__}", file=sys.stderr)
            raise gr.Error(UNREADABLE, print_exception=False) from None
