"""`idxflow report`: print where a run's report is, or show the report."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands.destination import destination, write
from flows.commands.options import StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.reports import RunReport, report_of, run_with_report
from flows.terminal.output import print_line, print_utf8
from flows.terminal.streams import without_log_warnings
from storage.errors import IdxflowError
from storage.records import HTML, JSON


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
    """Print where a run's report is, or open it.

    A report that was removed or damaged is rebuilt from what is left. The store is not changed: a rebuilt report goes
    to --out, otherwise into a new temporary folder. So does, with --open, a page that is in object storage.

    Examples: `idxflow report mnist --open` · `idxflow report mnist 20261124-0803 --out report.html`

    Args:
        dataset: A data set of the store.
        run: A run's id or the beginning of one, `latest`, `champion`, or `v3` for the run that made that version.
    """
    data = DatasetInStore.open(dataset, store)
    record = run_with_report(data, data.run(run))
    file = destination("--out", out, (".html",), data.store) if out else None
    # With --json alone, only the content is needed.
    needed = [*([HTML] if file or open_ else []), *([JSON] if as_json else [])]
    with data.store.in_use(dataset), without_log_warnings():
        run_report = report_of(data, record, needed)
        page = _page(data, run_report, file, open_) if file or open_ or not as_json else None
        content = run_report.json() if as_json else None
    if open_ and page and page.file:
        _open(page.file)
    if content is not None:
        print_utf8(content)
    elif page:
        print_line(page.where)
    return 0


@dataclass(frozen=True)
class _Page:
    """The page of a report."""

    where: str
    """Its path or address."""
    file: Path | None
    """Its path on this machine; None if it was not needed here."""


def _page(data: DatasetInStore, run_report: RunReport, out: Path | None, open_: bool) -> _Page:
    """Return the page; write it to a file if `out` is given, or if it has none that stays."""
    published = None if out else run_report.published
    where = published.entry.where(HTML) if published else ""
    if published and not open_:
        return _Page(where, None)
    if published and str(published.html) == where:
        return _Page(where, published.html)
    # The file in the cache of object storage may be removed while the browser shows it.
    file = out or _new_file(f"{data.name}-{run_report.run}.html")
    write(file, run_report.html())
    return _Page(where or str(file), file)


def _new_file(name: str) -> Path:
    """Return a path in a new folder that nobody else can write to: in a shared one, it could be another user's."""
    return Path(tempfile.mkdtemp(prefix="idxflow-")) / name


def _open(page: Path) -> None:
    import webbrowser

    try:
        opened = webbrowser.open(page.as_uri())
    except webbrowser.Error:
        opened = False
    if not opened:
        raise IdxflowError(
            f"expected a browser to show {page}; none could be started; open the file yourself, "
            "or set the environment variable BROWSER"
        )
