"""The start of an answer, as it arrives: owns the limits of what may come before its status line. Pure."""

import re

INTERIM_LIMIT = 16  # interim (1xx) answers before the final one; receivers send one or two (100, 102, 103)
BYTES_LIMIT = 65_536  # bytes before the end of the final answer's status line: interim answers with their headers
_FINAL = re.compile(rb"[\r\n]*HTTP/1\.[01] ([2-9][0-9]{2})(?: [^\n]*)?\r?\n")  # the reason is optional, as for h11
_INTERIM = re.compile(rb"[\r\n]*HTTP/1\.[01] 1[0-9]{2}(?: [^\n]*)?\r?\n")
_END_OF_HEAD = re.compile(rb"\n\r?\n")


class AnswerWithoutStatus(Exception):  # noqa: N818 -- its name is an `error.type`, and reads as one
    """The receiver has sent more than 16 interim answers, or 64 kB, and no status of a final answer."""


class AnswerHead:
    """Reads the status line of an answer beside the HTTP library, which raises for whatever is wrong after it.

    *status* is that of the final answer, as soon as the line has arrived as a whole; None before. *has_begun* is
    whether any byte of an answer has arrived, *is_refused* whether `feed` has raised.
    """

    __slots__ = ("_interim", "_pending", "_read", "has_begun", "is_refused", "status")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin with the answer to another request."""
        self.status: int | None = None
        self.has_begun = self.is_refused = False
        self._pending = b""
        self._read = self._interim = 0

    def feed(self, data: bytes) -> None:
        """Read *data*, which has arrived. Raises `AnswerWithoutStatus` when one of the limits is exceeded."""
        if self.status is not None or not data:
            return
        # Nearly always the first bytes hold the status line as a whole.
        final = None if self.has_begun else _FINAL.match(data)
        self.has_begun = True
        if final is None and (final := self._after_more(data)) is None:
            return
        self.status = int(final[1])

    def _after_more(self, data: bytes) -> re.Match[bytes] | None:
        """Return the status line that *data* completes, or None if more is needed."""
        self._read += len(data)
        self._pending = (self._pending + data).lstrip(b"\r\n")
        if b"\n" in data:  # else nothing can match, and each look takes longer than the last
            self._pending = self._after_interim(self._pending)
            if self._interim <= INTERIM_LIMIT and (final := _FINAL.match(self._pending)):
                self._pending = b""
                return final
        if self._interim > INTERIM_LIMIT or self._read > BYTES_LIMIT:
            self.is_refused = True
            raise AnswerWithoutStatus
        return None

    def _after_interim(self, pending: bytes) -> bytes:
        """Return what follows the interim answers that *pending* begins with, and count them."""
        while self._interim <= INTERIM_LIMIT and _INTERIM.match(pending) and (end := _END_OF_HEAD.search(pending)):
            pending = pending[end.end() :]
            self._interim += 1
        return pending
