"""The TLS context of an endpoint's connections: owns its certificate files, and follows their replacement."""

import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx

from otel_step_hook.delivery import native
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.log import log_safely
from otel_step_hook.delivery.model import TlsFiles
from otel_step_hook.delivery.retry import causes_of
from otel_step_hook.errors import ConfigurationError

LOOK_EVERY = 30.0  # seconds after which the files are looked at again, when a connection is made
_FORK_TIME = 0.2  # seconds that a fork waits for a context that is being made; it takes 30 ms
_FILES = ("STEP_COMPLETE_CERTIFICATE", "STEP_COMPLETE_CLIENT_CERTIFICATE", "STEP_COMPLETE_CLIENT_KEY")

_Stamp = tuple[int, int, int] | None


class TlsContext:
    """The context for the connections to the endpoint called *name*, made of *files* when it is first used."""

    def __init__(self, files: TlsFiles, name: str) -> None:
        self._files, self._name = files, name
        self._context: ssl.SSLContext | None = None
        self._looked_at = monotonic()
        self._stamps: list[_Stamp] = []  # of the files that the context was made of
        self._refused: list[_Stamp] = []  # of those that could not be used

    @property
    def current(self) -> ssl.SSLContext:
        """The context that was made last. Raises `ConfigurationError` if it is the first, and a file is unusable."""
        if self._context is None:
            # First: a file that is replaced meanwhile is read once more.
            self._stamps = _stamps(self._files)
            self._context = _context(self._files)
        return self._context

    def for_new_connection(self) -> ssl.SSLContext:
        """Return the context for a connection that is about to be made. On the worker thread.

        Files that were replaced in the meantime are followed within 30 seconds. While they cannot be used, because
        only one of them was replaced or half of it was written, the context stays as it is, and an error is logged.
        """
        if monotonic() - self._looked_at >= LOOK_EVERY:
            self._looked_at = monotonic()
            stamps = _stamps(self._files)
            if stamps != self._stamps:
                self._follow(stamps)
        return self.current

    def _follow(self, stamps: list[_Stamp]) -> None:
        try:
            # Not only new certificates in the same context: an authority that was removed must lose its trust, and a
            # key that does not fit would leave the context without a pair that can be used.
            with _making:
                context = _context(self._files)
        except ConfigurationError as error:
            if stamps != self._refused:
                self._refused = stamps
                text = f"endpoint {self._name} keeps the certificates that it has, although their files were replaced"
                log_safely(logging.ERROR, "%s: %s; they are read again in %.0f s", text, error, LOOK_EVERY)
            return
        self._context, self._stamps = context, stamps
        log_safely(logging.INFO, "endpoint %s uses the certificate files that were replaced", self._name)


def _paths(files: TlsFiles) -> tuple[str | None, ...]:
    return files.certificate, files.client_certificate, files.client_key


def _stamps(files: TlsFiles) -> list[_Stamp]:
    """Return what changes when one of the files is replaced, or the symbolic link to its directory."""
    return [_stamp(path) for path in _paths(files) if path]


def _stamp(path: str) -> _Stamp:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Return a new context. It takes 30 ms with the usual authorities."""
    try:
        authorities = files.certificate
        context = ssl.create_default_context(cafile=authorities) if authorities else httpx.create_ssl_context()
        if files.client_certificate:
            # An empty password: without one, OpenSSL asks for it on the terminal, and waits.
            context.load_cert_chain(files.client_certificate, files.client_key, password="")
    except (OSError, ValueError) as error:
        names = [name for name, path in zip(_FILES, _paths(files), strict=True) if path] or ["SSL_CERT_FILE"]
        raise ConfigurationError(
            f"{' or '.join(names)} cannot be used ({type(error).__name__}); expected the path of a PEM file that "
            "can be read; a key belongs to its certificate and has no password"
        ) from None
    return context


# If the process forks while another thread makes a TLS context, OpenSSL's locks can stay locked in the child. So a fork
# waits until the worker thread has made its own; it makes one only after certificate files were replaced.
_making = native.allocate_lock()
_held: list[Callable[[], None]] = []  # releases `_making` after a fork


def _before_fork() -> None:
    if native.acquire(_making, _FORK_TIME):
        _held.append(_making.release)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()()


def _after_fork_in_child() -> None:
    global _making  # noqa: PLW0603 -- one for each process
    _held.clear()
    _making = native.allocate_lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch -- Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def tls_detail(error: BaseException) -> str:
    """Return what OpenSSL says of a failure of TLS below *error*; empty if it is none."""
    # aiohttp's own errors are SSLErrors, too, but OpenSSL's attributes are only on their causes.
    causes = [cause for cause in causes_of(error) if isinstance(cause, ssl.SSLError)]
    found = (getattr(cause, "verify_message", None) or getattr(cause, "reason", None) for cause in causes)
    return str(next(filter(None, found), ""))
