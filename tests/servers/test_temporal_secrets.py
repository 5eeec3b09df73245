"""Temporal gets no secret: neither its history, nor a failure, nor any byte of its files shows one."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from socket import socket
from threading import Event

import pytest
from servers.deployment import Deployment, Webhooks, stopped
from servers.temporal import OlderTemporalServer, TemporalServer
from servers.temporal_workers import Server
from temporalio.client import ActivityHandle

from otel_step_hook.receiver import verify
from otel_step_hook.testing import HostileReceiver, read_request

pytestmark = [pytest.mark.servers, pytest.mark.anyio]

_KEY = "the-key-0f8b1d5e"
_HEADER = "the-header-77c1a2"
_PATH = "the-path-5d20e9ab"
_SIGNING = base64.b64encode(b"the signing secret, 32 bytes lon").decode()
_SECRETS = (_KEY, _HEADER, _PATH, _SIGNING, "the signing secret, 32 bytes lon")


class EchoingReceiver(HostileReceiver):
    """Answers 503, 204 and then 410, each time with all of the request as body and in a header."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.requests: list[bytes] = []
        self._statuses = iter((b"503 Service Unavailable", b"200 OK", b"410 Gone"))

    def _answer(self, connection: socket, _: Event) -> None:
        while request := read_request(connection):
            self.requests.append(request)
            status = next(self._statuses)
            path = request.split()[1]
            connection.sendall(
                b"HTTP/1.1 %s %s\r\nlocation: %s\r\nx-echo: %s\r\ncontent-length: %d\r\n\r\n%s"
                % (status, _KEY.encode(), path, _HEADER.encode(), len(request), request)
            )

    def headers(self, number: int) -> dict[str, str]:
        """The headers of a request, names in lower case."""
        lines = self.requests[number].partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


@pytest.fixture(params=[TemporalServer, OlderTemporalServer])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Each of both servers, which the test may stop."""
    started: Server = request.param(tmp_path)
    with started:
        yield started


@pytest.fixture
def receiver() -> Iterator[EchoingReceiver]:
    """A receiver that repeats what it gets."""
    with EchoingReceiver() as receiver:
        yield receiver


def _forms(secret: str) -> list[bytes]:
    """The bytes of *secret*, and what base64 makes of it wherever it begins in a text."""
    text = secret.encode()
    encoded = [base64.b64encode(b" " * before + text)[(before * 8 + 5) // 6 : -4] for before in range(3)]
    return [text, *encoded]


def _shown_in(content: bytes) -> list[str]:
    return [secret for secret in _SECRETS if any(form in content for form in _forms(secret))]


def _files(folder: Path) -> bytes:
    """All that the server has written: database, its write-ahead log, settings and logs."""
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def _known(webhooks: Webhooks, webhook_id: str) -> bytes:
    """All that Temporal answers when it is asked for a webhook, as it is sent."""
    handle = webhooks.find(webhook_id)
    if isinstance(handle, ActivityHandle):
        found = await handle.describe()
        parts = [found.raw_info, found.raw_input, found.raw_outcome]
        return b"".join(part.SerializeToString() for part in parts if part is not None)
    history = await handle.fetch_history()
    described = await handle.describe()
    return json.dumps(history.to_json_dict()).encode() + described.raw_description.SerializeToString()


async def test_temporal_gets_no_secret(server: Server, receiver: EchoingReceiver, tmp_path: Path) -> None:
    """The receiver gets key, header and signature, and repeats them; Temporal has only what it needs."""
    webhook = receiver.url.replace("/hook", f"/{_PATH}")
    settings = {"key": _KEY, "headers": f"x-secret={_HEADER}", "signing_secret": f"whsec_{_SIGNING}"}
    webhooks = await Webhooks.of(server)
    with Deployment(server, webhook, payload="full", **settings) as deployment:
        worker = deployment.worker()
        ids = [deployment.hand_over()]
        await webhooks.result(ids[0])
        deployment.step_id = "another-step"
        ids.append(deployment.hand_over())
        failure = await webhooks.result(ids[1])
        assert failure == "410: the receiver of endpoint default answered 410"
        err = stopped(worker).err
    known = b"".join([await _known(webhooks, webhook_id) for webhook_id in ids])
    server.stop()
    for content in (known, _files(tmp_path)):
        assert all(webhook_id.encode() in content for webhook_id in ids)  # else a secret would not be found, either
        assert _shown_in(content) == []
    assert _shown_in(err.encode()) == []
    _check_requests(receiver, ids)


def _check_requests(receiver: EchoingReceiver, ids: list[str]) -> None:
    """Each request had the key, the header, the path and a valid signature."""
    for number, webhook_id in enumerate([ids[0], ids[0], ids[1]]):
        headers = receiver.headers(number)
        assert (headers["authorization"], headers["x-secret"]) == (f"Bearer {_KEY}", _HEADER)
        assert headers["webhook-id"] == webhook_id
        assert receiver.requests[number].startswith(f"POST /{_PATH} ".encode())
        verify(receiver.requests[number].partition(b"\r\n\r\n")[2], headers, signing_secret=f"whsec_{_SIGNING}")
