"""The sampler that keeps steps: a span that a sampler drops is seen by no processor, and no webhook is sent for it."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from otel_step_hook.errors import ConfigurationError
from otel_step_hook.steps.frameworks import PROFILES
from otel_step_hook.steps.plugins import AUTO, selected_profiles
from otel_step_hook.steps.profile import Profile, name_matches

_log = logging.getLogger("otel_step_hook")
_EXPECTED = "OTEL_TRACES_SAMPLER_ARG must be a ratio from 0 to 1, such as 0.1, or one and the word all: 0.1,all"


class _SpanAtStart(NamedTuple):
    """What a sampler sees of a span, as rules read it."""

    name: str
    attributes: Mapping[str, object]


class StepSampler(Sampler):
    """Samples as *root* does, but records the steps that *root* drops: they are told, and not exported.

    A sampler sees of a span what it begins with. Frameworks whose steps cannot be recognised by that
    need *record_all*, which records every span that *root* drops. *profiles* are asked beside those of
    the table and of installed packages; *may_be_step* says of a name and of attributes whether such a span
    may become a step. For any thread; raises nothing.
    """

    def __init__(
        self,
        root: Sampler,
        *,
        profiles: Iterable[Profile] = (),
        may_be_step: Callable[[str, Mapping[str, object]], bool] | None = None,
        record_all: bool = False,
    ) -> None:
        self._root = root
        self._record_all = record_all
        self._may_be_step = may_be_step
        self._profiles = (*profiles, *selected_profiles([AUTO]))
        # Most spans are told apart by these two alone.
        self._required = frozenset(key for profile in self._profiles for key in profile.required_attributes)
        starting = [profile for profile in self._profiles if profile.sampled_names]
        # Those of the table as one, which is quicker. Those of others might not go together: flags, names of groups.
        whole = "|".join(f"(?:{profile.sampled_names})" for profile in starting if profile in PROFILES)
        others = (one.sampled_names for one in starting if one not in PROFILES)
        self._names = [name_matches(names) for names in (whole, *others)]
        self._is_cheap = may_be_step is None and all(profile.required_attributes for profile in self._profiles)

    def should_sample(  # noqa: PLR0917 -- the SDK's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """What *root* decides, with DROP turned into RECORD_ONLY for a span that may become a step."""
        result = self._root.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is not Decision.DROP or not self._keeps(name, attributes or {}):
            return result
        # With the attributes: samplers leave them out of what they drop.
        return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)

    def _keeps(self, name: str, attributes: Mapping[str, object]) -> bool:
        try:
            return self._record_all or self._may_become_step(name, attributes)
        except Exception as error:  # noqa: BLE001 -- runs in the application's start_span(): nothing may escape
            _log.debug("a rule for steps has failed (%s): the span is recorded", type(error).__name__)
            return True

    def _may_become_step(self, name: str, attributes: Mapping[str, object]) -> bool:
        span = _SpanAtStart(name, attributes)
        if any(is_sampled(span) for is_sampled in self._names):
            return True
        if self._is_cheap and attributes.keys().isdisjoint(self._required):
            return False
        if self._may_be_step is not None and self._may_be_step(name, attributes):
            return True
        return any(profile.is_step(span) for profile in self._profiles)

    def get_description(self) -> str:
        """``StepSampler{…}`` around the description of *root*."""
        return f"StepSampler{{{self._root.get_description()}}}"


def from_argument(argument: str | float | None) -> StepSampler:
    """The sampler of ``OTEL_TRACES_SAMPLER=step_hook``; *argument* is what ``OTEL_TRACES_SAMPLER_ARG`` holds.

    A ratio, of traces that are exported, 1 without one or where it is empty: `ParentBased` and by trace id, as
    ``parentbased_traceidratio`` has it. After a comma, ``all`` records every span. Raises
    `ConfigurationError` for anything else, upon which OpenTelemetry says so and samples as by default.
    """
    text, _, word = str(1 if argument in {None, ""} else argument).partition(",")
    try:
        root = ParentBased(TraceIdRatioBased(float(text)))
    except ValueError:
        raise ConfigurationError(f"{_EXPECTED}, and is {argument!r}") from None
    if word.strip() not in {"", "all"}:
        raise ConfigurationError(f"{_EXPECTED}, and is {argument!r}")
    return StepSampler(root, record_all=word.strip() == "all")


def from_environment() -> StepSampler:
    """The sampler ``step_hook`` of a file of the declarative configuration, which passes nothing on (``{}``).

    Its argument is ``OTEL_TRACES_SAMPLER_ARG``, as for `from_argument`.
    """
    return from_argument(os.environ.get("OTEL_TRACES_SAMPLER_ARG"))
