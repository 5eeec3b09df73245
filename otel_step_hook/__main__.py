"""``python -m otel_step_hook`` and the script ``otel-step-hook``: the command line, if its extra is there."""

import sys

_INTERRUPTED = 130  # exit status: 128 and SIGINT's number, as a shell has it


def main() -> None:
    """Run the command line, or say in one sentence what it needs, and exit; quietly after Ctrl-C."""
    try:
        _main()
    except KeyboardInterrupt:  # while modules are imported: typer has an answer of its own after that
        sys.exit(_INTERRUPTED)


def _main() -> None:
    try:
        from otel_step_hook.cli.app import main as run  # noqa: PLC0415 -- typer and rich are an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        sys.stderr.write("otel-step-hook needs its extra: pip install 'otel-step-hook[cli]'\n")
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
