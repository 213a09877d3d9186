"""Write the reference pages that are generated from the code.

`make reference` runs it, and `tests/project/test_docs.py` compares its result with the pages.

A page is a function that returns its Markdown; `PAGES` names the file of each. The tables of a model's fields are made
by `storage.datasets.json_schema.reference`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
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
    from storage.datasets.json_schema import reference
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
        "Where the default is `null` and the meaning names values, those are the defaults of the optimizer or of the",
        "schedule. What these do not take is refused ([in detail](../how-to/train.md)).",
        "",
        *reference(TrainingConfig.model_json_schema()),
        "",
        "## Profiles",
        "",
        "| Profile | What it sets |",
        "|:--|:--|",
        *(f"| `{name}` | {_assignments(values)} |" for name, values in PROFILES.items()),
    ]
    return "\n".join(lines)


def manifest() -> str:
    """Return every key of a manifest with its type, bounds, default and meaning."""
    from storage.datasets.json_schema import of_manifest, reference

    lines = [
        "# The manifest",
        "",
        "A manifest is a TOML file that declares a data set. `idxflow manifest FOLDER` writes one for your own",
        "files; [mnist.toml](../../storage/datasets/mnist.toml) is one of the catalog. An unknown key, a wrong type or",
        "a value out of bounds is refused before any archive is read, with exit code 2.",
        "",
        "An editor with Taplo, such as Visual Studio Code with Even Better TOML, completes keys and checks values if",
        "the first line of the manifest has the path of",
        "[manifest.schema.json](../../storage/datasets/manifest.schema.json) in your copy of idxflow, absolute or",
        "relative to the manifest:",
        "",
        "```toml",
        "#:schema ../idxflow/storage/datasets/manifest.schema.json",
        "```",
        "",
        *reference(of_manifest(), elsewhere=("training",)),
        "",
        "## `[training]`",
        "",
        "The [training parameters](configuration.md).",
    ]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli, "configuration.md": configuration, "manifest.md": manifest}


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` = `{json.dumps(value)}`" for name, value in values.items()) or "nothing: the defaults"


def main() -> None:
    """Write the pages whose content has changed."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page().rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
