"""`idxflow report`, `runs` and `figures` as a user types them, on a store that real runs filled."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from flows import dataset_in_store
from flows.commands.cli import main
from storage import copying
from storage.cloud_store import CloudStore
from storage.formats import parquet
from storage.ledger import Ledger
from storage.records import RunRecord
from storage.store import LOCKS, Store
from tasks.report.contact_sheet import columns_for, draw
from tests.conftest import bars, write_tiny
from tests.support import commands
from tests.support.memory_objects import cloud_store
from tests.support.pages import check_page
from tests.support.reports import HOSTILE
from tests.support.runs import carried_out
from tests.support.servers import ROOT, clean_environment

MANIFEST = "[floors]\naccuracy = 0.0\nclass_recall = 0.0\n"


@dataclass(frozen=True)
class Output:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Output]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, dict[str, RunRecord]]]:
    """Four runs of one data set: a weak first champion, its successor, other test images, refused data."""
    folder = tmp_path_factory.mktemp("runs")
    store = Store(folder / "store")
    store.prepare()
    manifest = write_tiny(folder, test=90, manifest=MANIFEST).manifest
    runs = {"first": carried_out(store, manifest, epochs=1, learning_rate=1e-6)}
    runs["second"] = carried_out(store, manifest)
    write_tiny(folder, test=60, manifest=MANIFEST)
    runs["other test"] = carried_out(store, manifest)
    wrong = bars(120, 60, 3, (9, 7))["train-labels"]
    wrong[[4, 11]] = 37
    write_tiny(folder, test=60, manifest=MANIFEST, arrays={"train-labels": wrong})
    runs["refused"] = carried_out(store, manifest)
    yield store, runs
    shutil.rmtree(folder)


@pytest.fixture
def runs(filled: tuple[Store, dict[str, RunRecord]]) -> dict[str, RunRecord]:
    return filled[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the commands, and where their temporary files go."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return folder


@pytest.fixture
def cli(
    filled: tuple[Store, dict[str, RunRecord]],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Cli:
    monkeypatch.setenv("IDXFLOW_STORE", str(filled[0].root))

    def call(*words: str | Path) -> Output:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out + printed.err
        code = ended.value.code
        assert isinstance(code, int)
        return Output(code, printed.out, printed.err)

    return call


@pytest.fixture
def copied(filled: tuple[Store, dict[str, RunRecord]], cli: Cli, tmp_path: Path, monkeypatch: Any) -> Store:
    """A store of its own, to be damaged; the commands use it."""
    root = tmp_path / "copied"
    shutil.copytree(filled[0].root, root)
    monkeypatch.setenv("IDXFLOW_STORE", str(root))
    return Store(root)


def published(store: Store, run: RunRecord) -> Path:
    return store.entries("tiny", "publish") / run.id


def digests(root: Path) -> dict[str, str]:
    """Return what is kept below a folder; locks are no content."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and LOCKS not in path.parts
    }


# --- report -----------------------------------------------------------------------------------------------------------


def test_the_report_in_the_store_is_named_as_it_is(cli: Cli, filled: Any, runs: dict[str, RunRecord]) -> None:
    store = filled[0]
    before = digests(store.root)
    latest = published(store, runs["refused"]) / "report.html"
    for words in ([], ["latest"], [runs["refused"].id]):
        assert cli("report", "tiny", *words) == Output(0, f"{latest}\n", "")
    assert digests(store.root) == before


def test_the_champion_s_report_is_that_of_the_run_that_made_it(
    cli: Cli, filled: Any, runs: dict[str, RunRecord]
) -> None:
    decision = runs["second"].decision
    assert decision
    assert decision.outcome == "promoted"
    assert cli("report", "tiny", "champion").out == f"{published(filled[0], runs['second']) / 'report.html'}\n"


def test_json_is_the_content_of_the_published_report(cli: Cli, filled: Any, runs: dict[str, RunRecord]) -> None:
    text = (published(filled[0], runs["second"]) / "report.json").read_text(encoding="utf-8")
    assert cli("report", "tiny", runs["second"].id, "--json") == Output(0, text, "")


@pytest.mark.remedies("flows.dataset_in_store:run:2")
def test_the_beginning_of_an_id_is_enough_if_it_is_of_one_run(cli: Cli, runs: dict[str, RunRecord]) -> None:
    ids = [run.id for run in runs.values()]
    first = runs["first"].id
    short = next(first[:n] for n in range(1, 30) if sum(run.startswith(first[:n]) for run in ids) == 1)
    assert first in cli("report", "tiny", short).out
    output = cli("report", "tiny", "20")
    assert (output.code, output.out) == (2, "")
    assert f"'20' begins 4 of tiny: {', '.join(reversed(ids))}; type more of it" in output.err
    assert cli("report", "tiny", f"20{first[2:]}").code == 0


@pytest.mark.remedies("flows.dataset_in_store:run:3")
@pytest.mark.parametrize(
    "text", ["nonsense", "../../etc/passwd", "*", "\x1b[31mred", "\u202egnp", "latest\n", "\udcff", "9" * 5000]
)
def test_an_unknown_run_is_refused_in_a_sentence_with_the_latest(
    cli: Cli, runs: dict[str, RunRecord], text: str
) -> None:
    for words in (["report", "tiny", text], ["runs", "diff", "tiny", "latest", text]):
        output = cli(*words)
        assert (output.code, output.out) == (2, "")
        assert f"the latest: {', '.join(run.id for run in reversed(runs.values()))}" in output.err
        assert output.err.count("\n") == 1
        assert output.err.strip().isprintable()
        assert len(output.err) < 500
        assert cli(*words[:-1], runs["refused"].id).code == 0


@pytest.mark.parametrize("words", [["report"], ["runs", "list"], ["figures"]])
def test_a_data_set_that_was_never_run_is_refused_in_a_sentence(cli: Cli, words: list[str]) -> None:
    for name in ("mnist", "../tiny", "\x1b[31m", "."):
        output = cli(*words, name)
        assert (output.code, output.out, output.err.count("\n")) == (2, "", 1)
        assert "expected a data set of the store" in output.err


def test_errors_are_one_json_object_with_json(cli: Cli) -> None:
    for words in (
        ["report", "tiny", "x"],
        ["report", "no"],
        ["runs", "list", "no"],
        ["runs", "diff", "tiny", "x", "y"],
    ):
        output = cli(*words, "--json")
        assert output.code == output.json["error"]["exit_code"] == 2
        assert output.json["error"]["kind"] == "ConfigError"


@pytest.mark.parametrize("fate", ["was removed", "is damaged"])
def test_a_report_that_is_gone_or_damaged_is_made_again_elsewhere(
    cli: Cli, copied: Store, runs: dict[str, RunRecord], tmp_path: Path, fate: str
) -> None:
    folder = published(copied, runs["second"])
    html = folder / "report.html"
    text, content = html.read_text(encoding="utf-8"), (folder / "report.json").read_text(encoding="utf-8")
    if fate == "was removed":
        shutil.rmtree(folder)
    else:
        html.chmod(0o644)
        html.write_text(text.replace("champion", "chimpanzee"), encoding="utf-8")
    before = digests(copied.root)
    output = cli("report", "tiny", runs["second"].id)
    page = Path(output.out.strip())
    assert (output.code, output.err.count("\n")) == (0, 1)
    assert f"the report of run {runs['second'].id} {fate}; this one was rebuilt from the ledger" in output.err
    assert page.parent.parent == tmp_path
    assert page.parent.stat().st_mode & 0o077 == 0
    assert page.read_text(encoding="utf-8") == text
    assert cli("report", "tiny", runs["second"].id, "--json").out == content
    assert digests(copied.root) == before
    assert len(list(tmp_path.glob("idxflow-*"))) == 1, "--json alone writes no file"


def test_a_report_is_made_again_without_the_entries_that_are_gone_too(
    cli: Cli, copied: Store, runs: dict[str, RunRecord], here: Path
) -> None:
    for step in ("publish", "train", "fetch"):
        shutil.rmtree(copied.entries("tiny", step))
    output = cli("report", "tiny", runs["second"].id, "--out", "made.html")
    assert (output.code, output.out, output.err.count("\n")) == (0, f"{here / 'made.html'}\n", 1)
    removed_steps = "fetch train-images, fetch train-labels, fetch test-images, fetch test-labels, train"
    assert f"without what was also removed: {removed_steps}\n" in output.err
    check_page((here / "made.html").read_text(encoding="utf-8"))


def test_a_run_with_nothing_new_has_the_report_of_the_version_it_found(
    cli: Cli, copied: Store, runs: dict[str, RunRecord]
) -> None:
    ledger, second = Ledger(copied, "tiny"), runs["second"]
    values = next(run for run in ledger.read("runs") if run["run"] == second.id)
    ledger.append("runs", "20991231-000000-abcd", {**values, "state": "unchanged"})
    output = cli("report", "tiny")
    assert output.out == f"{published(copied, second) / 'report.html'}\n"
    assert f"this is the report of v{values['version']}, run {second.id}" in output.err


def test_out_writes_the_page_and_replaces_only_a_page(
    cli: Cli, filled: Any, runs: dict[str, RunRecord], here: Path
) -> None:
    text = (published(filled[0], runs["second"]) / "report.html").read_bytes()
    for _ in range(2):
        output = cli("report", "tiny", "champion", "--out", "copy.html")
        assert output == Output(0, f"{here / 'copy.html'}\n", "")
        assert (here / "copy.html").read_bytes() == text
    (here / "mine.html").write_text("my notes")
    (here / "folder.html").mkdir()
    stored = published(filled[0], runs["second"])
    for file, why in {
        "mine.html": "holds something else",
        "folder.html": "is a folder",
        "page.txt": "expected --out to end in .html",
        "none/page.html": "expected a folder to write",
        str(stored / "report.html"): "outside the store",
        str(filled[0].root / "new.html"): "outside the store",
    }.items():
        output = cli("report", "tiny", "--out", file)
        assert (output.code, output.out) == (2, "")
        assert why in output.err
    assert (here / "mine.html").read_text() == "my notes"
    assert (stored / "report.html").read_bytes() == text
    assert sorted(path.name for path in here.iterdir()) == ["copy.html", "folder.html", "mine.html"]


def test_open_shows_the_page_in_the_browser(filled: Any, runs: dict[str, RunRecord], tmp_path: Path) -> None:
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    process = typed(tmp_path, filled[0], ["report", "tiny", "--open"], BROWSER=f"{browser} %s")
    page = published(filled[0], runs["refused"]) / "report.html"
    assert (process.returncode, process.stdout) == (0, f"{page}\n")
    assert seen.read_text() == f"{page.as_uri()}\n"


def test_open_without_a_browser_is_refused_in_a_sentence(
    filled: Any, runs: dict[str, RunRecord], tmp_path: Path
) -> None:
    process = typed(tmp_path, filled[0], ["report", "tiny", "--open"], PATH=str(tmp_path), BROWSER="", DISPLAY="")
    assert (process.returncode, process.stdout) == (1, "")
    assert f"expected a browser to show {published(filled[0], runs['refused'])}" in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.fixture
def remote(filled: tuple[Store, dict[str, RunRecord]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CloudStore:
    """The same store in object storage; the commands use it."""
    store = cloud_store(tmp_path / "cache")
    copying.copy(filled[0], store, "tiny")
    monkeypatch.setattr(dataset_in_store, "open_store", lambda _: store)
    return store


def test_a_report_in_object_storage_is_named_by_its_address_and_stays_open(
    cli: Cli, filled: Any, remote: CloudStore, runs: dict[str, RunRecord], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["second"].id
    key = next(key for key in remote.objects.contents() if run in key and key.endswith("/report.html"))
    text = (published(filled[0], runs["second"]) / "report.html").read_bytes()
    remote.objects.forget()
    assert cli("report", "tiny", run) == Output(0, f"{remote.objects.where(key)}\n", "")
    assert remote.objects.counts["download"] == 0
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert cli("report", "tiny", run, "--open") == Output(0, f"{remote.objects.where(key)}\n", "")
    page = Path(opened[0].removeprefix("file://"))
    # Also if the cache makes room, or another machine of this person's does.
    shutil.rmtree(remote.root.parents[1] / "files")
    assert page.read_bytes() == text
    assert page.name == f"tiny-{run}.html"
    assert page.parent.stat().st_mode & 0o077 == 0
    assert cli("report", "tiny", run, "--out", "copy.html").out == f"{here / 'copy.html'}\n"
    assert (here / "copy.html").read_bytes() == text
    content = (published(filled[0], runs["second"]) / "report.json").read_text(encoding="utf-8")
    remote.objects.forget()
    assert cli("report", "tiny", run, "--json") == Output(0, content, "")
    assert [
        operation.key.rpartition("/")[2] for operation in remote.objects.operations if operation.name == "download"
    ] == ["report.json"]


@pytest.mark.parametrize("fate", ["was removed", "is damaged"])
def test_a_report_that_is_gone_or_damaged_in_object_storage_is_made_again(
    cli: Cli, filled: Any, remote: CloudStore, runs: dict[str, RunRecord], here: Path, fate: str
) -> None:
    run = runs["second"]
    for key in [key for key in remote.objects.contents() if f"7-reports/{run.id}/" in key]:
        if fate == "was removed":
            remote.objects.delete([key])
        elif key.endswith(".html"):
            remote.objects.put(key, b"<!doctype html>")
    output = cli("report", "tiny", run.id, "--out", "copy.html")
    assert f"the report of run {run.id} {fate}; this one was rebuilt from the ledger and the results" in output.err
    assert (here / "copy.html").read_bytes() == (published(filled[0], run) / "report.html").read_bytes()


def test_a_report_is_made_again_without_a_file_that_is_damaged_in_object_storage(
    cli: Cli, remote: CloudStore, runs: dict[str, RunRecord], here: Path
) -> None:
    for key in remote.objects.contents():
        if "7-reports/" in key:
            remote.objects.delete([key])
        elif key.endswith(("/predictions.npz", "/history.jsonl", "/summary.parquet", "/means.npz", "/held_out.npz")):
            remote.objects.put(key, b"damaged")
    output = cli("report", "tiny", runs["second"].id, "--out", "made.html")
    assert (output.code, output.out) == (0, f"{here / 'made.html'}\n")
    check_page((here / "made.html").read_text(encoding="utf-8"))


def typed(home: Path, store: Store, words: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return commands.idxflow(*words, env=clean_environment(home, IDXFLOW_STORE=str(store.root), **more))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_a_line_each(cli: Cli, runs: dict[str, RunRecord]) -> None:
    output = cli("runs", "list", "tiny")
    lines = output.out.splitlines()
    assert [line.split()[2] for line in lines] == [run.id for run in reversed(runs.values())]
    assert [line.split()[3] for line in lines][::3] == ["refused", "promoted"]
    second = runs["second"]
    assert second.evaluation
    assert all(text in lines[2] for text in ("promoted", "v2", f"{second.evaluation.accuracy:.2%}", " s  ", "test"))
    assert lines[2].startswith(second.started.replace("T", " ")[:19])
    assert "%" not in lines[0]
    assert len(cli("runs", "list", "tiny", "--limit", "2").out.splitlines()) == 2
    assert cli("runs", "list", "tiny", "--limit", "0").code == 2


def test_runs_are_listed_as_json(cli: Cli, runs: dict[str, RunRecord]) -> None:
    listed = cli("runs", "list", "tiny", "--json", "--limit", "3").json
    assert [run["run"] for run in listed] == [run.id for run in reversed(runs.values())][:3]
    second = runs["second"]
    assert second.evaluation
    assert listed[2]["test_accuracy"] == second.evaluation.accuracy
    assert (listed[2]["version"], listed[2]["asked_by"], listed[0]["version"]) == (2, "test", None)


def test_what_another_wrote_into_the_ledger_does_not_reach_the_terminal(cli: Cli, copied: Store) -> None:
    ledger = Ledger(copied, "tiny")
    for number, text in enumerate(HOSTILE):
        run = f"20991231-00000{number % 10}-{number:04}"
        ledger.append("runs", run, {"state": text, "asked_by": text, "started": text, "version": text, "seconds": text})
    output = cli("runs", "list", "tiny", "--limit", str(len(HOSTILE)))
    assert output.code == 0
    assert len(output.out.splitlines()) == len(HOSTILE)
    assert all(line.isprintable() for line in output.out.splitlines())


def answers(run: RunRecord) -> np.ndarray:
    assert run.evaluation
    with np.load(run.evaluation.file, allow_pickle=False) as arrays:
        return np.asarray(arrays["predicted"])


def test_a_difference_of_two_runs_is_what_their_answers_say(cli: Cli, runs: dict[str, RunRecord]) -> None:
    first, second = runs["first"], runs["second"]
    diff = cli("runs", "diff", "tiny", first.id, second.id, "--json").json
    differences = {
        (difference["part"], difference["name"]): (difference["a"], difference["b"])
        for difference in diff["differences"]
    }
    assert differences == {("parameters", "epochs"): (1, 2), ("parameters", "learning_rate"): (1e-6, 0.1)}
    assert second.test
    labels, a, b = parquet.labels(second.test.file), answers(first), answers(second)
    lost = np.flatnonzero((a == labels) & (b != labels)).tolist()
    gained = np.flatnonzero((a != labels) & (b == labels)).tolist()
    assert gained
    for kind, rows in {"right_to_wrong": lost, "wrong_to_right": gained}.items():
        flips = diff["flips"][kind]
        assert (flips["count"], [flip["row"] for flip in flips["rows"]]) == (len(rows), rows)
        for flip in flips["rows"]:
            row = flip["row"]
            assert [flip["label"], flip["a"], flip["b"]] == [f"bar {values[row]}" for values in (labels, a, b)]
    paired = diff["paired"]
    assert (paired["only_a"], paired["only_b"], paired["rows"]) == (len(lost), len(gained), 90)
    assert paired["net"] == len(gained) - len(lost)
    assert paired["differing"] == int((a != b).sum())
    assert second.decision
    assert second.decision.paired
    assert paired["p_better"] == second.decision.paired.p_better
    assert diff["missing"] == []
    turned = cli("runs", "diff", "tiny", second.id, first.id, "--json").json
    assert turned["paired"]["net"] == -paired["net"]


def test_a_difference_is_told_in_lines(cli: Cli, runs: dict[str, RunRecord]) -> None:
    output = cli("runs", "diff", "tiny", runs["first"].id, "champion")
    assert (output.code, output.err) == (0, "")
    words = [" ".join(line.split()) for line in output.out.splitlines()]
    assert "parameters epochs 1 → 2" in words
    assert any(line.startswith("accuracy test") for line in words)
    assert any(line.startswith("recall bar") for line in words)
    assert any(line.startswith("paired test of ") for line in words)
    assert any(line.startswith("wrong→right") for line in words)
    assert any(line.startswith("row ") and "predicted bar" in line for line in words)
    assert "libraries" not in output.out


def test_a_run_does_not_differ_from_itself(cli: Cli, runs: dict[str, RunRecord]) -> None:
    second = runs["second"].id
    assert cli("runs", "diff", "tiny", second, "champion") == Output(
        0, f"runs {second} and {second} do not differ\n", ""
    )
    # The first model is often wrong; that is no change.
    diff = cli("runs", "diff", "tiny", runs["first"].id, runs["first"].id, "--json").json
    assert diff["paired"]["both_wrong"] > 0
    assert [kind["count"] for kind in diff["flips"].values()] == [0, 0]


def test_runs_on_other_test_images_are_not_compared_image_by_image(cli: Cli, runs: dict[str, RunRecord]) -> None:
    words = ["runs", "diff", "tiny", runs["second"].id, runs["other test"].id]
    diff = cli(*words, "--json").json
    assert (diff["paired"], diff["flips"]) == (None, None)
    assert {difference["name"] for difference in diff["differences"] if difference["part"] == "data"} >= {
        "test rows",
        "test content",
    }
    output = cli(*words, "--figure", "none.png")
    assert "the runs were tested on different images" in output.err
    assert "picture        none" in output.out
    assert not Path("none.png").exists()


def test_a_refused_run_is_compared_as_far_as_it_came(cli: Cli, runs: dict[str, RunRecord]) -> None:
    output = cli("runs", "diff", "tiny", runs["other test"].id, "latest")
    assert output.code == 0
    assert "train content" in output.out
    assert f"run {runs['refused'].id} ended before its model was tested" in output.err


@pytest.mark.parametrize("step", ["evaluate", "decode", "train"])
def test_collected_entries_are_named_and_the_rest_is_shown(
    cli: Cli, copied: Store, runs: dict[str, RunRecord], step: str
) -> None:
    shutil.rmtree(copied.entries("tiny", step))
    output = cli("runs", "diff", "tiny", runs["first"].id, runs["second"].id)
    assert output.code == 0
    assert "learning_rate" in output.out
    for name in ("first", "second"):
        assert f"run {runs[name].id}: removed from the store or damaged: {step}" in output.err
    assert ("paired test" in output.out) == (step == "train")
    assert ("recall" in output.out) == (step != "evaluate")
    assert "Traceback" not in output.err
    assert "left out" not in output.err


def test_what_is_missing_is_named_in_sentences_alone(copied: Store, runs: dict[str, RunRecord], tmp_path: Path) -> None:
    shutil.rmtree(copied.entries("tiny", "evaluate"))
    process = typed(tmp_path, copied, ["runs", "diff", "tiny", runs["first"].id, runs["second"].id])
    assert process.returncode == 0
    # In a process of its own, where no one has set up logging.
    assert [line[:13] for line in process.stderr.splitlines()] == ["idxflow: run ", "idxflow: run ", "idxflow: with"]


def test_the_flipped_images_are_pictured(cli: Cli, runs: dict[str, RunRecord], here: Path) -> None:
    words = ["runs", "diff", "tiny", runs["first"].id, runs["second"].id]
    flips = cli(*words, "--json").json["flips"]
    count = min(25, sum(kind["count"] for kind in flips.values()))
    output = cli(*words, "--figure", "flipped.svg")
    assert output.out.splitlines()[-1] == "picture        flipped.svg"
    texts = svg_texts((here / "flipped.svg").read_bytes())
    assert sum(text.startswith("row ") for text in texts) == count
    assert any("bar" in text and "→" in text for text in texts)
    cli(*words, "--figure", "flipped.png")
    with Image.open(here / "flipped.png") as picture:
        picture.load()
        assert picture.format == "PNG"


# --- figures ----------------------------------------------------------------------------------------------------------


def svg_texts(data: bytes) -> list[str]:
    root = ElementTree.fromstring(data)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_figure_has_one_example_of_each_class(cli: Cli, here: Path) -> None:
    output = cli("figures", "tiny")
    assert output == Output(0, f"{here / 'tiny.png'}: examples of 3 of 3 classes of tiny, train split\n", "")
    with Image.open(here / "tiny.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    # The bar of class n is its image's row n, as ink on paper: three dark bars, each lower than the one before.
    assert pixels[:2].min() == 255
    thirds = np.array_split(pixels, 3, axis=1)
    tops = [int(np.flatnonzero((third < 60).mean(axis=1) > 0.5)[0]) for third in thirds]
    assert tops[0] < tops[1] < tops[2]
    cli("figures", "tiny", "--out", "tiny.svg", "--split", "test")
    assert svg_texts((here / "tiny.svg").read_bytes()) == ["bar 0", "bar 1", "bar 2"]


def test_a_figure_replaces_only_a_figure(cli: Cli, here: Path) -> None:
    assert [cli("figures", "tiny").code for _ in range(2)] == [0, 0]
    (here / "notes.png").write_text("not a picture")
    (here / "a.png").mkdir()
    output = cli("figures", "tiny", "--out", "notes.png")
    assert (output.code, output.out) == (2, "")
    assert "notes.png holds something else" in output.err
    assert (here / "notes.png").read_text() == "not a picture"
    assert cli("figures", "tiny", "--out", "notes.png", "--force").code == 0
    assert (here / "notes.png").read_bytes().startswith(b"\x89PNG")
    assert cli("figures", "tiny", "--out", "a.png", "--force").code == 2
    assert "expected --out to end in .png or .svg" in cli("figures", "tiny", "--out", "x.jpg").err
    assert cli("figures", "tiny", "--split", "both").code == 2
    assert sorted(path.name for path in here.iterdir()) == ["a.png", "notes.png", "tiny.png"]


@pytest.mark.parametrize("length", [240, 300])
def test_a_file_that_cannot_be_written_is_refused_in_a_sentence(cli: Cli, here: Path, length: int) -> None:
    # A name of 240 characters is possible, but not the longer one under which the file is prepared.
    output = cli("figures", "tiny", "--out", "x" * length + ".png")
    assert (output.code, output.out, output.err.count("\n")) == (2, "", 1)
    assert "expected a file that can be written" in output.err
    assert "File name too long" in output.err
    assert list(here.iterdir()) == []


def test_an_older_run_s_images_are_taken_where_the_newest_are_gone(
    cli: Cli, copied: Store, runs: dict[str, RunRecord]
) -> None:
    refused = runs["refused"].train
    assert refused
    shutil.rmtree(copied.entries("tiny", "decode") / refused.entry.key)
    output = cli("figures", "tiny")
    assert output.code == 0
    assert f"taken from run {runs['other test'].id}" in output.err
    shutil.rmtree(copied.entries("tiny", "decode"))
    output = cli("figures", "tiny")
    assert (output.code, output.err.count("\n")) == (2, 1)
    assert "removed from the store or are damaged" in output.err


@pytest.mark.parametrize("count", [1, 2, 10, 26, 256])
def test_any_number_of_classes_fits(count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 5, 8), dtype=np.uint8)
    names = [[f"class {n}"] for n in range(count)]
    with Image.open(io.BytesIO(draw(images, names, "png"))) as picture:
        width, height = picture.size
    assert count in (1, 2) or 1 < width / height < 4
    assert svg_texts(draw(images, names, "svg")) == [name for [name] in names]
    assert columns_for(10) == 5


@pytest.mark.parametrize("text", [*HOSTILE, "\ufffe\uffff", "\udcff", ""])
def test_any_caption_can_be_drawn(text: str) -> None:
    images = np.zeros((2, 3, 3), np.uint8)
    svg_texts(draw(images, [[text, text], [text]], "svg"))
    with Image.open(io.BytesIO(draw(images, [[text, text], [text]], "png"))) as picture:
        picture.load()
        assert picture.width < 400


# --- all --------------------------------------------------------------------------------------------------------------

LIGHT = """
import json, sys
from flows.commands.cli import run_command
heavy = {"tensorflow", "keras", "great_expectations", "prefect", "sklearn", "scipy"}
for words in json.loads(sys.argv[1]):
    code = run_command(words)
    print(words[:2], code, *{name.split(".")[0] for name in sys.modules} & heavy, file=sys.stderr)
"""


def test_no_heavy_library_is_imported_even_to_make_a_report_again(filled: Any, copied: Store, tmp_path: Path) -> None:
    shutil.rmtree(copied.entries("tiny", "publish"))
    again = tmp_path / "again.html"
    commands = [
        ["report", "tiny", "champion"],
        ["runs", "list", "tiny"],
        ["runs", "diff", "tiny", "champion", "latest"],
        ["figures", "tiny", "--out", f"{tmp_path}/x.png"],
    ]
    commands = [[*words, "--store", str(filled[0].root)] for words in commands]
    commands.append(["report", "tiny", "champion", "--out", str(again), "--store", str(copied.root)])
    process = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    notes = [line for line in process.stderr.splitlines() if line.startswith("[")]
    assert notes == [f"{words[:2]} 0" for words in commands]
    check_page(again.read_text(encoding="utf-8"))
