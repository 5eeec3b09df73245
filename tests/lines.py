"""What several test files need: to wait for a line of the library's log, which other threads write."""

import logging
import threading
from typing import Self

_WAIT = 10.0  # seconds


class Lines(logging.Handler):
    """Keeps what the library logs while the context is open, at every level."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._written = threading.Condition()

    def __enter__(self) -> Self:
        self._log = logging.getLogger("otel_step_hook")
        self._level = self._log.level
        self._log.setLevel(logging.DEBUG)
        self._log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep *record*, and wake whoever waits for it."""
        with self._written:
            self.records.append(record)
            self._written.notify_all()

    def wait_for(self, part: str) -> logging.LogRecord:
        """The first line with *part* in it, once it is there; AssertionError when it does not come."""

        def found() -> logging.LogRecord | None:
            return next((record for record in self.records if part in record.getMessage()), None)

        with self._written:
            record = self._written.wait_for(found, _WAIT)
        assert record is not None, f"no line with {part!r} among {[line.getMessage() for line in self.records]}"
        return record
