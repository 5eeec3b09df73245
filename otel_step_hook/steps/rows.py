"""Which profiles are asked about the spans of which scope."""

from collections.abc import Callable, Iterable

from otel_step_hook.steps.event import SCOPE
from otel_step_hook.steps.frameworks import GENERIC
from otel_step_hook.steps.profile import FrameworkProfile, Profile
from otel_step_hook.steps.spans import StartedSpan

Fault = Callable[[Exception], object]


class Rows:
    """What is asked about the spans of one scope."""

    __slots__ = ("at_start", "details", "ends_children", "is_asked", "own", "profiles", "required", "skipped")

    def __init__(self, profiles: Iterable[Profile], *, is_asked: bool = False) -> None:
        self.profiles = tuple(map(FrameworkProfile.of, profiles))
        # What the framework says of the outcome counts, also where a rule of the user's makes the step.
        self.own = next((one for one in self.profiles if one.scopes and not one.exclusive), GENERIC)
        self.is_asked = is_asked  # whether a rule of the user's is
        self.at_start = tuple(one.at_start for one in self.profiles if one.at_start is not None)
        self.details = tuple(one.details for one in self.profiles if one.details is not None)
        # A rule of the user's asks nobody what ends with what.
        self.ends_children = () if is_asked else tuple(one for one in self.profiles if one.ends_children is not None)
        # Spans without any of these attributes are no steps; None: all spans may be.
        is_cheap = all(one.required_attributes for one in self.profiles)
        self.required = frozenset(key for one in self.profiles for key in one.required_attributes) if is_cheap else None
        self.skipped = None if is_asked or self.details else self.required

    def found(self, span: StartedSpan, on_fault: Fault) -> FrameworkProfile | None:
        """The profile by which *span*, which has a required attribute, is a step.

        One whose rules raise is passed over, and *on_fault* called.
        """
        for profile in self.profiles:
            try:
                if profile.is_step(span) and (profile.is_part is None or not self.is_part(profile, span)):
                    return self.own if profile is GENERIC else profile
            except Exception as error:  # noqa: BLE001 -- a rule of somebody else's must not cost the steps of others
                on_fault(error)
        return None

    def is_part(self, profile: FrameworkProfile, span: StartedSpan) -> bool:
        """Whether *span*, a step by *profile*, is only a part of one that another span reports."""
        return profile.is_part is not None and not self.is_asked and profile.is_part(span)


def rows_of(profiles: tuple[Profile, ...], *, is_asked: bool) -> tuple[dict[str, Rows], Rows]:
    """The rows of each scope, and those of all other scopes."""
    by_scope: dict[str, list[Profile]] = {}
    for profile in profiles:
        for scope in profile.scopes:
            by_scope.setdefault(scope, []).append(profile)
    generic = [profile for profile in profiles if profile is GENERIC]
    rows = {}
    for scope, own in by_scope.items():
        is_exclusive = any(FrameworkProfile.of(profile).exclusive for profile in own)
        rows[scope] = Rows(own if is_exclusive else [*own, *generic], is_asked=is_asked)
    rows[SCOPE] = Rows(())
    return rows, Rows((profile for profile in profiles if not profile.scopes), is_asked=is_asked)
