"""The pipelines of this process, as journals and rows refer to them. Nothing here keeps a span processor alive."""

from collections import OrderedDict
from typing import Any

from opentelemetry.sdk.resources import Resource

from otel_step_hook.delivery.model import KnownPipeline, Pipeline, pipeline_key
from otel_step_hook.delivery.serialization import resource_from_json, resource_json

MAX_PIPELINES = 16  # remembered; a process has one or two


class RowPipelines:
    """Gives each pipeline of this process a name for its rows, and finds the pipeline of a row again.

    The rows of other processes, and of earlier ones, have the processors that were used last here.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._known: OrderedDict[str, KnownPipeline] = OrderedDict()
        self._stored: OrderedDict[tuple[int, int], tuple[KnownPipeline, tuple[str, str]]] = OrderedDict()
        self._resources: OrderedDict[str, Resource] = OrderedDict()
        self._last: KnownPipeline | None = None

    def use(self, pipeline: Pipeline) -> None:
        """Let *pipeline* be the one that was used last."""
        self._last = KnownPipeline(pipeline)

    def name(self, pipeline: Pipeline) -> str:
        """Return the name of *pipeline* for a row: its processor is found again by it in this process alone."""
        processor, resource = pipeline_key(pipeline)
        name = f"{self._owner}.{processor:x}.{resource:x}"
        known = self._known.get(name)
        if known is None or not known.is_of(pipeline):
            self._known[name] = self._last = KnownPipeline(pipeline)
            _forget_oldest(self._known)
        return name

    def resource(self, pipeline: Pipeline) -> tuple[str, str]:
        """Return the hash and the JSON of the resource of *pipeline*."""
        key = pipeline_key(pipeline)
        known = self._stored.get(key)
        if known is None or not known[0].is_of(pipeline):
            known = self._stored[key] = (KnownPipeline(pipeline), resource_json(pipeline.resource))
            _forget_oldest(self._stored)
        return known[1]

    def find(self, name: str | None, resource_hash: str, resource: str | None) -> Pipeline:
        """Return the pipeline of a row, by its *name*, else made of its *resource* (JSON)."""
        known = self._known.get(name or "")
        if known is not None and known.processor is not None:
            return Pipeline(known.processor, known.resource)
        if resource_hash not in self._resources:
            self._resources[resource_hash] = Resource({}) if resource is None else resource_from_json(resource)
            _forget_oldest(self._resources)
        return Pipeline(self._last.processor if self._last else None, self._resources[resource_hash])


def _forget_oldest(known: OrderedDict[Any, Any]) -> None:
    if len(known) > MAX_PIPELINES:
        known.popitem(last=False)
