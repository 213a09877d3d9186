"""The catalog: the declared facts about each data set, known before any archive is read.

Each data set's manifest, a TOML file, is in this folder. Users' own manifests have the same form, which
`storage.datasets.manifest` defines.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from storage.errors import ConfigError
from storage.files import alike, digest_of, kind_of, open_regular
from storage.records import SPLITS, SplitName
from storage.words import meant

if TYPE_CHECKING:
    from storage.datasets.manifest import Behaviour, Drift, Floors, Gate, Limits, Quarantine, Slices, Window

CATALOG = Path(__file__).resolve().parent
ROLES = tuple(f"{split}-{kind}" for split in SPLITS for kind in ("images", "labels"))
DEFAULT_FILES = {
    "train-images": "train-images-idx3-ubyte.gz",
    "train-labels": "train-labels-idx1-ubyte.gz",
    "test-images": "t10k-images-idx3-ubyte.gz",
    "test-labels": "t10k-labels-idx1-ubyte.gz",
}
MAX_CLASSES = 256
MAX_SIDE = 4096
MAX_LABEL_COLUMNS = 1024
MIN_LABEL, MAX_LABEL = -(2**31), 2**31 - 1
"""The range of values in a label file, whose widest integers have 32 bits."""
MAX_ROWS = 2**32 - 1
"""The most rows that the header of an IDX file can declare: a dimension has 32 bits."""
MAX_BYTES = 1 << 40
"""The largest archive, compressed or not; `storage.formats.idx` reads no more."""
MAX_ARCHIVES = 20_000
"""The most archives of one role."""
MAX_MANIFEST_BYTES = 1 << 24
"""Enough for that many archives of each role with their digests."""

Ink = Literal["bright", "dark"]
"""Whether what is drawn is brighter or darker than the ground that it is drawn on."""

BadRow = Literal["blank", "duplicate", "conflict", "leaked", "label", "suspect"]
"""What can be wrong with a row that is set aside; `storage.datasets.manifest` says what each means."""

_KUZUSHIJI_49 = ("k49", "kmnist49", "kuzushiji49")
"""Names by which people ask for Kuzushiji-49. It is published as .npz only, and without SHA-256."""
_KUZUSHIJI_49_AT = "http://codh.rois.ac.jp/kmnist/"

_SHOWN = 200
"""The most characters of a user's value repeated in a message."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
NAME_SCHEMA = f"^{NAME.pattern}$"
"""The form of a data set's name, as a JSON Schema pattern."""


@dataclass(frozen=True)
class ArchiveSpec:
    """One published archive. An unknown digest is None; none is made up."""

    role: str
    file: str
    bytes: int | None = None
    sha256: str | None = None
    payload_bytes: int | None = None
    payload_sha256: str | None = None
    """SHA-256 of the decompressed file, header included; it stays the same if a mirror recompresses the file."""
    mirrors: tuple[str, ...] = ()
    """Complete URLs, best first."""
    number: int = 0
    """Its place among the archives of its role."""
    date: datetime.date | None = None
    """The day that its images are of, if the manifest has it."""

    @property
    def pinned(self) -> bool:
        return bool(self.sha256 or self.payload_sha256)


@dataclass(frozen=True)
class ZipSpec:
    """A published ZIP file that has the four archives among its members."""

    file: str
    sha256: str
    bytes: int | None = None
    folder: str = ""
    """The folder inside it that has the archives; empty: none."""
    mirrors: tuple[str, ...] = ()
    """Complete URLs, best first."""

    def member(self, spec: ArchiveSpec) -> str:
        """Return the name of an archive inside the ZIP file."""
        return f"{self.folder}/{spec.file}" if self.folder else spec.file

    @property
    def itself(self) -> ArchiveSpec:
        """The ZIP file as an archive, for the checks of a download."""
        return ArchiveSpec("zip", self.file, self.bytes, self.sha256)


@dataclass(frozen=True)
class Dataset:
    """A data set as its manifest declares it. `storage.datasets.manifest` says what each value means."""

    name: str
    title: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    """Height and width in pixels of the upright images."""
    archives: tuple[ArchiveSpec, ...]
    """In the order of `ROLES`, and then in that of the manifest: most data sets have one for each role."""
    manifest: Path
    limits: Limits
    floors: Floors
    gate: Gate
    quarantine: Quarantine
    drift: Drift
    slices: Slices
    rows: Mapping[SplitName, int] = field(default_factory=dict)
    """Declared rows by split; empty if they may vary."""
    label_column: int | None = None
    labels: tuple[int, ...] = ()
    """The label files' value for each class, in the order of `classes`; empty: 0, 1, 2, …"""
    transpose: bool = False
    """Whether the archives have rows and columns of each image swapped."""
    ink: Ink | None = None
    """What the manifest says about the ink; None: nothing, and the data checks do not look at it."""
    source: Path | None = None
    """A folder named by the manifest, searched before any mirror."""
    behaviour: Behaviour | None = None
    """Tests that a model must pass besides the floors; None: none."""
    window: Window | None = None
    """Which archives the training split is made of; None: all."""
    chosen: str = ""
    """Which of the archives a run uses for training, if it does not use all (`storage.datasets.chosen`)."""
    zipped: ZipSpec | None = None
    """The ZIP file that the archives are published in; None: each is published by itself."""
    embedded: bool = False
    audit: bool = False
    """Whether every run looks for wrong labels and near-duplicates, even if it is not asked to."""
    licence: str = "not stated"
    homepage: str = ""
    citation: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the default training configuration."""

    def archive(self, role: str) -> ArchiveSpec:
        """Return the only archive of a role, or the first."""
        return self.archives_of(role)[0]

    def archives_of(self, role: str) -> tuple[ArchiveSpec, ...]:
        """Return the archives of a role, in the order of the manifest."""
        return tuple(spec for spec in self.archives if spec.role == role)

    def payload_sha256(self, role: str) -> str | None:
        """Return the declared digest of what the archives of a role hold, as `Split.sources` has it; None if unknown.

        That of several archives is the digest of theirs, in order.
        """
        digests = [spec.payload_sha256 for spec in self.archives_of(role)]
        return digests[0] if len(digests) == 1 else None if None in digests else digest_of(digests)


def check_four(dataset: Dataset, why: str) -> None:
    """Check that a data set has one archive for each role.

    Args:
        why: that is needed, as a clause.

    Raises:
        ConfigError: it has several of one.
    """
    several = next((role for role in ROLES if len(dataset.archives_of(role)) > 1), None)
    if several:
        raise ConfigError(
            f"{dataset.manifest}: expected one archive for each role, because {why}; found "
            f"{len(dataset.archives_of(several)):,} of {several}; give a manifest of four archives"
        )


def names() -> list[str]:
    """Return the names of the data sets in the catalog, sorted."""
    return sorted(path.stem for path in CATALOG.glob("*.toml"))


def find(name: str) -> Dataset:
    """Return a data set of the catalog.

    Raises:
        ConfigError: no data set has that name.
    """
    if name not in names():
        if re.sub("[^a-z0-9]", "", name.lower()) in _KUZUSHIJI_49:
            raise ConfigError(
                f"expected a data set of the catalog; found {shown(name)}, which is published as .npz files only; "
                f"download these four from {_KUZUSHIJI_49_AT} into a folder, and make a data set of them: "
                "`idxflow dataset add kuzushiji-49 FOLDER`"
            )
        raise ConfigError(
            f"expected a data set of the catalog ({', '.join(names())}); found {shown(name)}{meant(name, names())}; "
            "give one of these, or the manifest of your own data: --dataset-file FILE"
        )
    return read(CATALOG / f"{name}.toml")


def read(path: Path) -> Dataset:
    """Read a manifest, strictly: an unknown key, a wrong type or an unusable value is an error.

    Raises:
        ConfigError: names the file, the key, what was expected and what was found.
    """
    path, values = read_toml(path, "a manifest in TOML", "write a new one with `idxflow manifest FOLDER`")
    dataset = _declared(path, values)
    _check_own_name(dataset)
    return dataset


def read_toml(path: Path, what: str, otherwise: str) -> tuple[Path, dict[str, Any]]:
    """Return the absolute path of a user's TOML file, and what it says.

    Args:
        what: what it should be, for the message.
        otherwise: what to do instead of correcting it.

    Raises:
        ConfigError: it cannot be read, is too large, or is not TOML.
    """
    try:
        path = path.expanduser().absolute()
        with open_regular(path) as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {MAX_MANIFEST_BYTES:,} bytes")
        # Some editors begin a file with a byte order mark.
        return path, tomllib.loads(data.decode("utf-8-sig"))
    except (OSError, ValueError, RuntimeError) as error:
        # A user that does not exist; not UTF-8, not TOML, a number of thousands of digits; brackets nested too deeply.
        is_missing = isinstance(error, FileNotFoundError)
        problem = f"{kind_of(path)}{alike(path)}" if is_missing else getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{path}: expected {what}; found {one_line(problem)}; "
            f"correct {'the path' if is_missing else 'it'}, or {otherwise}"
        ) from error


def _declared(path: Path, values: Mapping[str, Any]) -> Dataset:
    from storage.datasets.json_schema import TomlSchema
    from storage.datasets.manifest import Manifest
    from storage.datasets.model_errors import checked

    manifest = checked(Manifest, values, str(path), TomlSchema)
    try:
        return manifest.dataset(path)
    except (OSError, ValueError, RuntimeError) as error:
        # A NUL, a user that does not exist, a loop of links.
        raise ConfigError(
            f"{path}: expected source to be a folder ({error}); found {shown(manifest.source)}; correct it"
        ) from error


def shown(value: Any) -> str:
    """Return a user's value as one short printable line, for a message."""
    try:
        text = repr(value)
    except ValueError:
        # Python does not convert a number of more than 4,300 digits to text.
        text = "a number of thousands of digits"
    return one_line(text)


def one_line(text: str) -> str:
    """Return a text as one printable line of at most 200 characters, for a message."""
    printable = "".join(c if c.isprintable() else "·" for c in text[: _SHOWN + 1])
    return printable if len(text) <= _SHOWN else f"{printable[:_SHOWN]}…"


def _check_own_name(dataset: Dataset) -> None:
    """Keep other data out of the folder of a catalog data set, and from competing with its champion."""
    if dataset.manifest.parent == CATALOG or dataset.name not in names():
        return
    if _what_it_is(dataset) != _what_it_is(find(dataset.name)):
        raise ConfigError(
            f"{dataset.manifest}: expected name to be none of the catalog's, unless classes, labels, image_shape, "
            f"transpose, rows and digests are those of that data set; found {dataset.name!r}; choose another name"
        )


def _what_it_is(dataset: Dataset) -> tuple[Any, ...]:
    """Return what the archives are turned into. Limits and ink are what they are held to, so another may be set."""
    digests = [(spec.sha256, spec.payload_sha256) for spec in dataset.archives]
    labels = (dataset.label_column, dataset.labels)
    return dataset.classes, dataset.image_shape, dataset.transpose, labels, dict(dataset.rows), digests
