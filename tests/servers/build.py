"""Build the real servers that the tests run against, once for each set of pins.

Owns `${XDG_CACHE_HOME:-$HOME/.cache}/otel-step-hook/servers/`; nothing is written into the checkout.

    python tests/servers/build.py                  builds what is not there yet
    python tests/servers/build.py --print jaeger   says where the binary is

The pins are the module files in the folders beside this file: `go.sum` holds the hash of everything compiled.
The first time takes about ten minutes on two cores, and 4 GB in Go's module cache (`go clean -modcache`
gives them back).
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
_TAIL = 20  # lines shown of a command that failed: Go names the culprit last


class ServerError(Exception):
    """A server is not built, or cannot be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server: the folder of its pins, and what is compiled from them."""

    name: str
    version: str
    binary: str
    package: str
    minutes: int  # to build on two cores with nothing cached
    generator: str = ""  # a package that writes the source of *package* into the folder `binary`

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version}"

    @property
    def path(self) -> Path:
        """Where the binary made from exactly these pins is, or would be."""
        return cache() / f"{self.name}-{self.version}-{_fingerprint(self)}" / self.binary


_BUILDER = "go.opentelemetry.io/collector/cmd/builder"
SERVERS = {
    server.name: server
    for server in (
        Server("jaeger", "2.13.0", "jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger", 6),
        Server("collector", "0.161.0", "otelcol", ".", 3, generator=_BUILDER),
        Server("temporal", "1.5.1", "temporal", "github.com/temporalio/cli/cmd/temporal", 4),
    )
}


def binary(name: str) -> Path:
    """Find the built server *name*, a key of `SERVERS`; `ServerError` when it is not built."""
    server = SERVERS[name]
    if not server.path.is_file():
        raise ServerError(
            f"{server.title} is not built: expected it at {server.path}. "
            f"Build it with `make servers`; it takes about {server.minutes} minutes the first time."
        )
    return server.path


def cache() -> Path:
    """Name the folder that holds one folder for each built server; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "otel-step-hook" / "servers"  # Go runs in another folder


def ensure(server: Server) -> None:
    """Build *server* unless it is there, and say so. Safe beside another build of the same server."""
    if server.path.is_file():
        print(f"{server.title}: there", flush=True)
        return
    print(f"{server.title}: building, about {server.minutes} minutes the first time", flush=True)
    start = time.monotonic()
    cache().mkdir(parents=True, exist_ok=True)
    # Inside the cache, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".building-") as scratch:
        built = _compile(server, Path(scratch))
        server.path.parent.mkdir(exist_ok=True)
        built.replace(server.path)
    print(f"{server.title}: built in {time.monotonic() - start:.0f} s: {server.path}", flush=True)


def _fingerprint(server: Server) -> str:
    """Differ whenever the pins, the flags or the machine's kind differ."""
    digest = hashlib.sha256(repr((_BUILD, sys.platform, platform.machine())).encode())
    folder = _HERE / server.name
    for file in sorted(path for path in folder.rglob("*") if path.name in _PINS):
        digest.update(f"\n{file.relative_to(folder).as_posix()}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _compile(server: Server, scratch: Path) -> Path:
    """Compile *server* from a copy of its pins, all of it below *scratch*; return its binary."""
    go = _find_go()
    source, temporary = scratch / "source", scratch / "temporary"
    temporary.mkdir()
    shutil.copytree(_HERE / server.name, source)
    if server.generator:
        generator = scratch / "generator"
        _run([go, *_BUILD, "-o", str(generator), server.generator], source, temporary)
        # Without the two options it would choose modules anew, past our go.sum, and compile by itself.
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
    """Run *command* in *folder* to its end; `ServerError` with its last words when it fails."""
    settings = {
        "GOTOOLCHAIN": "local",  # the pins say which Go is needed; none is downloaded
        "GOWORK": "off",  # a workspace above the cache is not ours
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
            os.killpg(process.pid, signal.SIGKILL)  # Go's compilers too: none may outlive us
            raise
    if process.returncode:
        last_words = "\n".join(output.splitlines()[-_TAIL:])
        raise ServerError(
            f"`{' '.join(command)}` ended with status {process.returncode}:\n{last_words}\n"
            "Expected it to succeed with the pinned modules. If a module could not be fetched, check the "
            "network and `go env GOPROXY`; if Go is too old, install the version that go.mod asks for."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is missing, or print one path. The status is 1, with a sentence on stderr, on failure."""
    parser = argparse.ArgumentParser(description="Build the real servers that the tests run against.")
    parser.add_argument("--print", choices=sorted(SERVERS), help="print the path of this server's binary")
    wanted: str | None = parser.parse_args(arguments).print
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidy up as on Ctrl-C
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
