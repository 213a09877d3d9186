"""The same small data set, in every form that `idxflow dataset add` takes."""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import feather

from storage.formats import idx
from tests.conftest import bars

SHAPE = (6, 6)
ARRAYS = bars(60, 15, 3, SHAPE)
for name in ("train-images", "test-images"):
    # As in MNIST, the corners are never inked.
    ARRAYS[name][:, :, [0, -1]] = 0
SPLITS = ("train", "test")
FLAT = {split: ARRAYS[f"{split}-images"].reshape(-1, 36) for split in SPLITS}
LABELS = {split: ARRAYS[f"{split}-labels"] for split in SPLITS}

Make = Callable[[Path], Path]
"""Writes a source into a folder, and returns its path."""


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(folder: Path, split: str = "", suffix: str = "png") -> Path:
    """A folder for each class; each picture has the number of its row."""
    for name in [split] if split else SPLITS:
        for row, (image, label) in enumerate(zip(ARRAYS[f"{name}-images"], LABELS[name], strict=True)):
            file = folder / ("" if split else name) / f"bar {label}" / f"{row}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file, **({"quality": 100} if suffix == "jpg" else {}))
    return folder


def rows(split: str) -> Iterable[list[int]]:
    return ([int(label), *map(int, pixels)] for label, pixels in zip(LABELS[split], FLAT[split], strict=True))


def table(file: Path, rows: Iterable[Iterable[object]], header: list[str] | None = None, delimiter: str = ",") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([*([header] if header else []), *rows])
    data = text.getvalue().encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


HEADER = ["label", *(f"pixel{number}" for number in range(36))]


def kaggle(folder: Path) -> Path:
    """Both splits have labels, in files of their own."""
    for split in SPLITS:
        table(folder / f"{split}.csv", rows(split), HEADER)
    return folder


def no_header_label_last(folder: Path) -> Path:
    for split in SPLITS:
        table(folder / f"{split}.tsv", ([*row[1:], row[0]] for row in rows(split)), delimiter="\t")
    return folder


def numbered_pixels(folder: Path) -> Path:
    """As a data frame is written whose columns have no names."""
    for split in SPLITS:
        table(folder / f"{split}.csv", rows(split), ["label", *map(str, range(36))])
    return folder


def packed_csv(folder: Path) -> Path:
    for split in SPLITS:
        table(folder / f"{split}.csv.gz", rows(split), HEADER)
    return folder


def hugging_face(folder: Path) -> Path:
    """Files of pictures in a column, and the names of the classes in the schema."""
    names = '{"info": {"features": {"label": {"names": ["bar 0", "bar 1", "bar 2"], "_type": "ClassLabel"}}}}'
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for split in SPLITS:
        images = pa.array([{"bytes": png(image), "path": None} for image in ARRAYS[f"{split}-images"]], kind)
        columns = pa.table({"image": images, "label": pa.array(LABELS[split].astype(np.int64))})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(columns.replace_schema_metadata({"huggingface": names}), folder / "data" / f"{split}-0.parquet")
    return folder


def lists(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        images = pa.array(ARRAYS[f"{split}-images"].tolist(), pa.list_(pa.list_(pa.uint8())))
        names = pa.array([f"bar {label}" for label in LABELS[split]])
        feather.write_feather(pa.table({"class": names, "pixels": images}), str(folder / f"{split}.feather"))
    return folder


def pixel_columns(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        columns = dict(zip(HEADER, np.array(list(rows(split))).T, strict=True))
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return folder


def npz(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{x}_{split}": ARRAYS[f"{split}-{kind}"] for split in SPLITS for x, kind in (("x", "images"), ("y", "labels"))
    }
    np.savez_compressed(folder / "bars.npz", **arrays)
    return folder / "bars.npz"


def npy(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        np.save(folder / f"{split}_images.npy", ARRAYS[f"{split}-images"][..., np.newaxis])
        np.save(folder / f"{split}_labels.npy", LABELS[split].astype(np.float64))
    return folder


def several_npz(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        np.savez(folder / f"k-{split}-imgs.npz", ARRAYS[f"{split}-images"])
        np.savez(folder / f"k-{split}-labels.npz", LABELS[split])
    return folder


def mat(folder: Path) -> Path:
    """As EMNIST has it: columns first, and a table of characters."""
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    content = {
        split: {
            "images": ARRAYS[f"{split}-images"].transpose(0, 2, 1).reshape(-1, 36),
            "labels": LABELS[split].reshape(-1, 1).astype(np.float64) + 1,
            "writers": (np.arange(len(LABELS[split])) % 7).reshape(-1, 1).astype(np.float64),
        }
        for split in SPLITS
    }
    mapping = np.array([[1, 65], [2, 66], [3, 67]], np.uint8)
    savemat(folder / "emnist-bars.mat", {"dataset": {**content, "mapping": mapping}}, do_compression=True)
    return folder / "emnist-bars.mat"


def idx_files(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx.encode(ARRAYS[f"{split}-images"]))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx.encode(LABELS[split]))
    return folder


def emnist(folder: Path) -> Path:
    """Transposed, labels from 1, with the file of characters."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        name = f"emnist-bars-{split}"
        images = ARRAYS[f"{split}-images"].transpose(0, 2, 1)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx.encode(np.ascontiguousarray(images))))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx.encode(LABELS[split] + 1)))
    (folder / "emnist-bars-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n")
    return folder


def qmnist(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        columns = np.zeros((len(LABELS[split]), 8), np.int32)
        columns[:, 0] = LABELS[split]
        columns[:, 2] = np.arange(len(columns)) % 5
        (folder / f"qmnist-{split}-images-idx3-ubyte").write_bytes(idx.encode(ARRAYS[f"{split}-images"]))
        (folder / f"qmnist-{split}-labels-idx2-int").write_bytes(idx.encode(columns))
    return folder


def zipped(make: Make) -> Make:
    def made(folder: Path) -> Path:
        source = make(folder / "inside" / "of")
        root = source if source.is_dir() else source.parent
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            for file in sorted(root.rglob("*")):
                archive.write(file, file.relative_to(root.parent))
            archive.writestr("__MACOSX/of/._0.png", b"junk")
        return folder / "all.zip"

    return made


def tarred(make: Make) -> Make:
    def made(folder: Path) -> Path:
        source = make(folder / "inside" / "of")
        with tarfile.open(folder / "all.tar.gz", "w:gz") as archive:
            archive.add(source if source.is_dir() else source.parent, "of")
        return folder / "all.tar.gz"

    return made


FORMS: dict[str, Make] = {
    "pictures": pictures,
    "BMP": lambda folder: pictures(folder, suffix="bmp"),
    "TIFF": lambda folder: pictures(folder, suffix="tif"),
    "GIF": lambda folder: pictures(folder, suffix="gif"),
    "Kaggle's CSV": kaggle,
    "TSV without header, label last": no_header_label_last,
    "CSV, pixels by number": numbered_pixels,
    "CSV, gzip": packed_csv,
    "Parquet of Hugging Face": hugging_face,
    "Feather of lists": lists,
    "Parquet, a column per pixel": pixel_columns,
    "npz": npz,
    "npy": npy,
    "several npz": several_npz,
    "EMNIST's mat": mat,
    "IDX": idx_files,
    "EMNIST's IDX": emnist,
    "QMNIST's IDX": qmnist,
    "ZIP of pictures": zipped(pictures),
    "ZIP of CSV": zipped(kaggle),
    "tar of pictures": tarred(pictures),
    "tar of IDX": tarred(idx_files),
    "ZIP of npz": zipped(npz),
}
