"""Visitors who are gone: Gradio keeps a copy of the page for each, for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from demos.limits import IDLE_SECONDS

_SWEEP_SECONDS = 60


def forget_idle(app: Any, idle_seconds: float) -> None:
    """Forget the visitors of Gradio's server who did nothing for ``idle_seconds``."""
    holder, queue = app.state_holder, app.get_blocks()._queue
    oldest = datetime.now() - timedelta(seconds=idle_seconds)
    for session, used in list(holder.time_last_used.items()):
        if used <= oldest:
            holder.session_data.pop(session, None)
            holder.time_last_used.pop(session, None)
    # What each visitor waits for, and is to be told; Gradio keeps the empty lists, too.
    for session, events in list(queue.pending_event_ids_session.items()):
        if not events and session not in holder:
            queue.pending_event_ids_session.pop(session, None)
            queue.pending_messages_per_session.pop(session, None)


@asynccontextmanager
async def sweeping(app: Any) -> AsyncIterator[None]:
    """While the server runs, `forget_idle` now and then."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            forget_idle(app, IDLE_SECONDS)

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()
