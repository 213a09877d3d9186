"""Choose what a store stands on: a folder of this machine, or object storage."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from storage.errors import ConfigError
from storage.objects.address import is_address, parse
from storage.objects.folder import Folder
from storage.objects.protocol import Objects


def opened(root: str | Path) -> Objects:
    """Return the objects at a path or an address; nothing is read yet.

    Raises:
        ConfigError: the address is wrong, or the library for object storage is not installed.
    """
    if not is_address(str(root)):
        return Folder(Path(root))
    address = parse(str(root))
    if importlib.util.find_spec("obstore") is None:
        raise ConfigError(
            f"expected the package obstore for a store at {address}; found none; install the extra `cloud` "
            f"(`{sys.executable} -m pip install 'idxflow[cloud]'`), or choose a folder with --store"
        )
    # The library takes long to load, and most stores are folders.
    from storage.objects.cloud import Cloud

    return Cloud(address)
