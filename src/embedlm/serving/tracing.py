"""Spans of requests for OpenTelemetry: what the log says of a request, and no text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import embedlm
from embedlm.errors import require

__all__ = ["Tracing"]

_NAMES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "client": "client.address",
}


class Tracing:
    """Makes a span of each request, within the trace that its headers name."""

    def __init__(self, provider: Any) -> None:
        """Take what makes spans, an OpenTelemetry `TracerProvider`."""
        require("opentelemetry", "otel")
        self.provider = provider
        self._tracer = provider.get_tracer("embedlm", embedlm.__version__)

    @classmethod
    def to_collector(cls) -> Tracing:
        """Return one that sends spans by OTLP, as the environment's OTEL_ variables say.

        Raises:
            MissingExtraError: OpenTelemetry is not installed.
        """
        require("opentelemetry.exporter.otlp.proto.http", "otel")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = "OTEL_SERVICE_NAME" in os.environ
        resource = Resource.create({} if named else {"service.name": "embedlm"})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def begin(self, scope: Mapping[str, Any]) -> Any:
        """Return the span of a request that has come."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        above = TraceContextTextMapPropagator().extract(headers)
        return self._tracer.start_span(scope["method"], context=above, kind=SpanKind.SERVER)

    def end(self, span: Any, facts: Mapping[str, Any]) -> None:
        """End it with what the log says of the request."""
        from opentelemetry.trace import StatusCode

        span.update_name(f"{facts['method']} {facts['route']}")
        for name, value in facts.items():
            if name != "event" and value is not None:
                span.set_attribute(_NAMES.get(name, f"embedlm.{name}"), value)
        if facts["status"] >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is still to be sent."""
        self.provider.shutdown()
