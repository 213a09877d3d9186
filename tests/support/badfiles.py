"""A corpus of bad archives and bad data, with what must be said about each; and how a refusal is judged.

Everything is made from one small data set, so that the same bad file can be given to the reader, to a task and to
the whole flow. What each case is modelled on: the format's own traps (RFC 1952; the IDX page), Arrow's and Parquet's
collections of bad files (https://github.com/apache/parquet-testing), and files that loosely written readers accept.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.files import sha256_of
from storage.formats import idx
from storage.store import Store
from tests.conftest import bars

Arrays = Mapping[str, np.ndarray]
Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

SHAPE = (8, 8)
CLASSES = 3
GOOD: Arrays = bars(120, 30, CLASSES, SHAPE)
IMAGES = idx.encode(GOOD["train-images"])
LABELS = idx.encode(GOOD["train-labels"])
PACKED = gzip.compress(IMAGES, mtime=0)
IMAGES_FILE = catalog.DEFAULT_FILES["train-images"]

_REMEDY = re.compile(
    r"(add|change|choose|correct|declare|fetch|free|give|move|open|raise|remove|turn|unpack|were|write) ", re.IGNORECASE
)


def assert_says(error: BaseException | str, *words: str) -> None:
    """Hold a refusal to its form: one sentence on one line that says where, expected, found, and what to do.

    Args:
        words: what it must name, such as the file; as they are, not as patterns.
    """
    sentence = str(error)
    assert sentence.isprintable(), sentence
    assert "Traceback" not in sentence
    assert len(sentence) < 2000, len(sentence)
    assert "expected " in sentence, sentence
    problem, *clauses = sentence.split("expected ", 1)[1].partition("found")[2].split("; ")
    assert problem.strip(), f"says not what was found: {sentence}"
    assert any(_REMEDY.match(clause) for clause in clauses), f"says not what to do: {sentence}"
    for word in words:
        assert word in sentence, f"{word!r} is not in: {sentence}"


def write(folder: Path, changes: Mapping[str, np.ndarray | bytes] | None = None, manifest: str = "") -> Dataset:
    """Write the good archives into `folder`, with `changes` by role: arrays, or bytes as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, content in {**GOOD, **(changes or {})}.items():
        data = content if isinstance(content, bytes) else gzip.compress(idx.encode(content), mtime=0)
        (folder / catalog.DEFAULT_FILES[role]).write_bytes(data)
    path = folder / "bars.toml"
    path.write_text(
        f'name = "bars"\nclasses = ["low", "middle", "high"]\nimage_shape = [{SHAPE[0]}, {SHAPE[1]}]\n'
        f'source = "."\n{manifest}',
        encoding="utf-8",
    )
    return catalog.read(path)


def fingerprint(store: Store) -> dict[str, str]:
    """Return the digest of every file of the store, hidden ones too, by path."""
    files = (path for path in sorted(store.root.rglob("*")) if path.is_file())
    return {str(path.relative_to(store.root)): sha256_of(path) for path in files}


def header(*dimensions: int, code: int = 8) -> bytes:
    return struct.pack(f">BBBB{len(dimensions)}I", 0, 0, code, len(dimensions), *dimensions)


def raw_gzip(payload: bytes, flags: int = 0, extra: bytes = b"", crc: int | None = None, size: int | None = None):
    """Return a gzip member with header fields and a trailer of one's own (RFC 1952, section 2.3)."""
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(payload) + packer.flush()
    crc = zlib.crc32(payload) if crc is None else crc
    size = len(payload) if size is None else size
    return bytes([31, 139, 8, flags, 0, 0, 0, 0, 0, 3]) + extra + body + struct.pack("<II", crc, size)


def flipped(data: bytes, byte: int) -> bytes:
    return data[:byte] + bytes([data[byte] ^ 0x10]) + data[byte + 1 :]


def bomb(start: bytes, mebibytes: int) -> bytes:
    """Return gzip that inflates to `start` and then to so many MiB of zeros, at 1 KiB each.

    A block of zeros that ends in a full flush stands on its own, so it can be repeated without inflating it once.
    """
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + zeros * mebibytes + packer.flush()


def empty_blocks(payload: bytes) -> bytes:
    """Return gzip with blocks of nothing before, in and after the payload."""
    packer = zlib.compressobj(wbits=31)
    blocks = [packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH) for part in (b"", payload[:7], payload[7:], b"")]
    return b"".join(blocks) + packer.flush(zlib.Z_SYNC_FLUSH) + packer.flush()


def tar(payload: bytes) -> bytes:
    """Return a tar archive of one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("train-images-idx3-ubyte")
        member.size = len(payload)
        archive.addfile(member, io.BytesIO(payload))
    return packed.getvalue()


MEMBERS = gzip.compress(IMAGES[:20], mtime=0) + gzip.compress(IMAGES[20:], mtime=0)
FHCRC, FEXTRA, FNAME, FCOMMENT = 2, 4, 8, 16
ROWS, HEIGHT, WIDTH = GOOD["train-images"].shape
PIXELS = IMAGES[16:]
CUT = r"found the end of the data after [\d,]+; fetch"

UNREADABLE: dict[str, tuple[bytes, str]] = {
    "0 bytes": (b"", "found an empty file"),
    "a web page": (b"<!DOCTYPE html><title>Log in</title>", r"'<!DOCTYPE html><titl' \(a web page"),
    "a web page after white space": (b"\n\n<html>\x1b[31m</html>", r"0a0a3c68 '··<html>·\[31m</html>' .a web page"),
    "a zip file": (b"PK\x03\x04" + bytes(40), "a ZIP file"),
    "a tar file": (tar(IMAGES), "a tar archive"),
    "xz": (lzma.compress(IMAGES), "xz"),
    "bzip2": (bz2.compress(IMAGES), "bzip2"),
    "a 7z file": (b"7z\xbc\xaf'\x1c\0\x04" + bytes(40), "a 7z archive"),
    "a RAR file": (b"Rar!\x1a\x07\x01\0" + bytes(40), "a RAR archive"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(40), "Zstandard"),
    "text": (b"label,pixel0\n7,0\n", "'label,pixel0·7,0·' .not IDX"),
    "3 bytes": (IMAGES[:3], "found the end of the file after 3 bytes of it"),
    "7 bytes": (IMAGES[:7], "expected 3 dimensions of 4 bytes; found the end of the file after 3 bytes"),
    "first byte 1": (b"\x01" + IMAGES[1:], "magic number .*found 01000803"),
    "type 0a": (header(ROWS, HEIGHT, WIDTH, code=0x0A) + PIXELS, "found 00000a03"),
    "type 00": (header(ROWS, HEIGHT, WIDTH, code=0) + PIXELS, "found 00000003"),
    "type ff": (header(ROWS, HEIGHT, WIDTH, code=0xFF) + PIXELS, "found 0000ff03"),
    "little-endian magic": (b"\x03\x08\0\0" + IMAGES[4:], "found 03080000"),
    "no dimensions": (header() + b"\0", "1 to 8 dimensions; found 0"),
    "255 dimensions": (bytes([0, 0, 8, 255]) + bytes(1020), "1 to 8 dimensions; found 255"),
    "zero images": (header(0, HEIGHT, WIDTH), r"at least one element; found the shape \(0, 8, 8\)"),
    "4 GiB declared, 10 bytes there": (header(2**32 - 1) + bytes(10), "4,294,967,295 bytes .*after 10;"),
    "a product that wraps to 0": (header(2**31, 2**31, 4) + bytes(24), "18,446,744,073,709,551,616 bytes"),
    "little-endian dimensions": (b"\0\0\x08\x03" + struct.pack("<3I", ROWS, HEIGHT, WIDTH) + PIXELS, "little-endian"),
    "float type, byte payload": (header(ROWS, HEIGHT, WIDTH, code=0x0D) + PIXELS, "expected 30,720 bytes .*7,680"),
    "one byte short": (IMAGES[:-1], CUT),
    "one image short": (IMAGES[: -HEIGHT * WIDTH], CUT),
    "one byte long": (IMAGES + b"x", "expected the data to end .*found more"),
    "one image long": (IMAGES + PIXELS[: HEIGHT * WIDTH], "expected the data to end .*found more"),
    "header says one image less": (header(ROWS - 1, HEIGHT, WIDTH) + PIXELS, "after 7,616 bytes .*found more"),
    "header says one image more": (header(ROWS + 1, HEIGHT, WIDTH) + PIXELS, CUT),
}
UNREADABLE |= {
    f"gzip: {name}": (gzip.compress(data), message)
    for name, (data, message) in list(UNREADABLE.items())
    if name not in ("0 bytes", "3 bytes")
}
UNREADABLE |= {
    "gzip: nothing in it": (gzip.compress(b""), "4-byte magic number; found the end of the file after 0 bytes"),
    "gzip: header only": (PACKED[:10], "found the end of the file after 0 bytes"),
    "gzip: 3 bytes": (PACKED[:3], "found the end of the file after 0 bytes"),
    "gzip: cut at half": (PACKED[: len(PACKED) // 2], CUT),
    "gzip: cut before the trailer": (PACKED[:-8], "expected the end of the gzip stream .*found the end of the file"),
    "gzip: cut in the CRC": (PACKED[:-5], "expected the end of the gzip stream .*found the end of the file"),
    "gzip: cut by one byte": (PACKED[:-1], "expected the end of the gzip stream .*found the end of the file"),
    "gzip: a bit flipped": (flipped(PACKED, len(PACKED) // 2), "found "),
    "gzip: wrong CRC": (raw_gzip(IMAGES, crc=1), "found damage .incorrect checksum found"),
    "gzip: wrong length": (raw_gzip(IMAGES, size=1), "found damage .incorrect checksum found"),
    "gzip: unknown method": (PACKED[:2] + b"\x07" + PACKED[3:], "found damage .gzip/zlib wrapper specifies"),
    "gzip: reserved flags": (raw_gzip(IMAGES, flags=0xE0), "found damage .header flags e0"),
    "gzip: wrong header CRC": (raw_gzip(IMAGES, FHCRC, b"\0\0"), "found damage .incorrect checksum found"),
    "gzip: a name without end": (raw_gzip(IMAGES, FNAME, b"x" * 9)[:40].replace(b"\0", b"\1"), "found "),
    "gzip: 64 KiB of extra field that are not there": (raw_gzip(IMAGES, FEXTRA, b"\xff\xff"), "found the end"),
    "gzip: garbage after it": (PACKED + b"garbage", "nothing after it; found at least 7 more bytes; .*gunzip -c OLD"),
    "gzip: 512 zeros after it": (PACKED + bytes(512), "nothing after it; found at least 512 more bytes"),
    "gzip: a second member of more": (PACKED + gzip.compress(b"more"), "expected the data to end .*found more"),
    "gzip: a second member that is cut": (MEMBERS[:-1], "expected the end of the gzip stream .*found the end of the"),
    "gzip: a second member cut in its header": (MEMBERS[: len(gzip.compress(IMAGES[:20])) + 9], CUT),
    "gzip: a second member with reserved flags": (PACKED + raw_gzip(b"", flags=0xE0), "found damage .header flags e0"),
    "gzip: a second member with a wrong CRC": (PACKED + raw_gzip(b"", crc=1), "found damage .incorrect checksum"),
    "gzip: garbage after two members": (MEMBERS + b"\x1f", "nothing after it; found at least 1 more bytes"),
    "gzip in gzip": (gzip.compress(PACKED), "gzip inside gzip"),
    "a bomb": (bomb(IMAGES, 64), "expected the data to end .*found more"),
}
"""Bytes that no reader may take for the training images, and a pattern of what it says."""

READABLE: dict[str, bytes] = {
    "not compressed": IMAGES,
    "compressed hardly": gzip.compress(IMAGES, 1),
    "stored, not compressed": gzip.compress(IMAGES, 0),
    "a name that leads elsewhere": raw_gzip(IMAGES, FNAME, b"../../etc/x\0"),
    "a comment": raw_gzip(IMAGES, FCOMMENT, b"\x1b[31mhello\0"),
    "64 KiB of extra field": raw_gzip(IMAGES, FEXTRA, b"\xff\xff" + bytes(65535)),
    "a header CRC": raw_gzip(IMAGES, FHCRC, struct.pack("<H", zlib.crc32(raw_gzip(b"", FHCRC)[:10]) & 0xFFFF)),
    "empty deflate blocks": empty_blocks(IMAGES),
    "members that end in the header and in an image": MEMBERS,
    "a member for each 7 bytes": b"".join(gzip.compress(IMAGES[n : n + 7]) for n in range(0, len(IMAGES), 7)),
    "empty members before, in between and after": b"".join(
        gzip.compress(part) for part in (b"", b"", IMAGES[:99], b"", IMAGES[99:], b"")
    ),
}
"""Unusual, and whole: the same images."""


@dataclass(frozen=True)
class Misplaced:
    """Whole IDX files that are not what they stand for."""

    changes: Mapping[str, np.ndarray | bytes]
    message: str
    """A pattern of the error message."""
    file: str
    """The archive that is named."""
    manifest: str = ""
    split: str = "train"


_IMAGES, _LABELS = GOOD["train-images"], GOOD["train-labels"]
_SWAPPED = {
    f"{a}-{kind}": GOOD[f"{b}-{kind}"]
    for kind in ("images", "labels")
    for a, b in (("train", "test"), ("test", "train"))
}
_ROWS = "[rows]\ntrain = 120\ntest = 30\n"
_WIDE = np.stack([_LABELS.astype(np.int32), np.arange(120)], axis=1).astype(np.int32)
_LABELS_FILE = catalog.DEFAULT_FILES["train-labels"]

MISPLACED: dict[str, Misplaced] = {
    "labels as images": Misplaced(
        {"train-images": _LABELS}, "images of 8×8 .*found 120 .*like a label file", IMAGES_FILE
    ),
    "images as labels": Misplaced({"train-labels": _IMAGES}, "one label per row; .*like an image file", _LABELS_FILE),
    "train and test exchanged": Misplaced(_SWAPPED, "120 rows .*found 30 .*exchanged", IMAGES_FILE, _ROWS),
    "one row in a column": Misplaced({"train-images": _IMAGES.reshape(120, 64, 1)}, "found 120×64×1", IMAGES_FILE),
    "same product, other shape": Misplaced(
        {"train-images": _IMAGES.reshape(120, 4, 16)}, "found 120×4×16", IMAGES_FILE
    ),
    "flat images": Misplaced({"train-images": _IMAGES.reshape(120, 64)}, "found 120×64 in", IMAGES_FILE),
    "colour images": Misplaced({"train-images": np.stack([_IMAGES] * 3, axis=3)}, "found 120×8×8×3", IMAGES_FILE),
    "one pixel wider": Misplaced({"train-images": np.pad(_IMAGES, ((0, 0), (0, 0), (0, 1)))}, "120×8×9", IMAGES_FILE),
    "float pixels": Misplaced({"train-images": _IMAGES.astype(np.float32)}, "uint8; found float32", IMAGES_FILE),
    "signed pixels": Misplaced({"train-images": (_IMAGES >> 1).astype(np.int8)}, "uint8; found int8", IMAGES_FILE),
    "one label less": Misplaced({"train-labels": _LABELS[:-1]}, "120 images and 119 labels", _LABELS_FILE),
    "float labels": Misplaced({"train-labels": _LABELS.astype(np.float32)}, "whole-number .*float32", _LABELS_FILE),
    "label -1": Misplaced(
        {"train-labels": _LABELS.astype(np.int8) - np.int8(1)}, "0 to 2; found -1 at row 0", _LABELS_FILE
    ),
    "label 256": Misplaced({"train-labels": np.full(120, 256, np.int16)}, "found 256 at row 0", _LABELS_FILE),
    "label 2 billion": Misplaced({"train-labels": np.full(120, 2**31 - 1, np.int32)}, "found 2147483647", _LABELS_FILE),
    "labels of another data set": Misplaced({"train-labels": _WIDE}, "120×2 .*QMNIST .*label_column = 0", _LABELS_FILE),
    "a column that is not there": Misplaced(
        {"train-labels": _WIDE}, "label_column = 2; found 120×2", _LABELS_FILE, "label_column = 2\n"
    ),
    "columns without end": Misplaced(
        {"train-labels": np.zeros((120, 1025), np.uint8)}, "to 1,024 columns", _LABELS_FILE, "label_column = 0\n"
    ),
    "a row less than declared": Misplaced(
        {}, "31 rows .*found 30", catalog.DEFAULT_FILES["test-images"], "[rows]\ntest = 31\n", "test"
    ),
}


def replaced(values: np.ndarray, row: int, value: int) -> np.ndarray:
    values = values.copy()
    values[row] = value
    return values


def _late_payload(images: np.ndarray) -> np.ndarray:
    """Read the pixels 16 bytes late, as when the header is taken for pixels."""
    return np.roll(images.reshape(-1), -16).reshape(images.shape)


BRIGHTNESS = "[limits]\nmin_pixel_mean = 40\nmax_pixel_mean = 70\n"
"""The band of the mean pixel that the good data is in."""


@dataclass(frozen=True)
class Meaningless:
    """Whole archives of the right shape whose content is wrong: what happens to a split."""

    change: Change
    test: set[str]
    """Columns of the critical checks that fail when it happens to the test split."""
    train: tuple[set[str], set[str]]
    """And those that fail in the training and the test split when it happens to the training split."""
    mnist: set[str]
    """And those that fail when it happens to the test split of MNIST, whose share of nearest means is known."""
    keys: tuple[str, ...] = ()
    """What of the manifest is named."""


_HIT = ("[limits] max_label_chance",)
MEANINGLESS: dict[str, Meaningless] = {
    "labels shifted by one row": Meaningless(
        lambda x, y: (x, np.roll(y, 1)), {"by_chance"}, (set(), {"by_chance"}), {"by_chance", "centroid_hit"}, _HIT
    ),
    "labels shuffled": Meaningless(
        lambda x, y: (x, np.random.default_rng(0).permutation(y)),
        {"by_chance"},
        ({"by_chance"}, {"by_chance"}),
        {"by_chance", "centroid_hit"},
        _HIT,
    ),
    "images transposed": Meaningless(
        lambda x, y: (x.transpose(0, 2, 1), y), {"by_chance"}, (set(), {"by_chance"}), {"centroid_hit"}, _HIT
    ),
    "images inverted": Meaningless(
        lambda x, y: (255 - x, y),
        {"by_chance", "mean"},
        ({"mean"}, {"by_chance"}),
        {"by_chance", "centroid_hit", "mean"},
        ("[limits] min_pixel_mean and max_pixel_mean",),
    ),
    "pixels halved": Meaningless(
        lambda x, y: (x >> 1, y),
        {"pixel_max", "mean"},
        ({"pixel_max", "mean"}, set()),
        {"pixel_max", "mean", "centroid_hit"},
        ("[limits] min_pixel_max",),
    ),
    "pixels from 0 to 16": Meaningless(
        lambda x, y: (x >> 4, y),
        {"pixel_max", "mean"},
        ({"pixel_max", "mean"}, set()),
        {"pixel_max", "mean", "by_chance", "centroid_hit"},
        ("[limits] min_pixel_max", "[limits] min_pixel_mean and max_pixel_mean"),
    ),
    "payload off by 16 bytes": Meaningless(
        lambda x, y: (_late_payload(x), y), {"by_chance"}, (set(), {"by_chance"}), {"centroid_hit"}, _HIT
    ),
    "one image blank": Meaningless(
        lambda x, y: (replaced(x, 4, 0), y), {"blank"}, ({"blank"}, set()), {"blank"}, ("[limits] max_blank",)
    ),
    "one label 255": Meaningless(
        lambda x, y: (x, replaced(y, 4, 255)), {"label"}, ({"label"}, set()), {"label"}, ("classes",)
    ),
    "labels count from 1": Meaningless(
        lambda x, y: (x, y + 1),
        {"label", "share", "by_chance"},
        ({"label", "share"}, {"by_chance"}),
        {"label", "share", "by_chance", "centroid_hit"},
        ("classes and labels", *_HIT),
    ),
    "a class missing": Meaningless(
        lambda x, y: (x[y != 2], y[y != 2]),
        {"label", "share"},
        ({"label", "share"}, set()),
        {"", "label", "share"},
        ("classes", "[limits] min_class_share"),
    ),
    "all labels one class": Meaningless(
        lambda x, y: (x, y * 0 + 1),
        {"label", "share", "by_chance"},
        ({"label", "share", "by_chance"}, {"by_chance"}),
        {"label", "share", "by_chance", "centroid_hit"},
        ("classes", "max_class_share"),
    ),
    "all images zero": Meaningless(
        lambda x, y: (x * 0, y),
        {"pixel_max", "mean", "blank", "by_chance"},
        ({"pixel_max", "mean", "blank", "by_chance"}, {"by_chance"}),
        {"pixel_max", "mean", "blank", "by_chance", "centroid_hit"},
        ("[limits] min_pixel_max", "[limits] max_blank"),
    ),
    "all images one grey": Meaningless(
        lambda x, y: (x * 0 + 255, y),
        {"pixel_min", "mean", "blank", "by_chance"},
        ({"pixel_min", "mean", "blank", "by_chance"}, {"by_chance"}),
        {"pixel_min", "mean", "blank", "by_chance", "centroid_hit"},
        ("[limits] max_pixel_min",),
    ),
}


def spoiled(what: str, split: str, arrays: Arrays = GOOD) -> dict[str, np.ndarray]:
    """Return images and labels of `split`, by role, after what happens to them in the case `what`."""
    images, labels = MEANINGLESS[what].change(arrays[f"{split}-images"], arrays[f"{split}-labels"])
    return {f"{split}-images": np.ascontiguousarray(images), f"{split}-labels": labels}
