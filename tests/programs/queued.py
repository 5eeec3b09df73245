"""A Celery application that ends a step in each task: its broker is a folder, and its worker sends the tasks itself."""

import os
import threading
import time
from pathlib import Path
from typing import Any

from application import end_step
from celery import Celery
from celery.signals import worker_ready
from celery.worker import state

_FOLDERS = {name: str(Path(os.environ["FOLDER"], name)) for name in ("tasks", "control")}
for _folder in _FOLDERS.values():
    Path(_folder).mkdir(exist_ok=True)

queued = Celery("queued", broker="filesystem://")
queued.conf.update(
    broker_transport_options={
        "data_folder_in": _FOLDERS["tasks"],
        "data_folder_out": _FOLDERS["tasks"],
        "control_folder": _FOLDERS["control"],
    },
    task_ignore_result=True,
)


@queued.task  # type: ignore[untyped-decorator]  # -- Celery has no types
def work(step_id: str) -> None:
    """End a step."""
    end_step(step_id)


@worker_ready.connect  # type: ignore[untyped-decorator]  # -- see above
def _send_tasks(**_: Any) -> None:
    tasks = int(os.environ["TASKS"])
    for number in range(tasks):
        work.delay(f"step-{number}")
    threading.Thread(target=_print_when_done, args=(tasks,), daemon=True).start()


def _print_when_done(tasks: int) -> None:
    """Print a line when the worker has done its tasks, a moment after their steps have ended."""
    while state.active_requests or sum(state.total_count.values()) < tasks:
        time.sleep(0.01)  # Celery's signals and events come before the worker forgets a task
    os.write(1, b"done\n")  # Celery logs what is printed
