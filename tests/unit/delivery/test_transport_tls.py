"""One attempt: TLS and client certificates."""

import asyncio
import gc
import os
import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from sending import (
    CONTENT,
    NAME,
    SHORT,
    Attempts,
    Behaviour,
    Names,
    authority,
    endpoint_to,
    no_tls,
    port_of,
    secured,
    server_context,
    silent,
)

from otel_step_hook import ConfigurationError
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.testing import HostileReceiver, read_request


@pytest.fixture
def client_files(tmp_path: Path) -> tuple[str, str]:
    """The paths of PEM files with a client's certificate and its key."""
    client = authority().issue_cert("step-hook@example.test")
    certificate, key = str(tmp_path / "client.pem"), str(tmp_path / "client.key")
    client.cert_chain_pems[0].write_to_path(certificate)
    client.private_key_pem.write_to_path(key)
    return certificate, key


@pytest.fixture
def resolvable(names: Names) -> None:
    """Makes `NAME` resolve to the address of the receiver."""
    names.lead_to(NAME, ["127.0.0.1"])


def by_tls(
    attempts: Attempts, context: ssl.SSLContext, behave: Behaviour | None = None, **settings: object
) -> AttemptResult:
    """The result of one attempt at an https receiver named `NAME`."""
    with HostileReceiver(secured(context, behave)) as receiver:
        return attempts.one(f"https://{NAME}:{port_of(receiver.url)}/hook", **settings)


@pytest.mark.parametrize("host", ["receiver.test", "Receiver.Test", "receiver.test."])
def test_a_configured_authority_is_trusted(attempts: Attempts, trusted: str, names: Names, host: str) -> None:
    """A certificate of the authority in STEP_COMPLETE_CERTIFICATE is accepted, however the URL writes its name."""
    names.lead_to(host.lower(), ["127.0.0.1"])
    with HostileReceiver(secured(server_context())) as receiver:
        results = attempts(f"https://{host}:{port_of(receiver.url)}/hook", 3, certificate=trusted)
        assert receiver.connections == 1
    assert all(result.is_success for result in results)


@pytest.mark.usefixtures("resolvable")
@pytest.mark.parametrize("is_known", [False, True])
def test_a_certificate_of_another_authority_or_name_is_refused(
    attempts: Attempts, trusted: str, *, is_known: bool
) -> None:
    """With an unknown authority, or a certificate for another name, no request is sent."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        requests.append(read_request(connection))

    context = server_context("somebody.else.test" if is_known else NAME)
    result = by_tls(attempts, context, behave, certificate=trusted if is_known else None)
    assert (result.error_type, result.is_outage) == ("SSLCertVerificationError", True)
    assert ("mismatch" if is_known else "issuer") in result.detail
    assert not any(requests)


@pytest.mark.usefixtures("resolvable")
def test_a_certificate_that_has_expired_is_refused(attempts: Attempts, trusted: str) -> None:
    """A certificate of a known authority for the right name does not count after its end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(NAME, not_after=datetime(2020, 1, 1, tzinfo=UTC)).configure_cert(context)
    assert by_tls(attempts, context, certificate=trusted).error_type == "SSLCertVerificationError"


def test_a_certificate_may_be_that_of_an_address(attempts: Attempts, trusted: str) -> None:
    """If the URL has an address instead of a name, the certificate must be for that address."""
    for address, expected in (("127.0.0.1", None), ("127.0.0.2", "SSLCertVerificationError")):
        with HostileReceiver(secured(server_context(address))) as receiver:
            result = attempts.one(receiver.url.replace("http:", "https:"), certificate=trusted)
        assert result.error_type == expected


@pytest.mark.usefixtures("resolvable")
def test_http_where_https_is_expected_is_a_failure_with_a_type(attempts: Attempts) -> None:
    """A receiver that speaks no TLS is an SSLError."""
    with HostileReceiver(no_tls) as receiver:
        result = attempts.one(f"https://{NAME}:{port_of(receiver.url)}/hook")
    assert (result.error_type, result.detail) == ("SSLError", "WRONG_VERSION_NUMBER")


@pytest.mark.usefixtures("resolvable")
def test_a_handshake_that_hangs_is_a_timeout(attempts: Attempts) -> None:
    """The timeout holds for TLS too, and the half-open connection is closed at once."""
    with HostileReceiver(silent) as receiver:
        result = attempts.one(f"https://{NAME}:{port_of(receiver.url)}/hook", timeout=SHORT)
    gc.collect()  # would warn of an open socket, and every warning is an error here
    assert result.error_type == "timeout"


@pytest.mark.anyio
async def test_a_handshake_that_is_cancelled_leaves_no_socket(attempts: Attempts) -> None:
    """Closing a transport whose attempt was cancelled in the middle of a TLS handshake leaves nothing open."""
    arrived = threading.Event()

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        connection.recv(65_536)
        arrived.set()
        closing.wait(10)

    with HostileReceiver(behave) as receiver:
        transport = attempts.transport(receiver.url.replace("http:", "https:"))
        task = asyncio.create_task(transport.post(CONTENT, [], timeout=10.0))
        assert await asyncio.to_thread(arrived.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await transport.aclose()
    gc.collect()


@pytest.mark.usefixtures("resolvable")
def test_a_client_certificate_is_sent(attempts: Attempts, trusted: str, client_files: tuple[str, str]) -> None:
    """With STEP_COMPLETE_CLIENT_CERTIFICATE and _KEY a receiver that asks for a certificate gets one."""
    context = server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    certificate, key = client_files
    shown = by_tls(attempts, context, certificate=trusted, client_certificate=certificate, client_key=key)
    assert shown.is_success
    missing = by_tls(attempts, context, certificate=trusted)
    assert (missing.is_success, missing.status_code) == (False, None)


def test_files_that_cannot_be_used_are_refused_at_start_up(
    attempts: Attempts, client_files: tuple[str, str], tmp_path: Path
) -> None:
    """A missing file, a file that is no PEM, or a foreign key raises when the processor is made, not at a step."""
    certificate, key = client_files
    nonsense, other_key = tmp_path / "nonsense.pem", tmp_path / "other.key"
    nonsense.write_text("nonsense")
    trustme.CA().issue_cert("other.test").private_key_pem.write_to_path(str(other_key))
    both = "^STEP_COMPLETE_CLIENT_CERTIFICATE or STEP_COMPLETE_CLIENT_KEY cannot be used"
    for message, wrong in (
        ("^STEP_COMPLETE_CERTIFICATE cannot be used", {"certificate": str(tmp_path / "missing.pem")}),
        ("^STEP_COMPLETE_CERTIFICATE cannot be used", {"certificate": str(nonsense)}),
        ("^STEP_COMPLETE_CERTIFICATE cannot be used", {"certificate": str(tmp_path)}),
        ("^STEP_COMPLETE_CLIENT_CERTIFICATE cannot be used", {"client_certificate": str(nonsense)}),
        (both, {"client_certificate": certificate, "client_key": str(other_key)}),
        (both, {"client_certificate": certificate, "client_key": str(tmp_path / "missing.key")}),
    ):
        with pytest.raises(ConfigurationError, match=message):
            attempts.connector(endpoint_to("https://example.test/hook", **wrong))
    attempts.connector(endpoint_to("https://example.test/hook", client_certificate=certificate, client_key=key))


def test_a_key_with_a_password_is_refused_without_a_prompt(
    attempts: Attempts, client_files: tuple[str, str], tmp_path: Path
) -> None:
    """A key with a password raises, because no user would answer OpenSSL's prompt at the terminal."""
    certificate, key = client_files
    plain = load_pem_private_key(Path(key).read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigurationError, match="has no password"):
        attempts.connector(endpoint_to("https://x.test/", client_certificate=certificate, client_key=str(locked)))
    # The same at a terminal, which this process may not have.
    spawn = "import pty, sys; pty.spawn(sys.argv[1:])"
    program = f"""
from otel_step_hook import StepHookSettings
from otel_step_hook.settings import endpoints_of
{attempts.connector_import}
connector(*endpoints_of(StepHookSettings()))
"""
    output = subprocess.run(
        [sys.executable, "-c", spawn, sys.executable, "-c", program],
        env=os.environ
        | {
            "STEP_COMPLETE_WEBHOOK": "https://x.test/",
            "STEP_COMPLETE_CLIENT_CERTIFICATE": certificate,
            "STEP_COMPLETE_CLIENT_KEY": str(locked),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    ).stdout
    assert b"has no password" in output
    assert b"pass phrase" not in output


def test_authorities_that_cannot_be_read_are_refused_at_start_up(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If the environment names the usual authorities, and the file is missing, the error names the variable."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(ConfigurationError, match=r"^SSL_CERT_FILE cannot be used"):
        attempts.connector(endpoint_to("https://example.test/hook"))
