"""The built-in profiles: one line for each framework, and profiles for the spans of all other scopes.

They were measured on the spans of real runs, which ``tests/corpus`` keeps; for frameworks without such spans, they
were read from the source. In a framework that has loops, nodes or tasks, these are the steps. Tool calls are steps
only where there is nothing of the kind around them, so that one piece of work is one webhook.
"""

from otel_step_hook.steps.frameworks import (
    autogen,
    conventions,
    crewai,
    dbos,
    google_adk,
    langgraph,
    langsmith,
    letta,
    openai_agents,
    prefect,
    strands,
    temporal,
)
from otel_step_hook.steps.profile import Profile

GENERIC = conventions.GENERIC

PROFILES: tuple[Profile, ...] = (
    conventions.PYDANTIC_AI,
    *langgraph.PROFILES,
    *langsmith.PROFILES,
    *openai_agents.PROFILES,
    *temporal.PROFILES,
    *dbos.PROFILES,
    *prefect.PROFILES,
    conventions.SMOLAGENTS,
    *strands.PROFILES,
    *google_adk.PROFILES,
    conventions.AGENT_FRAMEWORK,
    *conventions.LLAMA_INDEX,
    conventions.AIRFLOW,
    *crewai.PROFILES,
    *autogen.PROFILES,
    conventions.TRACELOOP,
    conventions.UTIL_GENAI,
    *letta.PROFILES,
    # Without scopes: for the spans of all scopes that no profile above names.
    GENERIC,
    conventions.HAYSTACK,
    conventions.CICD,
    conventions.MCP,
    conventions.GEN_AI,
)
