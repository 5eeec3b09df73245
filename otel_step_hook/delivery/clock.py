"""The monotonic clock of deliveries."""

import functools
import time
from collections.abc import Callable

# Not time.monotonic: freezegun and time-machine stop it in an application's tests, and every wait with it
# (spulec/freezegun#384, adamchainz/time-machine#387).
monotonic: Callable[[], float] = (
    functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC) if hasattr(time, "clock_gettime") else time.monotonic
)
