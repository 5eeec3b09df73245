"""What the programs share: an application with a provider and a hook. Settings come from the environment."""

import os
import sys

import interruptible  # noqa: F401 -- for what it does
from opentelemetry.sdk.trace import TracerProvider

# httpx and httpcore import these where they are installed, and need them for nothing that is done here. Most
# applications have them not; with them each of the many programs takes half as long again to start.
sys.modules |= dict.fromkeys(("trio", "click"))  # type: ignore[arg-type]  # -- None: not to be imported

from otel_step_hook import StepHookProcessor  # noqa: E402 -- see above

hook = StepHookProcessor()
provider = TracerProvider()
provider.add_span_processor(hook)
tracer = provider.get_tracer("tests")


def end_step(step_id: str) -> None:
    """A step that succeeds."""
    tracer.start_span("step", attributes={"step_id": step_id}).end()


def end_steps(name: str, count: int) -> None:
    """Steps that succeed."""
    for number in range(count):
        end_step(f"{name}-{number}")


def wait_to_be_told() -> None:
    """Wait for the test's `go_on`."""
    os.read(0, 1)
