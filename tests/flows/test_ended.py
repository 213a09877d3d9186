"""How a command that cannot do what it was asked says so, whichever it is: one sentence, and one object of JSON."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.commands.cli import run_command
from storage.store import Store
from tests.support.stores import retrain

COMMANDS = {
    "run": ["run", "nothing"],
    "validate": ["validate", "nothing"],
    "predict": ["predict", "tiny", "nothing"],
    "export": ["export", "nothing"],
    "history": ["registry", "history", "nothing"],
    "show": ["registry", "show", "nothing"],
    "at": ["registry", "at", "nothing", "2026-05-01"],
    "diff": ["registry", "diff", "nothing", "1", "2"],
    "promote": ["promote", "nothing", "1"],
    "rollback": ["rollback", "nothing"],
    "report": ["report", "nothing"],
    "runs list": ["runs", "list", "nothing"],
    "runs diff": ["runs", "diff", "nothing", "a", "b"],
    "status": ["status", "nothing"],
    "verify": ["verify", "nothing"],
    "gc": ["gc", "nothing"],
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the environment, with two versions of `tiny`."""
    store = Store(tmp_path / "store")
    for number in (1, 2):
        retrain(store, number)
    monkeypatch.setenv("IDXFLOW_STORE", str(store.root))
    monkeypatch.chdir(tmp_path)
    return store


def failed(capsys: pytest.CaptureFixture, words: list[str], code: int) -> str:
    """Return the sentence of a command that fails, once as JSON and once in a line."""
    assert run_command(words) == code
    out, errors = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["exit_code"] == code
    assert errors.count("\n") == 1
    assert errors.startswith("idxflow: ")
    assert "Traceback" not in errors
    assert not any(letter in errors for letter in "\x1b\x7f╭")
    return str(error["sentence"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_failure_is_a_sentence_and_an_object_of_json(command: str, store: Store, capsys: pytest.CaptureFixture):
    words = COMMANDS[command]
    assert "expected" in failed(capsys, [*words, "--json"], 2)
    sentence = failed(capsys, [*words, "--json", "--frobnicate"], 2)
    assert sentence.startswith("Unknown option: --frobnicate. ")
    assert sentence.endswith(f" {command.split()[-1]} --help`.")


@pytest.mark.remedies("flows.commands.cli:_refuse_empty")
@pytest.mark.parametrize("option", ["--store", "--store=", "--dataset-file", "--source", "--memory"])
def test_an_empty_value_is_not_taken_for_the_default(option: str, store: Store, capsys: pytest.CaptureFixture):
    words = ["run", "nothing", "--json", option, *([] if option.endswith("=") else [""])]
    assert f"expected a value for {option.rstrip('=')}; found an empty one" in failed(capsys, words, 2)
    # And what is advised gets further.
    assert "empty" not in failed(capsys, ["run", "nothing", "--json"], 2)


@pytest.mark.parametrize("words", [["manifest"], ["watch"], ["predict", "tiny"], ["run"], ["runs", "list"]])
def test_an_empty_path_is_not_taken_for_the_current_folder(
    words: list[str], store: Store, capsys: pytest.CaptureFixture
):
    assert "expected a value for each argument; found an empty one" in failed(capsys, [*words, "", "--json"], 2)
    # And what is advised gets further.
    assert "empty" not in failed(capsys, [*words, "nothing", "--frobnicate", "--json"], 2)


def test_what_would_act_on_a_terminal_is_not_printed(store: Store, capsys: pytest.CaptureFixture):
    bad = "\x1b[31m\n\x7f"
    for words in (
        ["manifest", bad],
        ["gc", "--keep-last", bad],
        ["run", "--dataset-file", bad],
        ["predict", "tiny", bad],
    ):
        assert run_command(words) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert errors.rstrip("\n").isprintable()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_json_too(
    number: signal.Signals, code: int, store: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("flows.commands.gc_command.retention.collect", interrupted)
    sentence = failed(capsys, ["gc", "--json"], code)
    how = "interrupted" if number == signal.SIGINT else "terminated"
    assert sentence == f"{how}; run the same command again to resume"
    # That would go back another champion, where the first call has gone back one.
    monkeypatch.setattr("flows.promotion.roll_back", interrupted)
    sentence = failed(capsys, ["rollback", "tiny", "--reason", "none", "--json"], code)
    assert sentence == f"{how}; `idxflow registry history DATASET` shows whether the champion was changed"


NOBODY = 65534


@contextmanager
def by_another_user() -> Iterator[None]:
    """Have no right to what belongs to this user only. Root has one to everything; others lose it with the mode."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "command", ["status", "verify", "gc", "registry history tiny", "runs list tiny", "report tiny"]
)
def test_a_store_that_may_not_be_listed_is_not_taken_for_an_empty_one(command: str, capsys: pytest.CaptureFixture):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        root.mkdir()
        Path(folder).chmod(0o755)
        root.chmod(0o300)
        with by_another_user():
            sentence = failed(capsys, [*command.split(), "--store", str(root), "--json"], 1)
        root.chmod(0o755)
    assert f"the store cannot be used: Permission denied at {root}" in sentence


@pytest.mark.parametrize("refused", ["train-images-idx3-ubyte", "."])
def test_archives_that_may_not_be_read_are_named(refused: str, capsys: pytest.CaptureFixture):
    with tempfile.TemporaryDirectory() as folder:
        for role in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
            (Path(folder) / f"{role}-ubyte").touch()
        Path(folder).chmod(0o755)
        place = Path(folder) / refused
        place.chmod(0o300)
        with by_another_user():
            assert run_command(["manifest", folder]) == 1
        place.chmod(0o755)
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors == f"idxflow: cannot use {place}: Permission denied; correct that, or choose another place\n"
