"""The pipelines of rows: which processors get the spans of a delivery, in this process and in a later one."""

import gc

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor

from otel_step_hook.delivery.model import Pipeline
from otel_step_hook.delivery.pipelines import MAX_PIPELINES, RowPipelines


def new(name: str = "tests") -> Pipeline:
    """A pipeline with a processor and a resource of its own."""
    return Pipeline(SpanProcessor(), Resource({"service.name": name}))


@pytest.fixture
def pipelines() -> RowPipelines:
    """The pipelines of the process "own"."""
    return RowPipelines("own")


def test_a_row_of_this_process_has_its_own_pipeline(pipelines: RowPipelines) -> None:
    """Several providers in a process each get the spans of their own steps, by the same objects."""
    first, second = new("first"), new("second")
    names = [pipelines.name(one) for one in (first, second, first)]
    assert names[0] == names[2] != names[1]
    assert pipelines.find(names[0], *pipelines.resource(first)) == first
    assert pipelines.find(names[1], *pipelines.resource(second)) == second


def test_a_row_of_another_process_has_its_resource(pipelines: RowPipelines) -> None:
    """Its spans go to the processors that were used last here, with the resource of the process that ended the step."""
    stored = RowPipelines("other").resource(new("other"))
    assert pipelines.find("other.1.2", *stored).processor is None
    here = new("here")
    pipelines.use(here)
    found = pipelines.find(None, *stored)
    assert (found.processor, found.resource.attributes["service.name"]) == (here.processor, "other")
    assert pipelines.find("other.1.2", *stored).resource is found.resource
    assert pipelines.find(None, "unknown", None) == Pipeline(here.processor, Resource({}))


def test_the_pipeline_of_the_last_step_is_used(pipelines: RowPipelines) -> None:
    """A row of another process follows the provider whose step was stored last."""
    first, second = new(), new()
    pipelines.use(first)
    pipelines.name(second)
    assert pipelines.find(None, "hash", "{}".replace("{}", '{"attributes":{},"schema_url":""}')).processor is (
        second.processor
    )


def test_a_provider_that_is_collected_is_not_kept(pipelines: RowPipelines) -> None:
    """Its rows have their resource, and no processor; another object at the same place is not taken for it."""
    pipeline = new()
    stored, name = pipelines.resource(pipeline), pipelines.name(pipeline)
    resource = pipeline.resource
    del pipeline
    gc.collect()
    found = pipelines.find(name, *stored)
    assert (found.processor, found.resource) == (None, resource)
    for _ in range(50):  # some of them get the address of the first
        other = Pipeline(SpanProcessor(), resource)
        assert pipelines.find(pipelines.name(other), *pipelines.resource(other)).processor is other.processor


def test_a_few_pipelines_are_remembered(pipelines: RowPipelines) -> None:
    """An application that makes many providers does not fill the memory."""
    many = [new(str(number)) for number in range(MAX_PIPELINES + 5)]
    names = [pipelines.name(one) for one in many]
    for one in many:
        pipelines.find(None, *pipelines.resource(one))
    assert {len(known) for known in (pipelines._known, pipelines._stored, pipelines._resources)} == {MAX_PIPELINES}
    assert pipelines.find(names[-1], "hash", None) == many[-1]
    assert pipelines.find(names[0], *pipelines.resource(many[0])).resource == many[0].resource
