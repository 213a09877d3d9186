"""`idxflow copy`: copy data sets from one store to another."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from cyclopts import Parameter

from flows import datasets
from flows.commands.options import AsJson
from flows.terminal import bars
from flows.terminal.output import print_json, print_line, remark
from flows.terminal.text import size
from storage import copying
from storage.copying import Copied
from storage.errors import ConfigError, StoreError
from storage.opening import open_store
from storage.records import to_json
from storage.store import Store
from storage.words import counted
from tasks.ui.progress import Progress, advance


def copy(
    from_: Annotated[str, Parameter(name="FROM")],
    to: Annotated[str, Parameter(name="TO")],
    /,
    *,
    dataset: Annotated[str | None, Parameter(help="Copy only this data set.")] = None,
    dry_run: Annotated[bool, Parameter(negative="", help="Only show what would be copied.")] = False,
    as_json: AsJson = False,
) -> int:
    """Copy a store to another folder, or to object storage and back.

    Copies entries, versions, the ledger, the champion, released rows and archives that wait for their run, and checks
    every file. Only what is missing is copied, so the command can be repeated: after an interruption, or each night.
    Nothing is replaced. A data set that went separate ways in the two stores is left as it is, with exit code 1.

    Runs can go on at FROM meanwhile: the next copy has their results.

    Examples: `idxflow copy store s3://bucket/store` · `idxflow copy s3://bucket/store /backup --dataset mnist`

    Args:
        from_: Folder or address of the store to copy.
        to: Folder or address of the store to copy to; a new one is made.
    """
    source, target = open_store(from_), open_store(to)
    _check_two(source, target)
    copied: list[Copied] = []
    refused: dict[str, StoreError] = {}
    with bars.shown():
        for name in datasets.in_store(source, dataset):
            try:
                copied.append(copying.copy(source, target, name, dry_run, _Shown(name)))
            except StoreError as error:
                # The others are copied all the same.
                refused[name] = error
    if as_json:
        print_json(_values(source, target, dry_run, copied, refused))
    else:
        _print(source, copied, dry_run)
    for why in refused.values():
        remark(str(why))
    return 1 if refused else 0


def _check_two(source: Store, target: Store) -> None:
    if not source.exists():
        raise ConfigError(f"expected a store at {source.address}; found nothing; name the store to copy as FROM")
    if source.address == target.address or source.root.resolve() == target.root.resolve():
        raise ConfigError(
            f"expected two stores; found {source.address} as FROM and as TO; name the store to copy to as TO"
        )


@dataclasses.dataclass(frozen=True)
class _Shown:
    """Shows how far a data set is copied."""

    name: str

    def __call__(self, done: int, total: int) -> None:
        advance(Progress(f"copy {self.name}", done, total, "bytes", f"{size(done)} of {size(total)}"))


def _print(source: Store, copied: list[Copied], dry_run: bool) -> None:
    done = "would copy" if dry_run else "copied"
    for one in copied:
        present = f"; {one.present:,} were there already" if one.present else ""
        print_line(f"{one.dataset}: {done} {', '.join(_counts(one))}{present}")
    if not copied:
        print_line(f"nothing copied from {source.address}")


def _counts(copied: Copied) -> list[str]:
    counts = [
        f"{counted(copied.entries, 'entry', 'entries')} ({size(copied.bytes)})",
        counted(copied.versions, "version"),
        counted(copied.records, "ledger record"),
    ]
    others = (
        (copied.released, "released row", "released rows"),
        (copied.arrivals, "set of archives", "sets of archives"),
    )
    return counts + [counted(number, one, several) for number, one, several in others if number]


def _values(
    source: Store, target: Store, dry_run: bool, copied: list[Copied], refused: dict[str, StoreError]
) -> dict[str, Any]:
    return {
        "from": source.address,
        "to": target.address,
        "dry_run": dry_run,
        "datasets": [dataclasses.asdict(one) for one in copied],
        "refused": [{"dataset": name, "error": to_json(error.failure)} for name, error in refused.items()],
    }
