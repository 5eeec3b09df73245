"""Real Temporal servers, each with its web page, on free loopback ports and with a database in a folder.

Owns the processes. For fixtures and for plain scripts:

    with TemporalServer(folder) as server:
        client = await Client.connect(server.address)
        server.kill()
        server.start()  # the same ports, the same state

`TemporalServer` is 1.32, which knows standalone activities; `OlderTemporalServer` is 1.29, which does not.
"""

import contextlib
import json
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from servers.build import binary
from servers.running import LIMIT, Running, accepts, free_ports

NAMESPACE = "default"
_RETENTION = "86400s"  # a day, the shortest that the server takes; a database of a test does not live so long
# Finds no such workflow once all of the server is up and knows the namespace; until then it answers something else.
_PROBE = f"/api/v1/namespaces/{NAMESPACE}/workflows/no-such-workflow"
_FOUND_NONE = "workflow not found"  # in that answer


class _Temporal(ABC):
    """A server and its web page; the methods wait until what they do is done. For one thread.

    *address* is host:port of gRPC, *http* the base URL of the HTTP API, *ui* that of the web page. They stay the same
    when the server is started again. Logs and database are in *folder*, which must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = free_ports(10)
        grpc, http, ui = self._ports[:3]
        self.address = f"127.0.0.1:{grpc}"
        self.http = f"http://127.0.0.1:{http}"
        self.ui = f"http://127.0.0.1:{ui}"
        self._running: list[Running] = []

    def start(self) -> None:
        """Start the server, and again after `stop` or `kill`: its namespace `default` is there and usable.

        Raises `ServerError` when it has not been built, `AssertionError` with its log when it does not start.
        """
        assert not self._running, "it runs already; stop() or kill() it first"
        try:
            self._start()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the server and its web page by SIGTERM. Does nothing when they do not run."""
        with contextlib.ExitStack() as stack:  # the last first, and each, whatever the others raise
            while self._running:
                stack.callback(self._running.pop(0).stop)

    def kill(self) -> None:
        """End the server and its web page by SIGKILL. Does nothing when they do not run."""
        while self._running:
            self._running.pop().kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _start(self) -> None:
        """Start what there is, add it to `_running`, and wait until it is ready."""

    def _run(self, *command: str | Path) -> Running:
        self._running.append(Running(command, self.folder / f"{Path(command[0]).name}.log"))
        return self._running[-1]

    def _wait_until_ready(self, server: Running) -> None:
        server.wait_until(f"namespace {NAMESPACE} is usable", self._is_ready)
        server.wait_until("the server listens", lambda: accepts(self.address))  # after its HTTP API does

    def _wait_until_page(self, page: Running) -> None:
        # Not only the page itself: it may have asked the server too early, and then waits before it asks again.
        url = f"{self.ui}/api/v1/system-info"
        page.wait_until("the web page knows the server", lambda: _ask(url)[0] == HTTPStatus.OK)

    def _is_ready(self) -> bool:
        """Whether the server looks into its history for a workflow; registers the namespace if it is missing."""
        status, answer = _ask(f"{self.http}{_PROBE}")
        if status == HTTPStatus.NOT_FOUND and _FOUND_NONE in answer:
            return True
        if status == HTTPStatus.NOT_FOUND and "namespace" in answer.lower():
            body = {"namespace": NAMESPACE, "workflowExecutionRetentionPeriod": _RETENTION}
            _ask(f"{self.http}/api/v1/namespaces", body)  # answers 409 until the server has read what it registered
        return False


class TemporalServer(_Temporal):
    """Temporal Server 1.32, and the web page 2.56 as a process of its own."""

    def _start(self) -> None:
        server, page = binary("temporal-server"), binary("temporal-ui")
        settings = self._write("temporal-server.yaml", self._settings())
        self._wait_until_ready(self._run(server, "--config-file", settings, "--allow-no-auth", "start"))
        self._write("ui/development.yaml", self._page_settings())
        options = ("--root", self.folder, "--config", "ui", "--env", "development")
        self._wait_until_page(self._run(page, *options, "start"))

    def _write(self, name: str, settings: object) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(settings, indent=1))  # YAML, too
        return path

    def _settings(self) -> dict[str, object]:
        """As in the server's own `config/development-sqlite-file.yaml`, without metrics, profiler and archive."""
        grpc, http, _, *others = self._ports
        attributes = {"setup": "true", "journal_mode": "wal", "synchronous": "2", "cache": "private", "mode": "rwc"}
        store = {
            "sql": {
                "pluginName": "sqlite",
                "databaseName": str(self.folder / "temporal.sqlite"),
                "connectAddr": "localhost",
                "connectProtocol": "tcp",
                "connectAttributes": attributes,
                "maxConns": 1,
                "maxIdleConns": 1,
            }
        }
        services = {"frontend": {"grpcPort": grpc, "httpPort": http, "membershipPort": others.pop()}}
        for name in ("history", "matching", "worker"):
            services[name] = {"grpcPort": others.pop(), "membershipPort": others.pop()}
        cluster = {"enabled": True, "initialFailoverVersion": 1, "rpcName": "frontend", "rpcAddress": self.address}
        return {
            "log": {"stdout": True, "level": "warn"},
            "persistence": {
                "defaultStore": "store",
                "visibilityStore": "visibility",
                "numHistoryShards": 1,
                "datastores": {"store": store, "visibility": store},
            },
            "global": {"membership": {"maxJoinDuration": "30s", "broadcastAddress": "127.0.0.1"}},
            "services": {name: {"rpc": {**ports, "bindOnLocalHost": True}} for name, ports in services.items()},
            "clusterMetadata": {
                "enableGlobalNamespace": False,
                "failoverVersionIncrement": 10,
                "masterClusterName": "active",
                "currentClusterName": "active",
                "clusterInformation": {"active": cluster},
            },
            "dynamicConfigClient": {"filepath": str(self._write("dynamic.yaml", {})), "pollInterval": "10s"},
        }

    def _page_settings(self) -> dict[str, object]:
        host, _, port = self.ui.removeprefix("http://").rpartition(":")
        return {
            "temporalGrpcAddress": self.address,
            "host": host,
            "port": int(port),
            "enableUi": True,
            "defaultNamespace": NAMESPACE,
            "disableNewsFetch": True,  # a test asks nobody outside
            "notifyOnNewVersion": False,
        }


class OlderTemporalServer(_Temporal):
    """Temporal Server 1.29, which Temporal's command line contains, with a web page inside."""

    def _start(self) -> None:
        grpc, http, ui = self._ports[:3]
        ports = ("--ip", "127.0.0.1", "--port", f"{grpc}", "--http-port", f"{http}", "--ui-port", f"{ui}")
        database = ("--db-filename", self.folder / "temporal.sqlite", "--log-level", "warn")
        server = self._run(binary("temporal-cli"), "server", "start-dev", *ports, *database)
        self._wait_until_ready(server)
        self._wait_until_page(server)


def _ask(url: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """Status and text of the answer to a GET, or to a POST of *body* as JSON; status 0 when nothing answers."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)
