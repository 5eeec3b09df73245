"""One example step for each row of the table of profiles and each of its instrumentation scopes."""

from typing import NamedTuple

from emitting import IS_OK, Attributes, Ending, Framework

_TOOL = {"gen_ai.operation.name": "execute_tool"}
_CHAIN = {"openinference.span.kind": "CHAIN"}
_TASK = {"traceloop.span.kind": "task"}
_NODE = {"traceloop.association.properties.langgraph_node": "plan", "traceloop.entity.name": "plan", **_TASK}
_CYCLE, _INPUT = {"event_loop.cycle_id": "1"}, {"llamaindex.step.input_event": "{}"}
_OPENINFERENCE, _OTEL = "openinference.instrumentation", "opentelemetry.instrumentation"
_AIRFLOW = "airflow.api_fastapi.execution_api.routes.task_instances"
_GENAI = ("agno", "dspy", "qwen_agent", "langchain", "llama_index", "openai_agents", "smolagents")
ELSEWHERE = "the.application"  # an instrumentation scope that is in no row


class Example(NamedTuple):
    """A span that is a step by the rows of *profile*; *parent* is the name of its parent span, if its rule asks."""

    profile: str
    scope: str
    name: str
    attributes: Attributes
    parent: str = ""

    def emit(
        self, framework: Framework, more: Attributes | None = None, *, scope: str = "", ending: Ending = IS_OK
    ) -> None:
        """Start and end the step, with *more* attributes."""
        scope = scope or self.scope or ELSEWHERE
        parent = framework.start(self.parent, _CHAIN, scope=scope) if self.parent else None
        framework.emit(self.name, {**self.attributes, **(more or {})}, below=parent, scope=scope, ending=ending)


EXAMPLES = [
    Example("pydantic-ai", "pydantic-ai", "execute_tool x", _TOOL),
    Example("langgraph", f"{_OPENINFERENCE}.langchain", "plan", {"metadata": '{"langgraph_node": "plan"}'}),
    Example("langgraph", f"{_OTEL}.langchain", "execute_task plan", _NODE),
    Example("langsmith", "langsmith", "x", _TOOL),
    Example("openai-agents", f"{_OPENINFERENCE}.openai_agents", "turn", _CHAIN),
    Example("openai-agents", f"{_OTEL}.openai_agents", "x.tool", _TOOL),
    Example("temporal", "", "RunActivity:x", {"temporalActivityID": "1"}),
    Example("dbos", "dbos-tracer", "x", {"operationType": "step"}),
    Example("prefect", "prefect", "x-0", {"prefect.run.type": "task"}),
    Example("smolagents", f"{_OPENINFERENCE}.smolagents", "Step 1", _CHAIN),
    Example("strands", "strands.telemetry.tracer", "execute_event_loop_cycle", _CYCLE, "invoke_agent x"),
    Example("google-adk", "gcp.vertex.agent", "invoke_node x", {"gen_ai.operation.name": "invoke_node"}),
    Example("google-adk", f"{_OPENINFERENCE}.google_adk", "invoke_node x", {"gen_ai.operation.name": "invoke_node"}),
    Example("agent-framework", "agent_framework", "executor.process x", {"executor.id": "x"}),
    Example("llama-index", f"{_OPENINFERENCE}.llama_index", "Flow.plan", _CHAIN, "Flow.run"),
    Example("llama-index", "llamaindex.opentelemetry.tracer", "Flow.plan", _INPUT, "Flow.run"),
    Example("airflow", _AIRFLOW, "task_run.x", {"airflow.task_instance.id": "1"}),
    Example("crewai", "crewai", "execute task", {"gen_ai.operation.name": "execute_task"}),
    Example("crewai", f"{_OPENINFERENCE}.crewai", "x._execute_core", {"task_id": "1"}),
    Example("crewai", f"{_OPENINFERENCE}.crewai._event_listener", "x.execute", {"flow.node.name": "x"}),
    Example("crewai", f"{_OTEL}.crewai.instrumentation", "x.task", _TASK),
    Example("haystack", "", "haystack.agent.step", {"haystack.agent.step": 1}),
    Example("autogen", "autogen SingleThreadedAgentRuntime", "autogen process x", {"messaging.operation": "process"}),
    Example("autogen", "autogen Worker Runtime", "autogen process x", {"messaging.operation": "process"}),
    Example("autogen", "autogen-core", "execute_tool x", _TOOL),
    Example("traceloop", "traceloop.tracer", "x.task", _TASK),
    Example("util-genai", "opentelemetry.util.genai.handler", "execute_tool x", _TOOL),
    *(Example("util-genai", f"{_OTEL}.genai.{name}", "execute_tool x", _TOOL) for name in _GENAI),
    Example("letta", "letta.otel.tracing", "StepManager.update_step_success_async", {"parameter.step_id": "step-1"}),
    Example("generic", "", "x", {"step_id": "1"}),
    Example("cicd", "", "x", {"cicd.pipeline.task.run.id": "1"}),
    Example("mcp", "", "tools/call x", {"mcp.method.name": "tools/call"}),
    Example("gen-ai", "", "execute_tool x", _TOOL),
]
