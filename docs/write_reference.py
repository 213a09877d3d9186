"""Write the reference pages that are generated from the code. `make reference` runs it, `tests/test_docs.py` compares.

A page is a function that returns its Markdown; `PAGES` names the file of each. A page of another model, such as that of
the manifest, is one more entry: `settings` makes its tables from a JSON Schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "reference"


def cli() -> str:
    """Return every command with its options, as Cyclopts describes them."""
    from flows.commands.cli import app

    text = app.generate_docs(output_format="markdown")
    # The page has a table of contents beside it.
    text = re.sub(r"## Table of Contents\n.*?(?=\*\*)", "", text, flags=re.DOTALL)
    # These blocks are no commands to copy.
    text = text.replace("```console", "```text")
    # Of a flag that is off, the help shows no default either.
    text = text.replace(" *[default: False]*", "")
    title, _, rest = text.partition("\n")
    more = "[Exit codes, JSON and variables](exit-codes.md) has what all commands have in common."
    return f"{title.replace('idxflow', 'Commands')}\n\n{more}\n{rest}"


def configuration() -> str:
    """Return every training parameter with its type, bounds, default and meaning, and what each profile sets."""
    from storage.datasets.training import PROFILES, TrainingConfig

    lines = [
        "# Training parameters",
        "",
        "`--set NAME=VALUE` sets one for a run, `[training]` in a manifest for a data set, and the field `training` of",
        "a deployment for its runs. Values are JSON: `--set hidden=[100,50]`, `--set patience=null`.",
        "",
        "A value comes from the default, the profile, the manifest and the run; the later of these wins. The profile",
        "`tutorial` takes nothing from the manifest.",
        "",
        *settings(TrainingConfig.model_json_schema()),
        "",
        "## Profiles",
        "",
        "| Profile | What it sets |",
        "|:--|:--|",
        *(f"| `{name}` | {_assignments(values)} |" for name, values in PROFILES.items()),
    ]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli, "configuration.md": configuration}


def settings(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of the fields of a JSON Schema: name, value, default, meaning."""
    yield "| Name | Value | Default | Meaning |"
    yield "|:--|:--|:--|:--|"
    for name, field in schema["properties"].items():
        default = f"`{json.dumps(field['default'])}`" if "default" in field else "required"
        yield f"| `{name}` | {_value(field)} | {default} | {field.get('description', '')} |"


def _value(field: Mapping[str, Any]) -> str:
    """Return in words which values a field of a JSON Schema takes."""
    if "anyOf" in field:
        return " or ".join(_value(option) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        most = f"at most {field['maxItems']}" if "maxItems" in field else "any number"
        return f"list of {most}, each a {_value(field['items'])}"
    names = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "null": "`null`"}
    return f"{names.get(field['type'], 'text')} {_bounds(field)}".strip()


def _bounds(field: Mapping[str, Any]) -> str:
    if "minimum" in field and "maximum" in field:
        return f"from {field['minimum']:,} to {field['maximum']:,}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join(f"{said} {field[name]:,}" for name, said in words.items() if name in field)


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` = `{json.dumps(value)}`" for name, value in values.items()) or "nothing: the defaults"


def main() -> None:
    """Write the pages whose content has changed."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page().rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
