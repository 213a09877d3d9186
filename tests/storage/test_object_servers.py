"""The servers that tests of object storage use keep the promises a store needs; one does not, and is there for that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from tests.support import object_servers as servers
from tests.support.object_servers import ObjectServer

pytestmark = pytest.mark.long
RACERS = 6
KEYS = [f"race/{number}.json" for number in range(10)]
RACER = """
import json, sys, obstore
for line in sys.stdin:
    url, config, key, value = json.loads(line)
    store = obstore.store.from_url(url, config=config, client_options={"allow_http": True})
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        obstore.put(store, key, value.encode(), mode="create")
        print("won", flush=True)
    except obstore.exceptions.AlreadyExistsError:
        print("lost", flush=True)
"""

Racer = subprocess.Popen[str]


@pytest.fixture(scope="module")
def racers() -> Iterator[list[Racer]]:
    """Processes that each create an object at a word, at nearly the same time."""
    with ExitStack() as ending:
        command = [sys.executable, "-c", f"import obstore.store, obstore.exceptions{RACER}"]
        yield [
            ending.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(RACERS)
        ]


def tell(racer: Racer, words: object) -> None:
    assert racer.stdin
    racer.stdin.write(json.dumps(words) + "\n")
    racer.stdin.flush()


def heard(racers: list[Racer]) -> list[str]:
    return [racer.stdout.readline().strip() for racer in racers if racer.stdout]


def winners(racers: list[Racer], server: ObjectServer, key: str) -> list[int]:
    """Let all create one object, each with its own number in it; return the numbers of those who were told they did."""
    for number, racer in enumerate(racers):
        tell(racer, [server.address.partition("?")[0], server.config, key, str(number)])
    assert heard(racers) == ["ready"] * RACERS
    for racer in racers:
        tell(racer, "go")
    answers = heard(racers)
    assert {*answers} <= {"won", "lost"}
    return [number for number, answer in enumerate(answers) if answer == "won"]


def opened(server: ObjectServer) -> obstore.store.ObjectStore:
    return from_url(server.address.partition("?")[0], config=server.config, client_options={"allow_http": True})


def test_one_of_those_who_create_an_object_wins(any_object_storage: ObjectServer, racers: list[Racer]) -> None:
    store = opened(any_object_storage)
    for key in KEYS:
        won = winners(racers, any_object_storage, key)
        assert len(won) == 1
        assert bytes(obstore.get(store, key).bytes()) == str(won[0]).encode()


def test_a_gateway_lets_several_create_one_object(
    object_servers: Callable[[str], ObjectServer], racers: list[Racer]
) -> None:
    server = object_servers("juicefs").fresh()
    assert any(len(winners(racers, server, key)) > 1 for key in KEYS)


def test_what_is_written_is_read_and_listed_at_once_until_it_is_removed(any_object_storage: ObjectServer) -> None:
    store = opened(any_object_storage.fresh())
    keys = ["m/a/1", "m/a/2", "m/b/3"]
    for key in keys:
        obstore.put(store, key, key.encode(), attributes={"Content-Type": "text/html", "nonce": "n" + key[-1]})
    found = obstore.get(store, "m/a/2")
    assert (bytes(found.bytes()), found.attributes["nonce"]) == (b"m/a/2", "n2")
    assert found.attributes["Content-Type"] == "text/html"
    assert bytes(obstore.get_range(store, "m/a/2", start=2, end=4)) == b"a/"
    assert [meta["path"] for page in obstore.list(store) for meta in page] == keys
    assert [*obstore.list_with_delimiter(store, "m")["common_prefixes"]] == ["m/a", "m/b"]
    obstore.delete(store, keys[:2])
    assert [meta["path"] for page in obstore.list(store) for meta in page] == keys[2:]


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.parametrize("start", [servers.ministack, servers.ceph, servers.azurite, servers.juicefs])
def test_a_server_listens_on_this_machine_alone_and_leaves_no_process(
    start: Callable[[Path], AbstractContextManager[ObjectServer]], tmp_path: Path
) -> None:
    with start(tmp_path):
        sockets = {link for process in processes(tmp_path) for link in links(process / "fd")}
        addresses = {address for address, socket in listeners() if socket in sockets}
    assert addresses
    assert addresses <= LOOPBACK
    assert not processes(tmp_path)


def processes(folder: Path) -> list[Path]:
    """Return those that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(process)
    return found


def links(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        with suppress(OSError):
            yield str(path.readlink())


def listeners() -> Iterator[tuple[str, str]]:
    """Yield the address and the socket of all that listens: proc(5), `/proc/net/tcp`."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                yield fields[1].partition(":")[0], f"socket:[{fields[9]}]"


def test_a_bucket_is_named_by_the_environment_and_left_as_it_was(
    object_storage: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(servers.TEST_STORE, object_storage.address)
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    everything = opened(object_storage)
    obstore.put(everything, "mine", b"1")
    with servers.bucket(tmp_path) as place:
        obstore.put(opened(place), "a/b", b"2")
        assert len(everything.list().collect()) == 2
    assert [meta["path"] for meta in everything.list().collect()] == ["mine"]


def test_no_test_needs_a_bucket_unless_that_is_asked_for(request: pytest.FixtureRequest) -> None:
    assert [item.name for item in request.session.items if item.get_closest_marker("cloud")] == []
