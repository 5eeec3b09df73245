"""Lines of the library's log, for tests that wait for one: another thread writes it."""

import logging
import threading
from typing import Self


class Lines(logging.Handler):
    """Keeps what the library logs while the context is open."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._written = threading.Condition()

    def __enter__(self) -> Self:
        logging.getLogger("otel_step_hook").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("otel_step_hook").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep *record*."""
        with self._written:
            self.records.append(record)
            self._written.notify_all()

    def wait_for(self, part: str) -> logging.LogRecord:
        """The first record with *part* in its message; AssertionError when none comes within ten seconds."""
        with self._written:
            found = self._written.wait_for(lambda: [one for one in self.records if part in one.getMessage()], 10)
        assert found, f"no line with {part!r} among {[one.getMessage() for one in self.records]}"
        return found[0]
