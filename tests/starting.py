"""Fixtures of the tests of whole programs: a receiver, and programs whose webhooks go there."""

from collections.abc import Iterator

import pytest
from processes import Program, Run, Start, StepReceiver, python_program


@pytest.fixture
def receiver() -> Iterator[StepReceiver]:
    """A `StepReceiver` that is running."""
    with StepReceiver() as receiver:
        yield receiver


@pytest.fixture
def start(receiver: StepReceiver) -> Iterator[Start]:
    """Starts a program whose webhooks go to *receiver*; what still runs after the test is killed."""
    programs: list[Program] = []

    def start(name: str, *args: str, **settings: object) -> Program:
        programs.append(python_program(name, *args, **({"webhook": receiver.url} | settings)))
        return programs[-1]

    yield start
    for program in programs:
        program.kill_group()


@pytest.fixture
def run(start: Start) -> Run:
    """Runs a program to its end."""
    return lambda name, *args, **settings: start(name, *args, **settings).ended()
