"""Write files where the user asks: over a file of another kind only with `force`, and never into the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.terminal.text import printable
from storage.errors import ConfigError
from storage.files import check_local, kind_of, open_regular, write_bytes
from storage.store import Store

if TYPE_CHECKING:
    import numpy as np

PICTURES = (".png", ".svg")
BEGINNINGS = {
    ".png": (b"\x89png\r\n\x1a\n",),
    ".svg": (b"<svg", b"<?xml"),
    ".csv": (b"row,label,",),
    ".html": (b"<!doctype html", b"<html"),
    ".jsonl": (b'{"eventtime"',),
    # The metadata of a model card.
    ".md": (b"---",),
}
"""The first bytes of a file of each kind, in lower case."""


def destination(option: str, path: Path, kinds: Sequence[str], store: Store, force: bool = False) -> Path:
    """Return the absolute path of a file that may be written.

    Args:
        option: the option that named it, for the message.
        path: as it was typed.
        kinds: the allowed suffixes.
        store: nothing may be written into it.
        force: allow overwriting a file of another kind.

    Raises:
        ConfigError: it has another suffix, is in the store, is not a file, or is a file of another kind.
    """
    check_local(option, path)
    file = path.expanduser().absolute()
    if file.suffix.lower() not in kinds:
        raise ConfigError(
            f"expected {option} to end in {' or '.join(kinds)}; found {printable(str(path))}; choose such a name"
        )
    try:
        _check(option, file, store, force)
    except OSError as error:
        raise _unwritable(file, error) from error
    return file


def _check(option: str, file: Path, store: Store, force: bool) -> None:
    suffix, shown = file.suffix.lower(), printable(str(file))
    if not file.parent.is_dir():
        raise ConfigError(
            f"expected a folder to write {shown} into; found {kind_of(file.parent)}; make it, or choose another"
        )
    if file.resolve().is_relative_to(store.root.resolve()):
        raise ConfigError(
            f"expected {option} outside the store, which holds the results of runs; found {shown}; choose another place"
        )
    if file.exists() and not file.is_file():
        raise ConfigError(f"expected {option} to be a file; {shown} is {kind_of(file)}; choose another name")
    if file.exists() and not force and not _begins_like(file, suffix):
        raise ConfigError(
            f"expected {option} to be a new file, or one that holds {suffix[1:].upper()}; {shown} holds something "
            "else; choose another name, or remove it"
        )


def write(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically, replacing the file.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_bytes(path, data)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"expected a file that can be written at {printable(str(path))}; {error.strerror}; choose another"
    )


def write_picture(path: Path, images: np.ndarray, captions: list[list[str]]) -> None:
    """Write a picture of images with captions, PNG or SVG by the file's suffix.

    Args:
        images: uint8 of shape (rows, height, width).
        captions: the lines of each image's caption.

    Raises:
        ConfigError: it cannot be written.
    """
    from tasks.report.contact_sheet import draw

    write(path, draw(images, captions, "svg" if path.suffix.lower() == ".svg" else "png"))


def _begins_like(path: Path, suffix: str) -> bool:
    try:
        with open_regular(path) as stream:
            beginning = stream.read(256).lstrip().lower()
    except OSError:
        return False
    return beginning.startswith(BEGINNINGS[suffix])
