"""What is noted of a span when it begins, because it cannot be seen any more when it ends."""

import uuid
import weakref

from opentelemetry.sdk.trace import Span

from otel_step_hook.steps.rules import Attributes, Profile

_MARK = "_otel_step_hook_seen"  # attribute of an exception that was in flight when a span began


class Note:
    """One span's: the step that it began as, the exception that was in flight already, what it began below."""

    __slots__ = (
        "_seen",
        "alive",
        "encloses",
        "fits_below",
        "is_inside",
        "is_namesake",
        "is_over",
        "name",
        "number",
        "open",
        "parent",
        "profile",
        "row",
        "step_id",
    )

    def __init__(self, exception: BaseException | None = None) -> None:
        self.profile: Profile | None = None  # of the step that it began as
        self.step_id = ""  # at the start: the SDK evicts the oldest attributes first
        self.number: object = None  # of the step, as the framework counts
        self.row: Profile | None = None  # of its scope, where it matters what is below
        self.name = ""
        self.encloses = False  # tools below it are a part of it
        self.is_inside = False  # of a span that encloses
        self.fits_below = False  # of a parent that its profile asks for
        self.is_namesake = False  # of its parent
        self.parent: Note | None = None  # with whose span it may end
        self.open: dict[int, Span] = {}  # which may end with it, by span id
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

    @property
    def holds_tools(self) -> bool:
        """Whether tools below the span are a part of it, or of what it is in itself."""
        return self.encloses or self.is_inside

    def place(self, row: Profile, name: str, attributes: Attributes, parent: "Note | None") -> None:
        """Note what the span, of this name and with these attributes at its start, has begun below."""
        self.row, self.name = row, name
        self.encloses = (row.encloses or row.is_step)(name, attributes)
        if parent is not None and parent.row is row:
            self.fits_below = row.below is not None and row.below(parent.name, attributes)
            self.is_namesake = row.has_namesakes and parent.name == name
            if row.ends is not None and row.ends(parent.name, attributes) and row.may_start(name, attributes):
                self.parent = parent


NOTHING = Note()
