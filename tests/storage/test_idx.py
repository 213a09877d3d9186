"""The IDX reader: what it reads, and that it reads nothing else."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.errors import FormatError
from storage.formats import idx

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
    decoded = idx.read(path)
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


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


def test_a_flipped_bit_never_changes_what_is_read(tmp_path: Path):
    refused = 0
    for bit in range(len(PACKED) * 8):
        data = bytearray(PACKED)
        data[bit // 8] ^= 1 << bit % 8
        try:
            decoded = idx.read(write(tmp_path, bytes(data)))
        except FormatError:
            refused += 1
        else:
            # Time and system in the gzip header, and padding at the end of the stream, carry no data.
            np.testing.assert_array_equal(decoded, IMAGES)
    assert refused > len(PACKED) * 8 * 0.75


def test_real_archives_are_read_as_published(mnist_dir: Path):
    images = idx.read(mnist_dir / "t10k-images-idx3-ubyte.gz")
    labels = idx.read(mnist_dir / "t10k-labels-idx1-ubyte.gz")
    assert images.shape == (10000, 28, 28)
    assert images.dtype == np.uint8
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
