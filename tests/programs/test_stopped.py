"""A process that is stopped (SIGSTOP) and continued: answers that arrived in between count."""

import json
import os
import signal
import time

import pytest
from processes import Start, StepReceiver

TIMEOUT = 5.0  # seconds an attempt may take; the test has to stop the program within them


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "waitid"), reason="this system cannot wait until a process is stopped")
def test_an_answer_that_comes_while_the_process_is_stopped(receiver: StepReceiver, start: Start) -> None:
    """If the process is stopped for longer than the timeout, an accepted webhook counts and is not sent again."""
    receiver.gate.clear()
    program = start(
        """
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
        as_line = lambda span: span.to_json(indent=None) + "\\n"
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=as_line)))
        end_step("step-0")
        wait_for_test()
        """,
        timeout=TIMEOUT,
    )
    receiver.wait_for(1)
    program.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, program.pid, os.WSTOPPED)
    receiver.gate.set()
    time.sleep(TIMEOUT)  # the timeout of the attempt has to pass
    program.send_signal(signal.SIGCONT)
    program.go_on()
    ended = program.ended()
    assert (ended.code, ended.err, receiver.steps) == (0, "", ["step-0"])
    spans = {span["name"]: span["attributes"] for span in map(json.loads, ended.out)}
    assert sorted(spans) == ["POST", "step", "step_hook.deliver"]
    delivered = spans["step_hook.deliver"]
    assert (delivered["step_hook.result"], delivered["step_hook.attempts"]) == ("delivered", 1)
