"""The monotonic clock of deliveries."""

import functools
import time
from collections.abc import Callable

# Not time.monotonic: freezegun and time-machine stop that one in an application's tests, and with it every wait.
monotonic: Callable[[], float] = (
    functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC) if hasattr(time, "clock_gettime") else time.monotonic
)
