"""The command line: ``python -m otel_step_hook``, or the script ``otel-step-hook``. It needs the extra ``cli``."""

import sys

_INTERRUPTED = 130  # exit status after SIGINT, as in a shell: 128 and the signal's number


def main() -> None:
    """Run the command line and exit. Prints no traceback after Ctrl-C or without the extra."""
    try:
        _main()
    except KeyboardInterrupt:  # while modules are imported; after that, typer catches it
        sys.exit(_INTERRUPTED)


def _main() -> None:
    try:
        from otel_step_hook.cli.app import main as run  # noqa: PLC0415 -- typer and rich come with the extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        sys.stderr.write("otel-step-hook needs its extra: pip install 'otel-step-hook[cli]'\n")
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
