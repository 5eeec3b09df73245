"""The configuration of gunicorn: two workers on a free port. Prints the port, and a line when a worker is ready."""

import os
from typing import Any

bind = "127.0.0.1:0"
workers = 2
control_socket_disable = True  # gunicorn would create it in the home directory


def when_ready(server: Any) -> None:
    """Print the port once it is open."""
    print(server.LISTENERS[0].sock.getsockname()[1], flush=True)


def post_worker_init(_: Any) -> None:
    """Print that a worker is ready. A SIGTERM before that would have no effect on it."""
    os.write(1, b"ready\n")  # one write, unlike print(): the lines of two workers must not mix
