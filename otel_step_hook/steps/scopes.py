"""Which profiles are asked about the spans of which scope."""

from collections.abc import Callable, Iterable

from otel_step_hook.steps.event import SCOPE
from otel_step_hook.steps.frameworks import GENERIC
from otel_step_hook.steps.profile import FrameworkProfile, Profile
from otel_step_hook.steps.spans import StartedSpan

Fault = Callable[[Exception], object]


class ScopeProfiles:
    """What is asked about the spans of one scope."""

    __slots__ = (
        "at_start",
        "details",
        "ends_children",
        "framework",
        "has_user_rule",
        "profiles",
        "required",
        "skip_without",
    )

    def __init__(self, profiles: Iterable[Profile], *, has_user_rule: bool = False) -> None:
        self.profiles = tuple(map(FrameworkProfile.of, profiles))
        # What the framework says of the outcome counts, also where a rule of the user's makes the step.
        self.framework = next((one for one in self.profiles if one.scopes and not one.exclusive), GENERIC)
        self.has_user_rule = has_user_rule  # whether a rule of the user's is
        self.at_start = tuple(one.at_start for one in self.profiles if one.at_start is not None)
        self.details = tuple(one.details for one in self.profiles if one.details is not None)
        # A rule of the user's asks nobody what ends with what.
        self.ends_children = (
            () if has_user_rule else tuple(one for one in self.profiles if one.ends_children is not None)
        )
        # Spans without any of these attributes are no steps; None: all spans may be.
        is_cheap = all(one.required_attributes for one in self.profiles)
        self.required = frozenset(key for one in self.profiles for key in one.required_attributes) if is_cheap else None
        self.skip_without = None if has_user_rule or self.details else self.required

    def matching(self, span: StartedSpan, on_fault: Fault) -> FrameworkProfile | None:
        """The profile by which *span*, which has a required attribute, is a step.

        One whose rules raise is passed over, and *on_fault* called.
        """
        for profile in self.profiles:
            try:
                if profile.is_step(span) and (profile.is_part is None or not self.is_part(profile, span)):
                    return self.framework if profile is GENERIC else profile
            except Exception as error:  # noqa: BLE001 -- a rule of somebody else's must not cost the steps of others
                on_fault(error)
        return None

    def is_part(self, profile: FrameworkProfile, span: StartedSpan) -> bool:
        """Whether *span*, a step by *profile*, is only a part of one that another span reports."""
        return profile.is_part is not None and not self.has_user_rule and profile.is_part(span)


def profiles_by_scope(
    profiles: tuple[Profile, ...], *, has_user_rule: bool
) -> tuple[dict[str, ScopeProfiles], ScopeProfiles]:
    """The rows of each scope, and those of all other scopes."""
    by_scope: dict[str, list[Profile]] = {}
    for profile in profiles:
        for scope in profile.scopes:
            by_scope.setdefault(scope, []).append(profile)
    generic = [profile for profile in profiles if profile is GENERIC]
    rows = {}
    for scope, own in by_scope.items():
        is_exclusive = any(FrameworkProfile.of(profile).exclusive for profile in own)
        rows[scope] = ScopeProfiles(own if is_exclusive else [*own, *generic], has_user_rule=has_user_rule)
    rows[SCOPE] = ScopeProfiles(())
    return rows, ScopeProfiles((profile for profile in profiles if not profile.scopes), has_user_rule=has_user_rule)
