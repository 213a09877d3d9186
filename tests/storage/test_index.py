"""The index of versions and decisions: it saves reading, and never says what the records do not."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import index
from storage.errors import DamagedEntry
from storage.files import put_json_if_absent, read_json, sealed
from storage.index import Index
from storage.ledger import Ledger
from storage.objects import sealed as sealed_object
from storage.objects.folder import Folder
from storage.registry import _OF_DECISIONS, Registry
from storage.retention import collect
from storage.store import Store
from storage.verify import verify
from tests.support.stores import DATASET, decide, retrain


@pytest.fixture
def indexed(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Six runs, four of which are in the index."""
    monkeypatch.setattr(index, "_KEEP_EVERY", 1)
    for number in range(1, 5):
        retrain(store, number, promoted=number == 2)
    lookups(store)
    for number in (5, 6):
        retrain(store, number, promoted=False)
    return store


def lookups(store: Store) -> dict[str, object]:
    """Return all that is found through the index, and write it."""
    registry = Registry(store, DATASET)
    versions = registry.versions()
    answers = {
        "found": [registry.find(v.model, v.evaluation) for v in versions],
        "of": registry.made_of({versions[0].model, versions[2].evaluation}),
        "decisions": registry.decisions(),
        "outline": registry.outline(),
        "about": [registry.about(v.number) for v in versions],
    }
    registry.keep_index()
    return answers


def files(store: Store) -> list[Path]:
    return [part.file for part in Registry(store, DATASET).indexes]


def test_what_is_found_does_not_depend_on_the_index(indexed: Store):
    with_it = lookups(indexed)
    assert all(file.is_file() for file in files(indexed))
    for file in files(indexed):
        file.unlink()
    assert lookups(indexed) == with_it
    assert [version.number for version in with_it["found"]] == [1, 2, 3, 4, 5, 6]
    assert with_it["of"] == [1, 3]


def test_only_records_that_are_not_in_it_are_read(indexed: Store, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    lookups(indexed)
    retrain(indexed, 7, promoted=False)
    get = Folder.get
    monkeypatch.setattr(Folder, "get", lambda self, key, most: (read.append(key), get(self, key, most))[1])
    registry = Registry(indexed, DATASET)
    assert registry.find("no", "such") is None
    assert len(registry.decisions()) == 7
    assert [key.rpartition("/")[2] for key in read] == ["00000007.json", "00000007.json"]


def test_an_index_of_an_earlier_version_without_a_field_is_made_again(indexed: Store, monkeypatch: pytest.MonkeyPatch):
    decide(Registry(indexed, DATASET), "kept", 2, spent=0.025)
    with monkeypatch.context() as earlier:
        earlier.setattr("storage.registry._OF_DECISIONS", tuple(name for name in _OF_DECISIONS if name != "spent"))
        lookups(indexed)
        assert Registry(indexed, DATASET).decisions()[-1].get("spent") is None
    assert [d.get("spent") for d in Registry(indexed, DATASET).decisions()] == [None] * 6 + [0.025]


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def of_other_fields(file: Path) -> None:
    store = Store(file.parents[2])
    folder = file.with_suffix("").relative_to(store.root).as_posix()
    objects = store.objects
    successor = Index(
        objects, store.root, folder, ("something",), lambda n: sealed_object.read(objects, f"{folder}/{n}")
    )
    successor.records()
    successor.keep()


def replaced_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("spoil", [emptied, cut, flipped, of_other_fields, replaced_by_a_folder])
def test_an_index_that_was_spoilt_changes_no_answer(indexed: Store, spoil: Callable[[Path], None]):
    expected = lookups(indexed)
    for file in files(indexed):
        spoil(file)
    assert lookups(indexed) == expected


def test_an_index_of_an_older_state_or_of_another_store_changes_no_answer(indexed: Store, tmp_path: Path):
    """As after a kill before it was replaced, or when the records beside it were restored from a backup."""
    contents = {file: file.read_bytes() for file in files(indexed)}
    expected = lookups(indexed)
    for file, data in contents.items():
        file.write_bytes(data)
    assert lookups(indexed) == expected
    copied = Store(shutil.copytree(indexed.root, tmp_path / "copy"))
    for number in (1, 6):
        (copied.dataset(DATASET) / "registry" / "versions" / f"{number:08d}.json").unlink()
    assert [v.number for v in lookups(copied)["found"]] == [2, 3, 4, 5]


def test_a_record_that_was_replaced_is_read_anew(indexed: Store):
    lookups(indexed)
    path = indexed.dataset(DATASET) / "registry" / "versions" / "00000003.json"
    values = read_json(path)
    path.unlink()
    put_json_if_absent(path, {**values, "model": "another"})
    version = Registry(indexed, DATASET).find("another", values["evaluation"])
    assert version
    assert version.number == 3


def test_a_record_that_was_changed_in_its_place_is_damage_as_before(indexed: Store):
    lookups(indexed)
    name = Ledger(indexed, DATASET).names("decisions")[0]
    path = indexed.dataset(DATASET) / "ledger" / "decisions" / name
    path.write_text(path.read_text().replace("kept", "Kept"))
    with pytest.raises(DamagedEntry, match="expected a record of the ledger"):
        Registry(indexed, DATASET).outline()


def test_verify_finds_an_index_that_lies(indexed: Store):
    lookups(indexed)
    assert verify(indexed).findings == ()
    versions, decisions = files(indexed)
    flipped(decisions)
    text = versions.read_bytes().partition(b"\n")[2].replace(b"weights 3", b"weights 4")
    versions.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    problems = {Path(finding.where): finding.problem for finding in verify(indexed).damage}
    assert problems.keys() == {versions, decisions}
    assert problems[versions].endswith("differs on 1, first 00000003.json")
    assert "SHA-256" in problems[decisions]
    for file in problems:
        file.unlink()
    assert verify(indexed).findings == ()


def test_the_index_cannot_be_written_and_nothing_is_lost(indexed: Store):
    for file in files(indexed):
        replaced_by_a_folder(file)
    with Registry(indexed, DATASET).deciding():
        lookups(indexed)
    collect(indexed, DATASET, keep_last=1)
    assert len(lookups(indexed)["found"]) == 6


def test_a_name_that_is_no_number_among_the_versions_is_said(indexed: Store):
    (indexed.dataset(DATASET) / "registry" / "versions" / "copy.json").write_bytes(sealed({"model": "m"}))
    with pytest.raises(DamagedEntry, match="expected the number of a version as the name"):
        Registry(indexed, DATASET).numbers()
