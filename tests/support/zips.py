"""Data sets that are published as EMNIST is: one ZIP file with the four archives of each, in a folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.datasets import catalog
from storage.datasets.catalog import ROLES, Dataset
from storage.formats import idx
from tests.conftest import bars

ZIP = "gzip.zip"
SHAPE = (9, 7)


@dataclass(frozen=True)
class Zipped:
    """A made-up ZIP file of the layout of EMNIST's, and the manifests of the data sets in it."""

    data: bytes
    members: Mapping[str, bytes]
    """The archives by their file names."""
    manifests: Sequence[Path]

    @property
    def dataset(self) -> Dataset:
        return catalog.read(self.manifests[0])

    @property
    def second(self) -> Dataset:
        return catalog.read(self.manifests[1])


def files_of(name: str) -> dict[str, str]:
    """Return the names of the four archives of a data set, by role."""
    return {role: f"{name}-{role}-idx{3 if 'images' in role else 1}-ubyte.gz" for role in ROLES}


def archives(name: str, seed: int) -> dict[str, bytes]:
    """Return four archives by file name: images stored column by column, and labels that count up from 1."""
    arrays = bars(120, 30, 3, SHAPE, seed)
    stored = {role: a.swapaxes(1, 2) if a.ndim == 3 else a + 1 for role, a in arrays.items()}
    return {
        file: gzip.compress(idx.encode(np.ascontiguousarray(stored[role])), mtime=0)
        for role, file in files_of(name).items()
    }


def packed(members: Mapping[str, bytes], folder: str = "gzip/", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a ZIP file of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(f"{folder}emnist-tiny-mapping.txt", "1 65 97\n2 66 98\n3 67 99\n")
        for name, data in members.items():
            archive.writestr(folder + name, data)
    return buffer.getvalue()


def publish(
    folder: Path, mirrors: Sequence[str] = (), data: bytes | None = None, names: Sequence[str] = ("tiny", "other")
) -> Zipped:
    """Write the manifests of data sets in one ZIP file.

    Args:
        mirrors: its addresses.
        data: the bytes of the file, if others than those of a good one are published.
    """
    parts = {name: archives(name, seed) for seed, name in enumerate(names)}
    members = {file: archive for part in parts.values() for file, archive in part.items()}
    data = packed(members) if data is None else data
    manifests = [_manifest(folder, name, parts[name], data, mirrors) for name in names]
    return Zipped(data, members, manifests)


def _manifest(folder: Path, name: str, part: Mapping[str, bytes], data: bytes, mirrors: Sequence[str]) -> Path:
    lines = [
        f'name = "{name}"\nclasses = ["A", "B", "C"]\nimage_shape = {list(SHAPE)}\ntranspose = true\nlabel_base = 1',
        f'[zip]\nfile = "{ZIP}"\nbytes = {len(data)}\nsha256 = "{hashlib.sha256(data).hexdigest()}"\nfolder = "gzip"',
        f"mirrors = {list(mirrors)}",
    ]
    for role, file in files_of(name).items():
        digest = hashlib.sha256(part[file]).hexdigest()
        lines.append(f'[archives.{role}]\nfile = "{file}"\nbytes = {len(part[file])}\nsha256 = "{digest}"')
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
