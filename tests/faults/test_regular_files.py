"""What is no regular file is refused at once and in words, wherever a path is taken: nothing waits for a writer."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flows.commands.cli import run_command
from flows.run import Job
from storage.datasets import catalog
from storage.errors import ConfigError, DamagedEntry, IdxflowError
from storage.store import ENTRY, Store, read_entry
from storage.verify import verify
from tests.conftest import write_tiny
from tests.fetch.helpers import FILE, SPEC, UNPINNED, get
from tests.support.runs import whole_run

HANG_SECONDS = 240
"""Far more than any refusal takes: only what waits for a FIFO's writer, or reads a device to its end, gets there."""


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    # Its name may have 107 characters at most (unix(7)), a test's folder has more.
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link(path: Path) -> None:
    os.mkfifo(path.with_name(f"{path.name}.target"))
    path.symlink_to(f"{path.name}.target")


def link_to_stdin(path: Path) -> None:
    """Under pytest that is `/dev/null`."""
    path.symlink_to("/dev/stdin")


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "FIFO": (fifo, "a FIFO (named pipe)"),
    "socket": (bound_socket, "a socket"),
    "device": (device, "a device"),
    "link to a FIFO": (link, "a FIFO (named pipe)"),
    "standard input": (link_to_stdin, "a device"),
}


@contextmanager
def no_hang() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise AssertionError(f"it hung for {HANG_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A store with all of one run in it."""
    folder = tmp_path_factory.mktemp("regular")
    store = Store(folder / "store")
    store.prepare()
    return whole_run(store, write_tiny(folder).manifest)


@pytest.fixture
def copy(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy of that store, which all commands find."""
    store = Store(tmp_path / "store")
    shutil.copytree(job.store.root, store.root)
    for path in store.root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    monkeypatch.setenv("IDXFLOW_STORE", str(store.root))
    monkeypatch.chdir(tmp_path)
    return store


@pytest.fixture(params=KINDS)
def thing(request: pytest.FixtureRequest) -> tuple[Callable[[Path], None], str]:
    return KINDS[request.param]


COMMANDS = [
    ("run --dataset-file {}", 2),
    ("validate --dataset-file {}", 2),
    ("watch . --dataset-file {} --once", 2),
    ("tune digits --space {}", 2),
    ("manifest {}", 2),
    ("manifest {folder}", 2),
    ("predict tiny {}", 2),
    ("predict tiny {image} --out {}", 2),
    ("export tiny --out {}", 2),
    ("figures tiny --out {}.svg", 2),
    ("report tiny --out {}.html", 2),
    ("runs diff tiny champion latest --figure {}.png", 2),
    ("run digits --store {}", 1),
    ("validate digits --store {}", 1),
    ("predict tiny {image} --store {}", 1),
    ("verify --store {}", 1),
    ("status --store {}", 1),
    ("gc --store {}", 1),
    ("runs list tiny --store {}", 1),
    ("registry history tiny --store {}", 1),
    ("report tiny --store {}", 1),
]


@pytest.mark.parametrize(("command", "code"), COMMANDS)
@pytest.mark.usefixtures("copy")
def test_every_command_refuses_it_in_a_sentence(
    tmp_path: Path, thing: tuple[Callable[[Path], None], str], capsys: pytest.CaptureFixture, command: str, code: int
):
    make, words = thing
    place = tmp_path / "thing"
    suffix = next((end for end in (".svg", ".html", ".png") if f"{{}}{end}" in command), "")
    make(tmp_path / f"thing{suffix}")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in catalog.DEFAULT_FILES.values():
        make(folder / name)
    (tmp_path / "image").write_bytes(b"\0\0")
    before = (tmp_path / f"thing{suffix}").lstat()
    values = {"folder": folder, "image": tmp_path / "image"}
    with no_hang():
        assert run_command([word.format(place, **values) for word in command.split()]) == code
    message = " ".join(capsys.readouterr().err.split())
    assert words in message, message
    assert os.path.samestat((tmp_path / f"thing{suffix}").lstat(), before)


def test_a_source_of_such_archives_is_refused(
    copy: Store, job: Job, tmp_path: Path, thing: tuple[Callable[[Path], None], str]
):
    make, words = thing
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder / FILE)
    dataset = replace(job.dataset, source=None)
    for source in (folder, f"file://{folder}", folder / FILE, f"file://{folder / FILE}"):
        for spec in (SPEC, UNPINNED):
            with no_hang(), pytest.raises(IdxflowError) as raised:
                get(copy, dataset, spec=spec, source=str(source))
            assert words in str(raised.value)


def test_a_manifest_of_such_a_kind_is_refused_by_its_reader(tmp_path: Path, thing: tuple[Callable[[Path], None], str]):
    make, words = thing
    make(tmp_path / "mine.toml")
    with no_hang(), pytest.raises(ConfigError) as raised:
        catalog.read(tmp_path / "mine.toml")
    assert words in str(raised.value)


def _replaced(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def _files(store: Store) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_in_the_store_it_is_damage(copy: Store):
    for path in _files(copy):
        whole = path.read_bytes()
        _replaced(path, fifo)
        with no_hang():
            damage = verify(copy, "tiny").damage
        entry = path.parent if (path.parent / ENTRY).exists() else path
        assert entry in {Path(finding.where) for finding in damage}
        if entry != path:
            with no_hang(), pytest.raises(DamagedEntry, match="FIFO"):
                read_entry(entry)
        path.unlink()
        path.write_bytes(whole)
    assert not verify(copy, "tiny").damage


READERS = [
    *("verify", "gc --dry-run", "status"),
    *("registry history tiny", "registry show tiny", "registry at tiny 2999-01-01", "registry diff tiny 1 champion"),
    *("runs list tiny", "runs diff tiny champion latest", "report tiny --out page.html", "figures tiny --out a.svg"),
    *("predict tiny image.png", "export tiny", "rollback tiny --reason because", "promote tiny 1 --force --reason so"),
]


def test_no_command_waits_for_a_file_of_the_store(copy: Store, tmp_path: Path, capsys: pytest.CaptureFixture):
    from PIL import Image

    Image.new("L", (7, 9)).save(tmp_path / "image.png")
    contents = {path: path.read_bytes() for path in _files(copy)}
    parts = {
        path: "" if path.parent == copy.root else path.relative_to(copy.dataset("tiny")).parts[0] for path in contents
    }
    for chosen in ({""}, {"registry"}, {"ledger"}, set(parts.values()) - {"", "registry", "ledger"}):
        touched = [path for path in contents if parts[path] in chosen]
        for path in touched:
            _replaced(path, fifo)
        for command in READERS:
            with no_hang():
                run_command(command.split())
            assert "Traceback" not in capsys.readouterr().err
        for path in touched:
            path.unlink(missing_ok=True)
            path.write_bytes(contents[path])


def test_a_run_makes_entries_anew_whose_files_have_become_such(copy: Store, job: Job):
    for path in _files(copy):
        if path.parent != copy.root and path.relative_to(copy.dataset("tiny")).parts[0] not in (
            "registry",
            "ledger",
            "7-reports",
        ):
            _replaced(path, fifo)
    with no_hang():
        again = whole_run(copy, job.dataset.manifest)
    assert again.record.model
    assert job.record.model
    assert again.record.model.weights_digest == job.record.model.weights_digest
    assert not verify(copy, "tiny").damage
