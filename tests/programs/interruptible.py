"""Importing this module removes a lock of coverage, which could deadlock a measured process.

coverage takes the lock, which is not reentrant, when a call enters a measured file. A signal handler or a finaliser
that runs at that moment and calls a measured function would wait for its own thread forever. A child that is forked
at that moment would inherit the lock in the locked state. Without the lock, a measurement can be lost when two
threads enter a file for the first time at the same moment.
"""

import sys

if "coverage" in sys.modules:
    from coverage import Coverage

    _collector = getattr(Coverage.current(), "_collector", None)  # private: no setting removes the lock
    if _collector is not None:
        assert hasattr(_collector, "data_lock"), "coverage keeps its lock elsewhere now"
        _collector.data_lock = None
