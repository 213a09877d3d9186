"""What a terminal of 80 columns shows: no line is broken by it, and what stands there can be typed and opened."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.commands.cli import run_command
from flows.commands.several import _rows
from flows.terminal import bars, layout
from flows.terminal.console import Console
from flows.terminal.output import remark
from flows.terminal.streams import guarded_streams, without_log_warnings
from storage.datasets import catalog
from storage.outcomes import Outcome
from storage.records import Failure, Step
from storage.store import Store
from tasks.ui.progress import Progress, advance
from tests.conftest import write_tiny
from tests.support.runs import carried_out, run_without_prefect
from tests.support.servers import BIN, clean_environment
from tests.support.terminal import seen

COLUMNS = 80
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")
SUMMARY = "35,492 bytes from scikit-learn (embedded), sha256 bd62a23194ac"
FETCHED = Step("fetch", "", SUMMARY, 0.5, False, "", "train-images")
LONG = "word " * 30


def terminal_text(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch, columns: int = COLUMNS) -> str:
    """Return what a terminal gets of a call, both streams together, without colours."""
    return _CONTROL.sub("", sent(call, monkeypatch, columns))


def sent(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch, columns: int = COLUMNS) -> str:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    got: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(leader, 65536):
                got.append(data)
        except OSError:
            # All who could write have ended.
            return

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(follower, "w", encoding="utf-8") as stream:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        patch.delenv("COLUMNS", raising=False)
        patch.setenv("TERM", "xterm")
        call()
    reader.join()
    os.close(leader)
    return b"".join(got).decode()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with two runs, the second with another seed."""
    folder = tmp_path_factory.mktemp("terminal")
    store = Store(folder / "store")
    store.prepare()
    manifest = write_tiny(folder).manifest
    for seed in (1, 2):
        carried_out(store, manifest, seed=seed)
    return store


@pytest.mark.parametrize(
    "words",
    [
        "datasets", "status", "verify", "gc --dry-run", "runs list tiny", "runs diff tiny latest champion",
        "registry history tiny", "registry show tiny champion", "registry diff tiny 1 champion",
        "registry at tiny 2100-01-01", "report tiny", "run no-such-data", "predict tiny no-such-file",
    ],
)  # fmt: skip
def test_the_lines_of_each_command_fit(filled: Store, monkeypatch: pytest.MonkeyPatch, words: str):
    # As for one who works where the store is.
    monkeypatch.chdir(filled.root.parent)
    monkeypatch.setenv("IDXFLOW_STORE", str(filled.root))
    lines = terminal_text(lambda: run_command(words.split()), monkeypatch).splitlines()
    assert any(lines)
    assert [line for line in lines if len(line) > COLUMNS] == []
    assert str(filled.root) not in "".join(lines)


def test_the_lines_of_a_run_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    outcome = Outcome(
        "kept",
        "kept champion v1: candidate v2, which is better by too little to be told from luck, net +1 of 360",
        "tiny",
        str(tmp_path / "store"),
        train_accuracy=0.99,
        test_accuracy=0.98,
        epochs=1,
        seconds=1.0,
        report=str(tmp_path / "store" / "tiny" / "7-reports" / "20261124-143212-5725" / "report.html"),
    )
    why = "learning_rate 0.01 → 0.02, batch_size 64 → 8, momentum 0.9 → 0.8"
    trained = Step("train", "", "1 epoch, 99.58% on training", 100.0, False, why)
    damaged = tmp_path / "store" / "a" / "very" / ("long" * 10) / "path"

    def run() -> None:
        log = logging.getLogger("tasks.ui.epochs")
        with guarded_streams(), Console(as_json=False) as console, console.waiting("importing Prefect"):
            for step in (FETCHED, trained):
                log.info("", extra={"step": step})
            log.warning("a file of the store is damaged: %s", damaged)
            console._say_end(outcome)

    written = sent(run, monkeypatch)
    assert "importing Prefect" in written
    lines = [line.rstrip() for line in seen(written)]
    assert [line for line in lines if len(line) > COLUMNS] == []
    text = "\n".join(lines)
    assert "fetch train-images        0.50 s" in text
    assert f"\n    {SUMMARY}\n" in text
    assert "\nreport store/tiny/7-reports/20261124-143212-5725/report.html\n" in text
    assert "importing Prefect" not in text
    assert ", 1 epoch, " in text


def test_the_most_important_finding_stands_above_the_report_with_a_command_that_can_be_copied(
    filled: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(filled.root.parent)
    monkeypatch.delenv("IDXFLOW_STORE", raising=False)
    manifest, outcomes = filled.root.parent / "tiny.toml", []

    def run() -> None:
        slow = {"epochs": 5, "learning_rate": 1e-6, "activation": "sigmoid", "hidden": [8] * 6, "batch_size": 8}
        with guarded_streams(), Console(as_json=False) as console:
            # Its ending is that of the log, as if the server had died meanwhile.
            values = run_without_prefect(filled, dataset_file=str(manifest), **slow)
            outcomes.append(values)
            assert console._ending
            console._say_end(console._ending)

    lines = [line.rstrip() for line in seen(sent(run, monkeypatch, 200))]
    (finding, *_) = outcomes[0]["findings"]
    assert finding["name"] == "not learning"
    (at,) = (number for number, line in enumerate(lines) if line.endswith("Try:"))
    assert lines[at - 1].startswith("The network did not learn: ") or lines[at].startswith(
        "The network did not learn: "
    )
    command = lines[at + 1]
    assert command.startswith("    ")
    assert shlex.split(command)[1:] == shlex.split(layout.shortened(finding["remedy"]))[1:]
    assert lines[at + 2].startswith("report ")


def test_log_warnings_that_a_command_says_itself_stay_off_the_terminal(capsys: pytest.CaptureFixture[str]):
    # As TensorFlow's libraries do it.
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    root.addHandler(handler)
    try:
        with without_log_warnings():
            logging.getLogger("tasks.report.past_runs").warning("report: left out train")
        assert capsys.readouterr().err == ""
        logging.getLogger("tasks.report.past_runs").warning("another one")
        assert "another one" in capsys.readouterr().err
    finally:
        root.removeHandler(handler)


def test_a_command_at_the_end_of_a_long_line_is_not_broken():
    command = "idxflow run digits --profile default --set optimizer=adam --set 'hidden=[100, 100]'"
    sentence = (
        "The network under-fits: it gets only 84.61% of the fitted rows right, and its loss no longer falls. Try:"
    )
    lines = layout.fitted(f"{sentence} {command}", COLUMNS).split("\n")
    assert " ".join(line.strip() for line in lines[:-1]) == sentence
    assert lines[-1].strip().endswith(command.removeprefix("idxflow "))
    assert layout.fitted(f"to use it: {command}", 200) == layout.callable_from_here(f"to use it: {command}")
    # Words after it are no part of it.
    prose = f"expected rows; found none; run it: {command}, or choose another data set"
    assert all(len(line) <= COLUMNS for line in layout.fitted(prose, COLUMNS).split("\n"))


def test_a_call_of_curl_at_the_end_of_a_long_line_is_not_broken():
    command = (
        "curl -s http://127.0.0.1:4280/v1/digits/mean.png | curl -H 'Content-Type: image/png' --data-binary @- URL"
    )
    assert layout.fitted(f"try: {command}", COLUMNS).split("\n") == ["try:", f"    {command}"]


def test_an_error_after_a_bar_fits_the_terminal(monkeypatch: pytest.MonkeyPatch):
    def run() -> None:
        with guarded_streams():
            with bars.shown():
                advance(Progress("read", 1, 2, ""))
            remark(f"expected images; found none; {LONG}")

    lines = [line.rstrip() for line in seen(sent(run, monkeypatch))]
    assert any(line.startswith("idxflow: expected images; found none") for line in lines)
    assert [line for line in lines if len(line) > COLUMNS] == []


def test_what_moves_neither_hides_a_line_nor_stays(monkeypatch: pytest.MonkeyPatch):
    names = [f"fetch {number}" for number in range(20)]

    def run() -> None:
        log = logging.getLogger("tasks.fetch")
        with guarded_streams(), Console(as_json=False) as console:
            with console.waiting("importing Prefect"):
                log.warning("first")
            for name in names:
                for percent in (0, 40, 100):
                    console.advance(Progress(name, percent, 100, "bytes"))
                    console._bars.refresh()
                    log.info("", extra={"step": Step(f"{name} at {percent}", "", SUMMARY, 0.5, False, "first run")})
            log.warning("last")

    lines = [line.rstrip() for line in seen(sent(run, monkeypatch)) if line.strip()]
    steps = [f"{name} at {percent}" for name in names for percent in (0, 40, 100)]
    assert [line.partition("  ")[0] for line in lines if not line.startswith("  ")] == ["first", *steps, "last"]
    assert lines.count(f"    {SUMMARY}") == len(steps)


def test_the_table_of_several_runs_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    report = str(tmp_path / "store" / "letters" / "7-reports" / "20261124-143212-5725" / "report.html")
    refused = Failure("ValidationFailed", LONG.strip(), 3)
    outcomes = {
        "letters": Outcome(
            "promoted", "", "", "", version=1, test_accuracy=0.9633, seconds=21.1, report=report
        ).to_json(),
        "bad": Outcome("refused", "", "", "", seconds=1.0, error=refused).to_json(),
        "shapes": None,
    }

    def run() -> None:
        with guarded_streams(), Console(as_json=False) as console:
            console.advance(Progress("letters", 0, None, ""))
            console.say("letters  a step")
            console.table([*_rows(outcomes)])

    lines = [line.rstrip() for line in seen(sent(run, monkeypatch)) if line.strip()]
    assert [line for line in lines if len(line) > COLUMNS] == []
    assert lines[:4] == [
        "letters  a step",
        "letters  promoted       v1     96.33%      21.1 s",
        "    report store/letters/7-reports/20261124-143212-5725/report.html",
        "bad      data refused   –           –       1.0 s",
    ]
    assert lines[4].startswith("    word word")
    assert lines[-2:] == ["shapes   not started    –           –           –", "    no report"]


def test_in_a_pipe_nothing_is_broken_or_shortened(filled: Store, tmp_path: Path):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(filled.root), COLUMNS="60")
    command = [str(BIN / "idxflow"), "report", "tiny"]
    process = subprocess.run(command, env=environment, cwd=filled.root, capture_output=True, text=True, check=True)
    assert Path(process.stdout.strip()).is_absolute()
    listed = subprocess.run(
        [str(BIN / "idxflow"), "datasets"], env=environment, capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == len(catalog.names())


def test_in_a_pipe_that_is_to_have_colours_nothing_moves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with (tmp_path / "log").open("w+", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        with guarded_streams(), Console(as_json=False) as console, console.waiting("importing Prefect"):
            console.advance(Progress("fetch", 40, 100, "bytes"))
            console._say_step(FETCHED)
    (line,) = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert f"{SUMMARY}    " in line
    assert {sequence[-1] for sequence in _CONTROL.findall(line)} <= {"m"}


@pytest.mark.parametrize("command", ["idxflow status --store", "/opt/my/bin/prefect deployment run", "export PATH="])
def test_a_command_to_be_copied_stays_a_line(command: str):
    line = f"  {command} {'x' * 60} --more"
    assert layout.fitted(line, 60) == layout.callable_from_here(line)


def test_columns_stay_together():
    line = "2026-11-28 23:40:25  20261128-234025-1a84  kept         v2     96.94%       6.8 s  command line"
    assert layout.fitted(line, 80) == (
        "2026-11-28 23:40:25  20261128-234025-1a84  kept         v2     96.94%\n"
        "                     6.8 s  command line"
    )
    assert layout.fitted(line, 100) == line


def test_a_table_has_one_layout():
    rows = [("digits  Digits", "10 classes"), ("mnist   MNIST", "10 classes, CC BY-SA 3.0")]
    whole = ["digits  Digits  10 classes", "mnist   MNIST  10 classes, CC BY-SA 3.0"]
    assert layout.laid_out(rows, None) == layout.laid_out(rows, len(whole[1])) == whole
    assert layout.laid_out(rows, len(whole[1]) - 1) == [
        "digits  Digits", "    10 classes", "mnist   MNIST", "    10 classes, CC BY-SA 3.0",
    ]  # fmt: skip


def test_what_follows_a_label_is_indented():
    line = "warning  server: expected a Prefect server at http://127.0.0.1:4200/api, found none; start one of your own"
    assert layout.fitted(line, 60).splitlines() == [
        "warning  server: expected a Prefect server at",
        "         http://127.0.0.1:4200/api, found none; start one of",
        "         your own",
    ]
    assert layout.fitted("word " * 30, 60).splitlines()[1].startswith("  word")


@pytest.mark.parametrize("line", [json.dumps([LONG]), json.dumps({"a": LONG}), f"│ {LONG}", f"\x1b[1m{LONG}"])
def test_json_and_what_moves_the_cursor_are_left_alone(line: str):
    assert layout.fitted(line, 60) == line


def test_a_path_stays_whole_so_that_it_can_be_copied():
    path = "/srv/" + "a/" * 60
    assert path in layout.fitted(f"expected a folder at {path}; found none", 60).splitlines()[1]


def test_paths_are_written_from_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    assert layout.shortened(f"in {here}/store/digits, {here}/store; {home}/.prefect") == (
        "in store/digits, ./store; ~/.prefect"
    )
    for other in (f"{here}2/store", f"x{here}/store", str(here), f"https://example.org{home}/a"):
        assert layout.shortened(other) == other


def test_programs_that_are_not_on_the_path_are_named_as_they_can_be_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    beside = Path(sys.executable).parent
    monkeypatch.chdir(beside.parent.parent)
    monkeypatch.setenv("PATH", str(tmp_path))
    layout._called.cache_clear()
    try:
        line = "start it with `{0} up`: {0} gc, {1} --no-prompt deploy; {2} 0.1, Prefect and {2}.toml"
        programs = ("idxflow", "prefect", "idxflow")
        folder = f"{beside.parent.name}/bin"
        text = layout.callable_from_here(line.format(*programs))
        assert text == line.format(f"{folder}/idxflow", f"{folder}/prefect", "idxflow")
        called = re.findall(r"`(\S+) up`", text)[0]
        assert shutil.which(str(Path.cwd() / called))
        layout._called.cache_clear()
        monkeypatch.setenv("PATH", str(beside))
        assert layout.callable_from_here(line.format(*programs)) == line.format(*programs)
    finally:
        layout._called.cache_clear()
