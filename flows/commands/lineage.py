"""`idxflow lineage`: what a model or an archive was made from, and what was made from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.commands.destination import destination, write
from flows.commands.options import AsJson, StoreFolder
from flows.terminal.output import print_json, print_line, remark
from flows.terminal.streams import without_log_warnings
from storage.opening import open_store
from storage.words import counted

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent

    from flows.lineage.sending import Server


def lineage(
    what: str,
    part: str | None = None,
    *,
    openlineage: Annotated[
        str | None,
        Parameter(
            help="Also export it as OpenLineage events: to a server, such as `http://localhost:5000`, or to a "
            "`.jsonl` file. The key of the server is taken from the environment. [env var: OPENLINEAGE_API_KEY]"
        ),
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Show what a model or archive was made from, and what became of it.

    A model: its training and data, back to the archives, where these came from, and what became of it. An archive:
    which models were trained or tested on it, which of them were champion, and which is in use. What `idxflow gc` has
    removed, the ledger still knows.

    Examples: `idxflow lineage mnist` · `idxflow lineage mnist v3` · `idxflow lineage mnist train-images` ·
    `idxflow lineage ./scan-07.gz` · `idxflow lineage 143161f1948b` ·
    `idxflow lineage mnist --openlineage http://localhost:5000`

    `--openlineage` needs the extra `lineage`. docs/how-to/lineage.md has more.

    Args:
        what: A data set of the store; the path of a file, or of an exported model; or 8 or more digits of a SHA-256, of
            weights or of an archive, compressed or not.
        part: Of a data set: a version such as `7` or `champion`, the role of an archive such as `train-images`, its
            file name, or a digest. Default: `champion`.
    """
    from flows.lineage import events
    from flows.lineage.asked import lineage_of
    from flows.lineage.telling import lines_of

    place = _place(openlineage, store) if openlineage else None
    # The lines of the answer name what is damaged or removed.
    with without_log_warnings():
        found = lineage_of(what, part, store)
        lines = [] if as_json else [*lines_of(found)]
        exported = _export(events.events_of(found), place) if place else None
    if as_json:
        return print_json({**found.to_json(), "exported": exported})
    for line in lines:
        print_line(line)
    if exported:
        remark(f"{counted(exported['events'], 'OpenLineage event')} to {exported['to']}")
    return 0


def _place(openlineage: str, store: str | None) -> Server | Path:
    """Return where the events go, before anything is read.

    Raises:
        ConfigError: it cannot be used, or the library is not installed.
    """
    from flows.lineage import events, sending

    events.check_installed()
    if sending.is_server(openlineage):
        return sending.server(openlineage)
    return destination("--openlineage", Path(openlineage), (".jsonl",), open_store(store))


def _export(found: Sequence[RunEvent], place: Server | Path) -> dict[str, Any]:
    from flows.lineage import sending

    if isinstance(place, Path):
        write(place, sending.lines(found))
        return {"to": str(place), "events": len(found)}
    # The libraries of bars take a moment to import.
    from rich.console import Console

    from flows.terminal.screen import moving

    with moving(Console(stderr=True), f"sending to {place.url}") as change:
        place.send(found, lambda number: change(f"sent {number:,} of {counted(len(found), 'event')} to {place.url}"))
    return {"to": place.url, "events": len(found)}
