"""The client of Temporal: owns the configuration of its connection, and the runtime of this process."""

import ctypes
import os
from dataclasses import dataclass
from typing import Any

import temporalio.runtime
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RetryConfig

from otel_step_hook.delivery import native
from otel_step_hook.errors import ConfigurationError

_ADDRESS = "localhost:7233"  # Temporal's own default
_NO_RETRY = RetryConfig(max_retries=1)  # the store retries: two layers of retries would multiply

_NOBODY = -1  # no process has this id


class ForkedError(RuntimeError):
    """This process was forked from one that had a runtime, and can have none."""


@dataclass
class _Owned:
    """The *runtime*, and the id of the *process* that makes it. A forked child inherits both."""

    process: int | None = None
    runtime: Runtime | None = None


_owned = _Owned()
_making = native.allocate_lock()


def connect_config() -> dict[str, Any]:
    """Return the arguments of `Client.connect` from Temporal's own variables and its configuration file.

    Raises `ConfigurationError` if they cannot be used.
    """
    try:
        found = ClientConfig.load_client_connect_config()
    except Exception as error:  # noqa: BLE001 -- each fault of the file is of another kind
        reason = type(error).__name__
    else:
        return {"target_host": _ADDRESS, **found}
    # Outside of `except`: the error may show a line of the file, which holds an API key.
    raise ConfigurationError(
        f"Temporal's configuration cannot be read ({reason}); expected TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE, or a "
        "profile in the TOML file that TEMPORAL_CONFIG_FILE names"
    )


def runtime() -> Runtime:
    """Return the runtime of this process: not the default one, which belongs to the application.

    It logs nothing: what fails is a result. It is never freed, since that waits for threads, which a forked child does
    not have.

    Raises `ForkedError` where an ancestor of this process had a runtime when it forked: the threads of a second one
    meet what those of the first have left in the SDK's memory, and the process is killed by SIGSEGV or SIGABRT, or
    hangs.
    """
    _owned.process = _owned.process or os.getpid()
    if _owned.process != os.getpid():
        raise ForkedError
    with _making:  # not sooner: a child may inherit it locked
        if _owned.runtime is None:
            _owned.runtime = Runtime(telemetry=TelemetryConfig(logging=None), worker_heartbeat_interval=None)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(_owned.runtime))
    return _owned.runtime


def _after_fork_in_child() -> None:
    # The default runtime is the application's. Temporal's SDK has no public way to ask whether there is one.
    default = getattr(getattr(temporalio.runtime, "_runtime_ref", None), "_default_runtime", None)
    if default is not None or _owned.process is not None:
        _owned.process = _NOBODY  # not the parent's: a child of this one may get that again


if hasattr(os, "register_at_fork"):  # pragma: no branch -- Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)


async def connect(config: dict[str, Any], *, lazy: bool) -> Client:
    """Return a client for the running event loop; a *lazy* one connects with its first call.

    Raises RuntimeError when the server cannot be reached, and `ForkedError` as `runtime` does.
    """
    return await Client.connect(**config, lazy=lazy, runtime=runtime(), retry_config=_NO_RETRY)
