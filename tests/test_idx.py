"""The IDX reader: what it reads, and that it reads nothing else."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage import idx
from storage.errors import FormatError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
PLAIN = idx.encode(IMAGES)
PACKED = gzip.compress(PLAIN, mtime=0)
NATIVE = [dtype.newbyteorder("=") for dtype in idx.TYPES.values()]


def write(folder: Path, data: bytes) -> Path:
    path = folder / "images.gz"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("packed", [False, True])
@given(array=st.sampled_from(NATIVE).flatmap(lambda t: hnp.arrays(t, hnp.array_shapes(max_dims=4, max_side=5))))
@settings(max_examples=60, deadline=None)
def test_any_array_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, packed: bool, array: np.ndarray):
    data = idx.encode(array)
    path = write(tmp_path_factory.mktemp("idx"), gzip.compress(data) if packed else data)
    found = idx.read(path)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_encode_writes_the_published_layout():
    assert PLAIN[:16] == bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4)
    assert idx.encode(np.array([1], np.int32))[4:] == struct.pack(">Ii", 1, 1)


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.complex64, bool])
def test_encode_refuses_types_idx_does_not_have(dtype: type):
    with pytest.raises(ValueError, match="IDX cannot hold"):
        idx.encode(np.zeros(3, dtype))


def test_blocks_and_digest_are_those_of_the_whole(tmp_path: Path):
    array = np.random.default_rng(0).integers(0, 255, (1000, 5, 5), dtype=np.uint8)
    data = idx.encode(array)
    with idx.Reader(write(tmp_path, gzip.compress(data))) as reader:
        blocks = list(reader.blocks(64))
        assert [len(b) for b in blocks] == [64] * 15 + [40]
        np.testing.assert_array_equal(np.concatenate(blocks), array)
        assert reader.payload_sha256 == hashlib.sha256(data).hexdigest()


def header(*dimensions: int, code: int = 8) -> bytes:
    return struct.pack(f">BBBB{len(dimensions)}I", 0, 0, code, len(dimensions), *dimensions)


def raw_gzip(payload: bytes, crc: int | None = None, size: int | None = None) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(payload) + packer.flush()
    crc = zlib.crc32(payload) if crc is None else crc
    size = len(payload) if size is None else size
    return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + body + struct.pack("<II", crc, size)


BAD = {
    "empty": (b"", "the file is empty"),
    "a web page": (b"<!DOCTYPE html><title>Log in</title>", "a web page"),
    "a zip file": (b"PK\x03\x04" + bytes(40), "a ZIP file"),
    "3 bytes": (PLAIN[:3], "the file ends after 3 bytes"),
    "cut in the dimensions": (PLAIN[:9], "the file ends after 5 bytes"),
    "first byte 1": (b"\x01" + PLAIN[1:], "magic number"),
    "unknown type": (header(2, 3, 4, code=0x0A) + bytes(24), "magic number"),
    "gzip in gzip": (gzip.compress(PACKED), "gzip inside gzip"),
    "no dimensions": (header() + b"\0", "declares 0"),
    "255 dimensions": (bytes([0, 0, 8, 255]) + bytes(1020), "declares 255"),
    "zero images": (header(0, 3, 4), "at least one element"),
    "4 GiB in 10 bytes": (header(2**32 - 1) + bytes(10), "ends after 10"),
    "product that wraps to 0": (header(2**31, 2**31, 4) + bytes(24), "18,446,744,073,709,551,616 bytes"),
    "little-endian dimensions": (bytes([0, 0, 8, 1]) + struct.pack("<I", 3) + bytes(3), "little-endian"),
    "one byte short": (PLAIN[:-1], "expected 24 bytes of data"),
    "one byte long": (PLAIN + b"x", "there is more"),
    "float type, byte payload": (header(2, 3, 4, code=0x0D) + bytes(24), "expected 96 bytes"),
    "gzip: one byte short": (gzip.compress(PLAIN[:-1]), "expected 24 bytes of data"),
    "gzip: one byte long": (gzip.compress(PLAIN + b"x"), "there is more"),
    "gzip: header only": (PACKED[:10], "the file ends after 0 bytes"),
    "gzip: cut at half": (PACKED[: len(PACKED) // 2], "ends after"),
    "gzip: cut in the trailer": (PACKED[:-5], "cut before it"),
    "gzip: cut before the trailer": (PACKED[:-8], "cut before it"),
    "gzip: wrong CRC": (raw_gzip(PLAIN, crc=1), "undamaged gzip"),
    "gzip: wrong length": (raw_gzip(PLAIN, size=1), "undamaged gzip"),
    "gzip: garbage after it": (PACKED + b"garbage", "nothing after it"),
    "gzip: zeros after it": (PACKED + bytes(512), "nothing after it"),
    "gzip: second member": (PACKED + gzip.compress(b"more"), "nothing after it"),
    "gzip: data over two members": (gzip.compress(PLAIN[:20]) + gzip.compress(PLAIN[20:]), "ends after"),
}


@pytest.mark.parametrize(("data", "said"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, data: bytes, said: str):
    with pytest.raises(FormatError, match=said) as caught:
        idx.read(write(tmp_path, data))
    message = str(caught.value)
    assert message.startswith("images.gz: expected")
    assert "\n" not in message


def test_a_flipped_bit_never_changes_what_is_read(tmp_path: Path):
    refused = 0
    for bit in range(len(PACKED) * 8):
        data = bytearray(PACKED)
        data[bit // 8] ^= 1 << bit % 8
        try:
            found = idx.read(write(tmp_path, bytes(data)))
        except FormatError:
            refused += 1
        else:
            # Time and system in the gzip header, and padding at the end of the stream, carry no data.
            np.testing.assert_array_equal(found, IMAGES)
    assert refused > len(PACKED) * 8 * 0.75


def test_a_bomb_is_stopped_at_the_declared_size(tmp_path: Path):
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(PLAIN) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    reader = idx.Reader(write(tmp_path, bomb))
    with reader, pytest.raises(FormatError, match="there is more"):
        list(reader.blocks(10))
    assert reader._stream.closed


def test_real_archives_are_read_as_published(mnist_dir: Path):
    images = idx.read(mnist_dir / "t10k-images-idx3-ubyte.gz")
    labels = idx.read(mnist_dir / "t10k-labels-idx1-ubyte.gz")
    assert images.shape == (10000, 28, 28)
    assert images.dtype == np.uint8
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
