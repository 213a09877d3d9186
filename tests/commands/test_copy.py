"""`idxflow copy` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.commands.cli import run_command
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tests.support.stores import DATASET, fingerprint, retrain


@pytest.fixture
def filled(store: Store) -> Store:
    retrain(store, 1)
    return store


def test_a_store_is_copied_once(filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = Store(tmp_path / "other")
    words = ["copy", str(filled.root), str(other.root)]
    assert run_command(words) == 0
    assert capsys.readouterr().out == "tiny: copied 4 entries (4.2 kB), 1 version, 2 ledger records\n"
    assert fingerprint(other) == fingerprint(filled)
    assert verify(other).findings == ()
    assert run_command(words) == 0
    printed = capsys.readouterr().out
    assert printed == "tiny: copied 0 entries (0 bytes), 0 versions, 0 ledger records; 7 were there already\n"


def test_a_dry_run_says_what_would_be_copied(filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_command(["copy", str(filled.root), str(tmp_path / "other"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "from": str(filled.root),
        "to": str(tmp_path / "other"),
        "dry_run": True,
        "datasets": [
            {
                "dataset": DATASET,
                "entries": 4,
                "bytes": 4200,
                "versions": 1,
                "records": 2,
                "released": 0,
                "arrivals": 0,
                "present": 0,
            }
        ],
        "refused": [],
    }
    assert not (tmp_path / "other").exists()


def test_one_that_went_separate_ways_does_not_keep_the_others(
    filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = Store(tmp_path / "other")
    words = ["copy", str(filled.root), str(other.root)]
    assert run_command(words) == 0
    retrain(other, 2)
    retrain(filled, 3)
    # A data set that has only been released rows of, say.
    (filled.root / "zebras" / "ledger" / "runs").mkdir(parents=True)
    capsys.readouterr()
    assert run_command([*words, "--json"]) == 1
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert [one["dataset"] for one in values["datasets"]] == ["zebras"]
    assert [one["dataset"] for one in values["refused"]] == [DATASET]
    sentence = values["refused"][0]["error"]["sentence"]
    assert captured.err == f"idxflow: {sentence}\n"
    assert values["refused"][0]["error"]["exit_code"] == 1
    champion = Registry(other, DATASET).champion()
    assert champion is not None
    assert champion.run == "run-2"
    # What the message advises.
    assert run_command(["copy", str(filled.root), str(tmp_path / "another")]) == 0


def test_only_one_data_set(filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (filled.root / "zebras" / "ledger" / "runs").mkdir(parents=True)
    words = ["copy", str(filled.root), str(tmp_path / "other"), "--dataset"]
    assert run_command([*words, "zebra"]) == 2
    assert "did you mean zebras" in capsys.readouterr().err
    assert run_command([*words, DATASET]) == 0
    assert Store(tmp_path / "other").datasets() == [DATASET]


@pytest.mark.remedies("flows.commands.copy_command:_check_two:2")
def test_a_store_is_not_copied_to_itself(filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    link = tmp_path / "link"
    link.symlink_to(filled.root)
    for to in (str(filled.root), f"{filled.root}/../store", str(link)):
        assert run_command(["copy", str(filled.root), to]) == 2
        assert "expected two stores; found " in capsys.readouterr().err
    assert run_command(["copy", str(filled.root), str(tmp_path / "other")]) == 0


@pytest.mark.remedies("flows.commands.copy_command:_check_two")
def test_from_must_exist(filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_command(["copy", str(tmp_path / "none"), str(tmp_path / "other")]) == 2
    assert (
        f"expected a store at {tmp_path / 'none'}; found nothing; name the store to copy as" in capsys.readouterr().err
    )
    assert not (tmp_path / "other").exists()
    assert run_command(["copy", str(filled.root), str(tmp_path / "other")]) == 0
