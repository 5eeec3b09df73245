"""What the real Jaeger shows of a trace, behind the real Collector: read from Jaeger's API."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from servers.running import LIMIT

ERROR = 2  # OTLP: STATUS_CODE_ERROR


@dataclass(frozen=True, slots=True)
class Servers:
    """A Collector that exports to a Jaeger, both on loopback. *otlp* and *jaeger* are base URLs."""

    otlp: str
    jaeger: str
    collector_log: Path

    def ask(self, path: str) -> Any:
        """Jaeger's answer to a GET of *path*, from JSON; None for 404, because the trace has not arrived yet."""
        try:
            with urllib.request.urlopen(f"{self.jaeger}{path}", timeout=LIMIT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            raise


@dataclass(frozen=True, slots=True)
class Node:
    """One span in Jaeger's answer."""

    name: str
    id: str
    parent: str
    status: int
    attributes: dict[str, str]
    raw: str
    service: str


def nodes_of(servers: Servers, trace_id: str) -> list[Node]:
    """The spans of a trace that have arrived so far."""
    answer = servers.ask(f"/api/v3/traces/{trace_id}")
    if answer is None:
        return []
    return [
        Node(
            name=span["name"],
            id=span["spanId"],
            parent=span.get("parentSpanId", ""),
            status=span.get("status", {}).get("code", 0),
            attributes=_attributes(span),
            raw=json.dumps(span),
            service=_attributes(resource["resource"]).get("service.name", ""),
        )
        for resource in answer["result"]["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def below(nodes: list[Node], parent: Node, name: str) -> list[Node]:
    """The spans with this *name* directly below *parent*, in the order of their attempts."""
    found = [node for node in nodes if node.parent == parent.id and node.name == name]
    return sorted(found, key=lambda node: int(node.attributes.get("http.request.resend_count", "0")))


def _attributes(of: dict[str, Any]) -> dict[str, str]:
    return {item["key"]: str(next(iter(item["value"].values()))) for item in of.get("attributes", [])}
