"""gunicorn's configuration: two workers on a port of the system's choice. Prints it, and when a worker is ready."""

import os
from typing import Any

bind = "127.0.0.1:0"
workers = 2
control_socket_disable = True  # it would be made in the home directory


def when_ready(server: Any) -> None:
    """Print the port once it is open."""
    print(server.LISTENERS[0].sock.getsockname()[1], flush=True)


def post_worker_init(_: Any) -> None:
    """Print that a worker is ready: a SIGTERM before that is lost on it."""
    os.write(1, b"ready\n")  # at once: two workers print at the same time, and print() writes the line's end apart
