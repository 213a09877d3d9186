"""What `Objects` promises, of a folder and of object storage."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
import pytest

from storage.objects.cloud import Cloud, Patience, _Use
from storage.objects.opening import opened
from storage.objects.protocol import Objects
from tests.conftest import BUCKET
from tests.support.fault_proxy import FaultProxy
from tests.support.object_servers import ObjectServer

pytestmark = pytest.mark.long
KEYS = ["a", "a b/c d.json", "ä/日本/é.json", "x/%41+?#&=[]~*\"'$!().txt", "m", "m1/x", "deep/" * 20 + "end"]


@pytest.fixture(params=["folder", "ministack", "ceph", "azurite", BUCKET])
def objects(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    object_servers: Callable[[str], ObjectServer],
    monkeypatch: pytest.MonkeyPatch,
) -> Objects:
    """No objects yet, in a folder or on a server."""
    if request.param == "folder":
        return opened(tmp_path / "objects")
    return on(object_servers(request.param).fresh(), monkeypatch)


def on(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    objects = opened(server.address)
    assert isinstance(objects, Cloud)
    return objects


@contextmanager
def proxied(server: ObjectServer, monkeypatch: pytest.MonkeyPatch, **how: Any) -> Iterator[tuple[Cloud, FaultProxy]]:
    """Reach a server through a proxy."""
    at = on(server.fresh(), monkeypatch).location
    with FaultProxy(at.endpoint.removeprefix("http://"), **how) as proxy:
        yield Cloud(dataclasses.replace(at, endpoint=proxy.url), Patience(pause=0.01)), proxy


@pytest.mark.parametrize("key", KEYS)
def test_an_object_has_the_bytes_that_were_put(objects: Objects, key: str) -> None:
    objects.put(key, b"first")
    objects.put(key, b"second")
    assert objects.get(key) == b"second"
    assert [found.key for found in objects.walk("")] == [key]
    objects.delete([key])
    assert list(objects.walk("")) == []


def test_a_created_object_is_never_replaced(objects: Objects) -> None:
    assert objects.create("a/1.json", b"mine")
    assert not objects.create("a/1.json", b"yours")
    # Also not by the same bytes: they are another writer's.
    assert not objects.create("a/1.json", b"mine")
    assert objects.get("a/1.json") == b"mine"
    objects.put("b", b"x")
    assert not objects.create("b", b"x")
    objects.delete(["a/1.json"])
    assert objects.create("a/1.json", b"yours")


def test_an_empty_object_is_one(objects: Objects, tmp_path: Path) -> None:
    assert objects.create("empty", b"")
    assert objects.get("empty") == objects.get("empty", 10) == objects.range("empty", 0, 10) == b""
    assert [(found.key, found.size) for found in objects.walk("")] == [("empty", 0)]
    objects.download("empty", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""
    objects.upload("copy.json", tmp_path / "file")
    assert objects.get("copy.json") == b""


def test_a_range_ends_with_the_object(objects: Objects) -> None:
    objects.put("digits", b"0123456789")
    assert objects.range("digits", 2, 5) == b"234"
    assert objects.range("digits", 8, 100) == b"89"
    assert (
        objects.range("digits", 10, 11) == objects.range("digits", 1000, 1001) == objects.range("digits", 3, 3) == b""
    )
    assert objects.get("digits", 3) == b"012"
    assert objects.get("digits", 100) == objects.get("digits") == b"0123456789"
    assert objects.get("digits", 0) == b""


def test_a_missing_object_is_said_to_be_missing(objects: Objects, tmp_path: Path) -> None:
    objects.put("m1/x", b"1")
    for key in ("m", "m1", "m1/y"):
        for call in (
            lambda key=key: objects.get(key, 0),
            lambda key=key: objects.range(key, 0, 0),
            lambda key=key: objects.range(key, 5, 6),
            lambda key=key: objects.download(key, tmp_path / "file"),
        ):
            # On a disk, `m1` is there: a folder.
            with pytest.raises((FileNotFoundError, IsADirectoryError)) as raised:
                call()
            assert raised.value.filename == objects.where(key)
    assert not (tmp_path / "file").exists()
    assert objects.age("m") is None


def test_a_listing_has_what_a_folder_holds_directly(objects: Objects) -> None:
    for key in ("m/b", "m/a c", "m/x/1", "m/x/2", "m/Z/deep/1", "m1/no", "other"):
        objects.put(key, key.encode())
    if isinstance(objects, Cloud):
        # Which a folder cannot have beside `m/b`.
        objects.put("m", b"1")
        objects.put("m/x", b"1")
        objects.delete(["m/x"])
    listing = objects.list("m")
    assert [(found.key, found.name, found.size) for found in listing.objects] == [("m/a c", "a c", 5), ("m/b", "b", 3)]
    assert listing.folders == ("Z", "x")
    assert [found.key for found in objects.walk("m")] == ["m/Z/deep/1", "m/a c", "m/b", "m/x/1", "m/x/2"]
    assert objects.list("").folders == ("m", "m1")


def test_what_does_not_exist_holds_nothing(objects: Objects) -> None:
    objects.put("m1/x", b"1")
    for folder in ("m", "m1/x/y", "no such"):
        if folder != "m1/x/y" or isinstance(objects, Cloud):
            assert objects.list(folder) == dataclasses.replace(objects.list(folder), objects=(), folders=())
            assert list(objects.walk(folder)) == []


def test_names_that_begin_with_a_dot_are_in_no_listing(objects: Objects) -> None:
    for key in (".a", "m/.b", "m/.c/x", "m/d", ".e/f"):
        objects.put(key, b"1")
    assert [found.key for found in objects.walk("")] == ["m/d"]
    assert [found.key for found in objects.list("m").objects] == ["m/d"]
    assert objects.list("m").folders == ()
    assert objects.list("") == dataclasses.replace(objects.list(""), objects=(), folders=("m",))
    # They can be asked for.
    assert [found.key for found in objects.walk("m/.c")] == ["m/.c/x"]
    assert objects.get("m/.b") == b"1"


def test_a_stamp_differs_after_a_replacement(objects: Objects) -> None:
    def stamp() -> object:
        return objects.list("").objects[0].stamp

    objects.put("x", b"1")
    before = stamp()
    assert stamp() == before
    objects.put("x", b"2")
    assert stamp() != before


def test_more_objects_than_a_page_of_a_listing_has(objects: Objects) -> None:
    keys = [f"many/{number:04d}/x" for number in range(300)] + [f"many/{number:04d}" for number in range(1000, 1800)]
    for key in keys:
        objects.put(key, b"")
    assert [found.key for found in objects.walk("many")] == keys
    listing = objects.list("many")
    assert [found.key for found in listing.objects] == keys[300:]
    assert len(listing.folders) == 300
    objects.delete(iter(keys))
    assert list(objects.walk("")) == []


def test_removing_what_is_not_there_is_no_error(objects: Objects) -> None:
    objects.put("a", b"1")
    objects.delete(["no", "a", "nor/that"])
    objects.delete([])
    assert list(objects.walk("")) == []


@pytest.mark.parametrize("size", [1, 8 << 20, 20_000_000], ids=["a byte", "one part", "three parts"])
def test_a_file_comes_back_as_it_was(objects: Objects, tmp_path: Path, size: int) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.write_bytes(os.urandom(size))
    objects.put("train.parquet", b"another one")
    objects.upload("train.parquet", before)
    objects.download("train.parquet", after)
    assert after.read_bytes() == before.read_bytes()
    assert objects.range("train.parquet", size - 1, size) == before.read_bytes()[-1:]
    with pytest.raises(FileExistsError):
        objects.download("train.parquet", after)
    assert after.read_bytes() == before.read_bytes()


def test_a_file_is_never_whole_in_memory(object_storage: ObjectServer, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from storage.objects.opening import opened\n"
        "def most(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "objects, file = opened(sys.argv[1]), Path(sys.argv[2])\n"
        "objects.probe()\n"
        "before = most()\n"
        "objects.upload('big', file)\n"
        "objects.download('big', file.with_suffix('.again'))\n"
        "print(most() - before)\n"
    )
    file, size = tmp_path / "file", 200 << 20
    with file.open("wb") as stream:
        stream.truncate(size)
    ended = subprocess.run(
        [sys.executable, "-c", program, object_storage.fresh().address, str(file)],
        env=os.environ | object_storage.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert file.with_suffix(".again").stat().st_size == size
    assert int(ended.stdout) << 10 < size // 2


def test_a_file_that_is_missing_is_not_uploaded(objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        objects.upload("x", tmp_path / "no")
    assert raised.value.filename == str(tmp_path / "no")
    assert list(objects.walk("")) == []


def test_an_age_is_by_the_clock_of_the_store(objects: Objects) -> None:
    objects.put("old", b"1")
    age = objects.age("old")
    assert age is not None
    # Only what has a wrong clock is a day off.
    assert 0 <= age < 86400
    assert [found.key for found in objects.walk("")] == ["old"]
    assert hidden(objects) == []


def hidden(objects: Objects) -> list[str]:
    """Return the keys of what no listing has."""
    if isinstance(objects, Cloud):
        everything = obstore.list(objects._client(_Use.ONE)).collect()
        return [found["path"] for found in everything if "/." in f"/{found['path']}"]
    return [str(path) for path in Path(objects.address).rglob(".*")]


def test_a_probe_leaves_nothing_behind(objects: Objects) -> None:
    objects.probe()
    assert list(objects.walk("")) == []
    assert hidden(objects) == []


def test_where_names_an_object_without_its_server(objects: Objects) -> None:
    assert objects.where("a/b.json").endswith("/a/b.json")
    assert "?" not in objects.where("a/b.json")


def test_one_of_many_processes_creates_an_object(objects: Objects) -> None:
    programs = {
        name: subprocess.Popen(
            [sys.executable, "-m", "tests.support.creating", objects.address, "20", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abcdef"
    }
    for program in programs.values():
        assert program.stdout.readline() == "ready\n"
    for program in programs.values():
        program.stdin.write("go\n")
        program.stdin.flush()
    won = [line.partition(" ") for program in programs.values() for line in program.communicate()[0].splitlines()]
    assert [program.returncode for program in programs.values()] == [0] * 6
    assert sorted(key for key, _, _ in won) == [f"race/{number:04d}.json" for number in range(20)]
    assert {key: objects.get(key).decode() for key, _, _ in won} == {key: data for key, _, data in won}


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("report.html", "text/html; charset=utf-8"),
        ("a.b/record.JSON", "application/json"),
        ("train.parquet", "application/vnd.apache.parquet"),
        ("model.keras", "application/octet-stream"),
        ("html", "application/octet-stream"),
    ],
)
def test_the_ending_of_a_key_gives_the_content_type(
    object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, kind: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with proxied(object_storage, monkeypatch) as (cloud, proxy):
        cloud.put(key, b"x")
        cloud.create(f"created/{key}", b"x")
        cloud.upload(key, tmp_path / "file")
    assert [request.headers["content-type"] for request in proxy.requests] == [kind] * 3


def test_requests_are_counted(object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`requests` says as many as a server sees, where nothing fails: what people pay for."""
    with proxied(object_storage, monkeypatch) as (cloud, proxy):
        _use(cloud)
    methods = Counter(request.method for request in proxy.requests)
    assert methods == {"PUT": 2, "GET": 3, "POST": 1}


def test_threads_share_one(objects: Objects) -> None:
    def work(number: int) -> list[bytes]:
        keys = [f"{number}/{key}" for key in range(10)]
        for key in keys:
            objects.put(key, key.encode())
        return [objects.get(key) for key in keys]

    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(work, range(8))] == [[f"{n}/{key}".encode() for key in range(10)] for n in range(8)]
    assert sorted(found.key for found in objects.walk("")) == sorted(
        f"{n}/{key}" for n in range(8) for key in range(10)
    )
    if isinstance(objects, Cloud):
        assert objects.requests["put"] == objects.requests["get"] == 80


def _use(cloud: Cloud) -> None:
    assert not cloud.requests
    assert cloud.create("a/b", b"12345")
    assert cloud.requests == {"create": 1, "bytes out": 5}
    cloud.put("a/c", b"123")
    assert cloud.get("a/b") == b"12345"
    assert cloud.range("a/b", 1, 2) == b"2"
    cloud.list("a")
    cloud.delete(["a/b", "a/c", "a/d"])
    assert cloud.requests == {"create": 1, "put": 1, "get": 2, "list": 1, "delete": 1, "bytes out": 8, "bytes in": 6}
