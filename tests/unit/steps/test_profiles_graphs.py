"""The rows whose steps are recognised by their ancestors: nodes of graphs, steps of workflows."""

import json
from collections.abc import Callable

import pytest
from emitting import (
    CANCELLED,
    ERROR,
    FAILED,
    IS_OK,
    OK,
    RETURNED,
    SUCCESS,
    Attributes,
    Ending,
    Framework,
    Value,
    end,
    ended,
    endings,
    generated_id,
    recorded,
)
from opentelemetry.sdk.trace import SpanLimits

from otel_step_hook.steps.event import Outcome

_CANCELLED = "asyncio.exceptions.CancelledError"
_INTERRUPT = "langgraph.errors.GraphInterrupt"

# LangGraph with openinference

_OPENINFERENCE = "openinference.instrumentation.langchain"


def _metadata(node: str, checkpoint: str = "", **more: Value) -> Attributes:
    """Return the attributes that openinference sets, with the metadata in LangGraph's order."""
    metadata: dict[str, Value] = {"ls_integration": "langgraph", "langgraph_step": 1, "langgraph_node": node}
    if checkpoint:
        metadata["langgraph_checkpoint_ns"] = checkpoint
    return {"metadata": json.dumps(metadata | more, ensure_ascii=False), "openinference.span.kind": "CHAIN"}


@endings(
    returned=(IS_OK, SUCCESS),
    failed=(recorded("ValueError", description="ValueError('node broke')Traceback (most recent call last)"), FAILED),
    cancelled=(recorded("CancelledError", description="CancelledError()Traceback (most recent call last)"), CANCELLED),
    interrupted=(recorded(_INTERRUPT, status=OK), None),
    interrupted_as_error=(recorded(_INTERRUPT, description="GraphInterrupt(())Traceback"), None),
    stream_left_early=(recorded("GeneratorExit", description="GeneratorExit()Traceback (most recent call)"), SUCCESS),
)
def test_langgraph_with_openinference_reports_its_nodes(ending: Ending, outcome: Outcome | None) -> None:
    """A node is a step under its checkpoint; graph, edges, and models, tools and runnables inside it are none."""
    graph = Framework(_OPENINFERENCE)
    root = graph.start("LangGraph", later={"metadata": json.dumps({"ls_integration": "langgraph"})})
    inside = _metadata("plan", "plan:1", checkpoint_ns="plan:1")
    node = graph.start("plan", later=_metadata("plan", "plan:1"), below=root)
    for name in ("route", "ChatOpenAI", "RunnableLambda", "search", "LangGraph"):
        graph.emit(name, later=inside, below=node, ending=ending)
    end(node, ending)
    end(root, ending)
    assert graph.steps == ended("plan", "plan:1", outcome)


def test_langgraph_reports_each_attempt_under_the_same_id() -> None:
    """A node that is retried or resumed has one span per attempt, all with the same checkpoint."""
    graph = Framework(_OPENINFERENCE)
    graph.emit("flaky", later=_metadata("flaky", "flaky:1"), ending=recorded("ConnectionError"))
    graph.emit("flaky", later=_metadata("flaky", "flaky:1"), ending=recorded(_INTERRUPT, status=OK))
    graph.emit("flaky", later=_metadata("flaky", "flaky:1"), ending=IS_OK)
    assert graph.steps == [*ended("flaky", "flaky:1", FAILED), *ended("flaky", "flaky:1", SUCCESS)]


def test_langgraph_with_openinference_reports_an_agent_with_the_name_of_its_node_once() -> None:
    """An agent that was added as a node of the same name is a part of that node; the agent's nodes are steps."""
    graph = Framework(_OPENINFERENCE)
    root = graph.start("LangGraph", later={"metadata": json.dumps({"ls_integration": "langgraph"})})
    node = graph.start("researcher", later=_metadata("researcher", "researcher:1"), below=root)
    inside = _metadata("researcher", "researcher:1", checkpoint_ns="researcher:1")
    agent = graph.start("researcher", later=inside, below=node)
    graph.emit("model", later=_metadata("model", "researcher:1|model:1"), below=agent, ending=IS_OK)
    end(agent, IS_OK)
    end(node, IS_OK)
    end(root, IS_OK)
    assert graph.steps == [
        *ended("model", "researcher:1|model:1", SUCCESS),
        *ended("researcher", "researcher:1", SUCCESS),
    ]


def test_langgraph_reports_a_node_below_a_span_of_its_name_in_another_scope() -> None:
    """A span of the application that has the name of the node does not make the node a part."""
    graph = Framework(_OPENINFERENCE)
    parent = graph.start("plan", scope="the.application")
    graph.emit("plan", later=_metadata("plan", "plan:1"), below=parent)
    assert graph.steps == ended("plan", "plan:1", SUCCESS)


@pytest.mark.parametrize("name", ["plan", 'the "plan"', "C:\\plan", "планирование", "a\nb", "}, {", "🗺"])
def test_langgraph_nodes_may_have_any_name(name: str) -> None:
    """The name of a node is compared after decoding the JSON."""
    graph = Framework(_OPENINFERENCE)
    for is_ascii in (True, False):
        metadata = json.dumps({"langgraph_node": name, "langgraph_checkpoint_ns": f"{name}:1"}, ensure_ascii=is_ascii)
        graph.emit(name, later={"metadata": metadata})
    assert graph.steps == ended(name, f"{name}:1", SUCCESS) * 2


def test_langgraph_reads_metadata_that_was_cut_short() -> None:
    """If a length limit cuts the metadata after the name of the node, the node is a step under a generated id."""
    whole = str(_metadata("plan", "plan:1")["metadata"])
    for length in range(len(whole) + 1):
        graph = Framework(_OPENINFERENCE, limits=SpanLimits(max_span_attribute_length=length))
        node = graph.emit("plan", later=_metadata("plan", "plan:1"), ending=IS_OK)
        has_name = length > whole.index('plan"') + len("plan")
        has_checkpoint = length > whole.index('plan:1"') + len("plan:1")
        step_id = "plan:1" if has_checkpoint else generated_id(node)
        assert graph.steps == ended("plan", step_id, SUCCESS if has_name else None)


@pytest.mark.parametrize("metadata", ["", "plan", "null", '{"langgraph_node": 1}', '{"langgraph_node": null}', 7])
def test_langgraph_metadata_without_a_node_makes_no_step(metadata: Value) -> None:
    """Spans without metadata, or with metadata of another form, are no steps."""
    graph = Framework(_OPENINFERENCE)
    graph.emit("plan", later={"metadata": metadata})
    graph.emit("plan")
    assert graph.steps == []


# LangGraph with traceloop

_TRACELOOP = "opentelemetry.instrumentation.langchain"


def _task(node: str, entity: str = "", *, checkpoint: str = "", kind: str = "task", task_id: str = "") -> Attributes:
    prefix = "traceloop.association.properties.langgraph"
    attributes = {
        f"{prefix}_node": node,
        f"{prefix}_checkpoint_ns": checkpoint,
        "traceloop.span.kind": kind,
        "traceloop.entity.name": entity or node,
        "gen_ai.operation.name": "execute_task",
        "gen_ai.task.id": task_id,
    }
    return {key: value for key, value in attributes.items() if value}


@endings(
    returned=(RETURNED, SUCCESS),
    failed=(recorded("ValueError", description="node broke", attributes={"error.type": "ValueError"}), FAILED),
    cancelled=(
        recorded(_CANCELLED, attributes={"error.type": "CancelledError", "gen_ai.task.status": "failure"}),
        CANCELLED,
    ),
    interrupted=(
        recorded(_INTERRUPT, description="(Interrupt(value='approve?'),)", attributes={"error.type": "GraphInterrupt"}),
        None,
    ),
    stream_left_early=(recorded("GeneratorExit", GeneratorExit), SUCCESS),
)
def test_langgraph_with_traceloop_reports_its_nodes(ending: Ending, outcome: Outcome | None) -> None:
    """A node is a step under its checkpoint; graph, edges, and models, tools and runnables inside it are none."""
    graph = Framework(_TRACELOOP)
    agent = graph.start("invoke_agent LangGraph", later={"gen_ai.operation.name": "invoke_agent"})
    root = graph.start("LangGraph.workflow", later={"traceloop.span.kind": "workflow"}, below=agent)
    node = graph.start("execute_task plan", later=_task("plan", checkpoint="plan:1", task_id="task-1"), below=root)
    for name in ("route", "RunnableLambda", "LangGraph"):
        graph.emit(f"execute_task {name}", later=_task("plan", name, checkpoint="plan:1"), below=node, ending=ending)
    tool = _task("plan", "plan", checkpoint="plan:1", kind="tool")
    graph.emit("execute_tool plan", later=tool, below=node, ending=ending)
    for span in (node, root, agent):
        end(span, ending)
    assert graph.steps == ended("execute_task plan", "plan:1", outcome)


def test_langgraph_with_traceloop_uses_the_task_id_if_there_is_no_checkpoint() -> None:
    """Without a checkpoint the step id is the task id of the attempt, and without that a generated id."""
    graph = Framework(_TRACELOOP)
    graph.emit("execute_task plan", later=_task("plan", task_id="task-1"))
    without_id = graph.emit("execute_task plan", later=_task("plan"))
    assert graph.steps == [
        *ended("execute_task plan", "task-1", SUCCESS),
        *ended("execute_task plan", generated_id(without_id), SUCCESS),
    ]


def test_langgraph_with_traceloop_reports_an_agent_with_the_name_of_its_node_once() -> None:
    """An agent that was added as a node of the same name is a part of that node."""
    graph = Framework(_TRACELOOP)
    node = graph.start("execute_task researcher", later=_task("researcher", checkpoint="researcher:1"))
    graph.emit("execute_task researcher", later=_task("researcher", checkpoint="researcher:1"), below=node)
    end(node)
    assert graph.steps == ended("execute_task researcher", "researcher:1", SUCCESS)


# LlamaIndex workflows, with openinference and with LlamaIndex's own spans

_KIND = {"openinference.span.kind": "CHAIN"}
_INPUT = {"llamaindex.step.input_event": "{}"}
_LLAMA_INDEX = {
    "openinference.instrumentation.llama_index": (_KIND, "span.cancelled"),
    "llamaindex.opentelemetry.tracer": (_INPUT, "SpanCancelledEvent"),
}
_ROWS = pytest.mark.parametrize("scope", _LLAMA_INDEX)


@_ROWS
@pytest.mark.parametrize(
    ("ending_of", "outcome"),
    [
        (lambda _: IS_OK, SUCCESS),
        (lambda _: recorded("ValueError", description="broke"), FAILED),
        (lambda cancelled: Ending(status=OK, events=((cancelled, {"reason": "timeout"}),)), CANCELLED),
        (lambda cancelled: Ending(status=ERROR, events=((cancelled, {}),)), CANCELLED),
        (lambda _: Ending(status=OK, events=(("span.resumed", {}),)), SUCCESS),
    ],
)
def test_llama_index_reports_the_steps_of_a_workflow(
    scope: str, ending_of: Callable[[str], Ending], outcome: Outcome
) -> None:
    """A span directly below a workflow's run is a step; the run, and models inside the step, are none."""
    attributes, cancelled = _LLAMA_INDEX[scope]
    ending = ending_of(cancelled)
    flow = Framework(scope)
    run = flow.start("MyFlow.run", later=_KIND)
    step = flow.start("MyFlow.plan", later=attributes, below=run)
    model = flow.start("MockLLM.chat", later={"openinference.span.kind": "LLM", **_INPUT}, below=step)
    flow.emit("MockLLM.complete", later={"openinference.span.kind": "LLM", **_INPUT}, below=model, ending=ending)
    for span in (model, step, run):
        end(span, ending)
    assert flow.steps == ended("MyFlow.plan", generated_id(step), outcome)


@_ROWS
def test_llama_index_reports_the_steps_of_a_workflow_inside_a_step(scope: str) -> None:
    """The run of an inner workflow is no step; its steps are steps."""
    attributes, _ = _LLAMA_INDEX[scope]
    flow = Framework(scope)
    run = flow.start("MyFlow.run", later=_KIND)
    step = flow.start("MyFlow.plan", later=attributes, below=run)
    inner_run = flow.start("Inner.run", later=attributes, below=step)
    inner_step = flow.emit("Inner.look", later=attributes, below=inner_run)
    flow.emit("Other.run", later=attributes, below=run)
    for span in (inner_run, step, run):
        end(span)
    assert flow.steps == [
        *ended("Inner.look", generated_id(inner_step), SUCCESS),
        *ended("MyFlow.plan", generated_id(step), SUCCESS),
    ]


@_ROWS
def test_llama_index_reports_a_function_that_is_a_step(scope: str) -> None:
    """The span of a function with ``@step(workflow=…)`` has no class in its name."""
    attributes, _ = _LLAMA_INDEX[scope]
    flow = Framework(scope)
    run = flow.start("MyFlow.run", later=_KIND)
    step = flow.emit("plan", later=attributes, below=run)
    assert flow.steps == ended("plan", generated_id(step), SUCCESS)


def test_llama_index_reports_no_components_of_an_ingestion_pipeline() -> None:
    """The components of a pipeline are below a span named like a workflow's run, and are no steps."""
    pipeline = Framework("openinference.instrumentation.llama_index")
    run = pipeline.start("IngestionPipeline.run", later=_KIND)
    pipeline.emit("SentenceSplitter.__call__", later=_KIND, below=run)
    assert pipeline.steps == []


@_ROWS
def test_llama_index_reports_nothing_outside_of_a_run(scope: str) -> None:
    """A span without a parent, or below a span of another scope, is no step."""
    attributes, _ = _LLAMA_INDEX[scope]
    flow = Framework(scope)
    flow.emit("MockLLM.chat", later=attributes)
    flow.emit("MyFlow.plan", later=attributes, below=flow.start("application.run", scope="the.application"))
    assert flow.steps == []


@_ROWS
def test_llama_index_reports_no_span_without_its_attributes(scope: str) -> None:
    """A span directly below a run that lacks the framework's attributes is no step."""
    flow = Framework(scope)
    flow.emit("MyFlow.plan", below=flow.start("MyFlow.run"))
    assert flow.steps == []
