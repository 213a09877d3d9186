"""Any bytes as a manifest: refused as such, or a data set that stays where it belongs."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from storage.datasets import catalog
from storage.errors import ConfigError

WORDS = tuple(
    word.encode()
    for word in (
        *(
            f"{name} = "
            for name in ("name", "classes", "image_shape", "source", "mirrors", "file", "sha256", "bytes", "labels")
        ),
        *(
            f"\n[{name}]\n"
            for name in ("archives.train-images", "rows", "training", "limits", "floors", "gate", "slices")
        ),
        *('"https://[', "'", '"""', "[[", "{", "nan", "inf", "-1", "0x", "1e999", "..", "~", "\\u0000", "1979-05-27"),
    )
)
OPTIONS = ("-max_len=2048",)


def seeds() -> Iterator[bytes]:
    for path in catalog.CATALOG.glob("*.toml"):
        yield path.read_bytes()
    small = b'name = "mine"\nclasses = ["a", "b"]\nimage_shape = [20, 16]\n'
    yield small
    yield small + b'source = "data"\nlicence = "CC0"\nhomepage = "https://example.org/"\nlabel_column = 1\n'
    yield small + b'label_base = 1\ntranspose = true\nink = "dark"\n'
    yield small + b'[archives.train-images]\nfile = "x.gz"\nbytes = 9\n[rows]\ntrain = 100\n[training]\nepochs = 5\n'
    yield small + b'[limits]\nmax_leaked = 0.5\n[floors]\naccuracy = 0.9\n[gate]\npolicy = "ask"\nalpha = 0.01\n'
    yield small + b'[slices]\nby = ["class", "ink"]\nquantiles = 3\n[slices.floors]\n"class a" = 0.9\n'


def check(data: bytes) -> None:
    _FILE.write_bytes(data)
    try:
        dataset = catalog.read(_FILE)
    except ConfigError as error:
        sentence = str(error)
    else:
        sentence = f"{_FILE}: expected"
        assert re.fullmatch("[a-z0-9][a-z0-9_-]{0,63}", dataset.name)
        for archive in dataset.archives:
            assert os.path.basename(archive.file) == archive.file  # noqa: PTH119
            assert archive.pinned or not archive.mirrors
            assert all(url.startswith(("https://", "http://")) for url in archive.mirrors)
    assert sentence.startswith(f"{_FILE}: expected")
    assert "\n" not in sentence


_FILE = Path(tempfile.mkdtemp(prefix="idxflow-fuzz-"), "fuzz.toml")
