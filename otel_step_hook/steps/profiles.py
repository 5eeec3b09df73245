"""Which spans are steps: a table with one row per framework, and the row for everybody else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan

STEP_ID_KEYS = ("step_id", "step.id")
PROFILE_NAMES = frozenset({"auto", "generic"})


@dataclass(frozen=True, slots=True)
class Profile:
    """How the spans of one framework are read."""

    name: str
    is_step: Callable[[ReadableSpan, Mapping[str, object]], bool]
    step_id_keys: tuple[str, ...] = STEP_ID_KEYS


def _has_step_id(_span: ReadableSpan, attributes: Mapping[str, object]) -> bool:
    return "step_id" in attributes or "step.id" in attributes


GENERIC = Profile("generic", _has_step_id)
