"""Requests made of our own OpenAPI: none is a fault of the server's, and each answer fits."""

import re

import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("schemathesis", reason="needs schemathesis 4")

import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from embedlm.serving.app import ROUTES
from tests.command import ROOT

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def test_whatever_our_openapi_allows_is_answered_in_its_schema(place):
    schema = schemathesis.openapi.from_url(f"{place.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {"/v1/embeddings", "/v2/rerank", "/embed", "/v1/search"} <= {
        one.path for one in operations
    }
    for operation in operations:

        @settings(
            max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(operation.as_strategy())
        def check(case):
            case.call_and_validate(checks=CHECKS)

        check()


def test_the_guides_table_has_every_route():
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    table = text.partition("## Routes")[2].partition("\n\n|")[2].partition("\n\n")[0]
    told = re.findall(r"`(/[^`]*)`", table)
    paths = {path.replace(":path}", "}") for _, path, _ in ROUTES}
    assert sorted(told) == sorted(paths | {"/mcp"})
