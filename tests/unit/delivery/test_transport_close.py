"""One attempt: what is closed after it, and when the transport is closed."""

import asyncio
import gc
import logging
import socket
import threading
import weakref

import pytest
from sending import CONTENT, OK, TO_CONNECT, Attempts, answering, secured, server_context

from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.sender import Transport
from otel_step_hook.testing import HostileReceiver, read_request


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_timeout_leaves_no_socket(attempts: Attempts, trusted: str, scheme: str) -> None:
    """The connection is closed at once, although the receiver has neither read the request nor ended TLS."""

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        connection.recv(1)
        closing.wait(10)

    async def make(url: str) -> AttemptResult:
        transport = attempts.transport(url, certificate=trusted)
        result = await transport.post(bytes(20_000_000), [], timeout=TO_CONNECT)
        await transport.aclose()
        return result

    behaviour = behave if scheme == "http" else secured(server_context("127.0.0.1"), behave)
    with HostileReceiver(behaviour) as receiver:
        assert asyncio.run(make(receiver.url.replace("http:", f"{scheme}:"))).error_type == "timeout"
        gc.collect()  # would warn of an open socket, and every warning is an error here


def test_long_answers_leave_nothing_behind(attempts: Attempts, caplog: pytest.LogCaptureFixture) -> None:
    """An answer that is cut off in the middle leaves no task, no generator and no open socket."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 50000\r\n\r\n" + b"x" * 50_000
    with HostileReceiver(answering(answer)) as receiver, caplog.at_level(logging.WARNING):
        assert all(result.is_success for result in attempts(receiver.url, 5))
        gc.collect()
    assert caplog.records == []


def test_closing_a_transport_closes_its_connection(attempts: Attempts) -> None:
    """The receiver sees the kept connection end; closing again, or without a connection, does nothing."""
    hung_up = threading.Event()

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while read_request(connection):
            connection.sendall(OK)
        hung_up.set()

    async def make(url: str) -> None:
        used, unused = attempts.transport(url), attempts.transport(url)
        assert (await used.post(CONTENT, [], timeout=10.0)).is_success
        assert not hung_up.is_set()
        for transport in (used, used, unused):
            await transport.aclose()

    with HostileReceiver(behave) as receiver:
        asyncio.run(make(receiver.url))
        assert hung_up.wait(10)
        assert receiver.connections == 1


def test_a_closed_transport_is_freed(attempts: Attempts) -> None:
    """Nothing keeps a transport alive that is closed and no longer used."""

    async def make(url: str) -> "weakref.ref[Transport]":
        transport = attempts.transport(url)
        await transport.post(CONTENT, [], timeout=5.0)
        await transport.aclose()
        return weakref.ref(transport)

    with HostileReceiver(answering(OK)) as receiver:
        reference = asyncio.run(make(receiver.url))
    gc.collect()
    assert reference() is None
