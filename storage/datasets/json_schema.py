"""The values that a model accepts, from its JSON Schema: as text for messages, tables for people, a file for editors.

`make reference` writes `manifest.schema.json`, by which editors check manifests.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

FILE = Path(__file__).with_name("manifest.schema.json")
EXPECTED = "errorMessage"
"""The keyword for a description of valid values, if type and bounds are not enough. Some editors show it, too."""
DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest dialect that editors support for TOML."""

Schema = Mapping[str, Any]

KINDS = {
    "integer": ("an integer", "integers"),
    "number": ("a number", "numbers"),
    "string": ("a string", "strings"),
    "boolean": ("true or false", ""),
    "object": ("a table", "tables"),
    "null": ("null", ""),
}
"""The types of JSON Schema in words: one value, several."""


class TomlSchema(GenerateJsonSchema):
    """The JSON Schema of a TOML file, which has no null: a key that is not set is left out."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        field = super().default_schema(schema)
        # The keys of a table have defaults of their own.
        default = field.get("default")
        if _is_table(default[0] if default and isinstance(default, list) else default) or default in (None, "", []):
            field.pop("default", None)
        return field

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def of_manifest() -> dict[str, Any]:
    """Return the JSON Schema of a manifest."""
    from storage.datasets.manifest import Manifest

    model = Manifest.model_json_schema(schema_generator=TomlSchema)
    return {"$schema": DIALECT, **model, "title": "A data set of idxflow"}


def part(schema: Schema, keys: Sequence[str]) -> Schema:
    """Return the schema of the value at `keys`, such as `("gate", "alpha")`; a list of tables counts as a table."""
    value = schema
    for number, key in enumerate(keys):
        value = resolved(schema, properties(schema, keys[:number])[key])
    return value


def properties(schema: Schema, keys: Sequence[str]) -> Mapping[str, Schema]:
    """Return the schemas of the keys of the table at `keys`, or of the tables in the list there."""
    value = part(schema, keys)
    table = resolved(schema, {"$ref": target}) if (target := _table(value)) else value
    found: Mapping[str, Schema] = table["properties"]
    return found


def _table(field: Schema) -> str:
    """Return what a field refers to that is a table, or either a table or a list of such; empty if it is none."""
    return str(field.get("$ref") or next((one["$ref"] for one in field.get("anyOf", ()) if "$ref" in one), ""))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def in_words(schema: Schema) -> str:
    """Return a description of valid values, such as `an integer from 1 to 10,000`."""
    if EXPECTED in schema:
        return str(schema[EXPECTED])
    if "$ref" in schema:
        return KINDS["object"][0]
    if "anyOf" in schema:
        return ", or ".join(map(in_words, schema["anyOf"]))
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if schema["type"] == "array":
        limits = bounds(schema["items"])
        most = f"at most {schema['maxItems']:,} " if "maxItems" in schema else ""
        kind = schema["items"].get("type", "object")
        return f"a list of {most}{KINDS[kind][1]}{', each ' if limits else ''}{limits}"
    limits = bounds(schema)
    return f"{KINDS[schema['type']][0]}{' of' if limits.startswith('at ') else ''} {limits}".rstrip()


def bounds(schema: Schema) -> str:
    """Return the bounds of a number, such as `from 1 to 10,000` or `above 0 and at most 10`; empty if it has none."""
    if "minimum" in schema and "maximum" in schema:
        return f"from {schema['minimum']:,} to {schema['maximum']:,}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return " and ".join(f"{word} {schema[key]:,}" for key, word in words.items() if key in schema)


def reference(schema: Schema, elsewhere: Collection[str] = ()) -> Iterator[str]:
    """Yield lines of Markdown: a table of the keys of a JSON Schema, and another for each table in it.

    Args:
        elsewhere: tables to leave out, because another page describes their keys.
    """
    waiting: list[tuple[list[str], Schema]] = [([], schema)]
    while waiting:
        names, table = waiting.pop(0)
        if names:
            yield from ("", f"## {', '.join(f'`[{name}]`' for name in names)}", "", table.get("description", ""), "")
        yield from ("| Key | Value | Default | Meaning |", "|:--|:--|:--|:--|")
        inner: dict[str, list[str]] = {}
        for key, field in table["properties"].items():
            value = resolved(schema, field)
            default = "required" if key in table.get("required", ()) else _default(value)
            yield f"| `{key}` | {in_words(value)} | {default} | {value.get('description', '')} |"
            if _table(field) and key not in elsewhere:
                inner.setdefault(_table(field), []).append(".".join([*names, key]))
        waiting[:0] = [(keys, resolved(schema, {"$ref": target})) for target, keys in inner.items()]


def main() -> None:
    """Write the schema for editors."""
    FILE.write_text(text(), encoding="utf-8")


def text() -> str:
    """Return the text of the schema file for editors."""
    return json.dumps(of_manifest(), indent=2, ensure_ascii=False) + "\n"


def resolved(schema: Schema, field: Schema) -> Schema:
    """Return a field merged with the schema that it refers to; the field's own keywords take precedence."""
    if "$ref" not in field:
        return field
    target = schema["$defs"][field["$ref"].removeprefix("#/$defs/")]
    return {**target, **{key: value for key, value in field.items() if key != "$ref"}}


def _default(field: Schema) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else ""


if __name__ == "__main__":
    main()
