"""What the page /docs says: the description of the API, readable without a program."""

from __future__ import annotations

from html import escape
from typing import Any

from markupsafe import Markup

from flows.web.pages.rendering import coded


def content(described: dict[str, Any]) -> Markup:
    """Return an OpenAPI description as HTML, for the template `api`."""
    routes = "".join(
        _route(method, path, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    )
    schemas = "".join(_schema(name, schema) for name, schema in described["components"]["schemas"].items())
    return Markup(f"{routes}<section><h2>Answers</h2>{schemas}</section>")


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
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"<p><strong>{escape(operation['summary'])}.</strong></p>"
        f"{_paragraphs(operation.get('description', ''))}{said}{options}{answers}</section>"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    fields = _table(
        (field, _kind(value), value.get("description", "")) for field, value in schema.get("properties", {}).items()
    )
    return f'<h3 id="{escape(name)}">{escape(name)}</h3>{_paragraphs(schema.get("description", ""))}{fields}'


def _kind(schema: dict[str, Any]) -> str:
    """Return the type of a value in words."""
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {_kind(schema['items'])}"
    return str(schema.get("type") or schema.get("$ref", "").rpartition("/")[2])


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{coded(part)}</p>" for part in text.split("\n\n") if part)


def _table(rows: Any) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="fit">{cells}</table></div>' if cells else ""
