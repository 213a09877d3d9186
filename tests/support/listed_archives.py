"""Data sets whose roles have several archives."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.formats import idx


def file_name(role: str, number: int, packed: bool) -> str:
    kind = "idx3" if role.endswith("images") else "idx1"
    return f"{role}-{number:03d}-{kind}-ubyte{'.gz' if packed else ''}"


def write_listed(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    sizes: Sequence[int],
    packed: bool = True,
    more: str = "",
    test_sizes: Sequence[int] = (),
) -> Dataset:
    """Write arrays, by role, as archives and a manifest; those for training in several of `sizes` rows each.

    Args:
        test_sizes: the same of those for testing; by default there is one of each.
        packed: whether the archives are compressed.
        more: lines of the manifest before its tables.

    The class is the first column of labels with several.
    """
    source = folder / "listed-source"
    source.mkdir(exist_ok=True)
    height, width = arrays["train-images"].shape[1:3]
    labels = arrays["test-labels"].reshape(len(arrays["test-labels"]), -1)[:, 0]
    classes = ", ".join(f'"bar {label}"' for label in range(int(labels.max()) + 1))
    lines = [
        f'name = "listed"\nclasses = [{classes}]\nimage_shape = [{height}, {width}]\nsource = "{source.name}"\n{more}'
    ]
    for role in catalog.ROLES:
        ends = np.cumsum(sizes if role.startswith("train") else test_sizes)
        pieces = np.split(arrays[role], ends[:-1])
        for number, piece in enumerate(pieces):
            name = file_name(role, number, packed)
            data = idx.encode(piece)
            (source / name).write_bytes(gzip.compress(data, mtime=0) if packed else data)
            lines.append(f'[[archives.{role}]]\nfile = "{name}"')
    path = folder / "listed.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return catalog.read(path)


def dated(dataset: Dataset, *days: str, more: str = "") -> Dataset:
    """Give the archives of training images days, in their order, and append lines to the manifest."""
    text = dataset.manifest.read_text(encoding="utf-8")
    for spec, day in zip(dataset.archives_of("train-images"), days, strict=True):
        text = text.replace(f'file = "{spec.file}"\n', f'file = "{spec.file}"\ndate = {day}\n')
    dataset.manifest.write_text(text + more, encoding="utf-8")
    return catalog.read(dataset.manifest)
