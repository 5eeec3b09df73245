"""The outbox in processes that are killed at random moments, beside a receiver that fails at random."""

import os

import pytest
from torture import MODES, torture

KILLS = 8


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("mode", MODES)
def test_no_step_is_lost(mode: str) -> None:
    """Every step that ended before a kill arrives, all its copies under one id; `make torture` kills more often."""
    outcome = torture(mode, kills=KILLS, steps=100, seed="test")
    if outcome is None:
        pytest.skip("a small tmpfs can only be mounted by root")
    outcome.print()
    assert outcome.is_good()
    assert len(outcome.log) > KILLS
