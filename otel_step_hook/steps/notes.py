"""What is noted of a span when it begins, because it cannot be seen any more when it ends."""

import uuid
import weakref

from opentelemetry.sdk.trace import Span

from otel_step_hook.steps.profile import Attributes, Profile, never

_MARK = "_otel_step_hook_seen"  # attribute of an exception that was in flight when a span began
Profiles = tuple[Profile, ...]


class Note:
    """One span's: the step that it began as, the exception that was in flight already, what it began below."""

    __slots__ = (
        "_seen",
        "above",
        "alive",
        "asked",
        "below",
        "encloses",
        "ender",
        "has_ended",
        "inside",
        "is_in_workflow",
        "is_open",
        "is_over",
        "name",
        "number",
        "open",
        "parent",
        "profile",
        "step_id",
        "users_id",
    )

    def __init__(self, exception: BaseException | None = None) -> None:
        self.profile: Profile | None = None  # of the step that it began as
        self.users_id = ""  # at the start: the SDK evicts the oldest attributes first
        self.step_id = ""  # likewise, the framework's
        self.number: object = None  # of the step, as the framework counts
        self.asked: Profiles = ()  # those of its scope to which it matters what is below what
        self.name = ""
        self.encloses: Profiles = ()  # whose tools below it are a part of it
        self.inside: Profiles = ()  # whose steps it is inside of, so that it is no tool of theirs
        self.below: Profiles = ()  # whose steps begin below such a parent
        self.above: Note | None = None  # of the span that it began below, in the same scope
        self.has_ended = False
        self.is_in_workflow = False  # of Temporal's, where it may be the past that runs again
        self.parent: Note | None = None  # with whose span it may end
        self.ender: Profile | None = None  # that says so
        self.is_open = False  # it is among those of its parent, which tells it, if it takes it out first
        self.open: dict[int, tuple[Span, Note]] = {}  # which may end with it, by span id
        self.is_over = False  # it has been told with the end of its parent
        self.alive: weakref.ref[Span] | None = None  # whose callback removes this note
        # Weakly: a strong reference would keep every frame of the traceback. Exceptions that are
        # written in C have no weak references, and the id of one is the next one's as soon as it is
        # freed: they get a mark, in a dict of their own that has room for it.
        self._seen: weakref.ref[BaseException] | str | None = None
        if exception is not None:
            try:
                self._seen = weakref.ref(exception)
            except TypeError:
                self._seen = vars(exception).setdefault(_MARK, uuid.uuid4().hex)

    def has_seen(self, exception: BaseException | None) -> bool:
        """Whether *exception* was in flight already when the span began: then it says nothing about the span."""
        if exception is None or self._seen is None:
            return False
        if isinstance(self._seen, str):
            return bool(vars(exception).get(_MARK) == self._seen)
        return self._seen() is exception

    def place(self, asked: Profiles, name: str, attributes: Attributes, parent: "Note | None") -> None:
        """Note what the span, of this name and with these attributes at its start, has begun below."""
        self.asked, self.name = asked, name
        self.encloses = tuple(
            profile
            for profile in asked
            if profile.is_tool is not never and (profile.encloses or profile.is_step)(name, attributes)
        )
        if parent is not None and parent.asked is asked:  # of the same scope
            self.below = tuple(one for one in asked if one.below is not None and one.below(parent.name, attributes))
            while parent.above is not None and parent.above.has_ended:
                parent.above = parent.above.above  # where spans are handed on, the line would have no end
            self.above = parent
            for profile in asked:
                if profile.ends is not None and profile.ends(parent.name, attributes):
                    self.parent, self.ender = parent, profile

    def running_namesakes(self) -> int:
        """How many of the spans above it, in the same scope, have its name and have not ended."""
        count, above = 0, self.above
        while above is not None:
            count += above.name == self.name and not above.has_ended
            above = above.above
        return count


NOTHING = Note()
