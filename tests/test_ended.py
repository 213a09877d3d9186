"""How a command that cannot do what it was asked says so, whichever it is: one sentence, and one object of JSON."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from flows.cli import _main
from storage.store import Store
from tests.stores import retrain

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
    assert _main(words) == code
    out, errors = capsys.readouterr()
    found = json.loads(out)["error"]
    assert found["exit_code"] == code
    assert errors.count("\n") == 1
    assert errors.startswith("idxflow: ")
    assert "Traceback" not in errors
    assert not any(letter in errors for letter in "\x1b\x7f╭")
    return str(found["sentence"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_failure_is_a_sentence_and_an_object_of_json(command: str, store: Store, capsys: pytest.CaptureFixture):
    words = COMMANDS[command]
    code = 1 if command == "export" else 2
    assert "expected" in failed(capsys, [*words, "--json"], code)
    said = failed(capsys, [*words, "--json", "--frobnicate"], 2)
    assert said.startswith("Unknown option: --frobnicate. ")
    assert said.endswith(f" {command.split()[-1]} --help`.")


@pytest.mark.parametrize("option", ["--store", "--store=", "--dataset-file", "--source", "--memory"])
def test_an_empty_value_is_not_taken_for_the_default(option: str, store: Store, capsys: pytest.CaptureFixture):
    words = ["run", "nothing", "--json", option, *([] if option.endswith("=") else [""])]
    assert f"expected a value for {option.rstrip('=')}; found an empty one" in failed(capsys, words, 2)
    # And what is advised gets further.
    assert "empty" not in failed(capsys, ["run", "nothing", "--json"], 2)


def test_what_would_act_on_a_terminal_is_not_printed(store: Store, capsys: pytest.CaptureFixture):
    bad = "\x1b[31m\n\x7f"
    for words in (
        ["manifest", bad],
        ["gc", "--keep-last", bad],
        ["run", "--dataset-file", bad],
        ["predict", "tiny", bad],
    ):
        assert _main(words) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert errors.rstrip("\n").isprintable()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_json_too(
    number: signal.Signals, code: int, store: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("flows.upkeep.retention.collect", interrupted)
    said = failed(capsys, ["gc", "--json"], code)
    assert said == f"{'interrupted' if number == signal.SIGINT else 'terminated'}; the same command resumes"
