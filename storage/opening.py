"""Open the store that a person or the environment names: a folder of this machine, or an address of object storage."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from storage import store_format
from storage.errors import StoreError
from storage.files import check_local, kind_of
from storage.objects.address import is_address
from storage.objects.opening import opened
from storage.store import STORE_VARIABLE, Store, store_address, store_errors


def open_store(store: str | Path | None = None) -> Store:
    """Return the store `store`, or that of `IDXFLOW_STORE`, or `store` next to the source code; it need not exist yet.

    Raises:
        ConfigError: it is a URL that is no address of object storage, or the extra for that is not installed.
        StoreError: it is not a folder, cannot be read, or was written by a later version.
    """
    address = store_address(store)
    if is_address(address):
        # It needs the extra `cloud`.
        from storage.cloud_store import CloudStore

        remote = CloudStore(opened(address))
        # Until a run prepares it.
        remote.mends = False
        store_format.check(remote.objects)
        return remote
    given = store or os.environ.get(STORE_VARIABLE) or ""
    check_local(
        "the store (--store or IDXFLOW_STORE)", given, ", or an address of object storage (s3://, gs://, az://)"
    )
    local = Store(Path(address))
    _check_folder(local)
    return local


@cache
def reopened(address: str) -> Store:
    """Return the store at `address` for work that another process has sent to this one, prepared as for a run.

    A process opens each store once, so that all its work shares connections and leases.

    Raises:
        ConfigError, StoreError: as for `open_store`, or it cannot be written.
    """
    store = open_store(address)
    store.prepare()
    return store


def _check_folder(store: Store) -> None:
    root = store.root
    with store_errors(root):
        if root.exists() and not root.is_dir():
            raise StoreError(
                f"expected a folder for the store at {root}; found {kind_of(root)}; "
                "choose another with --store or IDXFLOW_STORE"
            )
        if root.is_dir():
            # A folder that cannot be listed would look like an empty store.
            os.scandir(root).close()
            store_format.check(store.objects)
