"""Importing this module saves what coverage has measured before a signal or `os._exit` ends the process.

coverage saves it in an exit function, which neither of them calls.
"""

import os
import signal
import sys
from collections.abc import Callable

if "coverage" in sys.modules:
    from coverage import Coverage

    def _saving_before(end: Callable[[int], object]) -> Callable[[int], None]:
        def save_and_end(number: int) -> None:
            current = Coverage.current()
            if current is not None:
                current.save()
            end(number)

        return save_and_end

    signal.raise_signal = _saving_before(signal.raise_signal)
    os._exit = _saving_before(os._exit)  # type: ignore[assignment]  # -- it returns no more than the original
