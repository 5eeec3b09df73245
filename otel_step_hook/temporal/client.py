"""The client of Temporal: owns the configuration of its connection, and one runtime for each process."""

import ctypes
import os
from typing import Any

from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RetryConfig

from otel_step_hook.errors import ConfigurationError

_ADDRESS = "localhost:7233"  # Temporal's own default
_NO_RETRY = RetryConfig(max_retries=1)  # the store retries: two layers of retries would multiply

# By process id: a runtime does not work across a fork. An entry per process that a process descends from.
_runtimes: dict[int, Runtime] = {}


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
    """
    pid = os.getpid()
    if pid not in _runtimes:
        made = Runtime(telemetry=TelemetryConfig(logging=None), worker_heartbeat_interval=None)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
        _runtimes[pid] = made
    return _runtimes[pid]


async def connect(config: dict[str, Any], *, lazy: bool) -> Client:
    """Return a client for the running event loop; a *lazy* one connects with its first call.

    Raises RuntimeError when the server cannot be reached.
    """
    return await Client.connect(**config, lazy=lazy, runtime=runtime(), retry_config=_NO_RETRY)
