"""LangGraph, instrumented by openinference or by traceloop: a step is one run of a node.

In a graph, several spans below each other may have one name: a node, the agent or the chain that was added as the node
of that name, and nodes inside of it. The checkpoint namespace distinguishes them.
"""

import json
import re
from contextlib import suppress

from otel_step_hook.steps.event import STEP_ID_KEYS, step_id_text
from otel_step_hook.steps.profile import FrameworkProfile, Profile, SpanView, as_text, attribute_is, first_attribute
from otel_step_hook.steps.spans import StartedSpan

_TRACELOOP = "traceloop.association.properties.langgraph_"
_TASK = attribute_is("traceloop.span.kind", "task")
# For JSON that the SDK may have cut short, so that it cannot be parsed.
_CHECKPOINT = re.compile(r'"langgraph_checkpoint_ns": ("(?:[^"\\]|\\.)*")')
_NODE = re.compile(r'"langgraph_node": ("(?:[^"\\]|\\.)*")')


def _in_metadata(pattern: re.Pattern[str], span: SpanView) -> str:
    """Return what *pattern* finds in ``metadata``, openinference's attribute of JSON text; empty without a match."""
    found = pattern.search(as_text(span.attributes.get("metadata")))
    with suppress(ValueError):  # an escape that JSON does not know
        return as_text(json.loads(found[1], strict=False)) if found else ""
    return ""


def _is_node(span: SpanView) -> bool:
    """Whether the span is named as its node. Edges, models and parts of chains have a node, too, but other names."""
    return "metadata" in span.attributes and _in_metadata(_NODE, span) == span.name and not _is_internal(span.name)


def _is_traceloop_node(span: SpanView) -> bool:
    """Whether the span is the task that is named as its node."""
    node = span.attributes.get(f"{_TRACELOOP}node")
    is_node = node is not None and span.attributes.get("traceloop.entity.name") == node and _TASK(span)
    return is_node and not _is_internal(as_text(node))


def _is_internal(node: str) -> bool:
    return node.startswith("__")  # such as __start__, which has a span if a conditional edge leads from it


def _is_part_of_node(span: StartedSpan, checkpoint: str, node: str) -> bool:
    """Whether *span* is a part of the node around it, and not one of the nested nodes that *checkpoint* lists.

    A node inside other nodes of its name has, for each of them, two running spans of that name above it: the other
    node's and that of its graph, or one if the graph has another name. A part of a node has one more: its node's. A
    span to which the user has given a step id is a step.
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
    except ValueError:  # too long to be sent: the step is dropped when it ends
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
