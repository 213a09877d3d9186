"""`idxflow report`: where the report of a run is; made again where it is gone."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.commands.options import StoreFolder
from flows.commands.output import destination, remark, say, say_utf8, write
from flows.commands.registry import Place, open_place
from flows.commands.runs import find_run, quiet
from storage.errors import DamagedEntry, IdxflowError
from storage.records import Report

if TYPE_CHECKING:
    from tasks.report.document import Document


@dataclass(frozen=True)
class _Found:
    """The report of a run: published and whole, or made again."""

    run: str
    published: Report | None
    again: Document | None
    """None where the published one is whole."""

    def html(self) -> bytes:
        if self.again:
            return self.again.html().encode()
        return self._published.html.read_bytes()

    def json(self) -> str:
        return self.again.json() if self.again else self._published.json.read_text(encoding="utf-8")

    @property
    def _published(self) -> Report:
        if self.published is None:
            raise ValueError("expected a report that was published or made again")
        return self.published


def report(
    dataset: str,
    run: str = "latest",
    *,
    open_: Annotated[bool, Parameter(name="--open", negative="", help="Open it in a browser.")] = False,
    out: Annotated[Path | None, Parameter(help="Also write the page to this .html file.")] = None,
    store: StoreFolder = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="Print its content as JSON, `report.json`.")
    ] = False,
) -> int:
    """Print the path of a run's report. A report that was removed or damaged is made again from what is left.

    The store is not changed: a report that is made again goes to --out, or else into a new temporary folder.

    Examples: `idxflow report mnist --open` · `idxflow report mnist 20261124-0803 --out report.html`

    Args:
        dataset: A data set of the store.
        run: A run's id or the beginning of one, `latest`, or `champion` for the run that made the champion.
    """
    place = open_place(dataset, store)
    wanted = _with_report(place, find_run(place, run))
    file = destination("--out", out, (".html",), place.store) if out else None
    with place.store.in_use(dataset), quiet():
        found = _found(place, wanted)
        # Whoever wants the content alone needs no file.
        page = _page(place, found, file) if file or open_ or not as_json else None
        content = found.json() if as_json else None
    if open_ and page:
        _show(page)
    if content is not None:
        say_utf8(content)
    else:
        say(str(page))
    return 0


def _with_report(place: Place, values: dict[str, Any]) -> dict[str, Any]:
    """Return the run whose report tells of the run `values`: that of the version found again where nothing was new."""
    named = Path(str(values.get("report") or "")).name
    if values.get("state") != "unchanged" or named in ("", values.get("run")):
        return values
    told: dict[str, Any] = find_run(place, named)
    version = f"v{values['version']}, " if values.get("version") else ""
    remark(f"run {values.get('run')} found nothing new; this is the report of {version}run {named}")
    return told


def _found(place: Place, values: dict[str, Any]) -> _Found:
    from tasks.report.document import build
    from tasks.report.past_runs import missing, run_record

    run = str(values["run"])
    try:
        return _Found(run, place.store.get(place.dataset, "publish", run, Report), None)
    except DamagedEntry:
        was = "is damaged" if (place.store.entries(place.dataset, "publish") / run).exists() else "was removed"
    if not values.get("report"):
        was = "was never published"
    record = run_record(place.store, values)
    gone = missing(record)
    without = f", without what is also gone: {', '.join(gone)}" if gone else " and the results in the store"
    remark(f"the report of run {run} {was}; this one was made again from the ledger{without}")
    return _Found(run, None, build(place.store, record))


def _page(place: Place, found: _Found, out: Path | None) -> Path:
    """Return the page as a file, which is written if it is wanted elsewhere or was made again."""
    if out is None:
        if found.published:
            return found.published.html
        # Its own folder, which nobody else can write: a name in a shared one could be another's.
        out = Path(tempfile.mkdtemp(prefix="idxflow-")) / f"{place.dataset}-{found.run}.html"
    write(out, found.html())
    return out


def _show(page: Path) -> None:
    import webbrowser

    try:
        shown = webbrowser.open(page.as_uri())
    except webbrowser.Error:
        shown = False
    if not shown:
        raise IdxflowError(
            f"expected a browser to show {page}; found none that starts; open the file yourself, "
            "or set the environment variable BROWSER"
        )
