"""Fixtures for tests of whole programs: a receiver, and programs that send their webhooks to it."""

from collections.abc import Iterator

import pytest
from processes import Program, Run, Start, StepReceiver, python_program


@pytest.fixture
def receiver() -> Iterator[StepReceiver]:
    """A running `StepReceiver`."""
    with StepReceiver() as receiver:
        yield receiver


@pytest.fixture
def start(receiver: StepReceiver) -> Iterator[Start]:
    """Start a program that sends its webhooks to *receiver*; it is killed after the test if it still runs."""
    programs: list[Program] = []

    def start(name: str, *args: str, **settings: object) -> Program:
        programs.append(python_program(name, *args, **({"webhook": receiver.url} | settings)))
        return programs[-1]

    yield start
    for program in programs:
        program.kill_group()


@pytest.fixture
def run(start: Start) -> Run:
    """Start a program, and wait until it has ended."""
    return lambda name, *args, **settings: start(name, *args, **settings).ended()
