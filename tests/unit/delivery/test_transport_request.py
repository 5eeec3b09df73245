"""One attempt: the request that is sent, which the settings alone determine."""

import socket
import threading
from pathlib import Path

import pytest
from sending import CONTENT, HEADERS, OK, Attempts, port_of

from otel_step_hook.testing import HostileReceiver, read_request


def sent(attempts: Attempts, **settings: object) -> list[bytes]:
    """The lines of the head of a request over plain HTTP, and its content."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        requests.append(read_request(connection))
        connection.sendall(OK)

    with HostileReceiver(behave) as receiver:
        assert attempts.one(f"http://127.0.0.1:{port_of(receiver.url)}/hook?a=b%20c", **settings).is_success
        host = f"127.0.0.1:{port_of(receiver.url)}"
    head, _, content = requests[0].partition(b"\r\n\r\n")
    return [line.replace(host.encode(), b"HOST") for line in head.split(b"\r\n")] + [content]


def test_only_host_and_length_are_added_to_a_request(attempts: Attempts) -> None:
    """A transport sends the headers that it is given, the host and the length, and no header about itself."""
    first, *headers, content = sent(attempts)
    assert first == b"POST /hook?a=b%20c HTTP/1.1"
    given = dict(HEADERS) | {"host": "HOST", "content-length": str(len(CONTENT))}
    assert sorted(line.partition(b":")[0].lower() for line in headers) == sorted(name.encode() for name in given)
    assert {line.partition(b": ")[2].decode() for line in headers} == set(given.values())
    assert content == CONTENT


def test_a_netrc_file_is_ignored(attempts: Attempts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A .netrc file that knows the receiver's host is not for webhooks, like the proxies of the environment."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login bob password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    authorizations = [line for line in sent(attempts) if line.lower().startswith(b"authorization:")]
    assert [line.partition(b": ")[2] for line in authorizations] == [b"Bearer sekret"]


@pytest.mark.anyio
async def test_a_long_content_arrives_whole(attempts: Attempts) -> None:
    """A body that is longer than the sockets' buffers is sent to its end before the answer is read."""
    content = bytes(range(256)) * 40_000
    arrived: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        arrived.append(read_request(connection).partition(b"\r\n\r\n")[2])
        connection.sendall(OK)

    with HostileReceiver(behave) as receiver:
        transport = attempts.transport(receiver.url)
        assert (await transport.post(content, [], timeout=30.0)).is_success
        await transport.aclose()
    assert arrived == [content]
