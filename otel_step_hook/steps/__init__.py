"""From a span to a `StepEvent`. Pure: no I/O, no clock, no threads."""
