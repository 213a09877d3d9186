"""Labels that come after the predictions, by the ids of these.

    <dataset>/labels/<time>-<digest of the labels>.parquet

The columns are `id` (text) and `label` (uint8). A file is created as a whole and never changed; for an id that is in
several, the newest file counts. The same labels again are no new file.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from datetime import UTC, datetime

from storage.errors import DamagedEntry
from storage.store import Store, store_errors

FOLDER = "labels"
_TIME = "%Y%m%dT%H%M%S.%fZ"


def add(store: Store, dataset: str, labels: Mapping[str, int], now: datetime | None = None) -> bool:
    """Keep labels, class numbers by id; return whether they were new.

    Raises:
        StoreError: they cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"id": pa.array(labels.keys(), pa.string()), "label": pa.array(labels.values(), pa.uint8())}
    ).sort_by("id")
    # Of the rows, not of the file, whose bytes depend on the version of the library.
    digest = hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest()[:32]
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    with store_errors(store.root / FOLDER):
        names = _names(store, dataset)
        # Given again after others, they count again.
        if names and names[-1].endswith(f"-{digest}.parquet"):
            return False
        moment = now or datetime.now(UTC)
        return store.objects.create(f"{_folder(store, dataset)}/{moment:{_TIME}}-{digest}.parquet", buffer.getvalue())


def read(store: Store, dataset: str) -> dict[str, int]:
    """Return all labels, class numbers by id.

    Raises:
        DamagedEntry: a file is damaged.
        StoreError: they cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels: dict[str, int] = {}
    with store_errors(store.root / FOLDER):
        for name in _names(store, dataset):
            key = f"{_folder(store, dataset)}/{name}"
            data = store.objects.get(key)
            try:
                table = pq.read_table(io.BytesIO(data), columns=["id", "label"], page_checksum_verification=True)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DamagedEntry(
                    f"{store.objects.where(key)}: expected labels; {error}; remove it, and add them again"
                ) from error
            labels.update(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
    return labels


def _folder(store: Store, dataset: str) -> str:
    return store.key(dataset, FOLDER)


def _names(store: Store, dataset: str) -> list[str]:
    found = store.objects.list(_folder(store, dataset)).objects
    return [file.name for file in found if file.name.endswith(".parquet")]
