"""A WSGI application that ends a step when it is loaded, and one at each request."""

import os
from collections.abc import Callable, Iterable

from application import end_step

end_step("loaded")


def application(environ: dict[str, str], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer with the worker's pid."""
    end_step(f"request-{environ['PATH_INFO'].strip('/')}")
    start_response("200 OK", [("content-type", "text/plain")])
    return [str(os.getpid()).encode()]
