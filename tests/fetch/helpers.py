"""One archive, its faults, and how to fetch it."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from storage.datasets.catalog import ArchiveSpec, Dataset
from storage.files import sha256_of
from storage.formats import idx
from storage.records import Archive, Done
from storage.store import Store
from tasks.fetch import find_or_fetch
from tasks.sources.download import DownloadPolicy
from tasks.sources.reach import Reach, reach_of
from tests.support.faultserver import FaultServer

FILE = "t10k-images-idx3-ubyte.gz"
PATH = f"/{FILE}"
PAYLOAD = idx.encode(np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8))
BODY = gzip.compress(PAYLOAD, mtime=0)
OTHER = gzip.compress(PAYLOAD, 1, mtime=7)
SHA256, PAYLOAD_SHA256 = hashlib.sha256(BODY).hexdigest(), hashlib.sha256(PAYLOAD).hexdigest()
WRONG = bytes(reversed(BODY))
PAGE = b"<!doctype html><title>Log in</title>"
SPEC = ArchiveSpec("test-images", FILE, len(BODY), SHA256)
PAYLOAD_TOO = replace(SPEC, payload_bytes=len(PAYLOAD), payload_sha256=PAYLOAD_SHA256)
UNPINNED = ArchiveSpec("test-images", FILE)
QUICK = DownloadPolicy(
    connect_seconds=60,
    read_seconds=60,
    deadline_seconds=240,
    min_bytes_per_second=1000,
    rate_window_seconds=60,
    tries=3,
    sleep=lambda seconds: None,
)
"""Waits for nothing between two tries, and, so that a busy machine is no fault, long for a server that answers."""
IMPATIENT = replace(QUICK, read_seconds=0.15)
STRICT = replace(QUICK, rate_window_seconds=0.2)
SECRET = "c4n4ry"


def get(
    store: Store,
    dataset: Dataset,
    *urls: str,
    spec: ArchiveSpec = SPEC,
    source: str | None = None,
    policy: DownloadPolicy = QUICK,
) -> Done[Archive]:
    return find_or_fetch(store, dataset, replace(spec, mirrors=urls), source, policy=policy)


def folder(tmp_path: Path, data: bytes = BODY, name: str = FILE) -> Path:
    place = tmp_path / "place"
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(data)
    return place


def leftovers(store: Store) -> list[str]:
    """Every file of the store's data sets but their locks."""
    files = (path for name in store.datasets() for path in store.dataset(name).rglob("*") if path.is_file())
    return sorted(path.name for path in files if path.parent.name != "locks")


def outside(server: FaultServer) -> Callable[[str], Reach]:
    """Judge addresses so that this machine counts as the internet until `server` has been asked."""
    return lambda address: reach_of(address) if server.requests else "public"


@dataclass(frozen=True)
class Published:
    """A manifest with digests and without a folder, and the bodies of its archives by path."""

    manifest: Path
    bodies: dict[str, bytes]


def publish(dataset: Dataset, mirrors: Sequence[str] = ()) -> Published:
    """Declare the digests of a data set's archives, so that they may come over the network."""
    files = {spec.role: dataset.source / spec.file for spec in dataset.archives}
    lines = [f"mirrors = {list(mirrors)}"] if mirrors else []
    for role, path in files.items():
        lines += [f"[archives.{role}]", f"bytes = {path.stat().st_size}", f'sha256 = "{sha256_of(path)}"']
    text = re.sub(r"source = .*\n", "", dataset.manifest.read_text())
    dataset.manifest.write_text(text + "\n".join(lines) + "\n")
    return Published(dataset.manifest, {f"/{path.name}": path.read_bytes() for path in files.values()})
