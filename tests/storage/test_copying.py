"""Stores are copied whole, from folders to object storage and back, and nothing is ever replaced by something else."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import copying, released, retention
from storage.arrivals import Arrivals
from storage.cloud_store import CloudStore
from storage.copying import RETIRED
from storage.drifts import Drifts
from storage.errors import DamagedEntry, StoreError
from storage.files import put_json_if_absent, read_json, sealed, sha256_of
from storage.ledger import Ledger
from storage.registry import Registry
from storage.snapshots import Arrival, ArrivedFile
from storage.store import ENTRY, FOLDERS, Store
from storage.verify import verify
from tests.support.memory_objects import MemoryObjects, Operation, Stopped, cloud_store
from tests.support.stores import DATASET, Thing, add, decided_in_format_3, fingerprint, pointed_in_format_3, retrain

ROWS = {"a" * 32: "train, row 7: blank", "b" * 32: ""}
ARRIVAL = "20261129-152727-0123abcd"
HISTORY = ("registry", "ledger")


@pytest.fixture
def remote(tmp_path: Path) -> CloudStore:
    return cloud_store(tmp_path / "cache")


@pytest.fixture
def filled(store: Store) -> Store:
    """A store of two runs, a version retired, rows released, and a set of archives that waits for its run."""
    for number in (1, 2):
        retrain(store, number)
    registry = Registry(store, DATASET)
    registry.retire([1], registry.standing())
    released.release(store, DATASET, ROWS)
    arrive(store)
    Drifts(store, DATASET).note(2, True, {"sentence": "new images differ"})
    return store


def arrive(store: Store) -> None:
    arrivals = Arrivals(store, DATASET)
    with arrivals.alone(), arrivals.partial() as partial:
        file = partial / "images.gz"
        file.write_bytes(b"archive")
        found = {"train-images": ArrivedFile(file.name, 7, sha256_of(file))}
        arrivals.add(partial, Arrival(ARRIVAL, DATASET, None, "/inbox", found))


def champion(store: Store) -> int | None:
    version = Registry(store, DATASET).champion()
    return version.number if version else None


def history(objects: MemoryObjects) -> dict[str, bytes]:
    return {
        key: data for key, data in objects.contents().items() if key.split("/")[1:2] and key.split("/")[1] in HISTORY
    }


def only_result(store: Store, step: str = "train", file: str = "data.bin") -> Path:
    """Return a file of an entry of a store in a folder."""
    return sorted((store.root / DATASET / FOLDERS[step]).glob(f"*/{file}"))[0]


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_store_goes_to_object_storage_and_back_as_it_was(filled: Store, remote: CloudStore, tmp_path: Path):
    copied = copying.copy(filled, remote, DATASET)
    assert (copied.entries, copied.versions, copied.released, copied.arrivals, copied.present) == (8, 2, 2, 1, 0)
    # Two runs and their decisions, the retired version, the set that arrived, the drift.
    assert copied.records == 2 + 2 + 1 + 1 + 1
    assert [
        version.number for version in Registry(remote, DATASET).retired_of(Registry(remote, DATASET).versions())
    ] == [1]
    assert champion(remote) == 2
    assert released.comments(remote, DATASET) == ROWS
    key = Registry(filled, DATASET).version(2).model
    assert remote.get(DATASET, "train", key, Thing).entry.path("data.bin").read_bytes() == b"train 2" * 100
    back = Store(tmp_path / "back")
    again = copying.copy(remote, back, DATASET)
    assert again.present == 0
    assert (again.entries, again.bytes, again.versions, again.records) == (8, copied.bytes, 2, 7)
    assert fingerprint(back) == fingerprint(filled)
    assert verify(back).damage == ()
    assert Drifts(back, DATASET).of_champion(2) == Drifts(filled, DATASET).of_champion(2) is not None
    assert [run["run"] for run in Ledger(back, DATASET).read("runs")] == ["run-1", "run-2"]


def test_decisions_of_format_3_are_copied_by_their_names(store: Store, remote: CloudStore, tmp_path: Path):
    """The pointer says which of them took effect, until the first decision of a later format."""
    for number in (1, 2):
        retrain(store, number)
    shutil.rmtree(store.root / DATASET / "ledger" / "decisions")
    for outcome, champion_then, before in (("promoted", 1, None), ("promoted", 2, 1)):
        decision = {"outcome": outcome, "version": champion_then, "champion": champion_then, "previous": before}
        decided_in_format_3(store, DATASET, f"run-{champion_then}", decision)
    pointed_in_format_3(store, DATASET, 1)
    put_json_if_absent(store.root / DATASET / RETIRED / "00000002.json", {"time": "2026-01-01T00:00:00+00:00"})
    shutil.rmtree(store.root / DATASET / FOLDERS["train"] / Registry(store, DATASET).version(2).model)
    before = [(turn.version, turn.took_effect) for turn in Registry(store, DATASET).history()]
    assert before == [(1, True), (2, False)]
    copying.copy(store, remote, DATASET)
    registry = Registry(remote, DATASET)
    assert [(turn.version, turn.took_effect) for turn in registry.history()] == before
    assert champion(remote) == 1
    assert registry.retired_of(registry.versions()) == [registry.version(2)]
    back = Store(tmp_path / "back")
    copying.copy(remote, back, DATASET)
    assert fingerprint(back) == fingerprint(store)
    retrain(back, 3)
    assert champion(back) == 3
    assert copying.copy(back, remote, DATASET).records == 2
    assert champion(remote) == 3


def test_a_folder_is_copied_with_what_waits_for_its_run(filled: Store, tmp_path: Path):
    other = Store(tmp_path / "other")
    copying.copy(filled, other, DATASET)
    assert fingerprint(other) == fingerprint(filled)
    assert verify(other).findings == ()
    assert [arrival.id for arrival in Arrivals(other, DATASET).waiting("/inbox")] == [ARRIVAL]
    modes = {path.stat().st_mode & 0o777 for path in (other.root / DATASET / FOLDERS["train"]).rglob("*.*")}
    assert modes == {0o444}


def test_object_storage_is_copied_to_object_storage(filled: Store, remote: CloudStore, tmp_path: Path):
    copying.copy(filled, remote, DATASET)
    other = cloud_store(tmp_path / "other cache", MemoryObjects("memory://bucket/other"))
    copying.copy(remote, other, DATASET)
    assert history(other.objects) == history(remote.objects)
    assert champion(other) == 2
    # What passed through this machine does not stay, neither in the working folder nor in the cache.
    assert not list((tmp_path / "other cache").rglob("*.bin"))


def test_what_is_there_is_not_copied_again(filled: Store, remote: CloudStore):
    copying.copy(filled, remote, DATASET)
    before = remote.objects.contents()
    remote.objects.forget()
    again = copying.copy(filled, remote, DATASET)
    assert (again.entries, again.versions, again.records, again.released) == (0, 0, 0, 0)
    assert again.present == 8 + 2 + 7
    assert remote.objects.contents() == before
    written = {op.key for op in remote.objects.operations if op.changes and "/leases/" not in op.key}
    assert written <= {f"{DATASET}/registry/champion.json"}
    retrain(filled, 3)
    more = copying.copy(filled, remote, DATASET)
    assert (more.entries, more.versions, more.records) == (4, 1, 2)
    assert champion(remote) == 3


def test_a_dry_run_writes_nothing(filled: Store, remote: CloudStore, tmp_path: Path):
    wanted = copying.copy(filled, remote, DATASET, dry_run=True)
    assert remote.objects.contents() == {}
    other = Store(tmp_path / "other")
    assert copying.copy(filled, other, DATASET, dry_run=True) == wanted
    assert not other.root.exists()
    assert copying.copy(filled, other, DATASET) == wanted


def test_the_progress_is_told_in_bytes(filled: Store, remote: CloudStore):
    told: list[tuple[int, int]] = []
    copied = copying.copy(filled, remote, DATASET, advance=lambda done, total: told.append((done, total)))
    assert told[0] == (0, copied.bytes)
    assert told[-1] == (copied.bytes, copied.bytes)
    assert told == sorted(told)
    assert len(told) == copied.entries + 1


def ending_at(number: int) -> Callable[[Operation], None]:
    """Return a hook: the process ends at this change, and so do its other threads."""
    changes: list[str] = []

    def end(operation: Operation) -> None:
        if operation.changes and "/leases/" not in operation.key:
            changes.append(operation.key)
            if len(changes) >= number:
                raise Stopped

    return end


def test_a_copy_that_was_cut_off_anywhere_is_sound_and_is_completed_by_the_next(store: Store, tmp_path: Path):
    for number in (1, 2):
        retrain(store, number)
    whole = MemoryObjects()
    copying.copy(store, cloud_store(tmp_path / "whole", whole), DATASET)
    cut_off = 0
    for number in range(1, 100):
        objects = MemoryObjects()
        objects.before = ending_at(number)
        target = cloud_store(tmp_path / str(number), objects)
        try:
            copying.copy(store, target, DATASET)
        except Stopped:
            cut_off += 1
        else:
            break
        objects.before = lambda _: None
        # As far as it goes, all that is named is there.
        for version in Registry(target, DATASET).versions():
            target.get(DATASET, "train", version.model, Thing)
        decided = [decision["version"] for decision in Ledger(target, DATASET).read("decisions")]
        assert decided == [1, 2][: len(decided)]
        assert {*decided} <= {*Registry(target, DATASET).numbers()}
        copying.copy(store, target, DATASET)
        assert history(objects) == history(whole)
        assert champion(target) == 2
    # Each of 8 entries has 2 files and its description; 2 versions, decisions and runs, the pointer and the format.
    assert cut_off == 8 * 3 + 2 * 3 + 2


def test_a_copy_that_is_interrupted_has_ended_when_it_says_so(filled: Store, remote: CloudStore):
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    before = {*threading.enumerate()}
    with pytest.raises(KeyboardInterrupt):
        copying.copy(filled, remote, DATASET, advance=interrupt)
    # No thread goes on without the lease.
    assert remote.objects.operations[-1].name == "delete"
    assert remote.objects.operations[-1].key.startswith(f"{DATASET}/leases/")
    # That which renews leases ends later.
    assert {thread.name for thread in threading.enumerate() if thread not in before} <= {"idxflow-leases"}
    assert Registry(remote, DATASET).numbers() == []
    copying.copy(filled, remote, DATASET)
    assert champion(remote) == 2


@pytest.mark.remedies("storage.copying:_differs")
@pytest.mark.parametrize("kind", ["decisions", "runs", "versions"])
def test_another_record_of_the_same_name_is_neither_replaced_nor_kept_silently(
    filled: Store, tmp_path: Path, kind: str
):
    other = Store(tmp_path / "other")
    copying.copy(filled, other, DATASET)
    retrain(filled, 3)
    folder = "registry" if kind == "versions" else "ledger"
    path = sorted((other.root / DATASET / folder / kind).iterdir())[0]
    path.write_bytes(sealed({**read_json(path), "time": "2020-01-01T00:00:00+00:00"}))
    before = fingerprint(other)
    with pytest.raises(StoreError) as refused:
        copying.copy(filled, other, DATASET)
    ours = filled.root / path.relative_to(other.root)
    assert str(refused.value) == (
        f"expected {path} to be the same as {ours}; found another one: the histories of "
        "tiny went separate ways, and nothing of it was copied; choose another target"
    )
    assert fingerprint(other) == before
    copying.copy(filled, Store(tmp_path / "another"), DATASET)


@pytest.mark.remedies("storage.copying:_check_one_history")
def test_a_data_set_that_went_separate_ways_is_left_as_it_is(filled: Store, tmp_path: Path):
    other = Store(tmp_path / "other")
    copying.copy(filled, other, DATASET)
    retrain(other, 4)
    retrain(filled, 3)
    before = fingerprint(other)
    with pytest.raises(StoreError, match="the two have gone separate ways; nothing of tiny was copied") as refused:
        copying.copy(filled, other, DATASET)
    assert str(other.root) in str(refused.value)
    assert fingerprint(other) == before
    copying.copy(filled, Store(tmp_path / "another"), DATASET)


def test_a_target_that_went_on_alone_keeps_its_champion(filled: Store, tmp_path: Path):
    other = Store(tmp_path / "other")
    copying.copy(filled, other, DATASET)
    retrain(other, 3)
    before = fingerprint(other)
    copied = copying.copy(filled, other, DATASET)
    assert (copied.entries, copied.versions, copied.records) == (0, 0, 0)
    assert fingerprint(other) == before
    assert champion(other) == 3
    assert copying.copy(other, filled, DATASET).versions == 1
    assert champion(filled) == 3


@pytest.mark.remedies("storage.copying:create")
def test_what_another_process_writes_meanwhile_is_not_replaced(filled: Store, remote: CloudStore, tmp_path: Path):
    rival = cloud_store(tmp_path / "rival", remote.objects)
    name = Ledger(filled, DATASET).names("decisions")[0]

    def decide(operation: Operation) -> None:
        if operation.name == "create" and operation.key.endswith(f"decisions/{name}"):
            remote.objects.before = lambda _: None
            rival.objects.put(operation.key, sealed({"run": "another"}))

    remote.objects.before = decide
    with pytest.raises(StoreError, match="another process has just written it; repeat the command to compare"):
        copying.copy(filled, remote, DATASET)
    assert len(Ledger(rival, DATASET).names("decisions")) == 1
    with pytest.raises(StoreError, match=f"{name} to be the same as"):
        copying.copy(filled, remote, DATASET)
    remote.objects.delete([f"{DATASET}/ledger/decisions/{name}"])
    copying.copy(filled, remote, DATASET)
    assert champion(remote) == 2


@pytest.mark.remedies("storage.copying:_check")
@pytest.mark.parametrize("to_cloud", [True, False])
def test_a_flipped_bit_at_the_source_is_not_copied(filled: Store, remote: CloudStore, tmp_path: Path, to_cloud: bool):
    target = remote if to_cloud else Store(tmp_path / "other")
    file = only_result(filled)
    good = file.read_bytes()
    rewrite(file, b"T" + good[1:])
    with pytest.raises(DamagedEntry) as refused:
        copying.copy(filled, target, DATASET)
    assert str(refused.value).startswith(f"{file}: expected SHA-256 ")
    assert str(refused.value).endswith(f"`{filled.command('verify')}` says what to do")
    key = file.parent.name
    assert not target.has(DATASET, "train", key)
    assert Registry(target, DATASET).numbers() == []
    assert [finding.where for finding in verify(filled).damage] == [str(file.parent)]
    rewrite(file, good)
    copying.copy(filled, target, DATASET)
    assert target.has(DATASET, "train", key)


@pytest.mark.remedies("storage.copying:_check")
def test_a_flipped_bit_in_object_storage_is_not_copied(filled: Store, remote: CloudStore, tmp_path: Path):
    copying.copy(filled, remote, DATASET)
    key = next(key for key in remote.objects.contents() if key.endswith("/data.bin"))
    good = remote.objects.get(key)
    remote.objects.put(key, b"!" + good[1:])
    other = Store(tmp_path / "other")
    with pytest.raises(DamagedEntry, match=f"^{remote.objects.where(key)}: expected SHA-256"):
        copying.copy(remote, other, DATASET)
    assert Registry(other, DATASET).numbers() == []
    remote.objects.put(key, good)
    copying.copy(remote, other, DATASET)
    assert verify(other).damage == ()


@pytest.mark.remedies("storage.copying:_record", "storage.copying:_entry", "storage.cloud_store:described")
def test_a_damaged_record_or_description_at_the_source_is_named(filled: Store, remote: CloudStore, tmp_path: Path):
    copying.copy(filled, remote, DATASET)
    other = Store(tmp_path / "other")
    objects = remote.objects
    for ending, words in (("/ledger/runs/", "its contents do not"), (f"/{ENTRY}", "cannot be read")):
        key = next(key for key in objects.contents() if ending in key)
        good = objects.get(key)
        objects.put(key, good.replace(b"run", b"ran").replace(b"bytes", b"bites"))
        with pytest.raises(DamagedEntry, match=words) as refused:
            copying.copy(remote, other, DATASET)
        assert objects.where(key) in str(refused.value)
        assert f"`{remote.command('verify')}`" in str(refused.value)
        assert other.datasets() in ([], [DATASET])
        assert Registry(other, DATASET).numbers() == []
        objects.put(key, good)
    copying.copy(remote, other, DATASET)
    assert verify(other).damage == ()


@pytest.mark.remedies("storage.copying:_differs")
def test_a_model_with_other_weights_is_not_taken_for_the_one_of_a_version(filled: Store, tmp_path: Path):
    other = Store(tmp_path / "other")
    shutil.copytree(filled.root / DATASET / FOLDERS["train"], other.root / DATASET / FOLDERS["train"])
    entry = only_result(other, file=ENTRY)
    values = read_json(entry)
    rewrite(entry, sealed({**values, "record": {"weights_digest": "others"}}))
    with pytest.raises(StoreError, match=f"^expected {entry.parent} to be the same as"):
        copying.copy(filled, other, DATASET)
    assert not (other.root / DATASET / "registry" / "versions").exists()
    shutil.rmtree(entry.parent)
    copying.copy(filled, other, DATASET)
    assert verify(other).damage == ()


def test_a_result_that_was_made_again_stays_as_it_is_in_each_store(filled: Store, tmp_path: Path):
    other = Store(tmp_path / "other")
    copying.copy(filled, other, DATASET)
    key = only_result(filled, "decode").parent.name
    shutil.rmtree(only_result(filled, "decode").parent)
    description = filled.root / DATASET / FOLDERS["decode"] / key / ENTRY
    add(filled, "decode", 1, "train")
    add(filled, "decode", 2, "train")
    assert description.exists()
    assert copying.copy(filled, other, DATASET).entries == 0


def test_other_data_sets_stay(filled: Store, remote: CloudStore):
    remote.prepare()
    remote.objects.put("mnist/registry/champion.json", b"theirs")
    copying.copy(filled, remote, DATASET)
    assert remote.objects.get("mnist/registry/champion.json") == b"theirs"
    assert remote.datasets() == ["mnist", DATASET]


def test_released_rows_are_added(filled: Store, remote: CloudStore, tmp_path: Path):
    released.release(remote, DATASET, {"c" * 32: "theirs", "a" * 32: "their words"})
    copying.copy(filled, remote, DATASET)
    expected = {"a" * 32: "their words", "b" * 32: "", "c" * 32: "theirs"}
    assert released.comments(remote, DATASET) == expected
    other = Store(tmp_path / "other")
    (other.root / DATASET).mkdir(parents=True)
    (other.root / DATASET / released.FILE).write_text(f"# by hand\n{'A' * 32} # mine\n")
    copying.copy(remote, other, DATASET)
    assert released.comments(other, DATASET) == {**expected, "a" * 32: "mine"}
    assert (other.root / DATASET / released.FILE).read_text().startswith("# by hand\n")


def test_nothing_is_removed_from_either_store_meanwhile(filled: Store, remote: CloudStore):
    busy: list[bool] = []
    once = threading.Lock()

    def collect(operation: Operation) -> None:
        if operation.name == "upload" and once.acquire(blocking=False):
            busy.append(retention.collect(filled, DATASET, keep_last=1).busy)
            leases = remote.objects.list(f"{DATASET}/leases").objects
            busy.append(bool(leases) and not remote.leases.is_dead(leases[0].key))

    remote.objects.before = collect
    copying.copy(filled, remote, DATASET)
    assert busy == [True, True]
    assert remote.objects.list(f"{DATASET}/leases").objects == ()


@pytest.mark.remedies("storage.arrivals:adopt")
def test_a_damaged_snapshot_is_not_copied(filled: Store, remote: CloudStore, tmp_path: Path):
    copying.copy(filled, remote, DATASET)
    key = f"{DATASET}/0-inbox/arrivals/{ARRIVAL}/images.gz"
    # The other person has no undamaged one in the cache.
    theirs = cloud_store(tmp_path / "their cache", remote.objects)
    for source, target in ((filled, Store(tmp_path / "a")), (theirs, Store(tmp_path / "b"))):
        write(source, key, b"ARCHIVE")
        with pytest.raises(DamagedEntry, match="expected the file that arrived; found another; `idxflow verify"):
            copying.copy(source, target, DATASET)
        assert Arrivals(target, DATASET).names() == []
        write(source, key, b"archive")
        copying.copy(source, target, DATASET)
        assert Arrivals(target, DATASET).names() == [ARRIVAL]
        assert fingerprint(target) == fingerprint(filled)


def write(store: Store, key: str, data: bytes) -> None:
    """Replace a file of a store, also one that is read-only."""
    if isinstance(store, CloudStore):
        store.objects.put(key, data)
    else:
        rewrite(store.root / key, data)


@pytest.mark.remedies("storage.copying:_errors", "storage.copying:_errors:2")
def test_what_cannot_be_written_or_is_gone_is_named(
    filled: Store, remote: CloudStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = Store(tmp_path / "other")
    (other.root / DATASET).mkdir(parents=True)
    obstacle = other.root / DATASET / "registry"
    obstacle.write_text("a file in the place of a folder")
    with pytest.raises(
        StoreError, match=f"Not a directory at {obstacle}.*repeat the command, which copies what is missing"
    ):
        copying.copy(filled, other, DATASET)
    obstacle.unlink()
    copying.copy(filled, other, DATASET)
    copying.copy(filled, remote, DATASET)
    key = next(key for key in remote.objects.contents() if key.endswith("/data.bin"))
    data = remote.objects.get(key)
    remote.objects.delete([key])
    with pytest.raises(StoreError, match=f"^expected {remote.objects.where(key)}; found none any more"):
        copying.copy(remote, Store(tmp_path / "third"), DATASET)
    remote.objects.put(key, data)
    copying.copy(remote, Store(tmp_path / "third"), DATASET)
