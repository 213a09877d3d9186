"""Archives that are published in a ZIP file: it is downloaded once, verified, kept, and each archive read out of it."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import signal
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import flows.collect
import tasks.fetch
from flows.commands.cli import run_command
from flows.pipeline import to_validation
from flows.terminal.text import size
from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.errors import DataRefused, DigestMismatch, FormatError, IdxflowError, SourceUnavailable, StoreError
from storage.records import Archive, Done
from storage.retention import collect, collect_downloads
from storage.store import Store
from storage.verify import verify
from tasks.fetch import find_or_fetch
from tasks.sources.download import DownloadPolicy
from tasks.sources.partial_file import PartialFile
from tasks.sources.zip_file import KeptZip
from tests.fetch.helpers import IMPATIENT, QUICK, STRICT
from tests.support.faultserver import (
    Answer,
    FaultServer,
    cut,
    endless,
    good,
    in_turn,
    ranged,
    redirect,
    reset,
    silent,
    stall,
    status,
    trickle,
)
from tests.support.runs import run_without_prefect
from tests.support.zips import ZIP, Zipped, packed, publish

AT = f"/{ZIP}"
ONCE = replace(QUICK, tries=1)


def four(
    store: Store, dataset: Dataset, source: str | None = None, policy: DownloadPolicy = QUICK
) -> dict[str, Archive | IdxflowError]:
    """Fetch the four archives side by side, as a run does; return the archive or the error of each."""

    def one(role: str) -> Archive | IdxflowError:
        try:
            done: Done[Archive] = find_or_fetch(store, dataset, dataset.archive(role), source, policy)
        except IdxflowError as error:
            return error
        return done.record

    with ThreadPoolExecutor(4) as threads:
        return dict(zip(catalog.ROLES, threads.map(one, catalog.ROLES), strict=True))


def bytes_of(fetched: dict[str, Archive | IdxflowError]) -> dict[str, bytes]:
    return {a.file_name: a.file.read_bytes() for a in fetched.values() if isinstance(a, Archive)}


def expected(zipped: Zipped, name: str = "tiny") -> dict[str, bytes]:
    return {file: data for file, data in zipped.members.items() if file.startswith(name)}


def kept(store: Store) -> list[str]:
    """The files of the shared downloads."""
    return sorted(str(p.relative_to(store.root)) for p in (store.root / "_downloads").rglob("*") if p.is_file())


def test_one_download_is_for_four_archives_and_for_two_data_sets(store: Store, tmp_path: Path):
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        server.answers[AT] = good(zipped.data)
        assert bytes_of(four(store, zipped.dataset)) == expected(zipped)
        assert len(server.requests) == 1
    # The server is gone.
    assert bytes_of(four(store, zipped.second)) == expected(zipped, "other")
    assert kept(store) == [f"_downloads/{hashlib.sha256(zipped.data).hexdigest()[:32]}/{ZIP}"]
    assert verify(store).findings == ()


def test_a_run_reads_the_archives_as_they_are_published_and_then_finds_them_in_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tasks.fetch, "POLICY", QUICK)
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        server.answers[AT] = good(zipped.data)
        outcome = run_without_prefect(store, dataset_file=str(zipped.manifests[0]), to=to_validation)
    assert outcome["error"] is None, outcome["sentence"]
    again = run_without_prefect(store, dataset_file=str(zipped.manifests[0]), to=to_validation)
    assert all(step["reused"] for step in again["steps"].values())
    # From a folder, the archives have the same keys.
    shutil.rmtree(store.root / "_downloads")
    assert all(isinstance(a, Archive) for a in four(store, zipped.dataset, str(tmp_path)).values())


Fault = Callable[[bytes], Answer]
FAULTS: dict[str, tuple[Fault, type[IdxflowError], str, DownloadPolicy]] = {
    "404": (lambda data: status(404), SourceUnavailable, "404 Not Found", QUICK),
    "503 for ever": (lambda data: status(503), SourceUnavailable, "503 Service Unavailable", QUICK),
    "silent": (lambda data: silent, SourceUnavailable, "nothing came for", IMPATIENT),
    "trickle": (lambda data: trickle(data), SourceUnavailable, "fewer than 1,000 bytes", STRICT),
    "reset": (lambda data: reset(data, 500), SourceUnavailable, "broke off", QUICK),
    "cut": (lambda data: cut(data, 500), SourceUnavailable, "broke off after 500 bytes", QUICK),
    "cut, length unsaid": (
        lambda data: good(data[:500], Content_Length=None),
        DigestMismatch,
        "500 bytes (is it cut short?)",
        ONCE,
    ),
    "endless": (lambda data: endless(), FormatError, "more bytes where at most", QUICK),
    "10 TB": (lambda data: good(data, Content_Length=10**13), FormatError, "10,000,000,000,000 bytes", QUICK),
    "other bytes": (lambda data: good(data[::-1]), DigestMismatch, "expected the ZIP file with SHA-256", QUICK),
    "a web page": (lambda data: good(b"<html>" + b"x" * 99), DigestMismatch, "a web page", QUICK),
    "link-local": (lambda data: redirect("http://169.254.169.254/x"), SourceUnavailable, "link-local", QUICK),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_download_that_fails_is_tried_once_for_all_four_and_leaves_nothing(store: Store, tmp_path: Path, name: str):
    fault, kind, words, policy = FAULTS[name]
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        server.answers[AT] = fault(zipped.data)
        errors = four(store, zipped.dataset, policy=policy)
        assert len(server.requests) <= policy.tries
    for error in errors.values():
        assert type(error) is kind, error
        assert words in str(error)
        assert str(error).count(server.url(AT)) == 1
    assert kept(store) == []
    assert not list(store.root.rglob("*-ubyte.gz*"))


def test_the_next_mirror_is_tried_and_the_log_names_the_first(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with FaultServer({AT: status(404)}) as bad, FaultServer({}) as fine:
        zipped = publish(tmp_path, [bad.url(AT), fine.url(AT)])
        fine.answers[AT] = good(zipped.data)
        assert bytes_of(four(store, zipped.dataset)) == expected(zipped)
        assert (len(bad.requests), len(fine.requests)) == (1, 1)
    assert f"{bad.url(AT)}: 404 Not Found; trying {fine.url(AT)}" in caplog.text


def test_a_later_run_in_the_same_process_tries_again(store: Store, tmp_path: Path):
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        # One of the four threads may ask again after another one has failed.
        server.answers[AT] = status(404)
        assert all(isinstance(error, SourceUnavailable) for error in four(store, zipped.dataset).values())
        server.answers[AT] = good(zipped.data)
        assert bytes_of(four(store, zipped.dataset)) == expected(zipped)


def test_an_interrupted_download_is_resumed(store: Store, tmp_path: Path):
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        half = len(zipped.data) // 2
        # One of the four threads may ask again after another one has failed.
        server.answers[AT] = cut(zipped.data, half, ETag='"a"')
        assert all(isinstance(error, SourceUnavailable) for error in four(store, zipped.dataset, policy=ONCE).values())
        server.answers[AT] = ranged(zipped.data, '"a"')
        assert [Path(name).name for name in kept(store)] == [f"{ZIP}.part", f"{ZIP}.part.json"]
        # No run was cut off: this one ended, so that nothing of it is needed.
        assert [f.kind for f in verify(store).findings if "_downloads" in f.where] == ["leftover", "leftover"]
        assert bytes_of(four(store, zipped.dataset)) == expected(zipped)
        assert server.requests[0].headers.get("range") is None
        assert server.requests[-1].headers.get("range") == f"bytes={half}-"
    assert [Path(name).name for name in kept(store)] == [ZIP]


def test_a_killed_run_leaves_what_the_next_one_resumes(store: Store, tmp_path: Path):
    """With SIGKILL, nothing is tidied up: the lock is free, the part and its note are there."""
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        # More than what is written at once, so that some of it is in the file.
        after = len(zipped.data) - 100
        server.answers[AT] = in_turn(stall(zipped.data, after, ETag='"a"'), ranged(zipped.data, '"a"'))
        dataset = zipped.dataset
        child = os.fork()
        if not child:
            find_or_fetch(store, dataset, dataset.archives[0], None, QUICK)
            os._exit(1)
        part = store.downloads(dataset.zipped.sha256) / f"{ZIP}.part"
        while not (part.exists() and part.stat().st_size):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there = part.stat().st_size
        assert bytes_of(four(store, dataset)) == expected(zipped)
        assert [request.headers.get("range") for request in server.requests] == [None, f"bytes={there}-"]
    assert [Path(name).name for name in kept(store)] == [ZIP]


def test_a_resumed_download_that_is_another_file_starts_again(store: Store, tmp_path: Path):
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        half = len(zipped.data) // 2
        lies = ranged(zipped.data, '"a"', sends=zipped.data[::-1])
        server.answers[AT] = in_turn(cut(zipped.data, half, ETag='"a"'), lies, good(zipped.data))
        assert bytes_of(four(store, zipped.dataset)) == expected(zipped)


def test_a_kept_file_that_is_damaged_is_named_by_verify_and_downloaded_again(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        server.answers[AT] = good(zipped.data)
        four(store, zipped.dataset)
        (file,) = (store.root / "_downloads").glob(f"*/{ZIP}")
        file.write_bytes(zipped.data[:3000] + b"?" * (len(zipped.data) - 3000))
        (finding,) = verify(store).damage
        assert (Path(finding.where), "downloaded again" in finding.remedy) == (file, True)
        assert verify(store, contents=False).findings == ()
        assert bytes_of(four(store, zipped.second)) == expected(zipped, "other")
        assert len(server.requests) == 2
        file.unlink()
        os.mkfifo(file)
        assert [Path(finding.where) for finding in verify(store).damage] == [file]
        shutil.rmtree(store.dataset("other"))
        assert bytes_of(four(store, zipped.second)) == expected(zipped, "other")
    assert file.read_bytes() == zipped.data
    assert "is damaged; downloading it again" in caplog.text


def test_a_thread_that_has_opened_a_damaged_file_reads_the_one_that_another_has_replaced_it_with(
    store: Store, tmp_path: Path
):
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        server.answers[AT] = good(zipped.data)
        four(store, zipped.dataset)
        (file,) = (store.root / "_downloads").glob(f"*/{ZIP}")
        file.write_bytes(b"?" * len(zipped.data))
        assert zipped.second.zipped
        kept = KeptZip(store, zipped.second.zipped, server.url(AT), lambda path, received: None)
        with kept.opened(QUICK) as damaged:
            assert bytes_of(four(store, zipped.second)) == expected(zipped, "other")
            assert kept.discarded(damaged)
    assert file.read_bytes() == zipped.data


def test_a_kept_file_is_not_read_again_for_archives_that_are_in_the_store(store: Store, tmp_path: Path):
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        server.answers[AT] = good(zipped.data)
        four(store, zipped.dataset)
    shutil.rmtree(store.root / "_downloads")
    assert bytes_of(four(store, zipped.dataset)) == expected(zipped)


def lying(zipped: Zipped) -> bytes:
    """A ZIP file that declares other sizes than it has: more in the local headers, fewer in the list of members."""
    name = b"gzip/tiny-train-images"
    data = bytearray(zipped.data)
    at = data.rindex(name) - 46
    data[at + 24 : at + 28] = (100).to_bytes(4, "little")
    return bytes(data)


def encrypted(zipped: Zipped) -> bytes:
    data = bytearray(zipped.data)
    for at in [i for i in range(len(data)) if data[i : i + 4] in (b"PK\x01\x02", b"PK\x03\x04")]:
        data[at + (8 if data[at + 2] == 1 else 6)] |= 1
    return bytes(data)


def bomb(zipped: Zipped) -> bytes:
    return packed({**zipped.members, "tiny-train-images-idx3-ubyte.gz": bytes(10**7)})


CONTENTS: dict[str, tuple[Callable[[Zipped], bytes], type[DataRefused], str]] = {
    "no ZIP file": (lambda zipped: b"not a ZIP file" * 99, FormatError, "no undamaged ZIP file"),
    "cut short": (lambda zipped: zipped.data[:-30], FormatError, "no undamaged ZIP file"),
    "a flipped byte": (
        lambda zipped: zipped.data[:700] + bytes([zipped.data[700] ^ 255]) + zipped.data[701:],
        FormatError,
        "no undamaged ZIP file",
    ),
    "no such member": (
        lambda zipped: packed({k: v for k, v in zipped.members.items() if "tiny-train-images" not in k}),
        FormatError,
        "there is no gzip/tiny-train-images-idx3-ubyte.gz in it",
    ),
    "another folder": (lambda zipped: packed(zipped.members, ""), FormatError, "there is no gzip/tiny-"),
    "a bomb": (bomb, FormatError, "found 10,000,000 bytes where at most"),
    "false sizes": (lying, FormatError, "no undamaged ZIP file"),
    "encrypted": (encrypted, FormatError, "no undamaged ZIP file"),
    "another archive": (
        lambda zipped: packed({**zipped.members, "tiny-train-images-idx3-ubyte.gz": b"another"}),
        DigestMismatch,
        "found ",
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("place", ["downloaded", "in a folder"])
def test_what_is_wrong_inside_the_file_is_one_sentence(store: Store, tmp_path: Path, name: str, place: str):
    """Also where the manifest has the digest of the wrong file."""
    make, kind, words = CONTENTS[name]
    data = make(publish(tmp_path))
    with FaultServer({AT: good(data)}) as server:
        zipped = publish(tmp_path, [server.url(AT)] if place == "downloaded" else [], data)
        if place == "in a folder":
            (tmp_path / ZIP).write_bytes(data)
        dataset = zipped.dataset
        source = str(tmp_path) if place == "in a folder" else None
        with pytest.raises(kind) as raised:
            find_or_fetch(store, dataset, dataset.archive("train-images"), source, QUICK)
        assert len(server.requests) == (place == "downloaded")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(store.root.rglob("*-ubyte.gz*"))


def test_members_that_are_not_asked_for_do_no_harm(store: Store, tmp_path: Path):
    """Nothing is unpacked by its name: places outside, absolute ones and links are only names."""
    good_one = publish(tmp_path)
    buffer = io.BytesIO(good_one.data)
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo("gzip/link")
        link.external_attr = 0o120777 << 16
        for member in ("../outside", "/absolute", link):
            archive.writestr(member, "/etc/passwd")
    data = buffer.getvalue()
    (tmp_path / ZIP).write_bytes(data)
    zipped = publish(tmp_path, data=data)
    assert bytes_of(four(store, zipped.dataset, str(tmp_path))) == expected(zipped)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("what", ["the ZIP file", "the four archives", "both, but a damaged ZIP file"])
def test_a_folder_of_the_user_may_have_the_zip_file_or_the_archives(store: Store, tmp_path: Path, what: str):
    zipped = publish(tmp_path)
    place = tmp_path / "place"
    place.mkdir()
    if what != "the four archives":
        (place / ZIP).write_bytes(zipped.data if what == "the ZIP file" else b"?")
    if what != "the ZIP file":
        for file, data in expected(zipped).items():
            (place / file).write_bytes(data)
    fetched = four(store, zipped.dataset, str(place))
    assert bytes_of(fetched) == expected(zipped)
    # Nothing is copied but the archives.
    assert kept(store) == []
    before = {role: a.entry for role, a in fetched.items() if isinstance(a, Archive)}
    assert {role: a.entry for role, a in four(store, zipped.dataset).items() if isinstance(a, Archive)} == before


@pytest.mark.parametrize("what", ["the ZIP file", "the four archives"])
def test_an_address_of_the_user_may_have_the_zip_file_or_the_archives(store: Store, tmp_path: Path, what: str):
    zipped = publish(tmp_path)
    files = {ZIP: zipped.data} if what == "the ZIP file" else expected(zipped)
    with FaultServer({f"/mine/{name}": good(data) for name, data in files.items()}) as server:
        assert bytes_of(four(store, zipped.dataset, server.url("/mine/?key=x"))) == expected(zipped)
        assert all(count == 1 for count in Counter(r.path for r in server.requests).values())


def test_a_folder_with_neither_is_a_sentence_that_names_both(store: Store, tmp_path: Path):
    zipped = publish(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd" / ZIP).mkdir(parents=True)
    dataset = zipped.dataset
    for name, words in {"empty": f", and no {ZIP} with it", "odd": f"{ZIP} is a folder, not a regular file"}.items():
        with pytest.raises(SourceUnavailable) as raised:
            find_or_fetch(store, dataset, dataset.archives[0], str(tmp_path / name), QUICK)
        assert words in str(raised.value)


@pytest.mark.remedies("tasks.sources.partial_file:check_room")
def test_without_room_for_it_nothing_is_downloaded(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        server.answers[AT] = good(zipped.data)
        usage = shutil.disk_usage(store.root)
        little = usage._replace(free=len(zipped.data) - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: little)
        errors = four(store, zipped.dataset)
        monkeypatch.undo()
        assert server.requests == []
        for error in errors.values():
            assert isinstance(error, StoreError)
            assert f"{server.url(AT)}: expected {len(zipped.data):,} bytes free" in str(error)
            assert "free space there, or choose another with --store" in str(error)
        # With room, the same command gets further.
        assert bytes_of(four(store, zipped.dataset)) == expected(zipped)


def test_a_write_that_fails_is_a_failure_of_the_store_and_the_next_run_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on a disk that another program fills meanwhile."""
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        server.answers[AT] = good(zipped.data)
        real = os.replace

        def full(source: Path, target: Path) -> None:
            if Path(target).name == ZIP:
                raise OSError(28, "No space left on device", str(target))
            real(source, target)

        monkeypatch.setattr(os, "replace", full)
        errors = four(store, zipped.dataset)
        monkeypatch.undo()
        assert all(isinstance(e, StoreError) and "No space left on device" in str(e) for e in errors.values())
        assert not list(store.root.rglob("*-ubyte.gz"))
        assert bytes_of(four(store, zipped.dataset)) == expected(zipped)


def test_the_time_for_a_large_file_grows_with_its_size(store: Store, tmp_path: Path):
    """15 minutes are too little for half a gigabyte over a slow line of a home, but there is an end."""
    now = [0.0]
    policy = replace(QUICK, deadline_seconds=900, clock=lambda: now[0], rate_window_seconds=10**6, tries=1)
    size = 560_000_000
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        large = replace(zipped.dataset.zipped, bytes=size)
        dataset = replace(zipped.dataset, zipped=large)

        def slow(seconds: float) -> Answer:
            def answer(exchange):
                now[0] += seconds
                good(zipped.data)(exchange)

            return answer

        server.answers[AT] = in_turn(slow(6600), slow(6000))
        with pytest.raises(SourceUnavailable, match="not finished within 6500 s"):
            find_or_fetch(store, dataset, dataset.archives[0], None, policy)
        assert find_or_fetch(store, dataset, dataset.archives[0], None, policy).record.size_bytes


def test_gc_removes_the_file_but_not_what_is_being_downloaded(store: Store, tmp_path: Path):
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        server.answers[AT] = good(zipped.data)
        four(store, zipped.dataset)
        (folder,) = (store.root / "_downloads").iterdir()
        assert collect_downloads(store, dry_run=True).removed == (folder,)
        assert (folder / ZIP).exists()
        collected = collect_downloads(store)
        assert (collected.removed, collected.kept, collected.bytes) == ((folder,), (), len(zipped.data))
        assert kept(store) == []
        busy: list[tuple[Path, ...]] = []

        def answer(exchange) -> None:
            busy.append(collect_downloads(store).kept)
            good(zipped.data)(exchange)

        server.answers[AT] = answer
        assert bytes_of(four(store, zipped.second)) == expected(zipped, "other")
        assert busy == [(folder,)]


def test_the_commands_that_clean_up_say_what_they_removed(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])
        server.answers[AT] = good(zipped.data)
        four(store, zipped.dataset)
        (folder,) = (store.root / "_downloads").iterdir()
        # What belongs to one data set is not shared.
        assert run_command(["gc", "tiny", "--store", str(store.root)]) == 0
        assert "downloads" not in capsys.readouterr().out
        assert run_command(["gc", "--dry-run", "--store", str(store.root)]) == 0
        assert f"downloads: would remove 1 ZIP file, {size(len(zipped.data))}\n  {folder}\n" in capsys.readouterr().out
        assert run_command(["gc", "--json", "--store", str(store.root)]) == 0
        values = json.loads(capsys.readouterr().out)["downloads"]
        assert values == {"removed": [str(folder)], "kept": [], "bytes": len(zipped.data)}
        assert not folder.exists()
        four(store, zipped.second)
        outcome, problems = flows.collect._collect_store(store, 10)
        assert (outcome["bytes"] > len(zipped.data), problems, folder.exists()) == (True, [], False)


def test_gc_keeps_a_download_that_the_next_run_resumes(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that was killed while it downloaded: its record is still under way, its part and its note are there."""
    zipped = publish(tmp_path, ["http://127.0.0.1:9/gzip.zip"])
    folder = store.downloads(zipped.dataset.zipped.sha256)
    folder.mkdir(parents=True)
    part = PartialFile(folder, ZIP)
    part.path.write_bytes(zipped.data[:500])
    part.note.write_text("{}")
    entry = store.entries("tiny", "fetch") / ".0123.partial"
    entry.mkdir(parents=True)
    monkeypatch.setattr("storage.verify.was_cut_off", lambda *_: True)
    assert collect_downloads(store).kept == (folder,)
    assert verify(store).damage == ()
    assert not [finding for finding in verify(store).findings if "_downloads" in finding.where]
    monkeypatch.setattr("storage.verify.was_cut_off", lambda *_: False)
    assert [f.remedy for f in verify(store).leftovers if f.where == str(part.path)] == [
        f"`{store.command('gc')}` removes it, and the next run that needs it resumes it"
    ]
    collect(store, "tiny")
    assert collect_downloads(store).removed == (folder,)
    assert verify(store).findings == ()


def test_a_link_in_the_place_of_the_downloads_is_refused_and_named(store: Store, tmp_path: Path):
    zipped = publish(tmp_path, ["http://127.0.0.1:9/gzip.zip"])
    (tmp_path / "elsewhere").mkdir()
    (store.root / "_downloads").symlink_to(tmp_path / "elsewhere")
    assert all(isinstance(error, StoreError) for error in four(store, zipped.dataset).values())
    assert [Path(finding.where) for finding in verify(store).damage] == [store.root / "_downloads"]


def test_only_another_run_is_waited_for_with_a_line(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    with FaultServer({}) as server:
        zipped = publish(tmp_path, [server.url(AT)])

        def answer(exchange) -> None:
            exchange.stopping.wait(0.3)
            good(zipped.data)(exchange)

        server.answers[AT] = answer
        assert bytes_of(four(store, zipped.dataset)) == expected(zipped)
    assert "waiting for another run" not in caplog.text
