"""What single frameworks write on their spans, where a row of the table needs more than the words of `rules`."""

import json
import re
from contextlib import suppress

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.profile import NOT_TERMINAL, Attributes, Verdict, plain, says

_SUCCESS, _FAILED, _CANCELLED = Outcome
TRACELOOP_LANGGRAPH = "traceloop.association.properties.langgraph_"
TRACELOOP_TASK = says("traceloop.span.kind", "task")
CHECKPOINT = re.compile(r'"langgraph_checkpoint_ns": ("(?:[^"\\]|\\.)*")')  # in JSON that the SDK may have cut short
_NODE = re.compile(r'"langgraph_node": ("(?:[^"\\]|\\.)*")')
_PREFECT: dict[str, Outcome | Verdict] = {
    "COMPLETED": _SUCCESS,
    "FAILED": _FAILED,
    "CANCELLED": _CANCELLED,
    "PAUSED": NOT_TERMINAL,
    "SCHEDULED": NOT_TERMINAL,  # suspended
}
_AUTOGEN_MANAGERS = (
    "RoundRobinGroupChatManager",
    "SelectorGroupChatManager",
    "SwarmGroupChatManager",
    "GraphFlowManager",
    "MagenticOneOrchestrator",
)


def in_metadata(pattern: re.Pattern[str], attributes: Attributes) -> object:
    """What *pattern* finds in the metadata that openinference adds, a text in JSON; None where it finds none."""
    found = pattern.search(plain(attributes.get("metadata")))
    with suppress(ValueError):  # an escape that JSON does not know
        return json.loads(found[1], strict=False) if found else None
    return None


def _is_langgraphs_own(node: object) -> bool:
    return plain(node).startswith("__")  # such as __start__, where a conditional edge leads from there


def is_langgraph_node(name: str, attributes: Attributes) -> bool:
    """Not a conditional edge, a model or a piece of a chain: they say, too, in which node they are."""
    return "metadata" in attributes and in_metadata(_NODE, attributes) == name and not _is_langgraphs_own(name)


def is_traceloop_node(_: str, attributes: Attributes) -> bool:
    """The task that is named as the node that it belongs to."""
    node = attributes.get(f"{TRACELOOP_LANGGRAPH}node")
    is_node = node is not None and attributes.get("traceloop.entity.name") == node and TRACELOOP_TASK("", attributes)
    return is_node and not _is_langgraphs_own(node)


def langgraph_nesting(attributes: Attributes) -> int:
    """How many nodes of the name of its own a span is in, by the checkpoint in its metadata."""
    return _named_in(plain(in_metadata(CHECKPOINT, attributes)), plain(in_metadata(_NODE, attributes)))


def traceloop_nesting(attributes: Attributes) -> int:
    """How many nodes of the name of its own a span is in, by its checkpoint."""
    checkpoint, node = (attributes.get(f"{TRACELOOP_LANGGRAPH}{name}") for name in ("checkpoint_ns", "node"))
    return _named_in(plain(checkpoint), plain(node))


def _named_in(checkpoint: str, node: str) -> int:
    """How often *checkpoint*, such as ``team:1|team:2``, names *node*."""
    return sum(part.rpartition(":")[0] == node for part in checkpoint.split("|"))


def prefect_word(span: ReadableSpan, _: Attributes, __: BaseException | None) -> Outcome | Verdict | None:
    """By Prefect's last state; CRASHED says nothing: a task that is cancelled crashes."""
    for event in reversed(span.events):
        state = plain((event.attributes or {}).get("prefect.state.type"))
        if state:
            return _PREFECT.get(state)
    return None


def strands_word(_: ReadableSpan, attributes: Attributes, __: BaseException | None) -> Outcome | None:
    """The type of what has stopped an agent; when it is a generator's end, whoever asked has heard enough."""
    stopped_by = plain(attributes.get("strands.cancellation.type"))
    if not stopped_by:
        return None
    return _SUCCESS if stopped_by == "GeneratorExit" else _CANCELLED


def crewai_word(span: ReadableSpan, attributes: Attributes, _: BaseException | None) -> Outcome | Verdict | None:
    """Cancelled, where its session has to end a span when it closes: CrewAI says nothing of what is cancelled."""
    if attributes.get("crewai.event_name") == "method_execution_paused":
        return NOT_TERMINAL
    return _CANCELLED if plain(span.status.description).startswith("Span orphaned") else None


def crewai_listeners_word(span: ReadableSpan, _: Attributes, __: BaseException | None) -> Verdict | None:
    """Not terminal, where the listener ends what is still open when it is taken away: an error without a word."""
    is_mute = not span.status.description and not span.events
    return NOT_TERMINAL if is_mute and span.status.status_code is StatusCode.ERROR else None


def is_autogen_turn(_: str, attributes: Attributes) -> bool:
    """Not what a team says to itself: of its messages only the request to speak is work."""
    kind = attributes.get("recipient_agent_class")
    if kind == "ChatAgentContainer":
        asked = attributes.get("message") == "{}"  # the others carry something
        return asked and '"is_rpc": false' in plain(attributes.get("message_context"))  # and it is no reset or pause
    return kind not in _AUTOGEN_MANAGERS
