"""Which profiles are asked about the spans of an instrumentation scope."""

from collections.abc import Callable, Iterable

from otel_step_hook.steps.event import SCOPE
from otel_step_hook.steps.frameworks import GENERIC
from otel_step_hook.steps.profile import FrameworkProfile, Profile
from otel_step_hook.steps.spans import ANSWERED, StartedSpan

Fault = Callable[[Exception], object]  # called with an exception that a rule has raised


class ScopeProfiles:
    """The profiles that are asked about the spans of one scope."""

    __slots__ = (
        "at_start",
        "details",
        "ends_children",
        "framework",
        "has_user_rule",
        "of_scope",
        "profiles",
        "required",
        "skip_without",
    )

    of_scope: "Callable[[str], ScopeProfiles]"  # returns the profiles for another scope, by its name

    def __init__(self, profiles: Iterable[Profile], *, has_user_rule: bool = False) -> None:
        self.profiles = tuple(map(FrameworkProfile.of, profiles))
        # The framework's rule for the outcome applies even where the user's `is_step` makes a span a step.
        self.framework = next((one for one in self.profiles if one.scopes and not one.exclusive), GENERIC)
        self.has_user_rule = has_user_rule  # whether the user's `is_step` replaces the profiles' rules
        self.at_start = tuple(one.at_start for one in self.profiles if one.at_start is not None)
        self.details = tuple(one.details for one in self.profiles if one.details is not None)
        # Under the user's `is_step`, steps do not end with their parents.
        self.ends_children = (
            () if has_user_rule else tuple(one for one in self.profiles if one.ends_children is not None)
        )
        # A span without any of these attributes is no step; None: any span may be one.
        is_cheap = all(one.required_attributes for one in self.profiles)
        self.required = frozenset(key for one in self.profiles for key in one.required_attributes) if is_cheap else None
        # At its end, a span without any of these needs no further look; None: every span does.
        self.skip_without = None if has_user_rule or self.details else self.required

    def matching(self, span: StartedSpan, on_fault: Fault) -> FrameworkProfile | None:
        """Return the first profile by which *span*, which has a required attribute, is a step; None if there is none.

        A profile whose rules raise is skipped, and *on_fault* is called.
        """
        for profile in self.profiles:
            try:
                may_be_part = profile.is_part is not None or profile.calls is not None
                if profile.is_step(span) and not (may_be_part and self.is_part(profile, span)):
                    return self.framework if profile is GENERIC else profile
            except Exception as error:  # noqa: BLE001 -- a faulty rule must not cost the steps of other profiles
                on_fault(error)
        return None

    def is_part(self, profile: FrameworkProfile, span: StartedSpan) -> bool:
        """Whether *span*, a step by *profile*, is only a part of a step that another span reports."""
        if self.has_user_rule:
            return False
        if profile.is_part is not None and profile.is_part(span):
            return True
        calls = profile.calls
        return calls is not None and (
            ANSWERED in span.facts
            or any(calls(above) and self.of_scope(above.scope).reports(above) for above in span.ancestors())
        )

    def reports(self, call: StartedSpan) -> bool:
        """Whether *call* is a step, or is inside a step of its framework, so that its work is reported."""
        own = tuple(profile for profile in self.profiles if profile.scopes)
        around = (above for above in call.ancestors() if above.scope == call.scope)
        return _is_step(call, self.profiles) or any(_is_step(above, own) for above in around)


def _is_step(span: StartedSpan, profiles: Iterable[FrameworkProfile]) -> bool:
    return any(
        profile.is_step(span)
        for profile in profiles
        if not profile.required_attributes or not span.attributes.keys().isdisjoint(profile.required_attributes)
    )


def profiles_by_scope(
    profiles: tuple[Profile, ...], *, has_user_rule: bool
) -> tuple[dict[str, ScopeProfiles], ScopeProfiles]:
    """Return the profiles for each scope that a profile names, and those for all other scopes."""
    by_scope: dict[str, list[Profile]] = {}
    for profile in profiles:
        for scope in profile.scopes:
            by_scope.setdefault(scope, []).append(profile)
    generic = [profile for profile in profiles if profile is GENERIC]
    scope_profiles = {}
    for scope, own in by_scope.items():
        is_exclusive = any(FrameworkProfile.of(profile).exclusive for profile in own)
        scope_profiles[scope] = ScopeProfiles(own if is_exclusive else [*own, *generic], has_user_rule=has_user_rule)
    scope_profiles[SCOPE] = ScopeProfiles(())
    other_scopes = ScopeProfiles((one for one in profiles if not one.scopes), has_user_rule=has_user_rule)
    for one in (*scope_profiles.values(), other_scopes):
        one.of_scope = lambda scope: scope_profiles.get(scope, other_scopes)
    return scope_profiles, other_scopes
