"""A WSGI application that ends a step when it is loaded, and one at each request."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterable

from application import end_step

end_step("loaded")


async def answer() -> bytes:
    """Wait in an event loop of the application's own."""
    await asyncio.sleep(0.001)
    return b"asyncio has run"


def application(environ: dict[str, str], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer with the worker's pid; to ``/asyncio``, with what an event loop has returned.

    ``/signal`` sends SIGTERM to the thread that delivers.
    """
    name = environ["PATH_INFO"].strip("/")
    end_step(f"request-{name}")
    for thread in threading.enumerate():
        if name == "signal" and thread.name == "otel-step-hook" and thread.ident is not None:
            signal.pthread_kill(thread.ident, signal.SIGTERM)
    start_response("200 OK", [("content-type", "text/plain")])
    return [asyncio.run(answer()) if name == "asyncio" else str(os.getpid()).encode()]
