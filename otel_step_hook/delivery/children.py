"""Child processes that a library ends without `atexit`: owns how each is drained before its end.

Libraries are looked up among those that the application has imported, and never imported here.
"""

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

Drain = Callable[[], object]

_PRIORITY = 100  # of our finalizer: it runs before those of queues and pools, which have 20 at most


def arm(drain: Drain) -> None:
    """Have *drain* called before this process ends, if it is a child that a known library ends without `atexit`.

    To be called before each start of a worker thread, on any thread: a library may be imported at any time. Each
    process looks once at each library that is imported. *drain* may be called several times.
    """
    pid = os.getpid()
    for library, arm_child in _LIBRARIES.items():
        if library in sys.modules and _looked_at_in.get(library) != pid:
            _looked_at_in[library] = pid
            arm_child(drain)


def _imported(module: str, name: str) -> Any:
    # By getattr: a signal handler may run in the middle of the import.
    return getattr(sys.modules.get(module), name, None)


def _arm_multiprocessing(drain: Drain) -> None:
    """Arm a child of multiprocessing: of a Process, a Pool, a ProcessPoolExecutor, Dramatiq.

    Before Python 3.13 it skips `atexit` (python/cpython#83856), since then what was registered before a fork.
    """
    parent_process = _imported("multiprocessing.process", "parent_process")
    if parent_process is not None and parent_process() is not None:
        _add_finalizer(drain)


def _arm_billiard(drain: Drain) -> None:
    """Arm a child of billiard, Celery's form of multiprocessing. Its pools skip finalizers, and call `on_exit`."""
    current_process = _imported("billiard.process", "current_process")
    if current_process is None or current_process().name == "MainProcess":
        return
    _add_finalizer(drain)
    pool_worker = vars(current_process()).get("_target")  # private: nothing else leads to it
    celery_ends = _imported("celery.signals", "worker_process_shutdown")
    if getattr(pool_worker, "on_exit", drain) is None:
        pool_worker.on_exit = lambda _pid, _exitcode: drain()
    elif celery_ends is not None:  # Celery's `on_exit` sends it
        # In the child only: one that is forked while `connect` holds the signal's lock could never send it.
        celery_ends.connect(lambda **_: drain(), weak=False, dispatch_uid=__name__)


def _arm_rq(drain: Drain) -> None:
    """Arm RQ's work horse, the child that runs one job. RQ calls `os._exit` right after the job, and has no hook."""
    if "RQ_JOB_ID" not in os.environ:
        return
    leave = os._exit

    def drain_and_leave(status: int) -> None:
        frame = inspect.currentframe()
        caller = frame.f_back if frame is not None else None
        try:
            # Only in RQ's own call: one of the job means to leave at once, perhaps from a process that it has forked.
            if caller is not None and str(caller.f_globals.get("__name__")).startswith("rq."):
                drain()
        finally:
            leave(status)

    os._exit = drain_and_leave  # type: ignore[assignment]  # -- it does not return either


def _add_finalizer(drain: Drain) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, drain, exitpriority=_PRIORITY)


_LIBRARIES: dict[str, Callable[[Drain], None]] = {  # by the module that shows that the library is used
    "multiprocessing.util": _arm_multiprocessing,
    "billiard.process": _arm_billiard,
    "rq.worker": _arm_rq,
}
_looked_at_in: dict[str, int] = {}  # by library, the id of the last process that looked; a forked child looks again
