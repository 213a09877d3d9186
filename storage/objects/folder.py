"""Objects as files of a folder: written beside, flushed to disk, then renamed or linked into place."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from storage.errors import StoreError
from storage.files import create_bytes, flush, listed, make_folder, open_regular, write_bytes
from storage.objects.protocol import Found, Listing, always


class Folder:
    """The objects below `root`, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def address(self) -> str:
        return str(self.root)

    def where(self, key: str) -> str:
        return str(self.root / key)

    def get(self, key: str, most: int | None = None) -> bytes:
        with open_regular(self.root / key) as stream:
            return stream.read(-1 if most is None else most)

    def range(self, key: str, start: int, stop: int) -> bytes:
        with open_regular(self.root / key) as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def create(self, key: str, data: bytes) -> bool:
        return create_bytes(self.root / key, data)

    def put(self, key: str, data: bytes) -> None:
        write_bytes(self.root / key, data)

    def upload(self, key: str, file: Path) -> None:
        target = self.root / key
        make_folder(target.parent)
        beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            shutil.copyfile(file, beside)
            flush(beside)
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        flush(target.parent)

    def download(self, key: str, file: Path) -> None:
        with open_regular(self.root / key) as stream, file.open("xb") as target:
            shutil.copyfileobj(stream, target)

    def list(self, folder: str) -> Listing:
        objects, folders = [], []
        beginning = f"{folder}/" if folder else ""
        # Not `listed`: making thousands of `Path` objects is slow.
        for entry in self._scanned(folder):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
                continue
            # It may have been removed since it was listed.
            with suppress(FileNotFoundError):
                objects.append(_found(beginning + entry.name, entry.stat(follow_symlinks=False)))
        return Listing(tuple(objects), tuple(folders))

    def walk(self, folder: str) -> Iterator[Found]:
        for path in sorted(self._files(self.root / folder), key=lambda path: path.relative_to(self.root).as_posix()):
            # It may have been removed since it was listed.
            with suppress(FileNotFoundError):
                yield _found(os.fspath(path.relative_to(self.root)), path.lstat())

    def delete(self, keys: Iterable[str], check: Callable[[], None] = always) -> None:
        folders = set()
        for key in keys:
            check()
            path = self.root / key
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            with suppress(FileNotFoundError):
                flush(folder)

    def hidden(self) -> tuple[Found, ...]:
        with suppress(FileNotFoundError):
            paths = (path for path in sorted(self.root.iterdir()) if path.name.startswith((".now.", ".probe.")))
            return tuple(_found(path.name, path.lstat()) for path in paths)
        return ()

    def now(self) -> float:
        # A file written now has the time of the file system, which may be another machine's.
        now = self.root / f".now.{secrets.token_hex(4)}.tmp"
        now.touch()
        try:
            return now.stat().st_mtime
        finally:
            now.unlink()

    def age(self, key: str) -> float | None:
        try:
            written = (self.root / key).lstat().st_mtime
        except FileNotFoundError:
            return None
        return self.now() - written

    def probe(self) -> None:
        key = f".probe.{secrets.token_hex(8)}"
        try:
            first, second = self.create(key, b"1"), self.create(key, b"2")
            kept = self.get(key)
        finally:
            self.delete([key])
        if (first, second, kept) != (True, False, b"1"):
            raise StoreError(
                f"expected a folder in which a file is created only if there is none at {self.root}; it replaces "
                "files that exist; choose another store with --store"
            )

    def _scanned(self, folder: str) -> tuple[os.DirEntry[str], ...]:
        try:
            with os.scandir(self.root / folder) as entries:
                visible = (entry for entry in entries if not entry.name.startswith("."))
                return tuple(sorted(visible, key=lambda entry: entry.name))
        except FileNotFoundError:
            return ()

    def _files(self, folder: Path) -> Iterator[Path]:
        for path in listed(folder):
            if path.is_dir() and not path.is_symlink():
                yield from self._files(path)
            else:
                yield path


def _found(key: str, state: os.stat_result) -> Found:
    stamp = (state.st_size, state.st_mtime_ns, state.st_ino)
    return Found(key, state.st_size, stamp, state.st_mtime)
