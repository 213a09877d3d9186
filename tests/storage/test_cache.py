"""The cache of a machine gives what was asked for, stays below its bound, and says why it cannot."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import StoreError
from storage.objects.cache import MOST_HELD, Cache, DigestDiffers
from storage.records import TrainedModel
from tests.support.cloud_machines import Clock, machine
from tests.support.memory_objects import MemoryObjects, Operation, nothing
from tests.support.namespaces import in_namespace, mount_point
from tests.support.servers import ROOT
from tests.support.store_scenarios import FILES, make_model, train_plan

NOBODY = 65534
DATA = b"the rows of a split"
LARGE = 1 << 40


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def asked(cache: Cache, data: bytes, name: str = "data.bin", fetch: Callable[[Path], object] | None = None) -> Path:
    path = cache.path(name, sha256(data), len(data), fetch or (lambda place: place.write_bytes(data)))
    assert path.read_bytes() == data
    return path


def once(
    folder: Path, data: bytes, name: str = "data.bin", bound: int = LARGE, fetch: Callable[[Path], object] | None = None
) -> Path:
    """Ask as a process does that ends afterwards."""
    cache = Cache(folder, bound)
    path = asked(cache, data, name, fetch)
    for descriptor in cache._held.values():
        os.close(descriptor)
    return path


def never(_: Path) -> None:
    raise AssertionError("fetched although it is there")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_fetched_once_for_all_processes(tmp_path: Path):
    path = once(tmp_path, DATA)
    assert path.stat().st_mode & 0o777 == 0o444
    assert once(tmp_path, DATA, fetch=never) == path


def test_two_processes_that_fetch_one_file_at_once_have_one(tmp_path: Path):
    def fetch(place: Path) -> None:
        once(tmp_path, DATA)
        place.write_bytes(DATA)

    once(tmp_path, DATA, fetch=fetch)
    assert files(tmp_path) == {"data.bin"}


ASKING = """
import sys
from pathlib import Path
from storage.objects.cache import Cache
folder, digest, seen = sys.argv[1:]
cache = Cache(Path(folder), 3_000_000)
print("ready", flush=True)
sys.stdin.readline()
def fetch(place):
    with open(seen, "a") as stream:
        stream.write("fetched\\n")
    place.write_bytes(b"x" * 2_000_000)
print(cache.path("data.bin", digest, 2_000_000, fetch).stat().st_size)
"""


def test_processes_that_ask_for_one_file_share_it(tmp_path: Path):
    seen, digest = tmp_path / "seen", sha256(b"x" * 2_000_000)
    command = [sys.executable, "-S", "-c", ASKING, str(tmp_path / "cache"), digest, str(seen)]
    asking = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}, text=True
        )
        for _ in range(3)
    ]
    for process in asking:
        assert process.stdout.readline() == "ready\n"
    assert [process.communicate("go\n")[0] for process in asking] == ["2000000\n"] * 3
    assert files(tmp_path / "cache") == {"data.bin"}
    assert 1 <= len(seen.read_text().splitlines()) <= 3


def test_a_flipped_bit_is_noticed_by_the_next_process(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = once(tmp_path, DATA)
    path.chmod(0o644)
    path.write_bytes(bytes([DATA[0] ^ 1]) + DATA[1:])
    once(tmp_path, DATA)
    assert "fetching the file again" in caplog.text
    assert files(tmp_path) == {"data.bin"}


def test_each_name_of_the_same_bytes_is_verified(tmp_path: Path):
    once(tmp_path, DATA, "first.bin")
    second = once(tmp_path, DATA, "second.bin")
    second.chmod(0o644)
    second.write_bytes(b"damaged")
    cache = Cache(tmp_path, LARGE)
    asked(cache, DATA, "first.bin", fetch=never)
    asked(cache, DATA, "second.bin")


def test_what_is_fetched_wrongly_is_not_kept(tmp_path: Path):
    cache = Cache(tmp_path, LARGE)
    with pytest.raises(DigestDiffers, match=r"expected SHA-256 .*…; found"):
        asked(cache, DATA, fetch=lambda place: place.write_bytes(b"other"))
    assert files(tmp_path) == set()
    asked(cache, DATA)


def test_a_cache_that_is_removed_meanwhile_is_filled_again(tmp_path: Path):
    cache = Cache(tmp_path / "cache", LARGE)
    asked(cache, DATA)
    shutil.rmtree(tmp_path / "cache")
    asked(cache, DATA)


def test_the_files_used_least_recently_go_and_those_in_use_stay(tmp_path: Path):
    old, used, new = (bytes([letter]) * 100 for letter in b"abc")
    for number, data in enumerate((old, used, new)):
        path = once(tmp_path, data)
        os.utime(path.parent, ns=(number, number))
    holding = Cache(tmp_path, LARGE)
    asked(holding, old, fetch=never)
    os.utime(path.parent.parent.parent / sha256(old)[:2] / sha256(old), ns=(0, 0))
    once(tmp_path, b"d" * 100, bound=300)
    assert Cache(tmp_path, 300).used() == 300
    once(tmp_path, old, fetch=never)
    once(tmp_path, new, fetch=never)
    fetched = []
    once(tmp_path, used, fetch=lambda place: fetched.append(place.write_bytes(used)))
    assert fetched


def test_a_file_that_is_asked_for_again_is_used_recently(tmp_path: Path):
    for number, data in enumerate((b"a" * 100, b"b" * 100)):
        os.utime(once(tmp_path, data).parent, ns=(number, number))
    once(tmp_path, b"a" * 100)
    once(tmp_path, b"c" * 100, bound=200)
    once(tmp_path, b"a" * 100, fetch=never)


def test_a_file_larger_than_the_cache_is_used_all_the_same(tmp_path: Path):
    once(tmp_path, DATA, bound=1)
    assert files(tmp_path) == {"data.bin"}


def test_a_file_that_was_made_here_is_moved_in(tmp_path: Path):
    (tmp_path / "data.bin").write_bytes(DATA)
    Cache(tmp_path / "cache", LARGE).add(tmp_path / "data.bin", sha256(DATA))
    assert not (tmp_path / "data.bin").exists()
    once(tmp_path / "cache", DATA, fetch=never)


FULL = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from storage.errors import StoreError
from storage.objects.cache import Cache
mount = Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], check=True)
cache, data = Cache(mount / "cache", 1 << 40), b"x" * 100_000
import hashlib
def ask():
    return cache.path("data.bin", hashlib.sha256(data).hexdigest(), len(data), lambda place: place.write_bytes(data))
try:
    ask()
except StoreError as error:
    print(error)
print([str(path) for path in mount.rglob("*") if path.is_file()])
subprocess.run(["mount", "-o", "remount,size=1m", mount], check=True)
print(ask().stat().st_size)
"""


@pytest.mark.remedies("storage.objects.cache:unusable")
def test_a_cache_in_the_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"expected a cache .* at .*/file/cache; .*IDXFLOW_CACHE$"):
        once(tmp_path / "file" / "cache", DATA)
    once(tmp_path / "cache", DATA)


def test_a_full_disk_is_said_in_a_sentence_and_more_space_is_enough(tmp_path: Path):
    said = in_namespace(FULL, str(ROOT), str(mount_point(tmp_path)))
    sentence, left, size = said.stdout.splitlines()
    assert "No space left on device" in sentence
    assert sentence.endswith("free space or correct the permissions there, or choose another folder with IDXFLOW_CACHE")
    assert (left, size) == ("[]", "100000"), said.stderr


OF_ANOTHER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from storage.errors import StoreError
from storage.objects.cache import Cache
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
cache = Cache(Path(sys.argv[2]), int(sys.argv[4]))
def fetch(place):
    place.write_bytes(b"the rows of a split")
try:
    print(cache.path("data.bin", sys.argv[3], 19, fetch).read_bytes().decode())
except StoreError as error:
    print(error)
"""


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder that other users reach."""
    for folder in (tmp_path, *(path for path in tmp_path.parents if path.name.startswith(("pytest-", "popen-")))):
        folder.chmod(0o755)
    return tmp_path


def of_another(folder: Path, bound: int = LARGE) -> str:
    """Return what another user is told who asks for the file; who runs the tests as themselves has no other."""
    command = [sys.executable, "-I", "-S", "-B", "-c", OF_ANOTHER, str(ROOT), str(folder), sha256(DATA), str(bound)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip("\n")


def test_another_user_reads_what_can_be_read_and_is_told_what_cannot(open_path: Path):
    cache = open_path / "cache"
    path = once(cache, DATA)
    for folder in (cache, *cache.rglob("*")):
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    assert of_another(cache) == DATA.decode()
    path.chmod(0o000)
    said = of_another(cache)
    assert said.startswith(f"expected a cache that can be written at {cache}; Permission denied at {path.parent}/.data")
    path.parent.chmod(0o000)
    assert f"Permission denied at {path.parent}" in of_another(cache, bound=1)
    for folder in (path.parent, path.parent.parent, cache):
        folder.chmod(0o755)


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects(clock=Clock())


def published(objects: MemoryObjects, folder: Path) -> TrainedModel:
    make_model(machine(objects, objects.clock, folder / "maker"))
    record = machine(objects, objects.clock, folder / "reader").find(train_plan(1), TrainedModel)
    assert record
    return record


def test_a_name_that_is_no_file_of_the_entry_is_as_missing_as_in_a_folder(objects: MemoryObjects, tmp_path: Path):
    record = published(objects, tmp_path)
    objects.forget()
    with pytest.raises(FileNotFoundError):
        record.entry.path("none.bin").read_bytes()
    assert objects.operations == []


def test_a_cache_that_is_removed_during_a_download_does_not_cost_the_store_an_entry(
    objects: MemoryObjects, tmp_path: Path
):
    record = published(objects, tmp_path)

    def remove(operation: Operation) -> None:
        if operation.name == "download":
            objects.before = nothing
            shutil.rmtree(tmp_path / "reader" / "files")

    objects.before = remove
    before = objects.contents()
    with pytest.raises(StoreError, match="expected a cache that can be written"):
        record.entry.path(FILES[0])
    assert objects.contents() == before
    assert record.entry.path(FILES[0]).is_file()


def test_a_process_holds_a_limited_number_of_files(tmp_path: Path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    cache = Cache(tmp_path / "cache", LARGE)
    for number in range(MOST_HELD + 50):
        data = b"%d" % number
        cache.path("data.bin", sha256(data), len(data), lambda place, data=data: place.write_bytes(data))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= MOST_HELD
    del cache
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
