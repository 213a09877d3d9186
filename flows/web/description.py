"""The page /docs: the description of the API, readable without a program. It loads nothing."""

from __future__ import annotations

from html import escape
from typing import Any


def page(described: dict[str, Any]) -> str:
    """Return an HTML page of an OpenAPI description."""
    routes = "".join(
        _route(method, path, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    )
    schemas = "".join(_schema(name, schema) for name, schema in described["components"]["schemas"].items())
    title = escape(described["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: API</title>'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark"></head>'
        f"<body><h1>{title}: API</h1><p>{escape(described['info']['description'])} For programs: "
        f'<a href="openapi.json">openapi.json</a>.</p>{routes}<h2>Answers</h2>{schemas}</body></html>'
    )


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    body = operation.get("requestBody", {})
    types = ", ".join(f"<code>{escape(name)}</code>" for name in body.get("content", {}))
    said = f"<p>Body: {types}. {escape(body['description'])}</p>" if body else ""
    options = _table(
        (option["name"], option["in"], option.get("description", "")) for option in operation.get("parameters", ())
    )
    answers = _table(
        (status, _kind(answer.get("content", {}).get("application/json", {}).get("schema", {})), answer["description"])
        for status, answer in operation["responses"].items()
    )
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p><strong>{escape(operation['summary'])}.</strong></p>"
        f"<p>{escape(operation.get('description', ''))}</p>{said}{options}{answers}"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    fields = _table(
        (field, _kind(value), value.get("description", "")) for field, value in schema.get("properties", {}).items()
    )
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>{fields}'


def _kind(schema: dict[str, Any]) -> str:
    """Return the type of a value in words."""
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {_kind(schema['items'])}"
    return str(schema.get("type") or schema.get("$ref", "").rpartition("/")[2])


def _table(rows: Any) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{cells}</table>" if cells else ""
