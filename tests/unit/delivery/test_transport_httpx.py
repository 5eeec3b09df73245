"""What is httpx's own: the names of its errors, and the private buffer of httpcore."""

import asyncio

import httpcore
import pytest
from sending import OK, Attempts, answering, port_of

from otel_step_hook.delivery.transport import _has_excess, connector
from otel_step_hook.testing import HostileReceiver

attempts = Attempts(connector)


@pytest.mark.parametrize(("more", "has_excess"), [(b"", False), (b"HTTP/1.1 200 OK\r\n\r\n", True)])
def test_httpcore_shows_excess_bytes(more: bytes, *, has_excess: bool) -> None:
    """A private attribute of httpcore still holds the bytes after an answer; without it no connection would be kept."""

    async def answered(url: str) -> bool:
        async with httpcore.AsyncConnectionPool() as pool:
            response = await pool.request("POST", url, content=b"{}")
            return _has_excess(response)

    with HostileReceiver(answering(OK + more)) as receiver:
        assert asyncio.run(answered(receiver.url)) is has_excess


def test_excess_bytes_are_assumed_if_httpcore_does_not_show_them() -> None:
    """With an httpcore that keeps its buffer elsewhere, connections are closed instead of trusted."""
    assert _has_excess(httpcore.Response(204))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="FIN before the status"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 000 OK\r\n\r\n", id="status 000"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n", id="101"),
    ],
)
def test_an_answer_that_is_no_http_has_the_error_type_of_httpx(answer: bytes) -> None:
    """Users' dashboards know the error type of an answer that cannot be read."""
    assert attempts.at(answering(answer, then_close=True)).error_type == "RemoteProtocolError"


def test_nonsense_on_a_kept_connection_has_the_error_type_of_httpx() -> None:
    """The error type of a second answer that cannot be read is the same as that of a first."""
    with HostileReceiver(answering(OK, b"nonsense\r\n\r\n")) as receiver:
        assert [one.error_type for one in attempts(receiver.url, 2)] == [None, "RemoteProtocolError"]


def test_a_proxy_that_refuses_has_the_error_type_of_httpx() -> None:
    """Users' dashboards know the error type of a CONNECT that is refused."""
    with HostileReceiver(answering(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")) as proxy:
        result = attempts.one("https://nowhere.test/hook", proxy=f"http://127.0.0.1:{port_of(proxy.url)}")
    assert result.error_type == "ProxyError"
