"""An ASGI application that ends 60 steps at each request, and prints a line when its server stops it."""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import measured  # noqa: F401 -- its import saves what coverage has measured

if __name__ == "__main__":
    import uvicorn  # before the next one, which hides click from it

from application import end_steps

Message = MutableMapping[str, Any]


async def app(
    _: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Serve a request, or the server's start and stop."""
    kind = (await receive())["type"]
    if kind == "http.request":
        end_steps("step", 60)
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})
        return
    await send({"type": f"{kind}.complete"})
    await receive()
    os.write(1, b"stopped\n")  # one write, unlike print(): the lines of two workers must not mix
    await send({"type": "lifespan.shutdown.complete"})


if __name__ == "__main__":
    uvicorn.run(app, port=0, access_log=False)
