"""One attempt: certificate files that are replaced while the process runs."""

import asyncio
import logging
import os
import socket
import ssl
import threading
from pathlib import Path
from typing import Self

import pytest
import trustme
from sending import CONTENT, Attempts, secured
from storing import in_child, needs_fork

from otel_step_hook.delivery import tls
from otel_step_hook.delivery.loop import EventLoop
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.sender import Transport
from otel_step_hook.testing import HostileReceiver, read_request

CLOSE = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"
REFUSED = "SSLCertVerificationError"


class Receiver:
    """An https receiver at 127.0.0.1, with a certificate of *authority*; each request needs a new connection.

    With *asks_for* it accepts client certificates of that authority alone, and records their serial numbers.
    """

    def __init__(self, authority: trustme.CA, asks_for: trustme.CA | None = None) -> None:
        self.authority = authority
        self.serials: list[object] = []
        self._asks_for = asks_for

    def behave(self, connection: socket.socket, closing: threading.Event) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        if self._asks_for is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            self._asks_for.configure_trust(context)
        secured(context, self._answer)(connection, closing)

    def _answer(self, connection: socket.socket, _: threading.Event) -> None:
        if read_request(connection):
            assert isinstance(connection, ssl.SSLSocket)
            self.serials.append((connection.getpeercert() or {}).get("serialNumber"))
            connection.sendall(CLOSE)


class Posts:
    """Posts over one transport of *attempts*, in an event loop of its own."""

    def __init__(self, attempts: Attempts, receiver: Receiver, **files: object) -> None:
        self._receiver = HostileReceiver(receiver.behave)
        self._runner = asyncio.Runner(loop_factory=EventLoop)
        self._attempts, self._files = attempts, files

    def __enter__(self) -> Self:
        url = self._receiver.__enter__().url.replace("http:", "https:")
        self._transport: Transport = self._attempts.transport(url, **self._files)
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._transport.aclose())
        self._runner.close()
        self._receiver.__exit__(None, None, None)

    def __call__(self) -> AttemptResult:
        return self._runner.run(self._transport.post(CONTENT, [], timeout=10.0))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the files for each connection, instead of every 30 seconds."""
    monkeypatch.setattr(tls, "LOOK_EVERY", 0.0)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Level and text of each line of ours."""
    return [(record.levelname, record.message) for record in caplog.records if record.name == "otel_step_hook"]


def replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of the one at *path*."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def pem(authority: trustme.CA) -> bytes:
    """The certificate of *authority*."""
    return authority.cert_pem.bytes()


@pytest.mark.usefixtures("at_once")
def test_a_new_authority_is_followed(attempts: Attempts, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the file of STEP_COMPLETE_CERTIFICATE was replaced, the new authority is trusted, the old one is not."""
    caplog.set_level(logging.INFO, "otel_step_hook")
    first, second, path = trustme.CA(), trustme.CA(), tmp_path / "authority.pem"
    path.write_bytes(pem(first))
    receiver = Receiver(first)
    with Posts(attempts, receiver, certificate=str(path)) as post:
        assert post().is_success
        receiver.authority = second
        assert post().error_type == REFUSED
        replace(path, pem(second))
        assert post().is_success
        receiver.authority = first
        assert post().error_type == REFUSED
    assert lines_of(caplog) == [("INFO", "endpoint default uses the certificate files that were replaced")]


@pytest.mark.usefixtures("at_once")
def test_a_directory_that_is_replaced_is_followed(attempts: Attempts, tmp_path: Path) -> None:
    """Kubernetes replaces the symbolic link to a directory, and not the files in it."""
    first, second = trustme.CA(), trustme.CA()
    for name, authority in (("one", first), ("two", second)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ca.crt").write_bytes(pem(authority))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "ca.crt").symlink_to("..data/ca.crt")
    receiver = Receiver(first)
    with Posts(attempts, receiver, certificate=str(tmp_path / "ca.crt")) as post:
        assert post().is_success
        (tmp_path / "..data_tmp").symlink_to("two")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        receiver.authority = second
        assert post().is_success


@pytest.mark.usefixtures("at_once")
def test_a_new_client_certificate_is_followed(
    attempts: Attempts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Certificate and key are used as a pair: while only one of them was replaced, the pair before stays in use."""
    caplog.set_level(logging.INFO, "otel_step_hook")
    authority, clients = trustme.CA(), trustme.CA()
    paths = {name: tmp_path / name for name in ("ca.pem", "client.pem", "client.key")}
    one, two = (clients.issue_cert(f"{name}@example.test") for name in ("one", "two"))
    paths["ca.pem"].write_bytes(pem(authority))
    paths["client.pem"].write_bytes(one.cert_chain_pems[0].bytes())
    paths["client.key"].write_bytes(one.private_key_pem.bytes())
    receiver = Receiver(authority, asks_for=clients)
    files = {"certificate": str(paths["ca.pem"]), "client_certificate": str(paths["client.pem"])}
    with Posts(attempts, receiver, **files, client_key=str(paths["client.key"])) as post:
        assert post().is_success
        replace(paths["client.pem"], two.cert_chain_pems[0].bytes())
        assert [post().is_success for _ in range(3)] == [True] * 3
        replace(paths["client.key"], two.private_key_pem.bytes())
        assert post().is_success
    first, *same, last = receiver.serials
    assert same == [first] * 3
    assert last not in {None, first}
    assert [level for level, _ in lines_of(caplog)] == ["ERROR", "INFO"]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nMIIB", None], ids=["empty", "half", "missing"])
def test_a_file_that_cannot_be_read_changes_nothing(
    attempts: Attempts, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    """The authorities from before stay in use, one line says so, and the file is read again."""
    first, second, path = trustme.CA(), trustme.CA(), tmp_path / "authority.pem"
    path.write_bytes(pem(first))
    receiver = Receiver(first)
    with Posts(attempts, receiver, certificate=str(path)) as post:
        path.unlink() if content is None else replace(path, content)
        assert [post().is_success for _ in range(3)] == [True] * 3
        ((level, text),) = lines_of(caplog)
        assert (level, "STEP_COMPLETE_CERTIFICATE cannot be used" in text) == ("ERROR", True)
        replace(path, pem(second))
        receiver.authority = second
        assert post().is_success


def test_files_are_not_looked_at_for_each_connection(attempts: Attempts, tmp_path: Path) -> None:
    """A file that was replaced a moment ago is followed later: a look at a file can take long."""
    first, second, path = trustme.CA(), trustme.CA(), tmp_path / "authority.pem"
    path.write_bytes(pem(first))
    receiver = Receiver(first)
    with Posts(attempts, receiver, certificate=str(path)) as post:
        replace(path, pem(second))
        assert post().is_success


@needs_fork
def test_a_fork_waits_for_a_context_that_is_being_made() -> None:
    """The child finds no lock that nobody holds, also if the fork waited in vain: a context takes the whole time."""

    def child() -> None:
        os._exit(0 if tls._making.acquire(blocking=False) else 1)

    for is_held in (False, True):
        if is_held:
            tls._making.acquire()
        assert in_child(child) == 0
        assert tls._making.locked() is is_held
    tls._making.release()
