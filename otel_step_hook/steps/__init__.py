"""From spans to `StepEvent` values. Pure: no I/O, no clock, no threads."""
