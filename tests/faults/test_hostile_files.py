"""Files made to be misread: whatever is in them, a reader refuses them in its own words or reads what was written."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage import files, ledger
from storage.datasets import catalog
from storage.errors import ConfigError, DamagedEntry, FormatError, IdxflowError
from storage.files import MAX_JSON_BYTES, read_json, sealed
from storage.formats import arrays, idx, parquet
from storage.ledger import Ledger
from storage.records import FolderEntry
from storage.store import ENTRY, Plan, Store, load
from tests.support.stores import Thing

EXAMPLES = 150
NATIVE = [dtype.newbyteorder("=") for dtype in idx.TYPES.values()]
IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([0, 1, 2], np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --- archives, arrays, splits -------------------------------------------------------------------------------------


@given(
    array=st.sampled_from(NATIVE).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=1, max_dims=8, max_side=3))
    ),
    packed=st.booleans(),
    rows=st.integers(1, 5),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_arrays_of_all_types_and_dimensions_come_back_in_blocks_of_any_size(
    folder: Path, array: np.ndarray, packed: bool, rows: int
):
    data = idx.encode(array)
    path = write(folder / "array", gzip.compress(data) if packed else data)
    with idx.Reader(path) as reader:
        blocks = list(reader.blocks(rows))
    assert [len(block) for block in blocks[:-1]] == [rows] * (math.ceil(len(array) / rows) - 1)
    joined = np.concatenate(blocks)
    assert joined.astype(array.dtype).tobytes() == array.tobytes()
    assert (joined.shape, joined.dtype.newbyteorder("=")) == (array.shape, array.dtype)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with up to four pieces replaced, taken out or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        removed = draw(st.one_of(st.just(0), st.integers(0, 8), st.integers(0, len(data))))
        data[start : start + removed] = draw(st.binary(max_size=12))
    return bytes(data)


def _npz(folder: Path) -> bytes:
    arrays.write(folder / "good.npz", {"images": IMAGES, "labels": LABELS})
    return (folder / "good.npz").read_bytes()


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    return arrays.read(path, {"images": (np.uint8, IMAGES.shape), "labels": (np.uint8, LABELS.shape)})


def _split(folder: Path) -> bytes:
    with parquet.Writer(folder / "good.parquet", (4, 5), ("a", "b", "c")) as writer:
        writer.write(IMAGES, LABELS)
        writer.close({"image_shape": [4, 5], "rows": 3})
    return (folder / "good.parquet").read_bytes()


def _read_split(path: Path) -> dict[str, np.ndarray]:
    images, labels = parquet.read(path)
    return {"images": images, "labels": labels}


def _read_idx(path: Path) -> dict[str, np.ndarray]:
    return {"images": idx.read(path), "labels": LABELS}


READERS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], dict[str, np.ndarray]], type[Exception]]] = {
    "gzip": (lambda folder: gzip.compress(idx.encode(IMAGES), mtime=0), _read_idx, FormatError),
    "npz": (_npz, _read_npz, DamagedEntry),
    "parquet": (_split, _read_split, DamagedEntry),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_refused_or_read_as_it_was(folder: Path, kind: str):
    make, read, refusal = READERS[kind]
    whole = make(folder)
    assert read(write(folder / kind, whole))["images"].tolist() == IMAGES.tolist()

    @given(data=damaged(whole))
    @settings(max_examples=EXAMPLES, deadline=None)
    def check(data: bytes) -> None:
        try:
            contents = read(write(folder / kind, data))
        except refusal:
            return
        np.testing.assert_array_equal(contents["images"], IMAGES)
        np.testing.assert_array_equal(contents["labels"], LABELS)

    check()


@given(data=st.binary(max_size=200))
@example(data=b"PAR1PAR1")
@example(data=b"PK\x05\x06" + bytes(18))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_bytes_are_refused_by_every_reader(folder: Path, data: bytes):
    path = write(folder / "any", data)
    with pytest.raises(DamagedEntry):
        _read_npz(path)
    with pytest.raises(DamagedEntry):
        parquet.read(path)
    with contextlib.suppress(FormatError):
        assert idx.encode(idx.read(path)) == data


# --- manifests ----------------------------------------------------------------------------------------------------

MINE = 'name = "mine"\nclasses = ["a", "b"]\nimage_shape = [20, 16]\n'
FOREIGN_ERRORS = {
    "brackets in brackets": MINE + "x = " + "[" * 5_000 + "]" * 5_000,
    "tables in tables": MINE + "x = " + "{a=" * 5_000 + "1" + "}" * 5_000,
    "dots in a key": MINE + "x" + ".a" * 5_000 + " = 1",
    "a number of 5,000 digits": MINE + "label_column = " + "9" * 5_000,
    "a hexadecimal number of 5,000 digits": MINE + "label_column = 0x" + "f" * 5_000,
    "an address that never ends": 'mirrors = ["https://["]\n' + MINE,
    "an address of no host": 'mirrors = ["https://"]\n' + MINE,
    "an address with a port of letters": 'mirrors = ["https://a:b/"]\n' + MINE,
    "a folder of a user that is not there": MINE + 'source = "~no-such-user/x"',
    "a NUL in a folder": MINE + 'source = "a\\u0000b"',
    "a date as a name": MINE.replace('"mine"', "1979-05-27"),
    "more than a megabyte": MINE + "#" * (catalog.MAX_MANIFEST_BYTES + 1),
}


@pytest.mark.parametrize("what", FOREIGN_ERRORS)
def test_what_python_s_parsers_stumble_over_is_refused_in_one_sentence(tmp_path: Path, what: str):
    path = tmp_path / "mine.toml"
    path.write_text(FOREIGN_ERRORS[what], encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        catalog.read(path)
    assert str(caught.value).startswith(f"{path}: expected ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/null", "~no-such-user/mine.toml", "a\0b", "/proc/self/mem", ".", "x" * 5_000, "\udcff"]
)
def test_what_is_no_manifest_file_is_refused(path: str):
    with pytest.raises(ConfigError, match="expected"):
        catalog.read(Path(path))


TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "a\\b", "~", "~root", "C:\\x", "a\0", "\u202egnp", "-rf"]
    ),
    st.sampled_from(["file:///etc/passwd", "javascript:alert(1)", "http://[::1]", "https://u:p@h/", "//h/x", "http:x"]),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    TEXTS | st.integers() | st.floats() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
KEYS = ["title", "source", "mirrors", "rows", "label_column", "labels", "label_base", "transpose", "ink", "embedded"]
KEYS += ["licence", "homepage", "citation"]
TABLES = ["archives", "training", "limits", "floors", "gate", "slices"]


@given(
    name=TEXTS,
    classes=st.lists(TEXTS, max_size=4) | VALUES,
    file=TEXTS | VALUES,
    url=TEXTS | VALUES,
    more=st.dictionaries(st.sampled_from([*KEYS, *TABLES]) | TEXTS, VALUES, max_size=4),
)
@settings(max_examples=2 * EXAMPLES, deadline=None)
def test_no_manifest_leads_out_of_the_store_or_ends_in_a_foreign_error(
    folder: Path, name: str, classes: Any, file: Any, url: Any, more: dict[str, Any]
):
    values = {"name": name, "classes": classes, "image_shape": [2, 2], **more}
    archive = {"file": file, "mirrors": [url], "sha256": "0" * 64}
    values.setdefault("archives", {"test-labels": archive})
    path = write(folder / "any.toml", "".join(f"{_toml(k)} = {_toml(v)}\n" for k, v in values.items()).encode())
    try:
        dataset = catalog.read(path)
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
        _check_places(folder, dataset)
    assert "\n" not in message


def _check_places(folder: Path, dataset: catalog.Dataset) -> None:
    store = Store(folder / "store")
    assert store.dataset(dataset.name).resolve().parent == (folder / "store").resolve()
    for spec in dataset.archives:
        assert (folder / spec.file).resolve().parent == folder.resolve()
        assert all(address.startswith(("http://", "https://")) for address in spec.mirrors)


def _toml(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


# --- the store's own JSON -----------------------------------------------------------------------------------------

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(values=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.integers(), max_size=5))
@settings(max_examples=EXAMPLES, deadline=None)
def test_what_was_sealed_is_read_and_nothing_else(folder: Path, values: dict[str, int]):
    values.pop("sha256", None)
    data = sealed(values)
    assert read_json(write(folder / "x.json", data)) == values
    for other in (data + b" ", data.replace(b":", b" :", 1), data[:-2], b"\xef\xbb\xbf" + data, sealed(values)[1:]):
        with pytest.raises(ValueError, match="."):
            read_json(write(folder / "x.json", other))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"sha256": null}',
        b'{"a": 1, "a": 1, "sha256": "' + b"0" * 64 + b'"}',
        b'{"a": "\\ud800"}',
        b'{"a": NaN}',
        b'{"a": ' + b"9" * 5_000 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xff\xfe{\0}\0",
    ],
)
def test_json_that_was_not_sealed_is_refused(tmp_path: Path, data: bytes):
    with pytest.raises(ValueError, match="."):
        read_json(write(tmp_path / "x.json", data))


def test_json_nested_just_below_what_python_reads_is_refused(tmp_path: Path):
    for depth in range(300, 1_000, 7):
        with pytest.raises(ValueError, match="."):
            read_json(write(tmp_path / "x.json", b'{"a": ' + b"[" * depth + b"]" * depth + b"}"))


def test_a_gigabyte_of_json_is_not_read(tmp_path: Path):
    path = write(tmp_path / "x.json", b'{"a": "')
    os.truncate(path, 1 << 30)
    with pytest.raises(ValueError, match=f"expected at most {MAX_JSON_BYTES:,} bytes"):
        read_json(path)


def an_entry(store: Store) -> Path:
    def make(folder: Path) -> Thing:
        (folder / "data.bin").write_bytes(b"data")
        return Thing(FolderEntry(folder), "we")

    return store.get_or_make(Plan("tiny", "train"), Thing, make, str).record.entry.folder


@given(part=st.sampled_from(["files", "record", "made_from", "format", "step", "name", "dataset", "new"]), value=JSON)
@settings(max_examples=EXAMPLES, deadline=None)
def test_no_sealed_description_of_an_entry_ends_in_a_foreign_error(folder: Path, part: str, value: Any):
    """Somebody who can write the store can seal what he likes; it is refused, or it is what was there before."""
    entry = an_entry(Store(folder / "store"))
    path = entry / ENTRY
    good, values = path.read_bytes(), read_json(path)
    path.chmod(0o644)
    try:
        with contextlib.suppress(UnicodeEncodeError):
            path.write_bytes(sealed({**values, part: value}))
        with contextlib.suppress(IdxflowError):
            assert load(entry, Thing).entry.folder == entry
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/b", "", ".", "..", "entry.json", "x\0", "data.bin/", "~", "new\nline"]
)
def test_an_entry_never_names_a_file_outside_of_its_folder(store: Store, name: str):
    entry = an_entry(store)
    (entry.parent / "outside").write_bytes(b"data")
    path = entry / ENTRY
    values = read_json(path)
    values["files"][name] = values["files"]["data.bin"]
    path.chmod(0o644)
    path.write_bytes(files.sealed(values))
    with pytest.raises(DamagedEntry):
        load(entry, Thing)


def test_a_clock_that_is_put_back_changes_neither_order_nor_numbers(store: Store, monkeypatch: pytest.MonkeyPatch):
    written, start = Ledger(store, "tiny"), datetime.now(UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return moments.pop(0)

    moments = [start, start - timedelta(hours=1), start - timedelta(days=400), start + timedelta(seconds=1)]
    monkeypatch.setattr(ledger, "datetime", Clock)
    for number in (0, 1):
        written.decide(number + 1, f"run-{number}", {})
    written.append("runs", "run-2", {})
    written.decide(3, "run-3", {})
    assert [record["run"] for record in written.read("decisions")] == ["run-0", "run-1", "run-3"]
    assert written.last("decisions")["run"] == "run-3"
    # The time is what the clock said; `verify` says where it was wrong.
    times = [record["time"] for record in (*written.read("decisions"), *written.read("runs"))]
    assert min(times) == times[-1] == (start - timedelta(days=400)).isoformat(timespec="milliseconds")
