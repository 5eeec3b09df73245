"""The command line, `otel-step-hook`. It needs the extra ``cli``, and only ``otel_step_hook.__main__`` imports it."""
