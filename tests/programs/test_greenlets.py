"""Applications whose threads are greenlets of gevent or eventlet: they are neither blocked nor broken."""

import pytest
from processes import Start, StepReceiver

STEPS = sorted(f"step-{number}{again}" for number in range(10) for again in ("", "-again"))


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_an_application_of_greenlets(receiver: StepReceiver, start: Start, library: str, order: str) -> None:
    """Its steps are delivered; a flush lets other greenlets run, and its own event loops run beside the worker's."""
    receiver.gate.clear()
    program = start("greenlets", library, order)
    lines = [program.read_line() for _ in range(3)]
    assert lines == ["steps have ended", "not flushed True", "asyncio has run"]
    receiver.gate.set()
    receiver.wait_for(len(STEPS))
    program.go_on()
    ended = program.ended()
    assert (ended.code, receiver.steps) == (3, ["last", *STEPS])
    if (library, order) != ("eventlet", "after"):  # eventlet asks to be first, and prints a traceback where it is not
        assert ended.noise == []
