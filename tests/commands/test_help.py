"""What `--help` shows on a terminal of 80 columns."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from cyclopts import App
from rich.console import Console

from flows.commands.cli import app

OVERVIEW = {
    "Run": ["run", "validate", "backfill", "tune", "watch"],
    "Data": ["dataset", "datasets", "manifest", "figures", "suspects", "quarantine", "labels"],
    "Models": ["predict", "export", "diagnose", "drift", "registry", "lineage", "promote", "rollback"],
    "Reports": ["status", "runs", "report", "reproduce", "share"],
    "Operate": ["up", "serve", "alerts", "doctor", "verify", "copy", "gc", "prefect"],
}


def commands(of: App, *words: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command that can be typed, groups of subcommands such as `registry` left out."""
    names = [name for name in of if not name.startswith("-")]
    for name in names:
        yield from commands(of[name], *words, name)
    if not names:
        yield words


def help_of(*words: str) -> str:
    console = Console(file=io.StringIO(), width=80)
    app.help_print([*words], console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_overview_has_every_command_in_a_group_on_a_line_of_its_own():
    overview: dict[str, list[str]] = {}
    for line in help_of().splitlines():
        if line in OVERVIEW:
            overview[line] = []
        elif line.startswith("  "):
            name, _, summary = line.strip().partition(" ")
            overview[list(overview)[-1]].append(name)
            assert summary.endswith(".")
    assert overview == OVERVIEW
    assert list(overview) == list(OVERVIEW)
    assert sorted(name for names in overview.values() for name in names) == sorted(
        {words[0] for words in commands(app)}
    )


@pytest.mark.parametrize("words", [*commands(app)], ids=" ".join)
def test_the_help_of_a_command_fits_and_has_an_example(words: tuple[str, ...]):
    lines = help_of(*words).splitlines()
    assert max(map(len, lines)) <= 80
    # The summary is one line, also in the list of commands.
    assert lines[2].rstrip().endswith(".")
    assert lines[3].strip() == ""
    assert f"idxflow {words[0]}" in " ".join(lines[3:])
