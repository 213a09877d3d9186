"""`idxflow labels`: labels that come after the predictions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from cyclopts import App

from flows.commands.options import AsJson, StoreFolder
from flows.terminal.output import print_json, print_line, remark
from storage.words import counted

app = App(name="labels", help="Add labels that come after the predictions.")


@app.command
def add(dataset: str, file: Path, *, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Add labels of logged predictions, and show how often they agree.

    The file is CSV with a header, JSON lines or Parquet, with `id` and `label` in each row. The id is that of an answer
    of `idxflow serve --log`; the label is the name of a class, or its number. For an id that was added before, the
    newer label counts. Exit code 3 if the file cannot be used.

    Examples: `idxflow labels add mnist checked.csv` · `idxflow labels add mnist checked.jsonl --json`

    Args:
        dataset: A data set of the store.
        file: The file with the labels.
    """
    from flows import labels, live

    added = labels.add(dataset, file, store)
    if as_json:
        return print_json({**asdict(added), "live": live.values(dataset, added.live)})
    known = "" if added.new else ", the same as the last ones"
    print_line(f"{counted(added.labels, 'label')}{known}; {added.logged:,} of their ids are in the log")
    if added.missing:
        some = ", ".join(map(repr, added.missing))
        remark(f"not in the log, so far: {some}{', …' if added.labels - added.logged > len(added.missing) else ''}")
    print_line(f"{dataset}: {added.live.sentence}")
    return 0
