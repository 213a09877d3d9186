"""`idxflow report`: print the path of a run's report, or show the report."""

from __future__ import annotations

import tempfile
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
    """Print the path of a run's report, or open it.

    A report that was removed or damaged is rebuilt from what is left. The store is not changed: a rebuilt report goes
    to --out, otherwise into a new temporary folder.

    Examples: `idxflow report mnist --open` · `idxflow report mnist 20261124-0803 --out report.html`

    Args:
        dataset: A data set of the store.
        run: A run's id or the beginning of one, `latest`, or `champion` for the run that made the champion.
    """
    data = DatasetInStore.open(dataset, store)
    record = run_with_report(data, data.run(run))
    file = destination("--out", out, (".html",), data.store) if out else None
    with data.store.in_use(dataset), without_log_warnings():
        run_report = report_of(data, record)
        # With --json alone, only the content is needed.
        page = _page(data, run_report, file) if file or open_ or not as_json else None
        content = run_report.json() if as_json else None
    if open_ and page:
        _open(page)
    if content is not None:
        print_utf8(content)
    else:
        print_line(str(page))
    return 0


def _page(data: DatasetInStore, run_report: RunReport, out: Path | None) -> Path:
    """Return the path of the page; write the file if `out` is given or the report was rebuilt."""
    if out is None:
        if run_report.published:
            return run_report.published.html
        # A folder that nobody else can write to: in a shared one, the file could be another user's.
        out = Path(tempfile.mkdtemp(prefix="idxflow-")) / f"{data.name}-{run_report.run}.html"
    write(out, run_report.html())
    return out


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
