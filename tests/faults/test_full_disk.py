"""A full disk, a store that cannot be written or read, and other places a store can be in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import StoreError
from storage.records import TrainedModel
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tasks.fetch import fetch
from tests.conftest import TinyFactory
from tests.support import store_scenarios
from tests.support.crashes import in_memory, published, state
from tests.support.namespaces import forked_in_namespace, in_namespace, mount_point
from tests.support.servers import BIN, free_port
from tests.support.store_scenarios import DATASET, train_plan, whole

NOBODY = 65534

GROWING = """
import json, os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from storage.registry import Registry
from storage.retention import collect
from storage.store import Store
from storage.verify import verify
from tests.support import store_scenarios

mount, option, sizes = sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
store = Store(Path(mount, "store"))

def command():
    read, write = os.pipe()
    process = os.fork()
    if not process:
        os.dup2(write, 2)
        os._exit(store_scenarios.main("whole", str(store.root)))
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, os.read(read, 9999).decode()

def champion():
    found = Registry(store, "tiny").champion()
    return found and found.number

for size in sizes:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=1m,{option}={size}", "tmpfs", mount], check=True)
    code, said = command()
    found = {"size": size, "code": code, "said": said, "damage": [str(f) for f in verify(store).damage]}
    found["champion"] = champion()
    subprocess.run(["mount", "-o", "remount,size=1m,nr_inodes=999", mount], check=True)
    found["again"] = command()
    collect(store, "tiny")
    found |= {"findings": [str(f) for f in verify(store).findings], "champion again": champion()}
    print(json.dumps(found), flush=True)
    subprocess.run(["umount", mount], check=True)
"""


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """A folder to mount on, where that is possible."""
    return mount_point(tmp_path)


@pytest.mark.parametrize(
    ("option", "sizes"),
    [("size", [4096 * pages for pages in range(1, 34)]), ("nr_inodes", list(range(2, 40, 2)))],
    ids=["space", "inodes"],
)
def test_a_full_disk_is_reported_and_more_space_is_all_that_it_takes(mount: Path, option: str, sizes: list[int]):
    """The whole path of the store on disks of growing sizes, from hopeless to sufficient."""
    process = in_namespace(GROWING, str(store_scenarios.ROOT), str(mount), option, json.dumps(sizes))
    attempts = [json.loads(line) for line in process.stdout.splitlines()]
    assert [attempt["size"] for attempt in attempts] == sizes, process.stderr
    assert {attempt["code"] for attempt in attempts} == {0, 1}
    for attempt in attempts:
        assert attempt["damage"] == [], attempt
        assert attempt["champion"] in (None, 1)
        assert attempt["code"] == 1 or attempt["champion"] == 1
        assert (
            attempt["code"] == 0 or "StoreError: the store cannot be used: No space left on device" in attempt["said"]
        ), attempt
        assert attempt["said"].count("\n") == attempt["code"]
        assert attempt["again"] == [0, ""], attempt
        assert (attempt["findings"], attempt["champion again"]) == ([], 1), attempt


SHARDS = """
import json, os, subprocess, sys
from pathlib import Path
from flows import retrain
from flows.pipeline import Directly
from flows.run import Request
from storage.store import Store
from storage.verify import verify

manifest, mount = sys.argv[1:]
store = Store(Path(mount, "store"))
training = {"epochs": 2, "hidden": [8], "learning_rate": 0.1, "memory": "1MiB"}
request = Request(dataset_file=manifest, store=str(store.root), training=training)

def size(bytes):
    subprocess.run(["mount", "-o", f"remount,size={bytes}", mount], check=True)

def run(walk):
    state = retrain.carry_out(request, walk, caller=Directly())
    print(json.dumps([state.name, state.message, [str(finding) for finding in verify(store).damage]]), flush=True)

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", mount], check=True)
run(retrain.to_validation)
place = os.statvfs(mount)
# Enough for all but the pixels once more.
size((place.f_blocks - place.f_bavail) * place.f_frsize + 400_000)
run(retrain.to_decision)
size("64m")
run(retrain.to_decision)
"""


def test_shards_that_do_not_fit_on_the_disk_are_reported_and_more_space_is_all_that_it_takes(
    mount: Path, tiny: TinyFactory
):
    manifest = tiny(train=9_000, manifest="[floors]\naccuracy = 0.5\n").manifest
    process = forked_in_namespace(SHARDS, str(manifest), str(mount))
    attempts = [json.loads(line) for line in process.stdout.splitlines()]
    assert [attempt[0] for attempt in attempts] == ["Completed", "Failed", "Completed"], process.stderr
    assert "No space left on device" in attempts[1][1]
    assert [attempt[2] for attempt in attempts] == [[], [], []]


READ_ONLY = """
import os, subprocess, sys
mount, store, command = sys.argv[1], sys.argv[2], sys.argv[3:]
subprocess.run(["mount", "--bind", store, mount], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", mount], check=True)
os.execv(command[0], command)
"""


def test_a_read_only_store_can_be_read_and_verified(mount: Path, store: Store):
    whole(store)
    for command in (["verify"], ["registry", "history", DATASET], ["registry", "show", DATASET, "1"]):
        process = in_namespace(
            READ_ONLY,
            str(mount),
            str(store.root),
            sys.executable,
            str(BIN / "idxflow"),
            *command,
            "--store",
            str(mount),
        )
        assert process.returncode == 0, process.stderr
    child = [sys.executable, "-I", "-S", "-B", store_scenarios.__file__, "whole", str(mount)]
    process = in_namespace(READ_ONLY, str(mount), str(store.root), *child)
    assert process.returncode == 1
    assert process.stderr.startswith("StoreError: ")
    assert "Read-only file system" in process.stderr or "permission denied" in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with in_memory() as path:
        path.chmod(0o755)
        yield path


def as_nobody(command: str, store: Store) -> subprocess.CompletedProcess:
    """Run a command without any privileges; root may write everywhere."""
    start = f"import sys; sys.path.insert(0, {str(store_scenarios.ROOT)!r}); "
    imported = "from tests.support.store_scenarios import main; "
    drop = "import os; os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534)); "
    code = f"{start}{imported}{drop}sys.exit(main({command!r}, {str(store.root)!r}))"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("closed", [".", DATASET, f"{DATASET}/5-models", f"{DATASET}/registry", f"{DATASET}/locks"])
def test_a_folder_that_may_not_be_written_is_named(open_folder: Path, closed: str):
    store = Store(open_folder / "store")
    store.prepare()
    whole(store)
    before = published(store)
    for path in (store.root, *store.root.rglob("*")):
        if os.getuid() == 0:
            os.chown(path, NOBODY, NOBODY)
    (store.root / closed).chmod(0o555)
    if os.getuid() == 0:
        os.chown(store.root / closed, 0, 0)
    process = as_nobody("choose-second", store)
    (store.root / closed).chmod(0o755)
    if process.returncode:
        assert process.returncode == 1
        assert process.stderr.startswith("StoreError: ")
        assert str(store.root / closed) in process.stderr
        assert "ermission denied" in process.stderr
    # In `registry` itself, only the hint changes, which may lag behind.
    assert (process.returncode != 0) == (closed == ".")
    assert before.items() <= published(store).items()


def test_a_store_behind_a_link_is_a_store(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    linked, direct = Store(tmp_path / "link" / "store"), Store(tmp_path / "disk" / "store")
    linked.prepare()
    whole(linked)
    assert state(linked) == state(direct)
    assert verify(linked).findings == verify(direct).findings == ()
    whole(direct)
    assert len(Registry(direct, DATASET).versions()) == 1


def test_a_path_that_is_too_long_is_refused(tmp_path: Path):
    store = Store(tmp_path.joinpath(*["a" * 200] * 30))
    with pytest.raises(StoreError, match="File name too long"):
        store.prepare()


def test_what_is_published_is_read_only_and_an_edit_is_noticed(store: Store):
    whole(store)
    entry = store.entries(DATASET, "train") / train_plan(1).key
    assert {path.stat().st_mode & 0o777 for path in entry.iterdir()} == {0o444}
    files = [*published(store), f"{DATASET}/registry/champion.json"]
    assert len(files) > 8
    for name in files:
        path = store.root / name
        good, mode = path.read_bytes(), path.stat().st_mode
        path.chmod(0o644)
        for place in (0, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            assert verify(store).damage, f"{name}: byte {place}"
        path.write_bytes(good)
        path.chmod(mode)
    assert verify(store).findings == ()
    assert store.find(train_plan(1), TrainedModel)


def test_a_download_that_does_not_fit_is_refused_before_it_is_asked_for(store: Store, tiny: TinyFactory):
    dataset = tiny()
    closed = f"http://127.0.0.1:{free_port()}"
    spec = replace(dataset.archives[0], bytes=1 << 60, sha256="0" * 64, mirrors=(f"{closed}/archive.gz",))
    with pytest.raises(StoreError, match=r"expected 1,152,921,504,606,846,976 bytes free at .*; found [\d,]+; free"):
        fetch.fn(store, replace(dataset, source=None), spec)
    assert list(store.entries("tiny", "fetch").glob("[!.]*")) == []


PREFECT_HOME = """
import json, os, subprocess, sys, tempfile
from contextlib import suppress
from pathlib import Path
from flows.commands.cli import run_command
from flows.service.server import auth_string

mount, port = sys.argv[1:]
folder, filler = Path(mount, "idxflow"), Path(mount, "filler")
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], check=True)
with suppress(OSError), filler.open("wb", buffering=0) as stream:
    while True:
        stream.write(bytes(4096))
with tempfile.TemporaryFile("w+") as said:
    if not (up := os.fork()):
        os.dup2(said.fileno(), 2)
        os.environ["PREFECT_HOME"] = mount
        os._exit(run_command(["up", "--port", port]))
    code = os.waitstatus_to_exitcode(os.waitpid(up, 0)[1])
    said.seek(0)
    with suppress(OSError):
        sys.exit(f"expected no room for {auth_string(folder)}")
    filler.unlink()
    print(json.dumps([code, said.read(), auth_string(folder)]))
"""


def test_a_full_disk_under_prefects_folder_is_reported_and_leaves_no_empty_secret(mount: Path):
    process = forked_in_namespace(PREFECT_HOME, str(mount), str(free_port()))
    assert process.returncode == 0, process.stderr
    code, stderr_text, secret = json.loads(process.stdout)
    assert code == 1
    assert stderr_text.startswith(f"idxflow: Prefect's folder cannot be used: No space left on device at {mount}")
    assert stderr_text.count("\n") == 1
    assert len(secret) > len("idxflow:")
