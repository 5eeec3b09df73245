"""How times of an outbox are shown."""

import pytest

from otel_step_hook.cli.outbox_display import due_in, duration, local_time


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        *((-5, "0 s"), (0.4, "0 s"), (89, "89 s"), (91, "2 m"), (5399, "90 m"), (5401, "2 h"), (129_599, "36 h")),
        *((129_601, "2 d"), (8_640_000, "100 d")),
    ],
)
def test_a_duration(seconds: float, expected: str) -> None:
    """It is in the unit that fits; below 0 it is 0, since clocks may differ."""
    assert duration(seconds) == expected
    assert due_in(seconds) == (expected if seconds > 0 else "now")


@pytest.mark.parametrize("seconds", [-1e30, 0.0, 1.7e9, 1e30])
def test_a_time_far_away(seconds: float) -> None:
    """Any time of a span can be shown: one before 1970, or after the year 9999, is the nearest that can."""
    shown = local_time(seconds)
    assert shown is not None
    assert shown[4::3][:2] == "--"
