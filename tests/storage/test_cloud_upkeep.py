"""`verify` and `gc` on a store in object storage: the same promises as in a folder, in few requests."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from storage import verify as store_check
from storage.errors import DamagedEntry, StoreError
from storage.files import sealed, unsealed
from storage.ledger import Ledger
from storage.objects.protocol import always
from storage.registry import Registry
from storage.retention import collect, collect_strays
from storage.runtime import cancellation
from storage.store import ENTRY, Store
from storage.upkeep import STEP_FOLDERS
from storage.verify import verify
from tests.support.cloud_stores import LIFE, Cloud
from tests.support.memory_objects import Operation, Stopped, nothing
from tests.support.stores import DATASET, Thing, add, retrain

OLD = LIFE + 10
LEASES = ("leases", "claims", "gc")


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.close()


@pytest.fixture
def filled(cloud: Cloud) -> Cloud:
    """Six runs on another machine; versions 1 and 2 became champion, the rest did not."""
    fill(cloud.machine("there"), 6)
    cloud.clock.advance(OLD)
    cloud.objects.forget()
    return cloud


def fill(store: Store, runs: int) -> None:
    for number in range(1, runs + 1):
        retrain(store, number, promoted=number <= 2)


def keys(cloud: Cloud, part: str, end: str = "") -> list[str]:
    return [key for key in cloud.objects.contents() if key.startswith(f"{DATASET}/{part}/") and key.endswith(end)]


def change(cloud: Cloud, key: str, edit: Callable[[bytes], bytes]) -> None:
    cloud.objects.put(key, edit(cloud.objects.contents()[key]))


def described(cloud: Cloud, key: str, **values: Any) -> None:
    """Change fields of a description, and seal it again."""
    change(cloud, key, lambda data: sealed({**unsealed(data), **values}))


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def every_result_can_be_read(store: Store, numbers: set[int]) -> None:
    """Read what the versions with these numbers are made of, as a run and a prediction do."""
    registry = Registry(store, DATASET)
    for number in numbers:
        version = registry.version(number)
        for step, key in (("train", version.model), ("evaluate", version.evaluation)):
            entry = store.get(DATASET, step, key, Thing).entry
            assert entry.path("data.bin").read_bytes() == f"{step} {number}".encode() * 100


def test_a_good_store_has_nothing_to_say(filled: Cloud):
    store, before = filled.machine(), filled.objects.contents()
    verdict = verify(store)
    assert (verdict.findings, verdict.entries, verdict.versions, verdict.records) == ((), 24, 6, 12)
    assert verdict.bytes > 24 * 1000
    assert filled.objects.contents() == before


def test_only_contents_and_descriptions_cost_a_request_each(filled: Cloud):
    def requests(**more: Any) -> dict[str, int]:
        filled.objects.forget()
        verify(filled.machine(), **more)
        return dict(filled.objects.counts)

    few, more = requests(contents=False), requests()
    assert more.pop("range") == 24 * 2
    assert few == more
    # Entries and sets that arrived, and once more for what is left over.
    assert few["walk"] == 2 * (len(STEP_FOLDERS) + 1)
    # Versions and decisions are read for their index, too.
    assert few["get"] < 24 + 2 * (6 + 12) + 20
    assert "age" not in few


DAMAGE: dict[str, tuple[str, Callable[[Cloud], object], str]] = {
    "a flipped bit": ("2-splits", lambda c: change(c, keys(c, "2-splits", "data.bin")[0], flip), "expected SHA-256"),
    "a cut file": ("5-models", lambda c: change(c, keys(c, "5-models", "data.bin")[0], lambda d: d[:-1]), "found 699"),
    "a file that is gone": (
        "5-models",
        lambda c: c.objects.delete([keys(c, "5-models", "data.bin")[0]]),
        "found no such object",
    ),
    "a file too many": (
        "2-splits",
        lambda c: c.objects.put(keys(c, "2-splits", "data.bin")[0].replace("data.bin", "new.bin"), b""),
        "found new.bin as well",
    ),
    "an edited description": (
        "6-evaluations",
        lambda c: change(c, keys(c, "6-evaluations", ENTRY)[0], lambda d: d.replace(b'"weights ', b'"weight 1')),
        "do not have the SHA-256",
    ),
    "an attempt that is no name": (
        "5-models",
        lambda c: described(c, keys(c, "5-models", ENTRY)[0], attempt="../../other"),
        "expected the name of an attempt; found '../../other'",
    ),
    "an entry in another's place": (
        "2-splits",
        lambda c: c.objects.put(
            f"{DATASET}/2-splits/{'0' * 32}/{ENTRY}", c.objects.contents()[keys(c, "2-splits", ENTRY)[0]]
        ),
        "expected the entry of",
    ),
    "a model entry that is gone": (
        "registry/versions",
        lambda c: c.objects.delete(keys(c, "5-models")),
        "expected its train entry at memory://bucket/store/tiny/5-models/",
    ),
    "an edited version": (
        "registry/versions",
        lambda c: change(c, keys(c, "registry/versions")[0], lambda d: d.replace(b"0.9", b"1.0")),
        "do not have the SHA-256",
    ),
    "other weights": (
        "registry/versions",
        lambda c: described(c, keys(c, "registry/versions")[0], weights_digest="others"),
        "its model has other weights",
    ),
    "a version that is gone": (
        "registry/versions",
        lambda c: c.objects.delete(keys(c, "registry/versions")[:1]),
        "that a decision names",
    ),
    "a changed run": (
        "ledger/runs",
        lambda c: change(c, keys(c, "ledger/runs")[0], lambda d: d.replace(b"run-1", b"run-9")),
        "SHA-256",
    ),
    "a cut decision": ("ledger/decisions", lambda c: change(c, keys(c, "ledger/decisions")[0], lambda d: d[:30]), ""),
    "a released row that is none": (
        "released",
        lambda c: c.objects.put(f"{DATASET}/released/row-7", b""),
        "expected the digest of a row as its name",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_by_its_address(filled: Cloud, what: str):
    place, damage, problem = DAMAGE[what]
    damage(filled)
    findings, where = verify(filled.machine()).damage, f"memory://bucket/store/{DATASET}/{place}/"
    assert any(f.where.startswith(where) and problem in f.problem for f in findings), findings
    assert all("\n" not in f.problem and f.remedy for f in findings)


def test_only_contents_show_a_flipped_bit(filled: Cloud):
    change(filled, keys(filled, "2-splits", "data.bin")[0], flip)
    assert verify(filled.machine(), contents=False).findings == ()


@pytest.mark.remedies("storage.cloud_store:_removed")
def test_damage_is_mended_by_the_next_run(filled: Cloud):
    store = filled.machine()
    filled.objects.delete([keys(filled, "5-models", "data.bin")[0]])
    number = next(n for n in range(1, 7) if not readable(store, n))
    # Whoever opens the file removes the entry, so that a run makes it again.
    assert not keys(filled, "5-models", f"{Registry(store, DATASET).version(number).model}/{ENTRY}")
    add(store, "train", number)
    assert verify(store).damage == ()


@pytest.mark.remedies("storage.cloud_store:_damaged")
def test_a_flipped_bit_is_mended_by_the_next_run(filled: Cloud):
    store = filled.machine()
    model = Registry(store, DATASET).version(3).model
    change(filled, next(key for key in keys(filled, f"5-models/{model}", "data.bin")), flip)
    with pytest.raises(DamagedEntry, match="the damaged entry was removed from the store: run again to rebuild it"):
        every_result_can_be_read(store, {3})
    add(store, "train", 3)
    every_result_can_be_read(store, {3})
    filled.clock.advance(OLD)
    collect(store, DATASET, keep_last=99)
    assert verify(store).findings == ()


def readable(store: Store, number: int) -> bool:
    try:
        every_result_can_be_read(store, {number})
    except (StoreError, DamagedEntry):
        return False
    return True


def test_an_entry_that_was_made_again_meanwhile_is_not_removed(filled: Cloud):
    store, other = filled.machine(), filled.machine("there")
    number = 3
    entry = store.get(DATASET, "train", Registry(store, DATASET).version(number).model, Thing).entry
    filled.objects.delete([key for key in keys(filled, "5-models") if entry.key in key])
    add(other, "train", number)
    with pytest.raises(StoreError, match="found none"):
        entry.path("data.bin")
    every_result_can_be_read(store, {number})


def test_what_dead_processes_left_is_no_damage(filled: Cloud):
    left = {
        f"{DATASET}/5-models/{'a' * 32}/{'1' * 16}/data.bin": "a run ended while writing it",
        f"{keys(filled, '2-splits', ENTRY)[0].removesuffix(ENTRY)}{'2' * 16}/data.bin": "a run ended while writing it",
        f"{DATASET}/leases/{'3' * 16}.json": "a process ended without removing it",
        f"{DATASET}/claims/train-{'4' * 32}.json": "a process ended without removing it",
        f"{DATASET}/gc/{'5' * 16}.json": "a process ended without removing it",
        ".now/66": "a process ended without removing it",
        ".probe/77/object": "a process ended without removing it",
    }
    before, store = filled.objects.contents(), filled.machine()
    attempts_and_strays = [key for key in left if not key.startswith(tuple(f"{DATASET}/{name}/" for name in LEASES))]
    for key in attempts_and_strays:
        filled.objects.put(key, b"being written")
    # Too young to be left over: their processes may be at it.
    assert verify(store).findings == ()
    for key in left.keys() - {*attempts_and_strays}:
        filled.objects.put(key, sealed({"owner": {}}))
    filled.clock.advance(OLD)
    findings = verify(store).findings
    assert {f.where.removesuffix("/data.bin"): f.problem for f in findings} == {
        f"memory://bucket/store/{key.removesuffix('/data.bin')}": problem for key, problem in left.items()
    }
    assert {f.kind for f in findings} == {"leftover"}
    assert all("idxflow gc --store memory://bucket/store` removes it" in f.remedy for f in findings)
    collected, strays = collect(store, DATASET, keep_last=99), collect_strays(store)
    assert (len(collected.leftovers), len(strays), collected.entries) == (5, 2, ())
    assert filled.objects.contents() == before
    assert verify(store).findings == ()


def test_while_a_run_lives_nothing_is_left_over(filled: Cloud):
    filled.objects.put(f"{DATASET}/5-models/{'a' * 32}/{'1' * 16}/data.bin", b"being uploaded")
    filled.clock.advance(OLD)
    with filled.machine("there").in_use(DATASET):
        assert verify(filled.machine()).findings == ()
        assert collect(filled.machine(), DATASET).busy
    assert len(verify(filled.machine()).leftovers) == 1


def test_unfinished_work_is_of_this_machine_and_stays_for_the_next_run(filled: Cloud):
    store = filled.machine()
    partial = store.entries(DATASET, "train") / ".abc.partial"
    partial.mkdir(parents=True)
    (partial / "checkpoint.npz").write_bytes(b"x" * 1000)
    assert [f.where for f in verify(store).leftovers] == [str(partial)]
    assert verify(filled.machine("there")).findings == ()
    Ledger(store, DATASET).append("runs", "run-7", {"state": "crashed"})
    assert [f.remedy for f in verify(store).leftovers] == ["run the same command again to resume"]
    assert collect(store, DATASET).unfinished == (partial,)
    assert partial.exists()
    retrain(store, 7)
    collected = collect(store, DATASET)
    assert [leftover.path for leftover in collected.leftovers] == [partial]
    assert collected.bytes == 1000
    assert not partial.exists()


def test_a_run_on_this_machine_keeps_its_unfinished_work_also_from_gc_of_another_store(filled: Cloud):
    here, too = filled.machine(), filled.machine()
    with here.in_use(DATASET):
        assert collect(too, DATASET).busy


def test_findings_are_addresses_in_json(filled: Cloud):
    change(filled, keys(filled, "5-models", "data.bin")[0], lambda data: data[:-1])
    store = filled.machine()
    report = json.loads(store_check.as_json(verify(store), store))
    assert report["store"] == "memory://bucket/store"
    assert report["damage"][0]["path"].startswith("memory://bucket/store/tiny/5-models/")


def test_gc_keeps_the_champion_its_line_and_the_newest(filled: Cloud):
    store = filled.machine()
    would = collect(store, DATASET, keep_last=1, dry_run=True)
    before = filled.objects.contents()
    collected = collect(store, DATASET, keep_last=1)
    assert collected == would
    assert (collected.retired, len(collected.entries), collected.kept) == ((3, 4, 5), 3 * 4, 3 * 4)
    after = filled.objects.contents()
    decision = f"{DATASET}/ledger/decisions/00000007.json"
    assert unsealed(after[decision])["versions"] == [3, 4, 5]
    gone = before.keys() - after.keys()
    assert len(gone) == 3 * 4 * 3
    assert sum(len(before[key]) for key in gone) == collected.bytes
    assert verify(store).findings == ()
    every_result_can_be_read(filled.machine("elsewhere"), {1, 2, 6})
    assert collect(store, DATASET, keep_last=1).entries == ()


def test_gc_removes_in_bulk_and_descriptions_first(filled: Cloud):
    removed: list[list[str]] = []
    delete = filled.objects.delete

    def noted(keys: Iterable[str], check: Callable[[], None] = always) -> None:
        removed.append([*keys])
        delete(removed[-1], check)

    filled.objects.delete = noted
    collect(filled.machine(), DATASET, keep_last=1)
    batches = [batch for batch in removed if not any("/gc/" in key or "/.now" in key for key in batch)]
    assert [len(batch) for batch in batches] == [12, 24]
    assert all(key.endswith(ENTRY) for key in batches[0])


def test_a_dead_lease_stops_nobody_and_a_living_one_does(filled: Cloud):
    user, store = filled.machine("there"), filled.machine()
    user.leases.hold(f"{DATASET}/leases/a.json")
    filled.clock.advance(LIFE / 2)
    assert collect(store, DATASET, keep_last=1).busy
    assert keys(filled, "gc") == []
    user.leases.forget(f"{DATASET}/leases/a.json")
    filled.clock.advance(LIFE)
    assert not collect(store, DATASET, keep_last=1).busy
    assert keys(filled, "leases") == []


def test_a_user_waits_for_gc(filled: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Each raises its flag first and looks then, so one of them sees the other: here both orders."""
    gc, user = filled.machine(), filled.machine("there")
    flag = f"{DATASET}/gc/a.json"
    gc.leases.hold(flag)
    waits = []

    def wait(seconds: float) -> None:
        # It has withdrawn its lease, so that gc can begin.
        assert keys(filled, "leases") == []
        waits.append(seconds)
        if len(waits) == 3:
            gc.leases.release(flag)

    monkeypatch.setattr(cancellation, "sleep", wait)
    with caplog.at_level(logging.INFO), user.in_use(DATASET):
        assert len(waits) == 3
        assert collect(gc, DATASET).busy
    assert [record.message for record in caplog.records].count(f"{DATASET}: waiting for `gc` to finish") == 1


def test_gc_that_is_killed_anywhere_leaves_a_good_store(filled: Cloud):
    whole = filled.at(filled.objects.copy())
    collect(whole.machine(), DATASET, keep_last=1)
    expected, operations = {*whole.objects.contents()}, [*whole.objects.operations]
    changing = [operation.number for operation in operations if operation.changes]
    assert len(changing) > 36
    for number in changing:
        broken = filled.at(filled.objects.copy())
        broken.objects.before = stopping(number)
        with pytest.raises(Stopped):
            collect(broken.machine(), DATASET, keep_last=1)
        broken.objects.before = nothing
        broken.clock.advance(OLD)
        store = broken.machine("next")
        assert verify(store).damage == (), number
        every_result_can_be_read(store, {1, 2, 6})
        collect(store, DATASET, keep_last=1)
        collect_strays(store)
        assert {*broken.objects.contents()} == expected, number
        assert verify(store).findings == (), number
        filled.close()


def stopping(number: int) -> Callable[[Operation], None]:
    """Return a hook that ends the process at an operation: it does nothing after that either."""

    def stop(operation: Operation) -> None:
        if operation.number >= number:
            raise Stopped

    return stop


@pytest.mark.remedies("storage.objects.leases:check")
def test_gc_that_was_paused_removes_nothing_more(filled: Cloud):
    store = filled.machine()
    before = {*filled.objects.contents()}
    removed = count(1)

    def paused(operation: Operation) -> None:
        # In the middle of the first removal.
        if operation.name == "delete" and operation.key.endswith(ENTRY) and next(removed) == 3:
            filled.clock.advance(LIFE / 2 + 1)

    filled.objects.before = paused
    with pytest.raises(
        StoreError, match=r"expected to renew .*/gc/.*at least every 500 seconds;.* run again"
    ) as refusal:
        collect(store, DATASET, keep_last=1)
    assert "\n" not in str(refusal.value)
    filled.objects.before = nothing
    gone = before - {*filled.objects.contents()}
    assert 1 < len(gone) < 12
    assert all(key.endswith(ENTRY) for key in gone)
    # Run again: the files are those of attempts that no entry publishes.
    filled.clock.advance(OLD)
    assert len(collect(store, DATASET, keep_last=1).leftovers) >= len(gone)
    assert verify(store).findings == ()


def test_a_run_that_was_paused_publishes_nothing(filled: Cloud):
    store = filled.machine()
    with store.in_use(DATASET):
        filled.clock.advance(LIFE / 2 + 1)
        before = filled.objects.contents()
        # gc could have removed what these steps would use.
        for work in (
            lambda: add(store, "train", 9),
            lambda: add(store, "train", 1),
            lambda: retrain(store, 1),
            lambda: Registry(store, DATASET).register(model="m", evaluation="e", run="run"),
            lambda: Registry(store, DATASET).carry_out({"previous": 2, "champion": 2}, "run", 6),
        ):
            with pytest.raises(StoreError, match=r"expected to renew .*/leases/.* run again"):
                work()
        after = filled.objects.contents()
        published = [key for key in after.keys() - before.keys() if key.endswith(".json")]
        assert published == []
    with store.in_use(DATASET):
        add(store, "train", 9)
    every_result_can_be_read(store, {1})


def test_a_lease_that_was_lost_is_not_renewed(tmp_path: Path):
    """Renewed, it would hide that others took the process for gone: the thread wakes up first, here every time."""
    cloud = Cloud(tmp_path)
    store = cloud.machine()
    store.leases.life = 0.02
    store.leases.hold("lost.json")
    store.leases.check("lost.json")
    cloud.clock.advance(1)
    store.leases.hold("held.json")
    renewed = lambda: [operation.key for operation in cloud.objects.operations].count("held.json")  # noqa: E731
    while renewed() < 3:
        cancellation.sleep(0.001)
    store.leases.check("held.json")
    with pytest.raises(StoreError, match="was paused or cut off"):
        store.leases.check("lost.json")
    store.leases.release("held.json")


def test_only_the_first_run_in_a_new_store_probes_it(tmp_path: Path):
    cloud, probes = Cloud(tmp_path), []
    cloud.objects.probe = lambda: probes.append(1)
    for name in ("here", "here", "there"):
        cloud.machine(name).prepare()
    assert probes == [1]


def test_a_store_that_the_probe_refuses_gets_nothing(tmp_path: Path):
    cloud = Cloud(tmp_path)

    def refuse() -> None:
        raise StoreError("it replaces what is there")

    cloud.objects.probe = refuse
    with pytest.raises(StoreError, match="it replaces what is there"):
        cloud.machine().prepare()
    assert cloud.objects.contents() == {}
