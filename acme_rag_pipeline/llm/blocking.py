"""A coroutine run to its end by code that is none."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

# Windows takes no signal while a thread waits without end.
_SIGNAL_SECONDS = 0.5
_T = TypeVar("_T")


def run_blocking(start: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine to its end from any thread, also from one whose event loop is running (a notebook).

    Interrupted while it waits, it cancels the coroutine, lets it clean up, and only then raises.
    """
    interrupted = threading.Event()
    cancel: list[Callable[[], object]] = []

    async def main() -> _T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        if interrupted.is_set():
            raise asyncio.CancelledError
        return await start()

    # Always a thread of its own: Dagster's signal handlers raise wherever the main thread is, and an event loop only logs
    # what is raised in one of its callbacks. Here the main thread does nothing but wait.
    with ThreadPoolExecutor(1) as thread:
        try:
            running = thread.submit(lambda: asyncio.run(main()))
            while not wait([running], timeout=_SIGNAL_SECONDS).done:
                pass
            return running.result()
        except BaseException:
            interrupted.set()
            for stop in cancel:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the exception is the coroutine's own
                    stop()
            raise
