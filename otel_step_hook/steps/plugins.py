"""The selection of profiles by name: built-in ones and those of installed packages. Owns their entry point group."""

import logging
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from otel_step_hook.steps.frameworks import PROFILES
from otel_step_hook.steps.profile import Profile

GROUP = "otel_step_hook_profiles"
AUTO = "auto"  # the name that selects all profiles

_log = logging.getLogger("otel_step_hook")


def profile_names() -> list[str]:
    """Return every name that selects profiles, built-in or installed, in lower case and sorted."""
    return sorted({AUTO, *(profile.name for profile in PROFILES), *map(str.lower, entry_points(group=GROUP).names)})


def selected_profiles(names: Iterable[str]) -> tuple[Profile, ...]:
    """Return the profiles with these *names*; those of installed packages come first, as they know their spans best.

    A profile that cannot be loaded is logged and left out.
    """
    wanted = set(names)
    installed = [
        profile
        for point in entry_points(group=GROUP)
        if AUTO in wanted or point.name.lower() in wanted
        for profile in _loaded(point)
    ]
    return (*installed, *(profile for profile in PROFILES if AUTO in wanted or profile.name in wanted))


def _loaded(point: EntryPoint) -> list[Profile]:
    try:
        found = point.load()
        profiles = [found] if isinstance(found, Profile) else list(found)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- a foreign module must not break the start-up
        _log_unusable(point, f"{type(error).__name__}: {error}")
        return []
    if not all(isinstance(profile, Profile) for profile in profiles):
        _log_unusable(point, "what is there is none")
        return []
    return profiles


def _log_unusable(point: EntryPoint, problem: str) -> None:
    _log.error(
        "the profile %r cannot be loaded from %s (%s), and its steps are not reported; "
        "expected an otel_step_hook.Profile, or several, under that name",
        point.name,
        point.value,
        problem,
    )
