"""Build the real servers that the tests run against: once for each set of pinned modules.

Owns `${XDG_CACHE_HOME:-$HOME/.cache}/otel-step-hook/servers/`; nothing is written into the checkout.

    python tests/servers/build.py                  builds the missing servers
    python tests/servers/build.py --print jaeger   prints the path of the binary

The pins are the module files in the folders beside this file: `go.sum` has the hash of every module.
The first time takes about ten minutes on two cores, and 4 GB in Go's module cache (`go clean -modcache`
deletes it).
"""

import argparse
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PINS = ("go.mod", "go.sum", "tools.go", "builder.yaml")
_BUILD = ("build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w")
_TAIL = 20  # lines shown of a failed command; Go prints the cause last


class ServerError(Exception):
    """A server is not built, or cannot be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server. *name* is also the folder of its pins, *package* the Go package that is compiled to *binary*."""

    name: str
    version: str
    binary: str
    package: str
    minutes: int  # that the build takes on two cores without a cache
    generator: str = ""  # a Go package that writes the source into a folder named *binary*

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version}"

    @property
    def path(self) -> Path:
        """Where the binary for exactly these pins is, or will be."""
        return cache() / f"{self.name}-{self.version}-{_fingerprint(self)}" / self.binary


_BUILDER = "go.opentelemetry.io/collector/cmd/builder"
SERVERS = {
    server.name: server
    for server in (
        Server("jaeger", "2.13.0", "jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger", 6),
        Server("collector", "0.161.0", "otelcol", ".", 3, generator=_BUILDER),
        Server("temporal-server", "1.32.0", "temporal-server", "go.temporal.io/server/cmd/server", 10),
        Server("temporal-ui", "2.56.0", "temporal-ui", "github.com/temporalio/ui-server/v2/cmd/server", 2),
        Server("temporal-cli", "1.5.1", "temporal", "github.com/temporalio/cli/cmd/temporal", 4),
    )
}


def binary(name: str) -> Path:
    """Returns the path of the server *name*, a key of `SERVERS`. Raises `ServerError` when it is not built."""
    server = SERVERS[name]
    if not server.path.is_file():
        raise ServerError(
            f"{server.title} is not built: expected it at {server.path}. "
            f"Build it with `make servers`; it takes about {server.minutes} minutes the first time."
        )
    return server.path


def cache() -> Path:
    """Returns the folder that has a folder for each built server. It may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "otel-step-hook" / "servers"  # absolute, because Go runs in another folder


def ensure(server: Server) -> None:
    """Build *server* unless that is done, and print so. Safe beside another build of the same server."""
    if server.path.is_file():
        print(f"{server.title}: there", flush=True)
        return
    print(f"{server.title}: building, about {server.minutes} minutes the first time", flush=True)
    start = time.monotonic()
    cache().mkdir(parents=True, exist_ok=True)
    # Inside of the cache: a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".building-") as scratch:
        built = _compile(server, Path(scratch))
        server.path.parent.mkdir(exist_ok=True)
        built.replace(server.path)
    print(f"{server.title}: built in {time.monotonic() - start:.0f} s: {server.path}", flush=True)


def _fingerprint(server: Server) -> str:
    """A hash of the pins, the flags, the operating system and the architecture."""
    digest = hashlib.sha256(repr((_BUILD, sys.platform, platform.machine())).encode())
    folder = _HERE / server.name
    for file in sorted(path for path in folder.rglob("*") if path.name in _PINS):
        digest.update(f"\n{file.relative_to(folder).as_posix()}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _compile(server: Server, scratch: Path) -> Path:
    """Compile *server* from a copy of its pins, below *scratch*; returns the path of the binary."""
    go = _find_go()
    source, temporary = scratch / "source", scratch / "temporary"
    temporary.mkdir()
    shutil.copytree(_HERE / server.name, source)
    if server.generator:
        generator = scratch / "generator"
        _run([go, *_BUILD, "-o", str(generator), server.generator], source, temporary)
        # Without these options the builder would update the modules, past our go.sum, and compile by itself.
        skip = ("--skip-get-modules", "--skip-compilation")
        _run([str(generator), "--config", "builder.yaml", *skip], source, temporary)
        source /= server.binary
    built = scratch / "built"
    _run([go, *_BUILD, "-o", str(built), server.package], source, temporary)
    return built


def _find_go() -> str:
    go = shutil.which("go")
    if go is None:
        raise ServerError(
            "`go` was not found on PATH; the servers are compiled with Go 1.26 or newer. "
            "Install Go, or leave the servers out: pytest -m 'not servers'."
        )
    return go


def _run(command: Sequence[str], folder: Path, temporary: Path) -> None:
    """Run *command* in *folder*. Raises `ServerError` with its last lines of output when it fails."""
    settings = {
        "GOTOOLCHAIN": "local",  # never download another Go
        "GOWORK": "off",  # ignore a go.work in a folder above
        "CGO_ENABLED": "0",
        "TMPDIR": str(temporary),  # the generator leaves a folder behind
    }
    with subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # and with it Go's compilers
            raise
    if process.returncode:
        last_lines = "\n".join(output.splitlines()[-_TAIL:])
        raise ServerError(
            f"`{' '.join(command)}` ended with status {process.returncode}:\n{last_lines}\n"
            "Expected it to succeed with the pinned modules. If a module could not be fetched, check the "
            "network and `go env GOPROXY`; if Go is too old, install the version that go.mod asks for."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the missing servers, or print one path. On failure returns 1 and prints a sentence to stderr."""
    parser = argparse.ArgumentParser(description="Build the real servers that the tests run against.")
    parser.add_argument("--print", choices=sorted(SERVERS), help="print the path of this server's binary")
    wanted: str | None = parser.parse_args(arguments).print
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    try:
        if wanted is not None:
            print(binary(wanted))
            return 0
        for server in SERVERS.values():
            ensure(server)
    except (ServerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
