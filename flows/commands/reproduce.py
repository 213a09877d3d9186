"""`idxflow reproduce`: make a run again, and compare every digest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.commands.options import AsJson, DatasetFile, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.settings import silence_prefect
from flows.terminal.output import print_json, print_line, print_table, remark
from flows.terminal.streams import without_log_warnings
from storage.errors import NOT_REPRODUCED
from storage.words import shortened

if TYPE_CHECKING:
    from flows.reproducing.again import Reproduction
    from flows.reproducing.comparing import Line, Why
    from storage.differences import Difference

_SHOWN = 14
_DIFFERENT = {
    "no": "different",
    "perhaps": "different, perhaps because of the above",
    "yes": "different, because of the above",
}


def reproduce(
    dataset: str,
    run: str = "latest",
    *,
    keep: Annotated[
        Path | None,
        Parameter(help="A new or empty folder for the scratch store. Default: a temporary folder, which is removed."),
    ] = None,
    dataset_file: Annotated[
        DatasetFile,
        Parameter(help="Manifest (TOML) of your own data set, for what is no longer in the store and your own model."),
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Make a run again from what it recorded, and compare every digest.

    Takes the archives from the store, and the recorded parameters, limits and seed; carries out all steps up to the
    decision in a scratch store; and says which result differs first, and why: code, libraries or processor. It takes
    about as long as the run. Nothing in the store is changed. See docs/how-to/reproduce.md.
    Exit code 0: all that can be compared is the same; 7: something differs.

    Examples: `idxflow reproduce mnist champion` · `idxflow reproduce mnist v3 --keep again --json`

    Args:
        dataset: A data set of the store.
        run: A run's id or the beginning of one, `latest`, `champion`, or a version such as `v3`.
    """
    from flows.reproducing.scratch import checked_folder
    from flows.terminal.bars import shown

    data = DatasetInStore.open(dataset, store)
    # Wrong usage is reported before the libraries are imported.
    data.run(run)
    folder = checked_folder(keep, data.store) if keep else None
    silence_prefect()
    with shown(), without_log_warnings():
        from flows.reproducing.again import reproduce as again

        found = again(data, run, dataset_file, folder)
    if as_json:
        print_json(_values(found))
    else:
        _print(found)
    return 0 if found.comparison.reproduced else NOT_REPRODUCED


def _print(found: Reproduction) -> None:
    comparison = found.comparison
    names = [f"{line.step} {line.what}" for line in comparison.lines]
    longest = max(map(len, names))
    print_table(
        (f"{name:<{longest}}", f"{_short(line.recorded):<{_SHOWN}}", f"{_short(line.now):<{_SHOWN}}", _verdict(line))
        for name, line in zip(names, comparison.lines, strict=True)
    )
    print_line(f"run {found.run.id} of {found.run.data.name}: {comparison.sentence}")
    if comparison.reproduced and comparison.changed:
        print_line(f"without effect, these changed since: {_names(comparison.changed)}")
    if found.folder:
        print_line(f"scratch store {found.folder}")
    for note in found.notes:
        remark(f"note: {note}")


def _short(value: str | None) -> str:
    return "–" if value is None else shortened(value, 40)


def _verdict(line: Line) -> str:
    if line.same is None:
        return "not compared"
    return "same" if line.same else _DIFFERENT[line.follows]


def _names(changed: tuple[Difference, ...]) -> str:
    from storage.workers.fingerprint import named

    return named([each.name for each in changed])


def _values(found: Reproduction) -> dict[str, Any]:
    comparison = found.comparison
    failed, changed = comparison.failed, comparison.changed
    return {
        "dataset": found.run.data.name,
        "run": found.run.id,
        "state": found.run.values.get("state"),
        "reproduced": comparison.reproduced,
        "sentence": comparison.sentence,
        "first": comparison.first,
        "why": _why(comparison.why) if comparison.why else None,
        "steps": [_line(line) for line in comparison.lines],
        "failed": {"step": failed[0], "sentence": failed[1]} if failed else None,
        "changed": [{"part": each.part, **_difference(each)} for each in changed],
        "notes": list(found.notes),
        "folder": str(found.folder) if found.folder else None,
    }


def _line(line: Line) -> dict[str, Any]:
    return {**dataclasses.asdict(line), "same": line.same}


def _why(why: Why) -> dict[str, Any]:
    parts = {name: getattr(why, name) for name in ("code", "libraries", "parameters", "environment")}
    return {
        "sentence": why.sentence,
        **{name: [_difference(each) for each in found] for name, found in parts.items()},
        "processor": why.processor or None,
        "processor_recorded": why.is_processor_known,
        "damage": why.damage or None,
        "entry": why.where,
    }


def _difference(found: Difference) -> dict[str, Any]:
    return {"name": found.name, "recorded": found.old, "now": found.new}
