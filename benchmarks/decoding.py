"""Reading the training archives, images and labels: `python -m benchmarks.decoding idx2numpy`.

Each ends with a uint8 array of 60,000 images of 28×28 and one of their labels, or with our Parquet file of them. The
variants `gunzip …` only decompress the same bytes, in memory, by the fastest call the library has. Files are in the
system's cache.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import subjects
from benchmarks.subjects import Measured, archive, load, plain

Arrays = tuple[Any, Any]


def arrays(name: str, read: Callable[[], Arrays], repeats: int = 5) -> Measured:
    """Time `read`, once it gave the right arrays."""
    images, labels = read()
    wrong = not np.array_equal(np.asarray(images).reshape(-1, 28, 28), load("train-images"))
    if wrong or not np.array_equal(np.asarray(labels), load("train-labels")):
        raise ValueError(f"{name} read other arrays than those in the archives")
    return Measured({name: subjects.timed(read, repeats)}, "the same arrays")


def both(read: Callable[[Path], Any]) -> Arrays:
    """Read images and labels."""
    return read(archive("train-images")), read(archive("train-labels"))


def ours() -> Arrays:
    """Our strict reader: header, length, CRC and digest are checked."""
    from storage.formats import idx

    return both(idx.read)


def our_parquet() -> Measured:
    """Our step `decode`, from archives to the Parquet file, with all digests, without the store around it."""
    folder = subjects.new_folder("decode")
    return Measured({"idxflow to Parquet": subjects.timed(lambda: to_parquet("train", folder))})


def to_parquet(name: Any, folder: Path) -> Any:
    """Decode the split `name` into `folder` as a run does; returns its record."""
    from tasks.decoding.writing import write_split

    return write_split(mnist(), name, _record(name, "images"), _record(name, "labels"), folder)


def decoded(name: Any) -> Any:
    """Return the record of the split `name`, decoded by our step once for all processes."""
    from tasks.decode import decode

    return decode.fn(store(), mnist(), name, _record(name, "images"), _record(name, "labels")).record


def store() -> Any:
    """Return the store that measured processes share."""
    from storage.store import Store

    shared = Store(subjects.work_folder() / "store-shared")
    shared.prepare()
    return shared


def mnist() -> Any:
    """Return the manifest of the data set."""
    from storage.datasets import catalog

    return catalog.find("mnist")


def _record(name: str, kind: str) -> Any:
    from storage.records import Archive, FolderEntry

    path = archive(f"{name}-{kind}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Archive(FolderEntry(path.parent), f"{name}-{kind}", path.name, path.stat().st_size, digest, "")


def _gzip_frombuffer(path: Path) -> np.ndarray:
    with gzip.open(path) as stream:
        return plain(stream.read())


def _extracted_first(folder: Path, path: Path) -> np.ndarray:
    """As torchvision does: unpack the archive to a file, then read the file."""
    raw = folder / path.stem
    with gzip.open(path) as packed, raw.open("wb") as unpacked:
        while chunk := packed.read(1 << 15):
            unpacked.write(chunk)
    return plain(raw.read_bytes())


def _idx2numpy(path: Path) -> Any:
    import idx2numpy

    with gzip.open(path) as stream:
        return idx2numpy.convert_from_file(stream)


def _python_mnist(kind: str) -> Arrays:
    import mnist

    reader = mnist.MNIST(str(archive("train-images").parent), return_type=kind)
    reader.gz = True
    images, labels = reader.load_training()
    return images, labels


def gunzip(name: str, inflate: Callable[[], Callable[[bytes], Any]]) -> Measured:
    """Time decompressing alone; `inflate` imports the library and returns its call."""
    call, packed = inflate(), [archive("train-images").read_bytes(), archive("train-labels").read_bytes()]
    unpacked = [bytes(call(data)) for data in packed]
    if unpacked != [gzip.decompress(data) for data in packed]:
        raise ValueError(f"{name} decompressed to other bytes")
    said = f"{sum(map(len, unpacked)):,} bytes"
    return Measured({name: subjects.timed(lambda: [call(data) for data in packed])}, said)


def _isal() -> Any:
    from isal import igzip_lib

    return lambda data: igzip_lib.decompress(data, flag=igzip_lib.DECOMP_GZIP, bufsize=_unpacked_size(data))


def _zlib_ng() -> Any:
    from zlib_ng import zlib_ng

    return lambda data: zlib_ng.decompress(data, 31, bufsize=_unpacked_size(data))


def _libdeflate() -> Any:
    import deflate

    return deflate.gzip_decompress


def _unpacked_size(data: bytes) -> int:
    """Return what the last four bytes of a gzip member say (RFC 1952)."""
    return int.from_bytes(data[-4:], "little")


VARIANTS: subjects.Variants = {
    "idxflow to arrays": lambda: arrays("idxflow to arrays", ours),
    "idxflow to Parquet": our_parquet,
    "gzip + frombuffer": lambda: arrays("gzip + frombuffer", lambda: both(_gzip_frombuffer)),
    "like torchvision": lambda: arrays(
        "like torchvision", lambda: both(partial(_extracted_first, subjects.new_folder("raw")))
    ),
    "idx2numpy": lambda: arrays("idx2numpy", lambda: both(_idx2numpy)),
    "python-mnist": lambda: arrays("python-mnist", lambda: _python_mnist("lists"), repeats=1),
    "python-mnist, numpy": lambda: arrays("python-mnist, numpy", lambda: _python_mnist("numpy"), repeats=1),
    "gunzip zlib": lambda: gunzip(
        "gunzip zlib", lambda: lambda data: zlib.decompress(data, 31, bufsize=_unpacked_size(data))
    ),
    "gunzip isal": lambda: gunzip("gunzip isal", _isal),
    "gunzip zlib-ng": lambda: gunzip("gunzip zlib-ng", _zlib_ng),
    "gunzip libdeflate": lambda: gunzip("gunzip libdeflate", _libdeflate),
}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
