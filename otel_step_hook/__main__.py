"""``python -m otel_step_hook`` and the script ``otel-step-hook``: the command line, if its extra is there."""

import sys


def main() -> None:
    """Run the command line, or say in one sentence what it needs, and exit."""
    try:
        from otel_step_hook.cli import main as run  # noqa: PLC0415 -- typer and rich are an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        sys.stderr.write("otel-step-hook needs its extra: pip install 'otel-step-hook[cli]'\n")
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
