"""The catalog: what is known of each data set before any of it is read.

A manifest is a TOML file: the four archives with their published sizes and digests, where to get them,
what they should hold, and how much may be wrong with it. `catalog/*.toml` holds the known data sets;
a user's own manifest has the same form (README, "Bring your own data").
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from storage.errors import ConfigError
from storage.files import alike, kind_of, open_regular
from storage.records import SPLITS, SplitName
from storage.words import meant

CATALOG = Path(__file__).resolve().parent
ROLES = tuple(f"{split}-{kind}" for split in SPLITS for kind in ("images", "labels"))
DEFAULT_FILES = {
    "train-images": "train-images-idx3-ubyte.gz",
    "train-labels": "train-labels-idx1-ubyte.gz",
    "test-images": "t10k-images-idx3-ubyte.gz",
    "test-labels": "t10k-labels-idx1-ubyte.gz",
}
Policy = Literal["better", "not_worse", "ask"]
POLICIES: tuple[Policy, ...] = ("better", "not_worse", "ask")
MAX_CLASSES = 256
MAX_SIDE = 4096
MAX_LABEL_COLUMNS = 1024
MIN_LABEL, MAX_LABEL = -(2**31), 2**31 - 1
"""What a label file can hold: its widest whole numbers have 32 bits."""
MAX_ROWS = 2**32 - 1
"""What the header of an IDX file can declare: a dimension has 32 bits."""
MAX_BYTES = 1 << 40
"""No archive is larger, packed or not; `storage.formats.idx` reads no more."""
MAX_MANIFEST_BYTES = 1 << 20

_SHOWN = 200
"""Characters of what a user gave that a message repeats."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
NAME_SCHEMA = f"^{NAME.pattern}$"
"""What a data set may be called, as a pattern of JSON Schema."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ArchiveSpec:
    """One published archive. A digest that is not known is None, and nothing is made up for it."""

    role: str
    file: str
    bytes: int | None = None
    sha256: str | None = None
    payload_bytes: int | None = None
    payload_sha256: str | None = None
    """Of the decompressed file, header included: what a mirror that compressed it again still has."""
    mirrors: tuple[str, ...] = ()
    """Complete URLs, best first."""

    @property
    def pinned(self) -> bool:
        return bool(self.sha256 or self.payload_sha256)


@dataclass(frozen=True)
class Limits:
    """How much may be wrong with the data before it is refused (critical) or remarked on (warning)."""

    min_class_share: float | None = None
    """Critical: each class has at least this share of its split's rows; None: a tenth of an even share."""
    max_class_share: float = 0.9
    """Critical: no class has more than this share."""
    max_imbalance: float = 2.0
    """Warning: rows of the largest class / rows of the smallest."""
    max_duplicates: float = 0.01
    """Warning: share of rows whose image occurs earlier in the same split."""
    max_conflicts: float = 0.0
    """Warning: share of rows whose image occurs in the same split with another label too."""
    max_leaked: float = 0.0
    """Critical: share of test rows whose image is in the training split."""
    max_blank: float = 0.0
    """Critical: share of rows whose pixels all have one value."""
    min_pixel_max: int = 129
    """Critical: the brightest pixel of a split is at least this; below, pixels were scaled to 0-1 or 0-127."""
    max_pixel_min: int = 64
    """Critical: the darkest pixel of a split is at most this."""
    min_pixel_mean: float = 0
    """Critical: the mean of all pixels of a split is at least this."""
    max_pixel_mean: float = 255
    """Critical: the mean of all pixels of a split is at most this; far off when pixels were inverted or scaled."""
    max_label_chance: float = 0.01
    """Critical: the chance that labels which have nothing to do with their images match them as often as these do, by
    the nearest class mean. High when labels and images do not belong together: shifted or shuffled labels. 1: off."""
    min_centroid_hit: float | None = None
    """Critical where it is given: share of rows whose nearest class mean is that of their label. None: a warning below
    a quarter of the way from chance to certainty, as with half of the labels shifted, or images hard to tell apart."""

    def least_class_share(self, classes: int) -> float:
        """Return the lower limit of a class's share for a data set of `classes` classes."""
        return 0.1 / classes if self.min_class_share is None else self.min_class_share

    def least_centroid_hit(self, classes: int) -> float:
        """Return the lower limit of the share of rows nearest to their own class."""
        return 0.25 + 0.75 / classes if self.min_centroid_hit is None else self.min_centroid_hit


@dataclass(frozen=True)
class Floors:
    """What a model must reach on the test split to be used at all."""

    accuracy: float = 0.5
    class_recall: float = 0.1
    """The worst class's recall: a model that never names one of its classes is of no use for that class."""


@dataclass(frozen=True)
class Gate:
    """What a model above the floors must show to replace the champion (docs/gate.md)."""

    policy: Policy = "better"
    """`better`: more right answers than chance explains; `not_worse`: worse by `margin` at most; `ask`: as `better`,
    and a person decides."""
    alpha: float = 0.05
    """How often a model that is no better (`not_worse`: worse by `margin`) may pass; above 0, below 0.5."""
    margin: float = 0.005
    """For `not_worse`: how much of the test rows may be lost, as a share."""
    max_class_loss: float = 0.05
    """By how much the recall of any class may fall below the champion's, as a share; 1: by any."""
    ask_hours: float = 24
    """For `ask`: how long to wait for an answer; then the champion stays."""


@dataclass(frozen=True)
class Dataset:
    """A data set as its manifest declares it."""

    name: str
    title: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    """Height and width in pixels."""
    archives: tuple[ArchiveSpec, ...]
    """In the order of `ROLES`."""
    manifest: Path
    rows: Mapping[SplitName, int] = field(default_factory=dict)
    """Declared rows by split; empty where they may vary."""
    label_column: int | None = None
    """Which column holds the class, where labels have more than one dimension (QMNIST); None: they have one."""
    labels: tuple[int, ...] = ()
    """The value that the label files have for each class, in the order of `classes`; empty: 0, 1, 2, …"""
    source: Path | None = None
    """A folder named by the manifest, searched before any mirror."""
    embedded: bool = False
    """Its archives are written by idxflow itself, from a data set that a library carries."""
    licence: str = "not stated"
    homepage: str = ""
    citation: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the default training configuration."""
    limits: Limits = field(default_factory=Limits)
    floors: Floors = field(default_factory=Floors)
    gate: Gate = field(default_factory=Gate)

    def archive(self, role: str) -> ArchiveSpec:
        return self.archives[ROLES.index(role)]


def names() -> list[str]:
    """Return the names of the data sets in the catalog, sorted."""
    return sorted(path.stem for path in CATALOG.glob("*.toml"))


def find(name: str) -> Dataset:
    """Return a data set of the catalog.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in names():
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
    try:
        path = path.expanduser().absolute()
        with open_regular(path) as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {MAX_MANIFEST_BYTES:,} bytes")
        # Some editors begin a file with a byte order mark.
        values = tomllib.loads(data.decode("utf-8-sig"))
    except (OSError, ValueError, RuntimeError) as error:
        # A user that is not there; not UTF-8, not TOML, a number of thousands of digits; brackets nested too deeply.
        missing = isinstance(error, FileNotFoundError)
        found = f"{kind_of(path)}{alike(path)}" if missing else getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{path}: expected a manifest in TOML; found {one_line(found)}; "
            f"correct {'the path' if missing else 'it'}, or write a new one with `idxflow manifest FOLDER`"
        ) from error
    dataset = _Manifest(path, values).dataset()
    _check_own_name(dataset)
    return dataset


def shown(value: Any) -> str:
    """Return what a user gave as one short printable line, for a message."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes no number of more than 4,300 digits.
        text = "a number of thousands of digits"
    return one_line(text)


def one_line(text: str) -> str:
    """Return a text as one printable line of at most 200 characters, for a message."""
    printable = "".join(c if c.isprintable() else "·" for c in text[: _SHOWN + 1])
    return printable if len(text) <= _SHOWN else f"{printable[:_SHOWN]}…"


def _check_own_name(dataset: Dataset) -> None:
    """Keep other data from going into the folder, and against the champion, of a data set of the catalog."""
    if dataset.manifest.parent == CATALOG or dataset.name not in names():
        return
    if _what_it_is(dataset) != _what_it_is(find(dataset.name)):
        raise ConfigError(
            f"{dataset.manifest}: expected name to be none of the catalog's, unless classes, image_shape, rows and "
            f"digests are those of that data set; found {dataset.name!r}; choose another name"
        )


def _what_it_is(dataset: Dataset) -> tuple[Any, ...]:
    digests = [(spec.sha256, spec.payload_sha256) for spec in dataset.archives]
    return dataset.classes, dataset.image_shape, dataset.label_column, dataset.labels, dict(dataset.rows), digests


class _Manifest:
    """Turns the values of one TOML file into a `Dataset`, checking each."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values

    def dataset(self) -> Dataset:
        known = {f.name for f in dataclasses.fields(Dataset)} - {"manifest"} | {"mirrors"}
        self._only(self._values, known, "")
        mirrors = self._strings("mirrors", [])
        return Dataset(
            name=self._name(),
            title=self._take("title", str, self._values.get("name", "")),
            classes=self._classes(),
            image_shape=self._image_shape(),
            archives=tuple(self._archive(role, mirrors) for role in ROLES),
            manifest=self._path,
            rows=self._rows(),
            label_column=self._label_column(),
            labels=self._labels(),
            source=self._source(),
            embedded=self._take("embedded", bool, False),
            licence=self._take("licence", str, "not stated"),
            homepage=self._take("homepage", str, ""),
            citation=self._take("citation", str, ""),
            training=self._table("training"),
            limits=self._shares(Limits, "limits"),
            floors=self._shares(Floors, "floors"),
            gate=self._gate(),
        )

    def _name(self) -> str:
        name: str = self._take("name", str)
        if not NAME.fullmatch(name):
            raise self._wrong("name", "a-z, 0-9, - and _, at most 64 characters, starting with a letter or digit", name)
        return name

    def _classes(self) -> tuple[str, ...]:
        classes = self._strings("classes")
        if not 2 <= len(classes) <= MAX_CLASSES or len(set(classes)) < len(classes):
            raise self._wrong("classes", f"2 to {MAX_CLASSES} different names", classes)
        return classes

    def _image_shape(self) -> tuple[int, int]:
        shape = self._take("image_shape", list)
        if len(shape) != 2 or not all(type(n) is int and 1 <= n <= MAX_SIDE for n in shape):
            raise self._wrong("image_shape", f"[height, width], each 1 to {MAX_SIDE}", shape)
        return shape[0], shape[1]

    def _label_column(self) -> int | None:
        column = self._values.get("label_column")
        if column is not None and (type(column) is not int or not 0 <= column < MAX_LABEL_COLUMNS):
            raise self._wrong("label_column", f"a number from 0 to {MAX_LABEL_COLUMNS - 1}", column)
        return column

    def _labels(self) -> tuple[int, ...]:
        labels, classes = self._take("labels", list, []), self._values["classes"]
        whole = all(type(value) is int and MIN_LABEL <= value <= MAX_LABEL for value in labels)
        if labels and not (whole and len(set(labels)) == len(labels) == len(classes)):
            raise self._wrong("labels", f"a list of {len(classes)} different 32-bit integers, one per class", labels)
        # The usual values are the same data set as none.
        return () if labels == list(range(len(labels))) else tuple(labels)

    def _rows(self) -> dict[SplitName, int]:
        rows = self._table("rows")
        self._only(rows, set(SPLITS), "rows.")
        for split, count in rows.items():
            if type(count) is not int or not 1 <= count <= MAX_ROWS:
                raise self._wrong(f"rows.{split}", f"a number of rows from 1 to {MAX_ROWS:,}", count)
        return {split: rows[split] for split in SPLITS if split in rows}

    def _source(self) -> Path | None:
        source = self._take("source", str, "")
        try:
            return (self._path.parent / Path(source).expanduser()).resolve() if source else None
        except (OSError, ValueError, RuntimeError) as error:
            # A NUL, a user that is not there, links in a circle.
            raise self._wrong("source", f"a folder ({error})", source) from error

    def _archive(self, role: str, mirrors: tuple[str, ...]) -> ArchiveSpec:
        archives = self._table("archives")
        self._only(archives, set(ROLES), "archives.")
        values = archives.get(role, {})
        where = f"archives.{role}"
        if not isinstance(values, dict):
            raise self._wrong(where, "a table", values)
        self._only(values, {f.name for f in dataclasses.fields(ArchiveSpec)} - {"role"}, where + ".")
        file = values.get("file", DEFAULT_FILES[role])
        if not isinstance(file, str) or not file or Path(file).name != file or file.startswith(".") or "\0" in file:
            raise self._wrong(f"{where}.file", "a file name without a folder", file)
        own = values.get("mirrors", [])
        if not isinstance(own, list) or not all(isinstance(url, str) for url in own):
            raise self._wrong(f"{where}.mirrors", "a list of URLs", own)
        urls = (*own, *(base.rstrip("/") + "/" + file for base in mirrors))
        spec = ArchiveSpec(
            role=role,
            file=file,
            bytes=self._size(values, f"{where}.bytes"),
            sha256=self._digest(values, f"{where}.sha256"),
            payload_bytes=self._size(values, f"{where}.payload_bytes"),
            payload_sha256=self._digest(values, f"{where}.payload_sha256"),
            mirrors=urls,
        )
        self._check_mirrors(spec, where)
        return spec

    def _check_mirrors(self, spec: ArchiveSpec, where: str) -> None:
        for url in spec.mirrors:
            try:
                parts = urlsplit(url)
                usable = parts.scheme in ("https", "http") and bool(parts.hostname)
            except ValueError:
                usable = False
            if not usable:
                # Not the whole address: it may hold a password.
                raise self._wrong("mirrors", "https:// or http:// addresses", f"{url[:8].split(':')[0]}:…")
        if spec.mirrors and not spec.pinned:
            raise ConfigError(
                f"{self._path}: expected {where}.sha256 or {where}.payload_sha256 because it is fetched over the "
                f"network; found neither; add one: `idxflow manifest FOLDER` writes them for files you have"
            )

    def _size(self, values: Mapping[str, Any], where: str) -> int | None:
        size = values.get(where.rsplit(".", 1)[1])
        if size is not None and (type(size) is not int or not 1 <= size <= MAX_BYTES):
            raise self._wrong(where, f"a number of bytes from 1 to {MAX_BYTES:,}", size)
        return size

    def _digest(self, values: Mapping[str, Any], where: str) -> str | None:
        digest = values.get(where.rsplit(".", 1)[1])
        if digest is None:
            return None
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest.lower()):
            raise self._wrong(where, "a SHA-256 of 64 hexadecimal digits", digest)
        return digest.lower()

    def _shares(self, kind: type[Any], table: str) -> Any:
        values = self._table(table)
        defaults = {f.name: f.default for f in dataclasses.fields(kind)}
        self._only(values, set(defaults), table + ".")
        for name, value in values.items():
            top = 255 if "pixel" in name else float("inf") if name == "max_imbalance" else 1
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= top:
                raise self._wrong(f"{table}.{name}", f"a number from 0 to {top}", value)
        return kind(**values)

    def _gate(self) -> Gate:
        values = self._table("gate")
        self._only(values, {f.name for f in dataclasses.fields(Gate)}, "gate.")
        policy = values.get("policy", Gate.policy)
        if policy not in POLICIES:
            raise self._wrong("gate.policy", f"one of {', '.join(POLICIES)}", policy, meant(policy, POLICIES))
        for name, value in values.items():
            if name != "policy" and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise self._wrong(f"gate.{name}", "a number", value)
        gate = Gate(**values)
        if not 0 < gate.alpha < 0.5:
            raise self._wrong("gate.alpha", "a number above 0 and below 0.5", gate.alpha)
        if not 0 < gate.ask_hours <= 24 * 365:
            raise self._wrong("gate.ask_hours", "hours, above 0 and at most a year", gate.ask_hours)
        for name, value in (("margin", gate.margin), ("max_class_loss", gate.max_class_loss)):
            if not 0 <= value <= 1:
                raise self._wrong(f"gate.{name}", "a number from 0 to 1", value)
        return gate

    def _strings(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        values = self._take(key, list, default)
        if not all(isinstance(v, str) and v and v.isprintable() and len(v) <= 200 for v in values):
            raise self._wrong(key, "a list of printable texts of at most 200 characters", values)
        return tuple(values)

    def _table(self, key: str) -> dict[str, Any]:
        table: dict[str, Any] = self._take(key, dict, {})
        return table

    def _take(self, key: str, kind: type[Any], default: Any = None) -> Any:
        value = self._values.get(key, default)
        if type(value) is not kind:
            words = {str: "a text", list: "a list", dict: "a table", int: "a whole number", bool: "true or false"}
            raise self._wrong(key, words[kind], value)
        return value

    def _only(self, values: Mapping[str, Any], known: set[str], prefix: str) -> None:
        for key in sorted(values.keys() - known):
            raise ConfigError(
                f"{self._path}: expected only the keys {', '.join(sorted(known))}; found {one_line(prefix + key)}"
                f"{meant(key, known)}; remove it or correct its spelling"
            )

    def _wrong(self, key: str, expected: str, found: Any, hint: str = "") -> ConfigError:
        given, remedy = ("nothing", "add it") if found is None else (shown(found), "correct it")
        return ConfigError(f"{self._path}: expected {key} to be {expected}; found {given}{hint}; {remedy}")
