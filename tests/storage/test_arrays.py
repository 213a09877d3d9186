"""Arrays in files: what was written comes back, the same bytes each time, and nothing else is accepted."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage.errors import DamagedEntry
from storage.formats import arrays

VALUES = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asarray(1.5)}
EXPECTED = {"a": (np.float32, (2, 3)), "b": (np.float64, ())}


def test_what_was_written_comes_back_and_numpy_reads_it_too(tmp_path: Path):
    arrays.write(tmp_path / "x.npz", VALUES)
    values = arrays.read(tmp_path / "x.npz", EXPECTED)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as theirs:
        for name, array in VALUES.items():
            np.testing.assert_array_equal(values[name], array)
            np.testing.assert_array_equal(theirs[name], array)


def test_equal_arrays_give_equal_bytes_however_they_lie_in_memory():
    first, second = io.BytesIO(), io.BytesIO()
    arrays.write(first, VALUES)
    arrays.write(second, {name: np.asarray(array, order="F") for name, array in VALUES.items()})
    assert first.getvalue() == second.getvalue()


@pytest.mark.parametrize(
    "changed",
    [
        {"a": VALUES["a"] + 1, "b": VALUES["b"]},
        {"a": VALUES["a"].reshape(3, 2), "b": VALUES["b"]},
        {"a": VALUES["a"].view(np.int32), "b": VALUES["b"]},
        {"c": VALUES["a"], "b": VALUES["b"]},
    ],
    ids=["value", "shape", "type", "name"],
)
def test_the_digest_is_over_names_types_shapes_and_values(changed: dict[str, np.ndarray]):
    assert arrays.digest(VALUES) == arrays.digest(dict(reversed(VALUES.items())))
    assert arrays.digest(VALUES) != arrays.digest(changed)


def _object_array(path: Path) -> None:
    np.savez(path, a=np.array([print], dtype=object), b=VALUES["b"])


def _lying_header(path: Path) -> None:
    """An array header that claims a terabyte."""
    arrays.write(path, {"a": VALUES["a"], "b": VALUES["b"]})
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (1 << 38,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", buffer.getvalue())
        archive.writestr("b.npy", b"")


def _longer(path: Path) -> None:
    arrays.write(path, VALUES)
    with zipfile.ZipFile(path) as archive:
        data = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in data.items():
            archive.writestr(name, member + b"\0")


def _zip(path: Path, *names: str, header: str = "", flags: int = 0) -> None:
    """Members of these names, each with the array `a`, or `b` where it is called so; `header` is that of `a`."""
    buffer = io.BytesIO()
    arrays.write(buffer, VALUES)
    with zipfile.ZipFile(buffer) as archive:
        data = {name: archive.read(f"{name}.npy") for name in "ab"}
    if header:
        text = header.encode().ljust(100)
        data["a"] = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + data["a"][-24:]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)
        for name in names:
            member = zipfile.ZipInfo(name)
            archive.writestr(member, data["b" if name.startswith("b") else "a"])
            member.flag_bits |= flags


LITERAL = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), %s}"

FOREIGN: dict[str, tuple[Callable[[Path], None], str]] = {
    "not there": (lambda path: None, "No such file"),
    "empty": (lambda path: path.write_bytes(b""), "npz"),
    "text": (lambda path: path.write_text("weights"), "npz"),
    "an array missing": (lambda path: np.savez(path, a=VALUES["a"]), "arrays a, b; found a;"),
    "an array more": (lambda path: np.savez(path, **VALUES, c=VALUES["a"]), "found a, b, c"),
    "another shape": (lambda path: np.savez(path, a=VALUES["a"].T, b=VALUES["b"]), r"shape \(2, 3\); found .*\(3, 2\)"),
    "another type": (
        lambda path: np.savez(path, a=VALUES["a"].astype(np.float64), b=VALUES["b"]),
        "found float64",
    ),
    "big-endian": (lambda path: np.savez(path, a=VALUES["a"].astype(">f4"), b=VALUES["b"]), "found >f4"),
    "pickled objects": (_object_array, "found object"),
    "compressed, as a bomb is": (lambda path: np.savez_compressed(path, **VALUES), "without compression"),
    "a header of a terabyte": (_lying_header, r"found float32 and shape \(274877906944,\)"),
    "bytes after the array": (_longer, "not 24 bytes long"),
    "an array twice": (lambda path: _zip(path, "a.npy", "b.npy", "a.npy"), "found a, a, b;"),
    "an array under two names": (lambda path: _zip(path, "a", "a.npy", "b.npy"), "found a, a, b;"),
    "a name without its ending": (lambda path: _zip(path, "a", "b.npy"), "found a, b;"),
    "a path as a name": (lambda path: _zip(path, "../a.npy", "b.npy"), r"found \.\./a, b;"),
    "a control character in a name": (lambda path: _zip(path, "a\x1b[2J\n.npy", "b.npy"), r"found a·\[2J·, b;"),
    "ten thousand names": (
        lambda path: _zip(path, *(f"{n}.npy" for n in range(10_000))),
        "found 0, 1, 10, .{180,200}…;",
    ),
    "an encrypted member": (lambda path: _zip(path, "a.npy", "b.npy", flags=1), "password"),
    "a call in the header": (lambda path: _zip(path, "a.npy", "b.npy", header=LITERAL % "'x': print(1)"), "print"),
    "a nested header": (lambda path: _zip(path, "a.npy", "b.npy", header="(" * 9_000), r"found \(\("),
    "an unhashable key in the header": (lambda path: _zip(path, "a.npy", "b.npy", header="{[]: 1}"), r"found \{\[\]"),
    "a header of Python 2": (lambda path: _zip(path, "a.npy", "b.npy", header=LITERAL.replace("3)", "3L)")), "3L"),
    "an array of no elements": (lambda path: np.savez(path, a=VALUES["a"][:0], b=VALUES["b"]), r"\(0, 3\)"),
}


@pytest.mark.parametrize(("make", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_anything_else_is_refused_in_one_sentence(tmp_path: Path, make: Callable[[Path], None], message: str):
    path = tmp_path / "x.npz"
    make(path)
    with pytest.raises(DamagedEntry, match=f"x.npz: expected.*{message}"):
        arrays.read(path, EXPECTED)


def test_no_cut_and_no_flipped_byte_gives_other_values(tmp_path: Path):
    path = tmp_path / "x.npz"
    arrays.write(path, VALUES)
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 7)]
    damaged += [whole[:n] + bytes([whole[n] ^ 0xFF]) + whole[n + 1 :] for n in range(len(whole))]
    for data in damaged:
        path.write_bytes(data)
        try:
            values = arrays.read(path, EXPECTED)
        except DamagedEntry:
            continue
        assert arrays.digest(values) == arrays.digest(VALUES)
