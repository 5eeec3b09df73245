"""An application that logs at DEBUG: the HTTP libraries and asyncio write no lines about webhooks."""

import socket
import threading

import pytest
from processes import Run

from otel_step_hook.testing import HostileReceiver, read_request

KEY = "sekret-7f3a9c"
PROGRAM = """
import asyncio, httpx
logging.basicConfig(level=logging.DEBUG, format="%(threadName)s|%(name)s|%(message)s")
deliver("step-1")
httpx.post(os.environ["STEP_COMPLETE_WEBHOOK"], json={"step_id": "own"})
asyncio.run(asyncio.sleep(0))
deliver("step-2")
print(*sorted({logging.getLogger(name).level for name in ("httpx", "httpcore.http11", "asyncio", "aiohttp.client")}))
"""


def echoing(connection: socket.socket, _: threading.Event) -> None:
    """Accept webhooks, and send their key back in a header."""
    while request := read_request(connection):
        key = KEY.encode() if KEY.encode() in request else b"none"
        connection.sendall(b"HTTP/1.1 204 No Content\r\nx-key: " + key + b"\r\n\r\n")


@pytest.mark.parametrize("client", ["httpx", pytest.param("aiohttp", marks=pytest.mark.slow)])
def test_other_loggers_have_no_lines_of_our_thread(run: Run, client: str) -> None:
    """Our thread's requests leave lines of our own logger alone; the application's are logged as before."""
    with HostileReceiver(echoing) as receiver:
        ended = run(PROGRAM, webhook=receiver.url, http_client=client, key=KEY)
    assert (ended.code, ended.out) == (0, ["0"])
    lines = [(thread, name) for thread, name, *_ in (line.split("|") for line in ended.err.splitlines())]
    assert {name for thread, name in lines if thread == "otel-step-hook"} == {"otel_step_hook"}
    assert {name for thread, name in lines if thread == "MainThread"} >= {"httpx", "httpcore.http11", "asyncio"}
    assert KEY not in ended.err
