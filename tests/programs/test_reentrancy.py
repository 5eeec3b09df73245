"""Steps that end at any moment, on any thread: nothing deadlocks, and each is delivered or counted as dropped."""

import pytest
from processes import Ended, Ledger, run


def _counts(ended: Ended) -> dict[str, int]:
    """What the program has counted."""
    return {words[1]: int(words[2]) for words in (line.split() for line in ended.out) if words[0] == "counted"}


@pytest.mark.parametrize("where", ["in_signal_handler", "first_in_signal_handler", "in_finaliser", "in_many_threads"])
def test_each_step_is_accounted_for(where: str) -> None:
    """Steps that end in signal handlers, in finalisers or in many threads at once are delivered or counted."""
    with Ledger() as ledger:
        ended = run("reentrant", where, url=ledger.url, max_queue_size=300)
    counts = _counts(ended)
    assert (ended.code, ended.noise) == (0, [])
    assert len(ledger.steps) == len(set(ledger.steps))
    assert len(ledger.steps) + counts["dropped"] == counts["ended"]
    assert counts["ended"] >= 40
    assert len(ended.err.splitlines()) <= 2  # the first that was dropped, and the count of the others


def test_in_log_handler() -> None:
    """A log handler may end steps, flush, shut down and even exit on our own thread: it stops nothing but itself."""
    with Ledger(refuse=1) as ledger:
        ended = run("reentrant", "in_log_handler", url=ledger.url, initial_backoff=0.01)
    counts = _counts(ended)
    assert (ended.code, ended.err) == (0, "")
    assert counts["dropped"] >= 1  # what the handler ended after it had shut down
    assert len(set(ledger.steps)) + counts["dropped"] == counts["ended"]


def test_in_exporter() -> None:
    """An exporter may flush and even exit on our own thread: every step is delivered all the same."""
    with Ledger() as ledger:
        ended = run("reentrant", "in_exporter", url=ledger.url)
    counts = _counts(ended)
    assert ended.code == 0
    assert (len(ledger.steps), counts["ended"], counts["dropped"]) == (20, 20, 0)
