"""Any object of a store in object storage is damaged or gone: never a wrong result, and what is advised helps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.errors import DamagedEntry, IdxflowError
from storage.records import Evaluation, TrainedModel
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tests.support.cloud_machines import Clock, machine
from tests.support.crashes import in_memory
from tests.support.memory_objects import MemoryObjects
from tests.support.store_scenarios import DATASET, FILES, evaluate_plan, train_plan, whole

Damage = Callable[[bytes], bytes | None]


def edited(data: bytes) -> bytes:
    """Return an object that still can be read, with another content."""
    try:
        values = json.loads(data)
    except ValueError:
        return bytes(len(data))
    return json.dumps({**values, "format": 1}).encode()


DAMAGES: dict[str, Damage] = {
    "a flipped bit": lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
    "a cut object": lambda data: data[:-1],
    "an empty object": lambda data: b"",
    "no object": lambda data: None,
    "an edited object": edited,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as path:
        yield path


def use(store: Store) -> None:
    """Do what a run does, and read all that it has made."""
    store.prepare()
    with store.in_use(DATASET):
        whole(store)
        champion = Registry(store, DATASET).champion()
        assert champion
        assert (champion.number, champion.model) == (1, train_plan(1).key)
        model = store.get(DATASET, "train", champion.model, TrainedModel)
        for size, name in enumerate(FILES, start=1):
            assert model.entry.path(name).read_bytes() == b"A" * 4100 * size
        evaluation = store.get(DATASET, "evaluate", evaluate_plan(1).key, Evaluation)
        assert evaluation.entry.path("predictions.npz").read_bytes() == b"a" * 500


def follow(advice: str, objects: MemoryObjects, key: str, good: bytes) -> None:
    """Do what an error advises, except to run again."""
    assert objects.where(key) in advice, "it does not say which object"
    if "from a backup" in advice:
        objects.put(key, good)
    elif "remove this file" in advice:
        objects.delete([key])
    else:
        assert "run again" in advice


GONE, CHANGED = (
    pytest.mark.remedies("storage.cloud_store:_removed"),
    pytest.mark.remedies("storage.cloud_store:_damaged"),
)


@pytest.mark.parametrize("how", [pytest.param(how, marks=GONE if how == "no object" else CHANGED) for how in DAMAGES])
def test_whatever_object_is_damaged_the_result_is_right_after_what_is_advised(folder: Path, how: str):
    clock = Clock()
    intact = MemoryObjects(clock=clock)
    use(machine(intact, clock, folder / "first"))
    said = set()
    for number, (key, good) in enumerate(intact.contents().items()):
        objects, here = intact.copy(), folder / str(number)
        bad = DAMAGES[how](good)
        if bad is None:
            objects.delete([key])
        else:
            objects.put(key, bad)
        advice = ""
        try:
            use(machine(objects, clock, here))
        except IdxflowError as error:
            advice = str(error)
        if advice:
            said.add(key)
            follow(advice, objects, key, good)
            use(machine(objects, clock, here))
        found = {finding.where for finding in verify(machine(objects, clock, here)).damage}
        assert found <= {objects.where(key)}, (key, advice)
        shutil.rmtree(here)
    assert {key for key in intact.contents() if key.endswith((".npz", ".jsonl"))} <= said


def test_what_was_damaged_on_its_way_is_fetched_once_more_and_nobody_removes_it(folder: Path):
    clock = Clock()
    objects = MemoryObjects(clock=clock)
    use(machine(objects, clock, folder / "first"))
    reader = machine(objects, clock, folder / "reader")
    model = reader.get(DATASET, "train", train_plan(1).key, TrainedModel)
    download, damaged = objects.download, []

    def flipping(key: str, file: Path) -> None:
        download(key, file)
        if key not in damaged:
            damaged.append(key)
            file.write_bytes(DAMAGES["a flipped bit"](file.read_bytes()) or b"")

    objects.download = flipping
    for size, name in enumerate(FILES, start=1):
        assert model.entry.path(name).read_bytes() == b"A" * 4100 * size
    assert len(damaged) == len(FILES)


def test_who_only_reads_removes_nothing_that_is_damaged(folder: Path):
    clock = Clock()
    objects = MemoryObjects(clock=clock)
    use(machine(objects, clock, folder / "first"))
    key = next(found.key for found in objects.walk(DATASET) if found.name == FILES[0])
    objects.put(key, b"?" + objects.get(key)[1:])
    reader = machine(objects, clock, folder / "reader")
    reader.mends = False
    before = objects.contents()
    model = reader.get(DATASET, "train", train_plan(1).key, TrainedModel)
    with pytest.raises(DamagedEntry, match=r"remove .*/entry\.json, then run again") as raised:
        model.entry.path(FILES[0])
    assert objects.contents() == before
    objects.delete([str(raised.value).split("remove ")[1].split(",")[0].removeprefix(objects.where("x")[:-1])])
    use(machine(objects, clock, folder / "next"))
