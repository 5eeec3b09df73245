"""LangGraph, under openinference and under traceloop: a step is one run of a node.

In a graph a name may stand for several spans, one below the other: a node, the agent or the piece that was added as the
node of its own name, and nodes inside of it. The checkpoint namespace tells them apart.
"""

import json
import re
from contextlib import suppress

from otel_step_hook.steps.event import STEP_ID_KEYS, step_id_text
from otel_step_hook.steps.profile import FrameworkProfile, Profile, SpanView, as_text, attribute_is, first_attribute
from otel_step_hook.steps.spans import StartedSpan

_TRACELOOP = "traceloop.association.properties.langgraph_"
_TASK = attribute_is("traceloop.span.kind", "task")
# In JSON that the SDK may have cut short.
_CHECKPOINT = re.compile(r'"langgraph_checkpoint_ns": ("(?:[^"\\]|\\.)*")')
_NODE = re.compile(r'"langgraph_node": ("(?:[^"\\]|\\.)*")')


def _in_metadata(pattern: re.Pattern[str], span: SpanView) -> str:
    """What *pattern* finds in the metadata that openinference adds, a text in JSON; empty where it finds none."""
    found = pattern.search(as_text(span.attributes.get("metadata")))
    with suppress(ValueError):  # an escape that JSON does not know
        return as_text(json.loads(found[1], strict=False)) if found else ""
    return ""


def _is_node(span: SpanView) -> bool:
    """Not a conditional edge, a model or a piece of a chain: they say, too, in which node they are."""
    return (
        "metadata" in span.attributes and _in_metadata(_NODE, span) == span.name and not _is_langgraphs_own(span.name)
    )


def _is_traceloop_node(span: SpanView) -> bool:
    """The task that is named as the node that it belongs to."""
    node = span.attributes.get(f"{_TRACELOOP}node")
    is_node = node is not None and span.attributes.get("traceloop.entity.name") == node and _TASK(span)
    return is_node and not _is_langgraphs_own(as_text(node))


def _is_langgraphs_own(node: str) -> bool:
    return node.startswith("__")  # such as __start__, where a conditional edge leads from there


def _is_part_of_node(span: StartedSpan, checkpoint: str, node: str) -> bool:
    """Whether *span* is a piece of a node around it, and not one of the nodes of its name that *checkpoint* lists.

    A node that is nested in others of its name has two running spans of that name above it for each, the other's and
    its graph's, or one where the graph has another name; a piece has its own node's besides. One that the user has
    given an id is a step.
    """
    if any(_has_text(span.attributes.get(key)) for key in STEP_ID_KEYS):
        return False
    nested = sum(part.rpartition(":")[0] == node for part in checkpoint.split("|"))
    running = sum(
        above.scope == span.scope and above.name == span.name and not above.has_ended for above in span.ancestors()
    )
    return running > 2 * (max(nested, 1) - 1)


def _has_text(value: object) -> bool:
    try:
        return bool(step_id_text(value))
    except ValueError:  # too long to be sent, which costs the step when it ends
        return True


PROFILES: tuple[Profile, ...] = (
    FrameworkProfile(
        name="langgraph",
        scopes=("openinference.instrumentation.langchain",),
        required_attributes=("metadata",),
        is_step=_is_node,
        is_part=lambda span: _is_part_of_node(span, _in_metadata(_CHECKPOINT, span), span.name),
        step_id=lambda span: _in_metadata(_CHECKPOINT, span),
    ),
    FrameworkProfile(
        name="langgraph",
        scopes=("opentelemetry.instrumentation.langchain",),
        required_attributes=(f"{_TRACELOOP}node",),
        is_step=_is_traceloop_node,
        is_part=lambda span: _is_part_of_node(
            span,
            as_text(span.attributes.get(f"{_TRACELOOP}checkpoint_ns")),
            as_text(span.attributes.get(f"{_TRACELOOP}node")),
        ),
        step_id=first_attribute(f"{_TRACELOOP}checkpoint_ns", "gen_ai.task.id"),
    ),
)
