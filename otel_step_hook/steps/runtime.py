"""What Temporal and DBOS report about the code that is running now.

They are asked only if the application has imported them; nothing of them is imported here. If a release has no
answer, the code counts as outside of a workflow.
"""

import sys
from collections.abc import Mapping


def is_in_workflow() -> bool:
    """Whether the calling code runs in a Temporal workflow."""
    # By getattr: another thread may be importing the module.
    in_workflow = getattr(sys.modules.get("temporalio.workflow"), "in_workflow", None)
    try:
        return in_workflow is not None and bool(in_workflow())
    except Exception:  # noqa: BLE001 -- see below
        # Old releases raise where no event loop runs (temporalio/sdk-python#878), so there is no workflow either.
        return False


def is_replaying() -> bool:
    """Whether the calling code runs in a Temporal workflow that only replays its history."""
    return is_in_workflow() and bool(sys.modules["temporalio.workflow"].unsafe.is_replaying())


def dbos_step() -> Mapping[str, object]:
    """Return the number that the DBOS step which begins has in its workflow, as ``step_number``; empty without one."""
    dbos = getattr(sys.modules.get("dbos"), "DBOS", None)
    try:
        number = getattr(dbos, "step_id", None)
    except Exception:  # noqa: BLE001 -- a property, which may raise in an untested release
        return {}
    return {} if number is None else {"step_number": number}
