"""What `idxflow watch` takes out of a folder, and what it leaves there. No server is needed: a set is in the store, and
recorded, before anybody is told of it."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flows.interruption import Terminated, interruptible
from flows.watcher import _poll
from storage.arrivals import Arrivals
from storage.datasets.catalog import DEFAULT_FILES
from storage.errors import IdxflowError
from storage.files import read_json, sealed
from storage.formats import idx
from storage.ledger import Ledger
from storage.retention import collect
from storage.snapshots import Arrival
from storage.store import Store
from storage.verify import verify
from tests.conftest import bars, write_tiny
from tests.support.commands import Command, idxflow
from tests.support.crashes import in_memory
from tests.support.operated import until
from tests.support.servers import clean_environment, free_port

TRAIN, LABELS, TEST, TEST_LABELS = (
    DEFAULT_FILES[role] for role in ("train-images", "train-labels", "test-images", "test-labels")
)


class World:
    """A folder that archives arrive in, a manifest of them, a store, and no server."""

    def __init__(self, home: Path, inbox: Path) -> None:
        self.manifest = write_tiny(home).manifest
        self.inbox, self.store = inbox, Store(home / "store")
        self.arrivals = Arrivals(self.store, "tiny")
        nowhere = f"http://127.0.0.1:{free_port()}/api"
        self.environment = clean_environment(home, True, PREFECT_API_URL=nowhere, IDXFLOW_STORE=str(self.store.root))
        inbox.mkdir(exist_ok=True)

    def words(self, *more: str) -> list[str]:
        return ["watch", str(self.inbox), "--dataset-file", str(self.manifest), "--every", "0.1", *more]

    @contextmanager
    def watching(self, *more: str) -> Iterator[Command]:
        with Command(*self.words(*more), env=self.environment) as command:
            until(lambda: "watching " in command.output or command.poll() is not None)
            assert command.poll() is None, command.errors
            yield command

    def sets(self) -> list[Arrival]:
        return [Arrival.from_json(values) for values in Ledger(self.store, "tiny").read("arrivals")]

    def wait_for_sets(self, count: int) -> Arrival:
        """Wait for so many sets; return the last one."""
        return until(lambda: arrivals[-1] if len(arrivals := self.sets()) == count else None)

    def contents(self, arrival: Arrival) -> dict[str, bytes]:
        """What the store has of a set."""
        folder = Path(self.arrivals.where(arrival.id))
        return {file.name: (folder / file.name).read_bytes() for file in arrival.files.values()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, tmp_path / "inbox")


def archives(seed: int, plain: bool = False, train: int = 120) -> dict[str, bytes]:
    """The four files of a set; plain ones of two seeds have equal sizes."""
    arrays = {DEFAULT_FILES[role]: idx.encode(array) for role, array in bars(train, 30, 3, (9, 7), seed).items()}
    if plain:
        return {name.removesuffix(".gz"): data for name, data in arrays.items()}
    return {name: gzip.compress(data, mtime=0) for name, data in arrays.items()}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def with_cp_p(folder: Path, files: dict[str, bytes]) -> None:
    """Overwrite each file where it is, and set its old times again, as `cp -p` and `rsync --inplace --times` do."""
    for name, data in files.items():
        before = (folder / name).stat()
        (folder / name).write_bytes(data)
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))


def with_rename(folder: Path, files: dict[str, bytes]) -> None:
    """Give new files the old times and then their names, as `rsync --times` does."""
    for name, data in files.items():
        before = (folder / name).stat()
        (folder / f".{name}.Ab12Cd").write_bytes(data)
        os.utime(folder / f".{name}.Ab12Cd", ns=(before.st_atime_ns, before.st_mtime_ns))
        (folder / f".{name}.Ab12Cd").rename(folder / name)


@pytest.mark.parametrize("replace", [with_cp_p, with_rename])
def test_a_set_of_the_same_sizes_and_times_is_another_one(tmp_path: Path, replace: Callable[..., None]):
    # A folder in memory: nothing there tells of changes.
    with in_memory() as memory:
        world, first, second = World(tmp_path, memory / "inbox"), archives(1, plain=True), archives(2, plain=True)
        assert [len(data) for data in first.values()] == [len(data) for data in second.values()]
        put(world.inbox, first)
        with world.watching():
            arrival = world.wait_for_sets(1)
            replace(world.inbox, second)
            two = world.wait_for_sets(2)
        assert world.contents(arrival) == first
        assert world.contents(two) == second
        # Nobody has seen the folder meanwhile.
        replace(world.inbox, first)
        with world.watching():
            assert world.contents(world.wait_for_sets(3)) == first


def test_the_same_set_copied_again_is_no_new_one(world: World):
    files = archives(1)
    put(world.inbox, files)
    with world.watching():
        world.wait_for_sets(1)
    put(world.inbox, files)
    again = idxflow(*world.words("--once"), env=world.environment)
    # The set is there, and what is missing is a server to tell.
    assert (again.returncode, again.stdout) == (1, "")
    assert "expected a Prefect server at" in again.stderr
    assert len(world.sets()) == 1


def test_a_copy_that_stalls_is_reported_once_and_never_taken(world: World):
    files = archives(1)
    put(world.inbox, {**files, TRAIN: files[TRAIN][:100]})
    with world.watching() as watcher:
        until(lambda: f"idxflow: not complete yet: {TRAIN}: " in watcher.errors)
        # It goes on, and stalls again: another word.
        put(world.inbox, {TRAIN: files[TRAIN][:200]})
        until(lambda: watcher.errors.count("not complete yet") == 2)
        assert world.sets() == []
        put(world.inbox, {TRAIN: files[TRAIN]})
        assert world.contents(world.wait_for_sets(1)) == files
        assert watcher.errors.count("not complete yet") == 2
    assert verify(world.store).findings == ()


@pytest.mark.parametrize(
    "leftover",
    [f".{LABELS}.x9Y8z7", f"{LABELS}.part", f"{LABELS}.filepart", f".~tmp~/{LABELS}"],
    ids=["rsync", "part", "filepart", "rsync --delay-updates"],
)
def test_a_transfer_that_goes_on_is_waited_for(world: World, leftover: str):
    """Two files of the new set are there, the third is under way; the old ones would make a set with these."""
    put(world.inbox, archives(1))
    (world.inbox / leftover).parent.mkdir(exist_ok=True)
    (world.inbox / leftover).write_bytes(b"some")
    with world.watching() as watcher:
        name = leftover.split("/")[0]
        until(lambda: f"not complete yet: {name}: expected complete archives only" in watcher.errors)
        assert world.sets() == []
        (world.inbox / leftover).unlink()
        if "/" in leftover:
            (world.inbox / leftover).parent.rmdir()
        world.wait_for_sets(1)


def test_files_that_only_resemble_archives_are_no_transfer(world: World):
    put(
        world.inbox,
        {**archives(1), f"{TRAIN}.sha256": b"a digest", f".{TRAIN}.swp": b"", "notes.tmp": b"", "x.part": b""},
    )
    with world.watching():
        world.wait_for_sets(1)


def test_a_set_that_comes_file_by_file_is_taken_when_the_last_one_is_whole(world: World):
    files = archives(1, train=150)
    with world.watching() as watcher:
        for name, data in files.items():
            assert world.sets() == []
            for end in (len(data) // 2, len(data)):
                put(world.inbox, {name: data[:end]})
        assert world.contents(world.wait_for_sets(1)) == files
        # Now one that replaces it, one file of a pair at first.
        other = archives(2, train=90)
        put(world.inbox, {TRAIN: other[TRAIN]})
        until(lambda: "expected as many train labels as images, found 150 labels and 90 images" in watcher.errors)
        assert len(world.sets()) == 1
        put(world.inbox, other)
        assert world.contents(world.wait_for_sets(2)) == other


def test_with_a_marker_no_mixture_of_two_sets_is_taken(world: World):
    first, second = archives(1), archives(2)
    put(world.inbox, first)
    result = idxflow(*world.words("--once", "--marker", "READY"), env=world.environment)
    assert (result.returncode, result.stdout) == (0, f"tiny: nothing to announce, READY is not in {world.inbox}\n")
    put(world.inbox, {"READY": b""})
    with world.watching("--marker", "READY"):
        assert world.contents(world.wait_for_sets(1)) == first
    # Half of the second set: with the other half of the first it would be whole.
    put(world.inbox, {name: second[name] for name in (TRAIN, TEST)})
    result = idxflow(*world.words("--once", "--marker", "READY"), env=world.environment)
    # One line is about the set before, that there is no server to tell of.
    assert "expected a Prefect server at" in result.stderr
    assert len(world.sets()) == 1
    put(world.inbox, second | {"READY": b""})
    with world.watching("--marker", "READY"):
        assert world.contents(world.wait_for_sets(2)) == second


def as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)
        listener.bind(path.name)


@pytest.mark.parametrize(
    ("change", "description"),
    [(as_link, "a symbolic link"), (as_folder, "a folder"), (as_pipe, "a named pipe"), (as_socket, "a socket")],
)
def test_what_is_no_file_is_refused_at_once(
    world: World, change: Callable[[Path], None], description: str, monkeypatch: pytest.MonkeyPatch
):
    # The paths of sockets are short.
    monkeypatch.chdir(world.inbox)
    put(world.inbox, archives(1))
    change(world.inbox / LABELS)
    refused = idxflow(*world.words("--once"), env=world.environment)
    sentence = f"idxflow: {LABELS}: expected a file; found {description}; copy the archive itself there\n"
    assert (refused.returncode, refused.stderr) == (3, sentence)
    assert world.sets() == []


def test_a_file_that_is_larger_than_it_can_be_is_refused_before_it_is_copied(world: World):
    put(world.inbox, archives(1))
    os.truncate(world.inbox / TRAIN, 1 << 33)
    refused = idxflow(*world.words("--once"), env=world.environment)
    assert refused.returncode == 3
    assert f"{TRAIN}: expected at most 4,294,967,296 bytes; found 8,589,934,592" in refused.stderr


def test_what_the_manifest_does_not_name_as_published_is_refused(world: World):
    digests = "".join(f'\n[archives.{role}]\nsha256 = "{"0" * 64}"\n' for role in DEFAULT_FILES)
    world.manifest.write_text(world.manifest.read_text() + digests)
    put(world.inbox, archives(1))
    refused = idxflow(*world.words("--once"), env=world.environment)
    assert refused.returncode == 3
    assert f"{TRAIN}: expected the published archive, SHA-256 000000000000…; found " in refused.stderr
    assert "names the digests of its archives" in refused.stderr
    # What the sentence says to do.
    world.manifest.write_text(world.manifest.read_text().removesuffix(digests))
    with world.watching():
        world.wait_for_sets(1)


def test_ten_thousand_other_files_do_not_matter(world: World):
    for number in range(10_000):
        (world.inbox / f"{number}.gz").touch()
    put(world.inbox, archives(1))
    with world.watching():
        world.wait_for_sets(1)


def test_a_folder_that_is_removed_and_made_again_is_watched_on(world: World):
    put(world.inbox, archives(1))
    with world.watching() as watcher:
        world.wait_for_sets(1)
        shutil.rmtree(world.inbox)
        warning = (
            f"idxflow: expected a folder that can be read at {world.inbox}; No such file or directory; create it again"
        )
        until(lambda: warning in watcher.errors)
        world.inbox.mkdir()
        put(world.inbox, archives(2))
        assert world.contents(world.wait_for_sets(2)) == archives(2)
        # A link in its place is another folder.
        world.inbox.rename(world.inbox.with_name("moved"))
        world.inbox.symlink_to("moved")
        until(lambda: "; Not a directory; create it again" in watcher.errors)


def test_two_watchers_of_a_folder_take_each_set_once(world: World):
    with world.watching() as first, world.watching() as second:

        def taken() -> int:
            return (first.output + second.output).count("tiny: 4 new archives, ")

        for number in (1, 2, 3):
            put(world.inbox, archives(number))
            world.wait_for_sets(number)
            # It is said after it is recorded.
            until(lambda number=number: taken() >= number)
            assert [watcher.poll() for watcher in (first, second)] == [None, None]
        assert taken() == 3
    assert [world.contents(arrival) for arrival in world.sets()] == [archives(1), archives(2), archives(3)]


def test_a_signal_ends_it_in_a_sentence_and_leaves_nothing(world: World):
    put(world.inbox, archives(1))
    for number, code, word in ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")):
        with world.watching() as watcher:
            world.wait_for_sets(1)
            watcher.send_signal(number)
            assert watcher.wait(240) == code
            assert watcher.errors.endswith(f"idxflow: {word}; run the same command again to resume\n")
    assert verify(world.store).findings == ()


def test_a_signal_that_a_library_ignores_ends_it_at_the_end_of_the_poll():
    class Busy:
        def poll(self) -> list[IdxflowError]:
            with suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            return []

    with pytest.raises(Terminated), interruptible() as interruptions:
        _poll(Busy(), interruptions)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a/b", ".."])
def test_a_marker_is_the_name_of_a_file(world: World, name: str):
    refused = idxflow(*world.words("--once", "--marker", name), env=world.environment)
    assert refused.returncode == 2
    assert "expected --marker to be the name of a file in the folder" in refused.stderr


def test_a_snapshot_stays_until_a_run_has_ended_well(world: World):
    for number in (1, 2, 3):
        put(world.inbox, archives(number))
        with world.watching():
            world.wait_for_sets(number)
    first, second, third = world.sets()
    where = world.arrivals.where

    def remaining() -> list[bool]:
        collect(world.store, "tiny")
        assert verify(world.store).damage == ()
        return [Path(where(arrival.id)).exists() for arrival in (first, second, third)]

    ledger = Ledger(world.store, "tiny")
    assert remaining() == [True, True, True]
    ledger.append("runs", "run-1", {"state": "refused", "report": None, "arrival": second.id})
    assert remaining() == [True, True, True]
    ledger.append("runs", "run-2", {"state": "kept", "report": None, "arrival": second.id})
    assert remaining() == [False, False, True]


@pytest.mark.remedies("storage.snapshots:check", "storage.snapshots:_checked")
def test_a_damaged_snapshot_is_found_and_the_set_taken_again(world: World):
    put(world.inbox, archives(1))
    with world.watching():
        arrival = world.wait_for_sets(1)
    path = Path(world.arrivals.where(arrival.id)) / TRAIN
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (damage,) = verify(world.store).damage
    assert (damage.where, damage.problem) == (str(path.parent), f"{TRAIN} is not what arrived")
    assert verify(world.store, contents=False).damage == ()
    record = path.with_name("arrival.json")
    record.chmod(0o644)
    record.write_bytes(sealed({**read_json(record), "arrival": "20260101-000000-00000000"}))
    (damage,) = verify(world.store).damage
    assert "describes 20260101-000000-00000000" in damage.problem
    # What it says to do, for a set that no run has had yet.
    assert damage.remedy == "copy the set into its folder again, and remove this"
    with world.watching():
        shutil.rmtree(path.parent)
        put(world.inbox, archives(1))
        until(path.exists)
        until(lambda: not list(path.parent.parent.glob(".*.partial")))
    assert world.contents(arrival) == archives(1)
    assert len(world.sets()) == 1
    assert verify(world.store).damage == ()
