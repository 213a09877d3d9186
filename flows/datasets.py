"""Find data sets by the names that users type, in the catalog or in a store."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from storage.datasets import catalog
from storage.datasets.catalog import NAME, Dataset, shown
from storage.errors import ConfigError, IdxflowError
from storage.ledger import Ledger
from storage.opening import open_store
from storage.own_data import manifests
from storage.store import Store, store_errors
from storage.words import meant


def named(name: str, store: str | None) -> Dataset:
    """Return the data set with this name from the catalog.

    Raises:
        ConfigError: the catalog has none; the user's own data needs its manifest, even if it has been run in the store.
    """
    if name not in catalog.names():
        opened = open_store(store)
        with store_errors(opened.root):
            is_own = name in opened.datasets()
        manifest = manifest_of(opened, name)
        if is_own or manifest:
            where = f"in the store {opened.address}" if is_own else "a data set of your own"
            file = shlex.quote(str(manifest)) if manifest else "FILE"
            last = "" if manifest else _last_manifest(opened, name)
            raise ConfigError(
                f"expected a data set of the catalog ({', '.join(catalog.names())}), or a manifest; found {name!r}, "
                f"which is {where} but not in the catalog; give its manifest{last}: --dataset-file {file}"
            )
    return catalog.find(name)


def check_known(store: Store, name: str, known: Collection[str]) -> None:
    """Check that a data set is one of those `known` in the store.

    Raises:
        ConfigError: it is not.
    """
    if name in known:
        return
    choices = f" ({', '.join(sorted(known))})" if known else ""
    is_named = name in catalog.names()
    # A name of the catalog is no misspelling of another.
    guess = "" if is_named else meant(name, {*known, *catalog.names()})
    actual = f"{shown(name)}{guess}" if known else "none"
    first = f"run it first: `{run_command(store, name)}`" if is_named else ""
    remedy = first or ("give one of these" if known else f"run one first: `{store.command('run')}`")
    raise ConfigError(
        f"expected a data set of the store {store.address}{choices}; found {actual}; {remedy}, or name another store "
        "with --store or IDXFLOW_STORE"
    )


def run_command(store: Store, name: str) -> str:
    """Return the command that runs a data set: by name if the catalog has it, otherwise by manifest."""
    return store.command(f"run {name}" if name in catalog.names() else "run --dataset-file FILE")


def in_store(store: Store, name: str | None) -> Sequence[str]:
    """Return the names of all data sets of a store, or only `name`.

    Raises:
        ConfigError: there is no store, or it does not have this data set.
    """
    if not store.exists():
        raise ConfigError(
            f"expected a store at {store.address}; found nothing; name another with --store or "
            f"IDXFLOW_STORE, or create this one: `{store.command('run')}`"
        )
    names = store.datasets()
    if name is None:
        return names
    check_known(store, name, names)
    return [name]


def manifest_of(store: Store, name: str) -> Path | None:
    """Return the manifest of a data set of the user's, if it is where `idxflow dataset` puts it or notes it."""
    if not NAME.fullmatch(name):
        return None
    listed: dict[str, Path] = {}
    # What is wrong with the list, others say.
    with suppress(IdxflowError):
        listed = manifests(store.root)
    candidates = [Path(name, f"{name}.toml"), *filter(None, [listed.get(name)])]
    return next((path for path in candidates if path.is_file()), None)


def _last_manifest(store: Store, name: str) -> str:
    """Return ` (last run with letters.toml)`, or an empty string if the ledger does not know."""
    last = Ledger(store, name).last("runs")
    manifest = ((last or {}).get("facts") or {}).get("manifest")
    return f" (last run with {catalog.one_line(str(manifest))})" if manifest else ""
