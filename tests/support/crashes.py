"""System calls of a command on the store: recorded, failed one at a time, and replayed as a disk that lost power.

`strace` records and injects (its manual, "Tampering"): a call that is to be killed or failed is found by its number
among the calls of its name. The replay keeps, beside what programs see, what was flushed; after a power loss a disk
may hold any mixture of the two.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from storage.errors import IdxflowError
from storage.files import sha256_of
from storage.ledger import Ledger
from storage.objects import sealed
from storage.records import TrainedModel
from storage.registry import Registry
from storage.retention import collect
from storage.store import ENTRY, Store
from storage.verify import verify
from tests.support import store_scenarios
from tests.support.forkserver import Forked, ForkServer
from tests.support.store_scenarios import DATASET, Story

WRITING = (
    "write", "pwrite64", "fsync", "fdatasync", "ftruncate", "rename", "renameat", "renameat2", "link", "linkat",
    "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "chmod", "fchmod", "fchmodat", "sendfile", "copy_file_range",
)  # fmt: skip
READING = ("openat", "read", "getdents64", "newfstatat", "flock")
CALLS = ("openat", *WRITING)

_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+|\?)(?:<[^>]*>)?(.*)$")
_AT = {"openat", "renameat", "renameat2", "linkat", "unlinkat", "mkdirat", "fchmodat", "newfstatat"}


def need_strace() -> None:
    """Skip the test where system calls cannot be injected."""
    if not shutil.which("strace"):
        pytest.skip("needs strace: on Debian, apt-get install strace")
    with subprocess.Popen(["sleep", "9"]) as sleep:
        probe = ["timeout", "1", "strace", "-qq", "-o", "/dev/null", "-p", str(sleep.pid)]
        stderr_text = subprocess.run(probe, capture_output=True, text=True, check=False).stderr
        sleep.kill()
    if "not permitted" in stderr_text:
        pytest.skip("needs the permission to trace processes (ptrace), which this machine refuses")


@contextmanager
def in_memory() -> Iterator[Path]:
    """Yield a folder that is gone afterwards, in memory if there is any: thousands of flushes cost nothing there."""
    place = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="idxflow-", dir=place if os.access(place, os.W_OK) else None)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Call:
    """One system call."""

    name: str
    number: int
    """Among those of its name in the process, counted from 1."""
    arguments: tuple[str, ...]
    result: int
    injected: bool

    @property
    def paths(self) -> tuple[Path, ...]:
        """What the call is about, absolute."""
        texts = [_text(a) for a in self.arguments]
        if self.name in _AT:
            pairs = zip(texts, texts[1:], self.arguments[1:], strict=False)
            return tuple(Path(folder, name) for folder, name, argument in pairs if argument.startswith('"'))
        if self.arguments[0].startswith('"'):
            return tuple(
                Path(text) for text, argument in zip(texts, self.arguments, strict=True) if argument[:1] == '"'
            )
        return (Path(texts[0]),) if texts[0] else ()

    @property
    def flags(self) -> set[str]:
        """Those of an `openat`."""
        return set(self.arguments[2].split("|")) if self.name == "openat" else set()

    @property
    def data(self) -> bytes:
        """What a `write` wrote."""
        return _bytes(self.arguments[1])[: self.result]

    @property
    def changes(self) -> bool:
        """Whether it can change anything on the disk."""
        return self.name in WRITING or "O_CREAT" in self.flags

    def is_below(self, root: Path) -> bool:
        return any(path.is_relative_to(root) for path in self.paths)


def calls(log: Path) -> list[Call]:
    """Read what `strace -y -xx` wrote."""
    numbers: Counter[str] = Counter()
    entries = []
    for line in log.read_text().splitlines():
        match = _LINE.match(line)
        if match:
            name, arguments, result, rest = match.groups()
            numbers[name] += 1
            injected = "(INJECTED)" in rest
            entries.append(
                Call(name, numbers[name], tuple(arguments.split(", ")), int(result) if result != "?" else -1, injected)
            )
    return entries


def _text(argument: str) -> str:
    """Return the string, or the path of the descriptor."""
    return _bytes(argument).decode(errors="replace")


def _bytes(argument: str) -> bytes:
    inside = re.search(r'["<]((?:\\x[0-9a-f]{2})*)[">]', argument)
    return bytes.fromhex(inside[1].replace("\\x", "")) if inside else b""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and its system calls."""

    code: int
    output: str
    log: tuple[Call, ...]

    @property
    def met(self) -> bool:
        """Whether it met the fault."""
        return self.code == -signal.SIGKILL or any(call.injected for call in self.log)


class Tracer:
    """Starts commands and traces them, one at a time."""

    def __init__(self, folder: Path, script: str = store_scenarios.__file__) -> None:
        self._log = folder / f"{id(self)}.log"
        # Without what takes time to import: many tests start one.
        self._server = ForkServer(script, "-I", "-S", "-B", env={"LC_ALL": "C.UTF-8"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def run(self, story: Story, store: Store, trace: Sequence[str], fault: str = "") -> Ended:
        """Run the command of `story`, with one fault as strace writes it: `fsync:error=EIO:when=3`."""
        request = {"command": story.command, "store": str(store.root)}
        with Forked(self._server.address, request) as process, self._attached(process.pid, trace, fault) as strace:
            process.send_signal(signal.SIGCONT)
            code = process.wait()
            strace.wait(240)
            return Ended(code, process.errors.strip(), tuple(calls(self._log)))

    @contextmanager
    def _attached(self, process: int, trace: Sequence[str], fault: str) -> Iterator[subprocess.Popen]:
        _wait_until_stopped(process)
        names = ",".join(f"?{name}" for name in trace)
        command = ["strace", "-y", "-xx", "-s", "70000", "-e", f"trace={names}", "-o", str(self._log)]
        command += ["-e", f"inject={fault}"] if fault else []
        with subprocess.Popen([*command, "-p", str(process)], stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr
            line = strace.stderr.readline()
            assert "attached" in line, line
            yield strace


def _wait_until_stopped(process: int) -> None:
    status = Path("/proc", str(process), "stat")
    while status.read_text().rsplit(")", 1)[1].split()[0] not in ("T", "t"):
        time.sleep(0.0005)


def published(store: Store) -> dict[str, str]:
    """Return the SHA-256 of every file that bears a final name and must never change, by path."""
    found = {}
    # Not `rglob`: hundreds of stores are looked through.
    for folder, folders, files in os.walk(store.root):
        folders[:] = [name for name in folders if name != "locks" and not name.startswith(".")]
        final = [name for name in files if name != "champion.json" and not name.startswith(".")]
        paths = [Path(folder, name) for name in final if not name.endswith(".lock")]
        found |= {str(path.relative_to(store.root)): sha256_of(path) for path in paths}
    return found


def entries(store: Store) -> dict[str, str]:
    """Return the SHA-256 of every file of every entry, by path without the name of an attempt."""
    if not store.leases:
        return {path: digest for path, digest in published(store).items() if re.match(r"[^/]+/\d", path)}
    described = [found.key for found in store.objects.walk(DATASET) if found.name == ENTRY]
    return {
        f"{key.removesuffix(ENTRY)}{name}": file["sha256"]
        for key in described
        for name, file in sealed.read(store.objects, key)["files"].items()
    }


def state(store: Store) -> dict[str, object]:
    """Return what is published, in the terms that two equal stores agree in: no times, no names made up on the way."""
    registry, ledger = Registry(store, DATASET), Ledger(store, DATASET)
    champion = registry.champion()
    return {
        "entries": entries(store),
        "versions": [(v.number, v.model, v.evaluation) for v in registry.versions()],
        "champion": champion and champion.number,
        "turns": [(turn.outcome, turn.version) for turn in registry.history() if turn.changed],
        "noted": bool(ledger.read("runs")),
        "arrivals": [arrival["arrival"] for arrival in ledger.read("arrivals")],
    }


def problems(store: Store, story: Story, champions: set[object]) -> list[str]:
    """Return what is wrong with a store in which `story` was broken off: nothing, if the store keeps its promises."""
    wrong = [] if story.damaged else [f"damage: {f.where}: {f.problem}" for f in verify(store).damage]
    try:
        champion = Registry(store, DATASET).champion()
        if champion:
            store.get(DATASET, "train", champion.model, TrainedModel)
    except IdxflowError as error:
        return [*wrong, str(error)]
    number = champion.number if champion else None
    return wrong if number in champions else [*wrong, f"champion {number} where one of {champions} was expected"]


def problems_after_again(store: Store, story: Story, expected: Mapping[str, object]) -> list[str]:
    """Run the same command again, without any clean-up, then `gc`; return what is wrong then."""
    try:
        store_scenarios.COMMANDS[story.command](store)
        now = state(store)
        collected = collect(store, DATASET, keep_last=100)
    except IdxflowError as error:
        return [f"running again fails: {error}"]
    wrong = [] if now == expected else [f"running again ends with {now}, an unbroken run with {expected}"]
    wrong += ["gc finds the store in use"] if collected.busy else []
    return wrong + [f"after running again and gc: {f.where}: {f.problem}" for f in verify(store).findings]


@dataclass
class Node:
    """A file or a folder of the replay, as programs see it and as it was flushed last."""

    entries: dict[str, Node] | None = None
    """Of a folder."""
    data: bytes = b""
    flushed_entries: dict[str, Node] = field(default_factory=dict)
    flushed_data: bytes = b""

    @property
    def is_flushed(self) -> bool:
        return self.flushed_data == self.data and (self.entries is None or self.flushed_entries == self.entries)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


class Disk:
    """The files below one folder through a recorded sequence of calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = Node({})
        for path in sorted(root.rglob("*")) if root.exists() else ():
            node = self._put(path, Node({}) if path.is_dir() else Node(data=path.read_bytes()))
            node.flushed_data = node.data
        for node in self.nodes():
            node.flushed_entries = dict(node.entries or {})

    def nodes(self) -> Iterator[Node]:
        waiting = [self.top]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend((node.entries or {}).values())

    def find(self, path: Path, flushed: bool = False) -> Node | None:
        """Return what is at `path`; `flushed`: what would surely be there after a power loss."""
        node: Node | None = self.top
        for part in path.relative_to(self.root).parts:
            entries = (node.flushed_entries if flushed else node.entries) if node else None
            node = (entries or {}).get(part)
        return node

    def apply(self, call: Call) -> None:
        """Do what a call that succeeded did."""
        if call.result < 0 or not all(path.is_relative_to(self.root) for path in call.paths):
            return
        paths = call.paths
        if self._changes_contents(call) or paths == (self.root,):
            return
        match call.name.removesuffix("2").removesuffix("at"):
            case "mkdir":
                self._put(paths[0], Node({}))
            case "link":
                self._put(paths[1], self._at(paths[0]))
            case "rename":
                self._put(paths[1], self._take(paths[0]))
            case "unlink" | "rmdir":
                self._take(paths[0])
            case _:
                raise AssertionError(f"the replay does not know {call.name}")

    def _changes_contents(self, call: Call) -> bool:
        """Do what a call does that changes no names; return whether it was one."""
        path = call.paths[0]
        match call.name:
            case "openat":
                self._open(call)
            case "write":
                self._at(path).data += call.data
            case "fsync" | "fdatasync":
                node = self._at(path)
                node.flushed_data, node.flushed_entries = node.data, dict(node.entries or {})
            case "chmod" | "fchmod" | "fchmodat":
                pass
            case _:
                return False
        return True

    def _open(self, call: Call) -> None:
        if "O_CREAT" in call.flags and self.find(call.paths[0]) is None:
            self._put(call.paths[0], Node())
        if "O_TRUNC" in call.flags:
            self._at(call.paths[0]).data = b""

    def _at(self, path: Path) -> Node:
        node = self.find(path)
        assert node, path
        return node

    def _put(self, path: Path, node: Node) -> Node:
        folder = self._at(path.parent)
        assert folder.entries is not None
        folder.entries[path.name] = node
        return node

    def _take(self, path: Path) -> Node:
        folder = self._at(path.parent)
        assert folder.entries is not None
        return folder.entries.pop(path.name)

    def after_power_loss(self) -> list[dict[str, bytes | None]]:
        """Return different contents the disk may have: bytes by path, None for a folder.

        Names that were not flushed are all there, all lost, or kept in one folder only; data that was not flushed is
        lost, cut in half, or zeros.
        """
        loose = [node for node in self.nodes() if node.entries is not None and not node.is_flushed]
        states: list[dict[str, bytes | None]] = []
        for flushed in (loose, [], *([node] for node in loose[: len(loose) * (len(loose) > 1)])):
            for loss in ("lost", "half", "zeros"):
                contents: dict[str, bytes | None] = {}
                _collect(self.top, Path(), set(map(id, flushed)), loss, contents)
                if contents not in states:
                    states.append(contents)
        return states


def _collect(node: Node, path: Path, flushed: set[int], loss: str, contents: dict[str, bytes | None]) -> None:
    if node.entries is None:
        contents[str(path)] = _lost(node, loss)
        return
    contents[str(path)] = None
    for name, child in (node.entries if id(node) in flushed else node.flushed_entries).items():
        _collect(child, path / name, flushed, loss, contents)


def _lost(node: Node, loss: str) -> bytes:
    if node.data == node.flushed_data:
        return node.data
    flushed = node.flushed_data if node.data.startswith(node.flushed_data) else b""
    rest = len(node.data) - len(flushed)
    return {
        "lost": flushed,
        "half": node.data[: len(flushed) + rest // 2],
        "zeros": flushed + bytes(rest),
    }[loss]


def lay_out(contents: Mapping[str, bytes | None], root: Path) -> Store:
    """Write what a disk has after a power loss, as a store."""
    for name, data in contents.items():
        if data is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).write_bytes(data)
    return Store(root)


def careless(disk: Disk, log: Sequence[Call]) -> list[str]:
    """Return every place where a published name depends on something that was not flushed to the disk."""
    places: list[str] = []
    for call in log:
        target = call.paths[-1] if call.paths else disk.root
        named = call.name.startswith(("rename", "link")) and call.result == 0 and _is_final(target, disk.root)
        if named:
            places += _unflushed(disk, call.paths[0], target)
        disk.apply(call)
        if named:
            places += _too_early(disk, target)
    for path, node in _folders(disk.top, disk.root):
        names = (node.entries or {}).items() ^ node.flushed_entries.items()
        places += [f"{path}: not flushed after {n}" for n, _ in names if _is_final(path / n, disk.root)]
    return places


def _is_final(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts if path.is_relative_to(root) else (".",)
    return not any(part.startswith(".") for part in parts) and "locks" not in parts and path.suffix != ".lock"


def _unflushed(disk: Disk, source: Path, target: Path) -> list[str]:
    node = disk.find(source)
    assert node, source
    loose = [] if node.is_flushed else [target]
    loose += [target / name for name, child in (node.entries or {}).items() if not child.is_flushed]
    return [f"{path}: named before it was flushed" for path in loose]


def _too_early(disk: Disk, target: Path) -> list[str]:
    """Return what a version, a decision or the hint names and a power loss could take away."""
    folder, needed = disk.root / DATASET, []
    if target.parent.name == "versions":
        values = json.loads(disk._at(target).data)
        needed = [folder / "5-models" / values["model"], folder / "6-evaluations" / values["evaluation"]]
    elif target.parent.name == "decisions":
        number = json.loads(disk._at(target).data)["champion"]
        needed = [folder / "registry" / "versions" / f"{number:08d}.json"] if number else []
    elif target.name == "champion.json":
        number = json.loads(disk._at(target).data)["decision"]
        needed = [folder / "ledger" / "decisions" / f"{number:08d}.json"]
    return [
        f"{target}: names {path}, which a power loss could take" for path in needed if not disk.find(path, flushed=True)
    ]


def _folders(node: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    if node.entries is not None:
        yield path, node
        for name, child in node.entries.items():
            yield from _folders(child, path / name)
