"""The command line, `otel-step-hook`: needs the extra ``cli``, and nothing else of the package imports it."""
