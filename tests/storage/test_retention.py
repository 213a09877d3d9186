"""`idxflow gc`: old results go; the champion, its line, the newest and what a run uses stay."""

from __future__ import annotations

import json

import pytest

from flows.commands import gc_command
from flows.commands.cli import run_command
from storage.errors import StoreError
from storage.ledger import Ledger
from storage.registry import Registry
from storage.retention import collect
from storage.store import Store
from storage.verify import verify
from tests.support.stores import DATASET, add, fingerprint, promote, retrain


@pytest.fixture
def filled(store: Store) -> Store:
    """Twelve runs; versions 1, 2 and 3 became champion, the rest did not."""
    for number in range(1, 13):
        retrain(store, number, promoted=number <= 3)
    return store


def retired(store: Store) -> list[int]:
    registry = Registry(store, DATASET)
    return [version.number for version in registry.versions() if registry.retired(version)]


def reports(store: Store) -> set[str]:
    return {path.name for path in (store.dataset(DATASET) / "7-reports").iterdir()}


def test_the_champion_its_line_and_the_newest_stay(filled: Store):
    collected = collect(filled, DATASET, keep_last=2)
    assert collected.retired == tuple(range(4, 11))
    assert retired(filled) == list(range(4, 11))
    assert len(collected.entries) == 7 * 4
    assert collected.kept == 5 * 4
    assert reports(filled) == {f"run-{n}" for n in (1, 2, 3, 11, 12)}
    assert verify(filled).findings == ()


def test_the_ledger_and_the_registry_lose_nothing(filled: Store):
    collect(filled, DATASET, keep_last=1)
    assert len(Ledger(filled, DATASET).read("runs")) == 12
    assert len(Registry(filled, DATASET).versions()) == 12
    assert Registry(filled, DATASET).champion().number == 3


def test_a_second_time_there_is_nothing_to_do(filled: Store):
    collect(filled, DATASET, keep_last=2)
    before = fingerprint(filled)
    again = collect(filled, DATASET, keep_last=2)
    assert (again.entries, again.leftovers, again.retired, again.bytes) == ((), (), (), 0)
    assert fingerprint(filled) == before


def test_a_dry_run_says_it_and_removes_nothing(filled: Store):
    before = fingerprint(filled)
    would = collect(filled, DATASET, keep_last=2, dry_run=True)
    assert fingerprint(filled) == before
    assert collect(filled, DATASET, keep_last=2) == would


def test_nothing_is_removed_while_a_run_uses_the_data_set(filled: Store):
    before = fingerprint(filled)
    with filled.in_use(DATASET):
        assert collect(filled, DATASET, keep_last=1).busy
    assert fingerprint(filled) == before
    assert not collect(filled, DATASET, keep_last=1).busy


def test_what_is_rolled_back_to_cannot_be_collected_meanwhile(filled: Store):
    with Registry(filled, DATASET).deciding():
        assert collect(filled, DATASET, keep_last=1).busy


def test_what_dead_runs_left_is_reclaimed(filled: Store):
    partial = filled.dataset(DATASET) / "5-models" / ".abc.partial"
    partial.mkdir()
    (partial / "checkpoint.npz").write_bytes(b"x" * 1000)
    (filled.dataset(DATASET) / "ledger" / "runs" / ".x.tmp").touch()
    collected = collect(filled, DATASET, keep_last=99)
    assert len(collected.leftovers) == 2
    assert collected.bytes == 1000
    assert collected.entries == ()
    assert not partial.exists()
    assert not list((filled.dataset(DATASET) / "locks").glob("train-*.lock"))


def test_the_data_that_a_kept_run_reused_stays(store: Store):
    shared = add(store, "decode", 99, "test")[0]
    for number in range(1, 5):
        retrain(store, number, promoted=False)
    newest = {"state": "kept", "report": None, "steps": {"decode test": {"key": shared}}}
    Ledger(store, DATASET).append("runs", "run-5", newest)
    collect(store, DATASET, keep_last=1)
    assert (store.dataset(DATASET) / "2-splits" / shared).is_dir()


@pytest.mark.remedies("storage.registry:check_kept")
def test_a_collected_version_cannot_become_champion_until_it_is_trained_again(filled: Store):
    collect(filled, DATASET, keep_last=1)
    registry = Registry(filled, DATASET)
    with registry.deciding(), pytest.raises(StoreError, match="that of version 5 was removed by `idxflow gc`"):
        promote(registry, 5)
    assert registry.champion().number == 3
    retrain(filled, 5)
    assert registry.champion().number == 5
    assert len(registry.versions()) == 12, "it keeps the number it had"


@pytest.mark.remedies("storage.registry:retire")
def test_the_champion_cannot_be_retired(filled: Store):
    with pytest.raises(StoreError, match="version 3 is champion; run again"):
        Registry(filled, DATASET).retire([3], Registry(filled, DATASET).standing())
    assert collect(filled, DATASET, keep_last=1).retired


def test_gc_says_what_it_removed(filled: Store, capsys: pytest.CaptureFixture):
    where = ["--store", str(filled.root)]
    assert run_command(["gc", "--keep-last", "2", "--dry-run", *where]) == 0
    assert capsys.readouterr().out.startswith("tiny: would remove 28 entries (of v4–v10)")
    assert run_command(["gc", DATASET, "--keep-last", "2", "--json", *where]) == 0
    report = json.loads(capsys.readouterr().out)["datasets"][0]
    assert (len(report["entries"]), report["kept"], report["busy"]) == (28, 20, False)
    with filled.in_use(DATASET):
        assert run_command(["gc", *where]) == 0
    assert "a run is in progress" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "ranges"),
    [((), ""), ((3,), "v3"), ((1, 2), "v1–v2"), ((*range(1, 38), 40), "v1–v37, v40"), ((1, 3, 4, 9), "v1, v3–v4, v9")],
)
def test_versions_are_said_as_ranges(numbers: tuple[int, ...], ranges: str):
    assert gc_command._ranges(numbers) == ranges


def test_gc_keeps_at_least_one(filled: Store):
    assert run_command(["gc", "--keep-last", "0", "--store", str(filled.root)]) == 2
