import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path

import httpx
import pytest
from support import Cli

import otel_step_hook.__main__
from otel_step_hook import StepHookSettings, __version__
from otel_step_hook.cli.listener import Listener, Plan
from otel_step_hook.delivery.signing import new_secret, parse_secrets
from otel_step_hook.testing import Answer, ScriptedReceiver

_KEY = "sesame-open"


# All commands


def test_help(cli: Cli) -> None:
    """Without arguments, the help lists the commands."""
    _, output, _ = cli()
    assert all(command in output for command in ("demo", "check", "send", "listen", "outbox", "secret"))


def test_version(cli: Cli) -> None:
    """`--version` prints the version of the package."""
    assert cli("--version") == (0, f"{__version__}\n", "")


def test_secret(cli: Cli) -> None:
    """`secret` prints one line with a new signing secret that can be used."""
    status, output, _ = cli("secret")
    assert status == 0
    assert len(parse_secrets(output)[0]) == 32
    assert output.count("\n") == 1


@pytest.mark.parametrize("command", ["check", "send", "listen"])
def test_a_setting_that_cannot_be_used(cli: Cli, command: str) -> None:
    """A wrong setting is reported in one sentence on stderr, which does not show a secret value."""
    status, _, errors = cli(command, KEY="line\nbreak")
    assert status == 2
    assert errors.startswith("STEP_COMPLETE_KEY ")
    assert errors.count("\n") == 1
    assert "break\n" not in errors


@pytest.mark.parametrize("command", ["check", "send"])
def test_no_webhook(cli: Cli, command: str) -> None:
    """Without an endpoint, the error says which variable to set and how to start a receiver."""
    status, _, errors = cli(command)
    assert status == 2
    assert errors.startswith("STEP_COMPLETE_WEBHOOK is not set, ")
    assert errors.endswith(" run: otel-step-hook listen\n")


def test_a_stdout_that_is_not_a_text_file(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that replaces stdout needs no more than `write` and `flush`."""

    class Stdout:
        written = ""

        def write(self, text: str) -> int:
            self.written += text
            return len(text)

        def flush(self) -> None:
            """Do nothing: there is no buffer."""

    stdout = Stdout()
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli("--version")[0] == 0
    assert stdout.written == f"{__version__}\n"


# demo


@pytest.mark.usefixtures("short_demo")
def test_demo(cli: Cli, tmp_path: Path) -> None:
    """The demo succeeds, and writes its picture to the given path."""
    picture = tmp_path / "trace.svg"
    status, output, errors = cli("demo", "--svg", str(picture))
    assert (status, errors) == (0, "")
    assert f"The picture of the trace is in {picture}\n" in output
    assert "plan" in picture.read_text(encoding="utf-8")


@pytest.mark.usefixtures("short_demo")
def test_demo_whose_picture_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    """A picture that cannot be written is reported in a sentence, with exit status 1."""
    status, _, errors = cli("demo", "--svg", str(tmp_path / "missing" / "trace.svg"))
    assert status == 1
    assert re.fullmatch(r"the demo cannot go on: .*No such file or directory.*\n", errors)


@pytest.mark.usefixtures("short_demo")
def test_demo_exports_where_the_environment_says(cli: Cli, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's own variable OTEL_EXPORTER_OTLP_ENDPOINT names the collector."""
    monkeypatch.setattr("otel_step_hook.cli.demo._EXPORT_TIME", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    status, output, _ = cli("demo")
    assert status == 0
    assert f"nothing at http://127.0.0.1:{closed_port} has accepted it" in output


@pytest.mark.usefixtures("short_demo")
def test_a_terminal_without_box_drawing_characters(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters that the encoding of stdout lacks become question marks; the demo goes on."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    assert cli("demo")[0] == 0
    assert b"?? plan" in written.getvalue()


# check


def test_check(cli: Cli, step_receiver: ScriptedReceiver) -> None:
    """`check` shows each setting with its value and source, hides secrets, and sends no webhook."""
    url = step_receiver.url.replace("http://", "http://user:pass@")
    status, output, errors = cli(
        "check", WEBHOOK=f"{url}?token=abc123", TIMEOUT="4.5", SIGNING_SECRET=new_secret(), HEADERS="x-a=hidden"
    )
    assert (status, errors) == (0, "")
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert f"STEP_COMPLETE_WEBHOOK {step_receiver.url.removesuffix('/hook')}/REDACTED environment" in lines
    assert "STEP_COMPLETE_TIMEOUT 4.5 environment" in lines
    assert "STEP_COMPLETE_SIGNING_SECRET *** environment" in lines
    assert "STEP_COMPLETE_CONCURRENCY 8 default" in lines
    assert "STEP_COMPLETE_KEY unset default" in lines
    assert all(f"STEP_COMPLETE_{name.upper()}" in output for name in StepHookSettings.model_fields)
    assert not re.search("whsec|hidden|abc123|pass@", output)
    assert re.search(r"^  ok     connect  127\.0\.0\.1:\d+ accepts connections", output, re.MULTILINE)
    assert re.search(r"^  ok     HTTP     answers HEAD with \d{3}, so it speaks HTTP \(\d+ ms\)$", output, re.MULTILINE)
    assert output.endswith("The endpoint answers. To see what it says to a webhook: otel-step-hook send\n")
    assert step_receiver.received == []


def test_check_of_misspelt_names(cli: Cli) -> None:
    """A misspelt variable is reported with the nearest name, even when another setting is wrong."""
    status, output, _ = cli("check", TIMOUT="4", TIMEOUT="soon")
    assert status == 2
    assert output.startswith("! STEP_COMPLETE_TIMOUT is not a setting")
    assert "STEP_COMPLETE_TIMEOUT" in output


def test_check_of_an_endpoint_that_is_down(cli: Cli, closed_port: int) -> None:
    """For an endpoint that does not answer, `check` shows the reason and exits with 1."""
    status, output, _ = cli("check", WEBHOOK=f"http://127.0.0.1:{closed_port}/hook")
    assert status == 1
    assert f"  failed connect  127.0.0.1:{closed_port} refuses connections: nothing listens there\n" in output
    assert output.endswith("The endpoint does not answer.\n")


@pytest.mark.parametrize("command", ["check", "send"])
def test_several_receivers(
    cli: Cli, command: str, step_receiver: ScriptedReceiver, closed_port: int, tmp_path: Path
) -> None:
    """Every endpoint is tried and shown with its name; if one is down, the exit status is 1."""
    path = tmp_path / "steps.toml"
    path.write_text(
        f'[[endpoint]]\nname = "down"\nwebhook = "http://127.0.0.1:{closed_port}/"\n'
        f'[[endpoint]]\nname = "healthy"\nwebhook = "{step_receiver.url}"\n',
        encoding="utf-8",
    )
    status, output, _ = cli(command, ENDPOINTS=str(path))
    assert status == 1
    assert output.index("(down)") < output.index("(healthy)")
    assert len(step_receiver.received) == (command == "send")


def test_check_of_a_proxy(cli: Cli, step_receiver: ScriptedReceiver) -> None:
    """A proxy is shown without its password; the endpoint behind it is not tried."""
    proxy = step_receiver.url.removesuffix("/hook").replace("http://", "http://user:pass@")
    status, output, _ = cli("check", WEBHOOK="http://192.0.2.1/", PROXY=proxy)
    assert status == 0
    assert f"{proxy.replace('user:pass@', '')} " in output
    assert "pass@" not in output
    assert output.endswith("The proxy can be reached. To see what lies behind it: otel-step-hook send\n")


def test_check_of_a_proxy_that_is_down(cli: Cli, closed_port: int) -> None:
    """If the proxy cannot be reached, `check` exits with 1."""
    status, output, _ = cli("check", WEBHOOK="http://192.0.2.1/", PROXY=f"http://127.0.0.1:{closed_port}")
    assert status == 1
    assert output.endswith("The proxy cannot be reached.\n")


# send


def test_send(cli: Cli) -> None:
    """`send` sends one webhook with key and signature, and shows the answer."""
    secret = new_secret()
    with Listener(key=_KEY, signing_secret=secret) as listener:
        status, output, errors = cli(
            "send", "--step-id", "step-mine", WEBHOOK=listener.url, KEY=_KEY, SIGNING_SECRET=secret
        )
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == f"POST {listener.url}"
    assert lines[1] == "  step     step-mine"
    assert re.fullmatch(r"  webhook  msg_[a-z2-7]+", lines[2])
    assert re.fullmatch(r"204 No Content from 127\.0\.0\.1 port \d+, after \d+ ms", lines[4])


def test_send_with_an_id_that_is_too_long(cli: Cli, step_receiver: ScriptedReceiver) -> None:
    """`send` refuses a step id that the hook would not send either."""
    status, _, errors = cli("send", "--step-id", "x" * 20_000, WEBHOOK=step_receiver.url)
    assert (status, errors) == (2, "--step-id: a step id has 20000 characters; at most 16384 are sent\n")
    assert step_receiver.received == []


def test_send_that_is_refused(cli: Cli) -> None:
    """For a refused webhook, `send` shows the `Retry-After` of the answer and exits with 1."""
    with Listener(Plan(refusals=1, retry_after=7)) as listener:
        status, output, _ = cli("send", "--show-body", WEBHOOK=listener.url)
    assert status == 1
    assert "503 Service Unavailable from 127.0.0.1 port " in output
    assert "  It asks to wait 7 s before the next attempt.\n" in output
    assert "  refused on purpose, as this receiver was asked to\n" in output


def test_send_with_the_wrong_key(cli: Cli) -> None:
    """The reason that the receiver gives is shown in full."""
    with Listener(key=_KEY) as listener:
        status, output, _ = cli("send", "--show-body", WEBHOOK=listener.url, KEY="mistaken")
    assert status == 1
    assert "401 Unauthorized" in output
    assert "set STEP_COMPLETE_KEY of the sender to the key of this receiver" in " ".join(output.split())


def test_send_to_a_closed_port(cli: Cli, closed_port: int) -> None:
    """Without an answer, `send` shows the type of the error and suggests `check`."""
    status, output, _ = cli("send", WEBHOOK=f"http://127.0.0.1:{closed_port}/")
    assert status == 1
    assert f"No answer: ConnectionRefusedError from 127.0.0.1 port {closed_port}, after " in output
    assert "  To find out why, run: otel-step-hook check\n" in output


def test_send_to_a_name_that_does_not_exist(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line about a failed name look-up has no peer address."""

    def look_up(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    status, output, _ = cli("send", WEBHOOK="http://hook.example/")
    assert status == 1
    assert "No answer: gaierror, after " in output


def test_send_shows_the_answer_if_asked_to(cli: Cli, step_receiver: ScriptedReceiver) -> None:
    """With `--show-body`, the beginning of the body is shown, with control characters escaped."""
    body = b"got it\r\n\x1b[2J[bold]twice[/bold] \xff\n" + b"x" * 5000
    step_receiver.answers(Answer(200, {"webhook-delivery": "disable"}, body))
    status, output, _ = cli("send", "--show-body", WEBHOOK=step_receiver.url)
    assert status == 0
    assert "  It says webhook-delivery: disable\n" in output
    assert re.search(r"^  got it *\n  \\x1b\[2J\[bold\]twice\[/bold\] \ufffd *\n  x+", output, re.MULTILINE)
    assert "\x1b" not in output
    assert output.count("x") < 700


@pytest.mark.parametrize(("answer", "is_offered"), [(200, False), (503, True)])
def test_send_does_not_show_the_answer_by_itself(
    answer: int, *, is_offered: bool, cli: Cli, step_receiver: ScriptedReceiver
) -> None:
    """By default the body, which may repeat the key, is not shown; after a refusal the option for it is named."""
    step_receiver.answers(Answer(answer, body=f"got {_KEY}".encode()))
    _, output, _ = cli("send", WEBHOOK=step_receiver.url, KEY=_KEY)
    assert _KEY not in output
    assert ("otel-step-hook send --show-body" in output) == is_offered


# listen


def test_listen() -> None:
    """`listen` shows each webhook as it arrives, and what is wrong with it, until Ctrl-C."""
    command = [sys.executable, "-m", "otel_step_hook", "listen", "--port", "0", "--fail", "1", "--retry-after", "2"]
    environment = os.environ | {"COLUMNS": "100", "STEP_COMPLETE_KEY": _KEY}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            introduction = list(itertools.takewhile(lambda line: not line.startswith("time "), process.stdout))
            url = _url("".join(introduction))
            headers = {"authorization": f"Bearer {_KEY}", "webhook-id": "msg_1"}
            assert httpx.post(url, content=b'{"step_id": "step-1"}', headers=headers).headers["retry-after"] == "2"
            assert httpx.post(url, content=b'{"step_id": "step-1"}', headers=headers).status_code == 204
            assert httpx.post(url, content=b'{"step_id": "step-1"}').status_code == 401
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=20)[0].splitlines()
        finally:
            process.kill()
    assert process.returncode == 0, rest
    assert "Checks the key of each webhook.\n" in introduction
    assert "Refuses the first webhook with 503 Service Unavailable.\n" in introduction
    shown = [line.partition("  ")[2].strip() for line in rest]
    assert shown[0] == "1  503 Service Unavailable  step-1"
    assert shown[1] == "2  204 No Content           step-1"
    assert shown[2] == "1  401 Unauthorized         ?"
    assert shown[3].startswith("the authorization header is missing; ")
    assert rest[-1] == "3 webhooks arrived."


def _url(output: str) -> str:
    (url,) = re.findall(r"^  export STEP_COMPLETE_WEBHOOK=(http://127\.0\.0\.1:\d+/)$", output, re.MULTILINE)
    return str(url)


class _Terminal(io.StringIO):
    """A terminal that calls *send* with the URL and then types Ctrl-C, once `listen` has printed its introduction."""

    def __init__(self, send: Callable[[str], object]) -> None:
        super().__init__()
        self._send = send

    def write(self, text: str) -> int:
        """Write *text*, and act after the last line of the introduction."""
        length = super().write(text)
        if "Ctrl-C ends it." in text:
            self._send(_url(self.getvalue()))
            signal.raise_signal(signal.SIGINT)
        return length


def test_listen_without_any_webhook(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends `listen` before a webhook has arrived, too; it says that it checks nothing."""
    terminal = _Terminal(lambda _: None)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli("listen", "--port", "0", "--fail", "3", "--status", "429")[0] == 0
    lines = terminal.getvalue().splitlines()
    assert "Checks neither key nor signature." in lines
    assert "Refuses the first 3 webhooks with 429 Too Many Requests." in lines
    assert lines[-1] == "0 webhooks arrived."


def test_listen_with_secrets_as_options(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key and secret given as options replace those of the environment, and are not shown."""
    secret, answers = new_secret(), []

    def send(url: str) -> None:
        answers.append(httpx.post(url, content=b"{}", headers={"authorization": f"Bearer {_KEY}"}).text)

    terminal = _Terminal(send)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli("listen", "--port", "0", "--key", _KEY, "--signing-secret", secret, KEY="another")[0] == 0
    assert answers[0].startswith("missing headers: webhook-id, ")
    lines = terminal.getvalue().splitlines()
    assert "Checks the key and the signature of each webhook." in lines
    assert lines[-1] == "1 webhook arrived."
    assert not re.search(f"{_KEY}|{secret}", terminal.getvalue())


def test_listen_on_a_port_that_is_taken(cli: Cli) -> None:
    """A port that is taken is reported in a sentence."""
    with Listener() as other:
        port = other.url.rpartition(":")[2].strip("/")
        status, _, errors = cli("listen", "--port", port)
    assert status == 2
    assert errors == f"cannot listen on port {port}: Address already in use; choose another with --port\n"


# The entry point


@pytest.fixture
def imported_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the command line imported again, as at the start of a process."""
    monkeypatch.delitem(sys.modules, "otel_step_hook.cli.app")


@pytest.mark.usefixtures("imported_anew")
@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without typer or rich one sentence says what to install."""
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"{missing}.console", raising=False)
    with pytest.raises(SystemExit) as exited:
        otel_step_hook.__main__.main()
    assert exited.value.code == 2
    assert capsys.readouterr() == ("", "otel-step-hook needs its extra: pip install 'otel-step-hook[cli]'\n")


@pytest.mark.usefixtures("imported_anew")
def test_without_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other missing module is an error that names it."""
    monkeypatch.setitem(sys.modules, "otel_step_hook.cli.listener", None)
    with pytest.raises(ModuleNotFoundError, match=r"import of otel_step_hook\.cli\.listener halted"):
        otel_step_hook.__main__.main()


class _Interrupt(MetaPathFinder):
    """Interrupts the import of typer with Ctrl-C."""

    def find_spec(self, name: str, *_: object) -> None:
        """Find nothing."""
        if name == "typer":
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("imported_anew")
def test_an_interrupt_while_modules_are_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C during the imports exits without a traceback, with the status of an interrupted program."""
    monkeypatch.delitem(sys.modules, "typer")
    monkeypatch.setattr(sys, "meta_path", [_Interrupt(), *sys.meta_path])
    with pytest.raises((SystemExit, KeyboardInterrupt)) as exited:  # the second would end the whole test run
        otel_step_hook.__main__.main()
    assert repr(exited.value) == "SystemExit(130)"
    assert capsys.readouterr() == ("", "")
