"""A sampler that records the steps which another sampler drops: processors do not see dropped spans."""

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
    """The name and the attributes that a span will begin with, as a `SpanView` for the rules of profiles."""

    name: str
    attributes: Mapping[str, object]


class StepSampler(Sampler):
    """Samples as *root* does, but records steps that *root* drops: their webhooks are sent, their spans not exported.

    A sampler sees only the name and the attributes that a span begins with. Frameworks whose steps cannot be
    recognised by these need *record_all*, which records every span that *root* drops. *profiles* are asked in
    addition to the built-in ones and those of installed packages. *may_be_step* gets a span's name and attributes,
    and returns whether the span may become a step. May be called from any thread; raises nothing.
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
        # Most spans can be decided by these two: keys of attributes, and names.
        self._required = frozenset(key for profile in self._profiles for key in profile.required_attributes)
        with_names = [profile for profile in self._profiles if profile.sampled_names]
        # The names of built-in profiles are joined, which is faster. Those of other profiles may not allow it: flags
        # and names of groups could clash.
        built_in = "|".join(f"(?:{profile.sampled_names})" for profile in with_names if profile in PROFILES)
        other_names = (profile.sampled_names for profile in with_names if profile not in PROFILES)
        self._names = [name_matches(names) for names in (built_in, *other_names)]
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
        """Return the decision of *root*, but RECORD_ONLY instead of DROP for a span that may become a step."""
        result = self._root.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is not Decision.DROP or not self._keeps(name, attributes or {}):
            return result
        # The result needs the attributes, which the span will begin with: a sampler leaves them out when it drops.
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
        """Return ``StepSampler{…}`` with the description of *root* inside."""
        return f"StepSampler{{{self._root.get_description()}}}"


def from_argument(argument: str | float | None) -> StepSampler:
    """Return the sampler of ``OTEL_TRACES_SAMPLER=step_hook``; *argument* is the value of ``OTEL_TRACES_SAMPLER_ARG``.

    *argument* is the ratio of traces that are exported, 1 if it is None or empty. Traces are chosen as by
    ``parentbased_traceidratio``. With the suffix ``,all`` every span is recorded. Raises `ConfigurationError` for
    anything else; OpenTelemetry logs it and uses its default sampler.
    """
    text, _, suffix = str(1 if argument in {None, ""} else argument).partition(",")
    try:
        root = ParentBased(TraceIdRatioBased(float(text)))
    except ValueError:
        raise ConfigurationError(f"{_EXPECTED}, and is {argument!r}") from None
    if suffix.strip() not in {"", "all"}:
        raise ConfigurationError(f"{_EXPECTED}, and is {argument!r}")
    return StepSampler(root, record_all=suffix.strip() == "all")


def from_environment(**options: object) -> StepSampler:
    """Return the sampler ``step_hook`` for a file of the declarative configuration, where it has no options (``{}``).

    Its argument is the value of ``OTEL_TRACES_SAMPLER_ARG``, as for `from_argument`. Raises `ConfigurationError` for
    *options*, too: SDK 1.45 passes none to samplers, but all those of the file to other plugins.
    """
    if options:
        raise ConfigurationError(
            f"the sampler step_hook has options in the configuration file ({', '.join(options)}); "
            "expected none, as in step_hook: {}; put the ratio into OTEL_TRACES_SAMPLER_ARG"
        )
    return from_argument(os.environ.get("OTEL_TRACES_SAMPLER_ARG"))
