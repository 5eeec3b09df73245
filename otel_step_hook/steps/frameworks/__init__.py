"""Which spans are steps: a table, one line per framework, and the rows for everybody else.

Measured on the spans of real runs, which ``tests/corpus`` keeps, and read in the sources of those
that are not there. A framework that has loops, nodes or tasks is recognised at that level, and its
tools only where it has nothing better, so that one piece of work is one webhook.
"""

from otel_step_hook.steps.frameworks import (
    autogen,
    conventions,
    crewai,
    dbos,
    langgraph,
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
    *openai_agents.PROFILES,
    *temporal.PROFILES,
    *dbos.PROFILES,
    *prefect.PROFILES,
    conventions.SMOLAGENTS,
    *strands.PROFILES,
    conventions.GOOGLE_ADK,
    conventions.AGENT_FRAMEWORK,
    *conventions.LLAMA_INDEX,
    conventions.AIRFLOW,
    *crewai.PROFILES,
    *autogen.PROFILES,
    conventions.TRACELOOP,
    conventions.UTIL_GENAI,
    *letta.PROFILES,
    # For the spans of all scopes that have no row above.
    GENERIC,
    conventions.HAYSTACK,
    conventions.CICD,
    conventions.GEN_AI,
)
