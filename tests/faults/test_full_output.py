"""Standard output on a full disk, closed, or read by nobody: every command says it in a sentence, or keeps quiet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from cyclopts import App

from flows.commands.cli import app, run_command
from storage.formats.quarantined import row_digest
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tests.conftest import repeated, write_tiny
from tests.support.runs import carried_out
from tests.support.servers import BIN, clean_environment

FULL = "/dev/full"
SENTENCE = "idxflow: cannot write to standard output: No space left on device; free space"

COMMANDS: dict[str, list[str]] = {
    "alerts add": ["command", "--run", "true", "--name", "another", "--store", "STORE"],
    "alerts list": ["--store", "STORE"],
    "alerts remove": ["spare"],
    "alerts send": ["--store", "STORE"],
    "alerts test": ["usual", "--store", "STORE"],
    "backfill": ["--dataset-file", "TMP/tiny.toml", "--from", "2026-11-01", "--to", "2026-11-30", "--store", "STORE"],
    "copy": ["STORE", "TMP/copy"],
    "dataset add": ["mine", "TMP/tiny-source", "--as", "TMP/added"],
    "dataset schedule": ["TMP/tiny.toml", "0 3 * * 0", "--store", "STORE"],
    "dataset unschedule": ["TMP/tiny.toml", "--store", "STORE"],
    "datasets": [],
    "diagnose": ["tiny", "--store", "STORE"],
    "doctor": ["--store", "STORE"],
    "drift": [
        "tiny",
        "TMP/tiny-source",
        "--dataset-file",
        "TMP/tiny.toml",
        "--out",
        "TMP/drift.html",
        "--store",
        "STORE",
    ],
    "export": ["tiny", "--out", "TMP/export"],
    "figures": ["tiny", "--out", "TMP/figure.svg", "--store", "STORE"],
    "gc": ["--dry-run", "--store", "STORE"],
    "labels add": ["tiny", "TMP/labels.csv", "--store", "STORE"],
    "lineage": ["tiny", "--store", "STORE"],
    "manifest": ["TMP/tiny-source"],
    "predict": ["tiny", "TMP/tiny-source/t10k-images-idx3-ubyte.gz", "--store", "STORE"],
    "promote": ["tiny", "2", "--force", "--reason", "a try", "--store", "STORE"],
    "quarantine list": ["tiny", "--store", "STORE"],
    "quarantine release": ["tiny", "DIGEST", "--store", "STORE"],
    "registry at": ["tiny", "2026-01-01", "--store", "STORE"],
    "registry diff": ["tiny", "1", "2", "--store", "STORE"],
    "registry history": ["tiny", "--store", "STORE"],
    "registry show": ["tiny", "--store", "STORE"],
    "report": ["tiny", "--store", "STORE"],
    "reproduce": ["tiny", "latest", "--store", "STORE"],
    "rollback": ["tiny", "--to", "1", "--reason", "a try", "--store", "STORE"],
    "run": ["--dataset-file", "TMP/tiny.toml", "--set", "epochs=2", "--store", "STORE"],
    "runs diff": ["tiny", "latest", "champion", "--store", "STORE"],
    "runs list": ["tiny", "--store", "STORE"],
    "serve": [],
    "share card": ["tiny", "--store", "STORE"],
    "share mlflow": ["tiny", "--at", "sqlite:///TMP/mlflow.db", "--store", "STORE"],
    "share tensorboard": ["tiny", "--logdir", "TMP/logs", "--store", "STORE"],
    "suspects": ["tiny", "--store", "STORE"],
    "status": ["--store", "STORE"],
    "tune": ["--dataset-file", "TMP/tiny.toml", "--set", "epochs=2", "--trials", "1", "--store", "STORE"],
    "up": [],
    "validate": ["--dataset-file", "TMP/tiny.toml", "--store", "STORE"],
    "verify": ["--store", "STORE"],
    "watch": ["TMP/tiny-source", "--dataset-file", "TMP/tiny.toml", "--once", "--store", "STORE"],
}
"""Each command, by its words, with arguments that have it print something."""
NEED_SERVERS = {"backfill", "run", "serve", "validate", "up", "watch"}
"""Tested by themselves below, or like the others only as far as their help."""
NEED_LIBRARIES = {"export", "doctor", "reproduce", "share mlflow", "tune"}
"""These load TensorFlow, which takes seconds: their help, too."""
ONCE = {"alerts add", "alerts remove", "dataset add", "dataset unschedule", "promote", "rollback"}
"""A second time, these are refused."""
JSON = {
    "alerts list",
    "alerts send",
    "alerts test",
    "copy",
    "datasets",
    "diagnose",
    "drift",
    "gc",
    "labels add",
    "lineage",
    "quarantine list",
    "registry at",
    "registry history",
    "registry show",
    "report",
    "runs list",
    "share card",
    "share tensorboard",
    "status",
    "suspects",
    "verify",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archives, the manifest and the store of two runs of `tiny`."""
    folder = tmp_path_factory.mktemp("world")
    manifest = write_tiny(folder, arrays=repeated(), manifest='[quarantine]\nchecks = ["duplicate"]\n').manifest
    (folder / "labels.csv").write_text("id,label\na,0\n")
    for seed in (1, 2):
        carried_out(Store(folder / "store"), manifest, seed=seed, audit=seed == 2)
    for name in ("spare", "usual"):
        words = ("--run", "true", "--name", name, "--store", str(folder / "store"))
        assert run_command(["alerts", "add", "command", *words]) == 0
    return folder


@pytest.fixture
def errors(tmp_path: Path) -> Path:
    """The file that standard error goes to."""
    return tmp_path / "errors"


def words(command: str, world: Path) -> list[str]:
    places = {"STORE": str(world / "store"), "TMP": str(world), "DIGEST": row_digest(repeated()["train-images"][3], 0)}
    arguments = [*command.split(), *COMMANDS[command]]
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    return arguments


def on_full_disk(arguments: list[str], errors: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Call the command with standard output where nothing can be written."""
    with Path(FULL).open("w") as output, errors.open("w") as stderr, monkeypatch.context() as patch:
        # Not in a fixture: pytest sets its own ones between that and the test.
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", stderr)
        return run_command(arguments)


def test_every_command_is_in_the_table():
    def names(group: App, before: str = "") -> Iterator[str]:
        for name in group:
            if name.startswith("-"):
                continue
            inner = list(names(group[name], f"{before}{name} "))
            yield from inner or [f"{before}{name}"]

    # That one becomes Prefect's own command.
    assert set(names(app)) - {"prefect"} == set(COMMANDS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - NEED_SERVERS - NEED_LIBRARIES))
def test_a_full_disk_is_one_sentence_and_1(command: str, world: Path, errors: Path, monkeypatch: pytest.MonkeyPatch):
    code = on_full_disk(words(command, world), errors, monkeypatch)
    stderr_text = errors.read_text()
    assert code == 1
    assert stderr_text.splitlines()[-1].startswith(SENTENCE)
    assert "Traceback" not in stderr_text


@pytest.mark.parametrize("command", sorted(JSON))
def test_so_is_it_with_json(command: str, world: Path, errors: Path, monkeypatch: pytest.MonkeyPatch):
    assert on_full_disk([*words(command, world), "--json"], errors, monkeypatch) == 1
    assert errors.read_text().splitlines()[-1].startswith(SENTENCE)


@pytest.mark.parametrize(
    "command", ["", *sorted({*COMMANDS, "alerts", "dataset", "labels", "quarantine", "registry", "runs", "share"})]
)
def test_so_is_it_with_help(command: str, errors: Path, monkeypatch: pytest.MonkeyPatch):
    assert on_full_disk([*command.split(), "--help"], errors, monkeypatch) == 1
    assert errors.read_text().startswith(SENTENCE)
    assert len(errors.read_text().splitlines()) == 1


def test_what_a_command_did_stays_done(world: Path, errors: Path, monkeypatch: pytest.MonkeyPatch):
    registry = Registry(Store(world / "store"), "tiny")
    version = 1 if registry.champion().number == 2 else 2
    arguments = ["promote", "tiny", str(version), "--force", "--reason", "a try", "--store", str(world / "store")]
    assert on_full_disk(arguments, errors, monkeypatch) == 1
    assert registry.champion().number == version
    assert not verify(Store(world / "store")).damage


@pytest.mark.flow
@pytest.mark.remedies("flows.terminal.console:check_printed")
def test_a_run_goes_on_to_its_end(results: Path, tmp_path: Path, errors: Path, monkeypatch: pytest.MonkeyPatch):
    """Its lines are no reason to end it: what it made is kept, and the next one finds it."""
    write_tiny(tmp_path)
    arguments = ["run", "--dataset-file", str(tmp_path / "tiny.toml"), "--store", str(tmp_path / "store")]
    training = [word for setting in ("epochs=4", "learning_rate=0.1", "batch_size=16") for word in ("--set", setting)]
    assert on_full_disk(arguments + training, errors, monkeypatch) == 1
    stderr_text = errors.read_text()
    assert "No space left on device" in stderr_text
    assert "the run itself finished: promoted v1" in stderr_text
    assert "Traceback" not in stderr_text
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run_command([*arguments, *training, "--json"]) == 0
    assert json.loads((tmp_path / "out").read_text())["state"] == "unchanged"
    assert on_full_disk([*arguments, *training, "--json"], errors, monkeypatch) == 1
    assert errors.read_text().splitlines()[-1].startswith(SENTENCE)


def in_letters(encoding: str, arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what the command writes to a standard output that has only the letters of `encoding`."""
    with (folder / "letters").open("w", encoding=encoding) as output, monkeypatch.context() as here:
        here.setattr(sys, "stdout", output)
        # 1 is a finding, such as a clock.
        assert run_command(arguments) in (0, 1)
    # JSON and TOML are UTF-8 wherever they go (RFC 8259, 8.1; TOML 1.0.0, "Spec"), and so is what the Hub reads.
    is_file = arguments[0] == "manifest" or arguments[:2] == ["share", "card"]
    is_format = "--json" in arguments or (is_file and "--help" not in arguments)
    return (folder / "letters").read_text("utf-8" if is_format else encoding)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - NEED_SERVERS - NEED_LIBRARIES - ONCE))
def test_a_letter_that_the_terminal_does_not_have_ends_nothing(
    command: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert in_letters("ascii", words(command, world), tmp_path, monkeypatch)
    if command in JSON:
        outputs = [
            json.loads(in_letters(encoding, [*words(command, world), "--json"], tmp_path, monkeypatch))
            for encoding in ("ascii", "utf-8")
        ]
        assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("encoding", "commands"),
    # ASCII has the fewest letters: what is written in these is written in any.
    [("ascii", ["", *COMMANDS]), ("latin-1", ["", "run"]), ("euc_jp", ["", "run"])],
)
def test_help_is_written_in_any_letters(
    encoding: str, commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for command in commands:
        assert "Usage: idxflow" in in_letters(encoding, [*command.split(), "--help"], tmp_path, monkeypatch)


def test_a_name_that_is_no_text_is_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bytes of a file name that are no UTF-8 are lone surrogates in Python, which no encoding has."""
    store = tmp_path / os.fsdecode(b"\xe9")
    assert "\\udce9" in in_letters("utf-8", ["status", "--store", str(store)], tmp_path, monkeypatch)


@pytest.mark.flow
def test_a_run_is_not_ended_by_its_own_lines(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tiny(tmp_path)
    arguments = ["validate", "--dataset-file", str(tmp_path / "tiny.toml"), "--store", str(tmp_path / "store")]
    output = in_letters("ascii", arguments, tmp_path, monkeypatch)
    assert "120 images of 9\\u00d77" in output
    assert "the data is valid" in output


def call(home: Path, *arguments: str, out: TextIO | int, err: TextIO | int) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(BIN / "idxflow"), *arguments], stdout=out, stderr=err, text=True, timeout=240, env=clean_environment(home)
    )


@pytest.mark.parametrize("arguments", [["datasets"], ["--help"], ["predict", "tiny"], ["run", "nothing", "--json"]])
def test_nothing_is_left_to_python_where_standard_error_is_full_too(tmp_path: Path, arguments: list[str]):
    """Python itself would end with 120 when it cannot flush, and write its traceback."""
    with Path(FULL).open("w") as full:
        both = call(tmp_path, *arguments, out=full, err=full)
        process = call(tmp_path, *arguments, out=subprocess.PIPE, err=full)
    assert both.returncode in (1, 2)
    assert process.returncode == (2 if arguments[0] in ("predict", "run") else 0)


def test_in_a_process_of_its_own_it_is_one_line(tmp_path: Path):
    with Path(FULL).open("w") as full:
        result = call(tmp_path, "datasets", "--json", out=full, err=subprocess.PIPE)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(SENTENCE)


@pytest.mark.parametrize("arguments", [["datasets"], ["run", "--help"]])
def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path, arguments: list[str]):
    reading, writing = os.pipe()
    os.close(reading)
    result = call(tmp_path, *arguments, out=writing, err=subprocess.PIPE)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_with_its_streams_closed_no_file_of_the_store_gets_their_numbers(world: Path, tmp_path: Path):
    """A library that prints would print into it."""
    program = (
        "import os, sys\n"
        "from flows.commands.cli import run_command\n"
        "from flows.terminal.streams import guarded_streams\n"
        f"assert run_command(['verify', '--store', {str(world / 'store')!r}]) == 0\n"
        "with guarded_streams():\n"
        f"    number = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "    os.write(1, b'printed'), os.write(2, b'printed')\n"
        "    assert sys.stdout.write('said') == 4\n"
        "sys.exit(100 + number)\n"
    )
    command = f'exec {sys.executable} -c "$PROGRAM" <&- >&- 2>&-'
    result = subprocess.run(["/bin/sh", "-c", command], env={**os.environ, "PROGRAM": program}, timeout=240)
    assert result.returncode > 102
    assert (tmp_path / "file").read_bytes() == b""
