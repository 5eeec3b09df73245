"""An application whose threads are greenlets: ``python -m greenlets gevent|eventlet before|after``.

It patches Python's threads before or after it imports the hook. It prints a line when its steps have ended, one after a
flush during which no webhook was answered, and one from asyncio. Then it waits for the test, and exits with 3.
"""

import importlib
import sys

library, order = sys.argv[1:]
greenlets = importlib.import_module(library)


def patch() -> None:
    """Replace Python's threads and sockets, as an application does."""
    if library == "gevent":
        importlib.import_module("gevent.monkey").patch_all()
    else:
        greenlets.monkey_patch()


if order == "before":
    patch()

import asyncio  # noqa: E402 -- see above

from application import end_step, provider, wait_for_test  # noqa: E402 -- see above

if order == "after":
    patch()

beats: list[None] = []


def beat() -> None:
    """Count how often this greenlet runs."""
    while True:
        beats.append(None)
        greenlets.sleep(0.001)


def work(number: int) -> None:
    """End two steps, and let other greenlets run between them."""
    end_step(f"step-{number}")
    greenlets.sleep(0.001)
    end_step(f"step-{number}-again")


async def answer() -> str:
    """Run on an event loop of the application."""
    await asyncio.sleep(0.001)
    return "asyncio has run"


greenlets.spawn(beat)
for worker in [greenlets.spawn(work, number) for number in range(10)]:
    getattr(worker, "join" if library == "gevent" else "wait")()
print("steps have ended", flush=True)
before = len(beats)
print("flushed" if provider.force_flush(4000) else "not flushed", len(beats) - before > 20, flush=True)
print(asyncio.run(answer()), flush=True)
wait_for_test()
end_step("last")
sys.exit(3)
