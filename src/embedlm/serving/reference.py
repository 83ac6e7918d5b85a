"""The documentation of the routes as one page of HTML, written from the OpenAPI description.

Swagger UI and the like load scripts from another host; this page loads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["reference"]


def reference(openapi: Mapping[str, Any]) -> str:
    """Return the page."""
    info = openapi["info"]
    parts = "\n".join(_sections(openapi))
    title = escape(f"{info['title']} {info['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="page/page.css"><link rel="stylesheet" href="page/own.css">'
        f"</head><body><header><h1>{title}</h1></header><main><p>{escape(info['description'])} "
        'As <a href="openapi.json">OpenAPI</a>. <a href="./">The page</a> compares texts.</p>'
        f"{parts}</main></body></html>"
    )


def _sections(openapi: Mapping[str, Any]) -> Iterator[str]:
    schemas = openapi.get("components", {}).get("schemas", {})
    for path, methods in openapi["paths"].items():
        for method, facts in methods.items():
            words = escape(facts.get("description") or facts.get("summary") or "")
            name = f"{method.upper()} {path}"
            yield (
                f"<section><h2><b>{method.upper()}</b> <code>{escape(path)}</code></h2>"
                f"<p>{words}</p>{_fields(name, facts, schemas)}</section>"
            )


def _fields(name: str, facts: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    content: Mapping[str, Any] = facts.get("requestBody", {}).get("content", {})
    schema: Mapping[str, Any] = next((one["schema"] for one in content.values()), {})
    bodies = [_resolved(one, schemas) for one in schema.get("anyOf", schema.get("oneOf", [schema]))]
    asked = {
        one["name"]: {**one["schema"], "description": one.get("description", "")}
        for one in facts.get("parameters", ())
        if one["in"] == "query"
    }
    bodies.insert(0, {"properties": asked})
    tables = [_table(name, body, schemas) for body in bodies if body.get("properties")]
    return "<p>or</p>".join(tables)


def _table(name: str, body: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    needed = body.get("required", ())
    rows = []
    for key, field in body["properties"].items():
        default = "needed" if key in needed else json.dumps(field.get("default"))
        words = field.get("description", "")
        cells = (
            f"<code>{escape(key)}</code>",
            _kind(field, schemas),
            escape(default),
            escape(words),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = "".join(f'<th scope="col">{one}</th>' for one in ("Field", "Type", "Without it", ""))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Fields of {escape(name)}">'
        f'<table class="fields"><tr>{heads}</tr>{"".join(rows)}</table></div>'
    )


def _kind(field: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    if "$ref" in field:
        inner = _resolved(field, schemas)
        names = ", ".join(inner.get("properties", {}))
        return escape(f"object ({names})")
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(one, schemas) for one in field["anyOf"]))
    if "enum" in field:
        return escape(", ".join(map(str, field["enum"])))
    if "const" in field:
        return escape(str(field["const"]))
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}), schemas)}"
    return escape(str(field.get("type", "any")))


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Mapping[str, Any] = schemas.get(name, schema)
    return found
