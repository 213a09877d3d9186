"""Check values against a pydantic model, and describe the first invalid value in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails

from storage.datasets import json_schema
from storage.datasets.catalog import one_line, shown
from storage.errors import ConfigError
from storage.words import meant

Model = TypeVar("Model", bound=BaseModel)

_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def checked(
    model: type[Model], values: Mapping[str, Any], where: str, generator: type[GenerateJsonSchema] = GenerateJsonSchema
) -> Model:
    """Return the model of the values.

    Args:
        where: where the values come from, such as the path of their file; the message begins with it.
        generator: makes the JSON Schema whose bounds and choices the message names.

    Raises:
        ConfigError: a key is unknown or missing, or a value is invalid; the message names it and what was found.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # A misspelt key explains a missing one, so report it first.
        first = min(error.errors(include_url=False), key=lambda detail: detail["type"] not in _UNKNOWN_KEY)
        sentence = _sentence(first, values, _schema(model, generator))  # type: ignore[arg-type]  # A class is hashable.
        raise ConfigError(f"{where}: {sentence}") from error


@cache
def _schema(model: type[BaseModel], generator: type[GenerateJsonSchema]) -> json_schema.Schema:
    """Return the JSON Schema of a model, made once: that of a manifest takes much longer than to check one."""
    return model.model_json_schema(schema_generator=generator)


def _sentence(error: ErrorDetails, values: Mapping[str, Any], model: json_schema.Schema) -> str:
    """Return what was expected, what was found and what to do. An element of a list is judged as part of the list."""
    path = _path(error["loc"], values)
    keys = [key for key in path if isinstance(key, str)]
    name = one_line("".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)[1:])
    if error["type"] == "value_error":
        # A validator's own sentence.
        return error["msg"].removeprefix("Value error, ")
    if error["type"] in _UNKNOWN_KEY:
        properties = json_schema.properties(model, keys[:-1])
        remedy = "remove it or correct its spelling"
        return f"expected one of {', '.join(properties)}; found {name}{meant(keys[-1], properties)}; {remedy}"
    allowed = json_schema.part(model, keys)
    is_missing = error["type"] == "missing"
    value, remedy = ("nothing", "add it") if is_missing else (_value_text(error, allowed, values, path), "correct it")
    return f"expected {name} to be {json_schema.in_words(allowed)}; found {value}; {remedy}"


def _path(location: Sequence[int | str], values: Any) -> list[int | str]:
    """Return the keys that lead to a value in the file, up to a list that is no list of tables.

    A table where a list of tables may be is not counted as an element.
    """
    path: list[int | str] = []
    for place, key in enumerate(location):
        if isinstance(key, int):
            if place + 1 == len(location) or not isinstance(location[place + 1], str):
                break
            if isinstance(values, Mapping):
                continue
        path.append(key)
        with suppress(LookupError, TypeError):
            values = values[key]
    return path


def _value_text(error: ErrorDetails, allowed: json_schema.Schema, values: Any, path: Sequence[int | str]) -> str:
    if allowed.get("items", {}).get("format") == "uri":
        # Not the whole URL, which may contain a password.
        address = error["input"]
        scheme, separator, _ = address[:8].partition("://") if isinstance(address, str) else ("", "", "")
        return f"{scheme}:…" if separator and scheme.isalpha() else "another value"
    for key in path:
        values = values[key]
    return f"{shown(values)}{meant(values, allowed.get('enum', ()))}"
