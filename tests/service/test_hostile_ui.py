"""Markup in every name that a person or an archive gives: Prefect's own pages show it, and do nothing of it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import write_tiny
from tests.support.commands import idxflow
from tests.support.reports import MARKUP
from tests.support.servers import HTTP

pytestmark = pytest.mark.flow

FILE = "<img src=x onerror=alert(1)>-[x](javascript:alert(1))-train-images.gz"
FORMULAS = ('=HYPERLINK("https://evil.example")', "+1+cmd|' /C calc'!A0", "@SUM(1)", "-1+1")
"""What a spreadsheet takes for a formula where a cell of a CSV file begins with it."""
CLASSES = (*MARKUP, *FORMULAS)
FOLDER = "<svg onload=alert(1)> ![x](https:evil.example)"
INJECTED = """() => [...document.querySelectorAll('*')].filter(e =>
    !(e.textContent && (e.getAttribute('href') || '').endsWith(e.textContent)) &&
    [...e.attributes].some(a => a.name.startsWith('on') || /^\\s*(javascript|data:text|.*evil\\.example)/i.test(
        ['href', 'src', 'action', 'data'].includes(a.name) ? a.value : '')
    )).map(e => e.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def run(server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of a data set whose every name is markup, as the server knows it."""
    folder = tmp_path_factory.mktemp("ui") / FOLDER
    folder.mkdir()
    dataset = write_tiny(folder, classes=len(CLASSES), train=240, test=96, shape=(len(CLASSES), 7), name="hostile")
    assert dataset.source
    shutil.move(dataset.source / dataset.archive("train-images").file, dataset.source / FILE)
    text = "".join(
        line for line in dataset.manifest.read_text("utf-8").splitlines(keepends=True) if line[:7] != "classes"
    )
    everything = json.dumps(" ".join(MARKUP))
    dataset.manifest.write_text(
        f"classes = [{', '.join(map(json.dumps, CLASSES))}]\ntitle = {everything}\nlicence = {everything}\n"
        f'homepage = "javascript:alert(1)"\ncitation = {everything}\n{text}'
        f"[archives.train-images]\nfile = {json.dumps(FILE)}\n",
        encoding="utf-8",
    )
    environment = server | {"IDXFLOW_STORE": str(folder / "store")}
    result = idxflow("run", "--dataset-file", str(dataset.manifest), "--json", "--set", "epochs=2", env=environment)
    outcome: dict[str, Any] = json.loads(result.stdout)
    assert outcome["report"], result.stderr
    return outcome


def pages(server: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the paths of the pages that show something of the run, each with a text that they end up with."""

    def read_all(what: str, **body: Any) -> list[dict[str, Any]]:
        return HTTP.post(f"{server['PREFECT_API_URL']}/{what}/filter", json=body).json()

    run = read_all("flow_runs", flow_runs={"name": {"like_": "hostile"}})[0]
    yield "/runs", run["name"]
    yield f"/runs/flow-run/{run['id']}", run["name"]
    yield "/artifacts", "metrics-hostile"
    task = read_all("task_runs", flow_runs={"id": {"any_": [run["id"]]}})[0]
    yield f"/runs/task-run/{task['id']}", task["name"]
    landmarks = {"metrics": "95% interval", "checks": "manifest key", "report": MARKUP[0]}
    for artifact in read_all("artifacts", artifacts={"flow_run_id": {"any_": [run["id"]]}}):
        kind = artifact["key"].removesuffix("-hostile")
        yield f"/artifacts/artifact/{artifact['id']}", landmarks.get(kind, artifact["key"])


@pytest.mark.parametrize("interface", ["", "/v2"])
@pytest.mark.usefixtures("run")
def test_the_pages_of_prefect_run_and_load_nothing_of_it(interface: str, server: dict[str, str], browser: Any):
    """Of both its interfaces. An address in a text may become a link that shows where it leads.

    The newer one shows cells of a table as plain text, so with the escapes that the older one needs.
    """
    at = server["PREFECT_API_URL"].removesuffix("/api")
    page, requests, dialogs, shown_text = browser.new_page(), [], [], ""
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for path, text in pages(server):
        page.goto(f"{at}{interface}{path}")
        page.wait_for_function("text => document.body.innerText.includes(text)", arg=text)
        shown_text += page.inner_text("body")
        assert page.evaluate(INJECTED) == [], path
    page.close()
    assert dialogs == []
    assert [url for url in requests if "evil.example" in url or url == f"{at}/x"] == []
    assert interface or [name for name in (*MARKUP[:2], *FORMULAS) if name not in shown_text] == []


@pytest.mark.usefixtures("run")
def test_no_cell_of_the_log_that_prefect_writes_as_csv_is_a_formula(server: dict[str, str]):
    """Prefect's is the only CSV there is, and quotes nothing: each line of ours begins with words of ours."""
    at = server["PREFECT_API_URL"]
    runs = HTTP.post(f"{at}/flow_runs/filter", json={"flow_runs": {"name": {"like_": "hostile"}}}).json()
    text = HTTP.get(f"{at}/flow_runs/{runs[0]['id']}/logs/download").text
    cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
    assert len(cells) > 50
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))] == []
