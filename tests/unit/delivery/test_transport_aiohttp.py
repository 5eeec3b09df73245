"""What is aiohttp's own: instrumentations that replace its methods."""

from typing import Any

import aiohttp
import pytest
from sending import OK, Attempts, answering

from otel_step_hook.delivery.aiohttp_transport import connector


def test_an_instrumentation_may_set_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrumentation that adds to the headers of each request, as ddtrace up to version 3 does, breaks nothing."""
    request: Any = aiohttp.ClientSession._request

    async def traced(*args: Any, headers: Any, **kwargs: Any) -> Any:
        headers["x-trace-id"] = "1"
        return await request(*args, headers=headers, **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "_request", traced)
    assert Attempts(connector).at(answering(OK)).is_success
