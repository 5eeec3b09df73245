"""What the tests of TLS share: an authority, and receivers that prove, or do not prove, who they are."""

import functools
import socket
import ssl
import threading
from pathlib import Path

import trustme
from sending import OK, Behaviour, answering

NAME = "receiver.test"
ACCEPT = answering(OK)


@functools.cache
def authority() -> trustme.CA:
    """A certificate authority that nobody trusts but those who are told to."""
    return trustme.CA()


def trust_file(folder: Path) -> str:
    """The path of a PEM file with the authority's certificate."""
    path = str(folder / "authority.pem")
    authority().cert_pem.write_to_path(path)
    return path


def server_context(name: str = NAME) -> ssl.SSLContext:
    """What a server needs to prove that it is *name*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name).configure_cert(context)
    return context


def secured(context: ssl.SSLContext, behave: Behaviour = ACCEPT) -> Behaviour:
    """Agree on TLS, and do inside what *behave* says."""

    def secure(connection: socket.socket, closing: threading.Event) -> None:
        connection.settimeout(10)
        # An OSError too when the client refuses us.
        with context.wrap_socket(connection, server_side=True) as inside:
            behave(inside, closing)

    return secure


def no_tls(connection: socket.socket, closing: threading.Event) -> None:  # noqa: ARG001 -- as HostileReceiver calls
    """Answer the first bytes with something that is no TLS."""
    connection.recv(65_536)
    connection.sendall(b"no TLS\r\n" * 10)


def silent(connection: socket.socket, closing: threading.Event) -> None:  # noqa: ARG001 -- as HostileReceiver calls
    """Do nothing until the end."""
    closing.wait(10)
