"""What the workflow engines in this process say of the code that is running now.

They are asked only where the application has imported them, and nothing of them is imported here. What
an older or newer release cannot answer, it says nothing about.
"""

import sys
from collections.abc import Mapping


def is_in_workflow() -> bool:
    """Whether this is the code of a Temporal workflow."""
    # By getattr: another thread may be in the middle of its import.
    in_workflow = getattr(sys.modules.get("temporalio.workflow"), "in_workflow", None)
    try:
        return in_workflow is not None and bool(in_workflow())
    except Exception:  # noqa: BLE001 -- an old release raises where no event loop runs, and there is no workflow there
        return False


def is_replaying() -> bool:
    """Whether this is Temporal workflow code that runs again what has happened before."""
    return is_in_workflow() and bool(sys.modules["temporalio.workflow"].unsafe.is_replaying())


def dbos_step() -> Mapping[str, object]:
    """The number of the DBOS step that is beginning, in its workflow, as ``step_number``; nothing outside of one."""
    dbos = getattr(sys.modules.get("dbos"), "DBOS", None)
    try:
        number = getattr(dbos, "step_id", None)
    except Exception:  # noqa: BLE001 -- a property, of a release that was never tried
        return {}
    return {} if number is None else {"step_number": number}
