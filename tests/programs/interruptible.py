"""Importing this lets signal handlers, finalisers and forks interrupt a process that coverage measures.

coverage takes a plain lock at each call of a measured function. A signal handler that runs in between, and calls one,
would wait for its own thread for ever; so would a finaliser, and a child that was forked in between. The lock keeps
two threads from adding the same file to what was measured; what it protects is safe without it but for that moment.
"""

import sys

if "coverage" in sys.modules:
    from coverage import Coverage

    _collector = getattr(Coverage.current(), "_collector", None)  # there is no setting for it
    if _collector is not None:
        assert hasattr(_collector, "data_lock"), "coverage keeps its lock elsewhere now"
        _collector.data_lock = None
