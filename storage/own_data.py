"""The list of the users' own data sets that are scheduled, by which `idxflow up` finds their files.

    <root>/own-data.json      {"manifests": {"letters": "/home/me/letters/letters.toml"}}, sealed

A manifest lies anywhere on the machine; the list has its absolute path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import DamagedEntry
from storage.files import locked, read_json, write_json

LIST = "own-data.json"


def manifests(root: Path) -> dict[str, Path]:
    """Return the manifest of each data set that the store at `root` lists, by name.

    Raises:
        DamagedEntry: the list cannot be read, or is not what was written.
    """
    path = root / LIST
    try:
        return {str(name): Path(str(manifest)) for name, manifest in read_json(path)["manifests"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise DamagedEntry(
            f"{path}: expected the list of your own data sets; {problem}; remove this file, then repeat `idxflow "
            "dataset schedule MANIFEST CRON` for each of them"
        ) from error


@contextmanager
def changing(root: Path) -> Iterator[dict[str, Path]]:
    """Yield the list of the store at `root` under its lock; what the block makes of it is written at the end.

    Raises:
        DamagedEntry: as for `manifests`.
        OSError: the store cannot be written, even if the block would change nothing.
    """
    with locked(root / f".{LIST}.lock", passing=True):
        listed = manifests(root)
        before = dict(listed)
        yield listed
        if listed != before:
            write_json(root / LIST, {"manifests": {name: str(path) for name, path in sorted(listed.items())}})
