"""Write the manifest of a user's own data set from its four files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from storage import idx
from storage.catalog import ROLES
from storage.errors import ConfigError
from storage.files import sha256_of

_PATTERNS = {
    "train-images": r"train.*images",
    "train-labels": r"train.*labels",
    "test-images": r"(t10k|test).*images",
    "test-labels": r"(t10k|test).*labels",
}


def manifest_of(folder: Path, name: str | None = None) -> str:
    """Return the TOML manifest of the four IDX files in `folder`.

    Raises:
        ConfigError: a file is not there, or there are several that it could be.
        FormatError: a file is not a complete IDX file.
    """
    folder = folder.expanduser().absolute()
    files = {role: _file_of(folder, role) for role in ROLES}
    with idx.Reader(files["train-images"]) as reader:
        shape = reader.header.shape
    labels = [idx.read(files[role]) for role in ROLES if role.endswith("labels")]
    if len(shape) != 3 or any(array.ndim != 1 for array in labels):
        raise ConfigError(f"{folder}: expected images of three dimensions and labels of one; found {shape}")
    classes = int(max(array.max() for array in labels)) + 1
    lines = [
        f"name = {json.dumps(name or _name_of(folder))}",
        "# The words to show for labels 0, 1, 2, …",
        f"classes = {json.dumps([str(n) for n in range(classes)])}",
        f"image_shape = [{shape[1]}, {shape[2]}]",
        "# Looked for here first; relative to this file. --source and IDXFLOW_SOURCE come before it.",
        f"source = {json.dumps(str(folder))}",
        '# licence = "…"',
        '# homepage = "https://…"',
        "",
        "# With digests, other files are refused. Delete the digests if the files may change between runs.",
    ]
    for role, file in files.items():
        lines += [
            f"[archives.{role}]",
            f"file = {json.dumps(file.name)}",
            f"bytes = {file.stat().st_size}",
            f'sha256 = "{sha256_of(file)}"',
            "",
        ]
    lines += [
        "# What a model must reach on the test split, and what differs from the default training, for example:",
        "# [floors]",
        "# accuracy = 0.9",
        "# [gate]",
        '# policy = "better"',
        "# [training]",
        "# learning_rate = 0.01",
    ]
    return "\n".join(lines) + "\n"


def _file_of(folder: Path, role: str) -> Path:
    pattern = re.compile(_PATTERNS[role], re.IGNORECASE)
    found = sorted(p for p in folder.glob("*") if p.is_file() and pattern.search(p.name) and p.name[0] != ".")
    packed = [p for p in found if p.suffix == ".gz"]
    chosen = packed if len(packed) == 1 else found
    if len(chosen) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise ConfigError(f"{folder}: expected one file of {role} (matching {_PATTERNS[role]}); found {names}")
    return chosen[0]


def _name_of(folder: Path) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", folder.name.lower()).strip("-_")[:64] or "mine"
