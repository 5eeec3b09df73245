"""Which profiles are asked about the spans of which scope: found by one look-up."""

from collections.abc import Callable

from otel_step_hook.steps.event import SCOPE
from otel_step_hook.steps.frameworks import GENERIC
from otel_step_hook.steps.notes import Note, Profiles
from otel_step_hook.steps.profile import Attributes, Profile, never


class Rows:
    """What is asked about the spans of one scope."""

    __slots__ = ("asked", "is_asked", "marks", "numbering", "own", "placing", "skipped", "telling")

    def __init__(self, asked: Profiles, own: Profile = GENERIC, *, is_asked: bool = False) -> None:
        self.asked = asked
        self.own = own  # what the framework's spans say of the outcome, whoever says that one is a step
        self.is_asked = is_asked  # whether a rule of the user's is
        # A rule of the user's asks nobody what is a part of what.
        self.placing = () if is_asked else tuple(profile for profile in asked if profile.needs_places)
        self.telling = tuple(profile.tells for profile in asked if profile.tells is not None)
        self.numbering = tuple(profile.step_number for profile in asked if profile.step_number is not None)
        # Spans without any of these attributes are no steps; None: all spans may be.
        is_cheap = all(profile.marks for profile in asked)
        self.marks = frozenset(mark for profile in asked for mark in profile.marks) if is_cheap else None
        self.skipped = None if is_asked or self.telling else self.marks

    def found(
        self, name: str, attributes: Attributes, note: Note, on_fault: Callable[[Exception], object]
    ) -> Profile | None:
        """The profile by which this span is a step. One whose rules raise is passed over, and *on_fault* told of it."""
        if self.marks is not None and attributes.keys().isdisjoint(self.marks):
            return None
        for profile in self.asked:
            try:
                if profile.is_step(name, attributes):
                    if profile.below is None or profile in note.below:
                        return self.own if profile is GENERIC else profile
                elif profile.is_tool is not never and profile not in note.inside and profile.is_tool(name, attributes):
                    return profile
            except Exception as error:  # noqa: BLE001 -- a rule of somebody else's must not cost the steps of others
                on_fault(error)
        return None


def table(profiles: Profiles, *, is_asked: bool) -> tuple[dict[str, Rows], Rows]:
    """The rows of each scope, and those of all other scopes."""
    by_scope: dict[str, list[Profile]] = {}
    for profile in profiles:
        for scope in profile.scopes:
            by_scope.setdefault(scope, []).append(profile)
    generic = tuple(profile for profile in profiles if profile is GENERIC)
    rows = {
        scope: Rows(
            tuple(own) if any(profile.is_strict for profile in own) else (*own, *generic),
            # What a strict one says of the outcome is about its own steps alone.
            next((profile for profile in own if not profile.is_strict), GENERIC),
            is_asked=is_asked,
        )
        for scope, own in by_scope.items()
    }
    rows[SCOPE] = Rows(())
    return rows, Rows(tuple(profile for profile in profiles if not profile.scopes), is_asked=is_asked)
