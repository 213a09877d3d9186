"""Sources that are unusual or easily misunderstood: each image has its class, and nothing is left out in silence."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import feather

from flows.commands.cli import run_command
from storage.datasets.catalog import DEFAULT_FILES
from storage.formats import idx
from tasks.adding import recognize, unpack
from tasks.adding.batches import Reading, Remarks
from tests.support import sources
from tests.support.sources import ARRAYS, LABELS

X, Y, XT, YT = (ARRAYS["train-images"], LABELS["train"], ARRAYS["test-images"], LABELS["test"])
DRAWN = ("--test-fraction", "0.2")


def added(capsys: pytest.CaptureFixture[str], source: Path, *options: str) -> dict:
    """Add a data set, and return what `--json` says of it."""
    code = run_command(["dataset", "add", "mine", str(source), *options, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def refusal(capsys: pytest.CaptureFixture[str], source: Path, *options: str, code: int = 3) -> str:
    """Have a source refused, and return the sentence."""
    assert run_command(["dataset", "add", "mine", str(source), *options]) == code
    said = capsys.readouterr().err.splitlines()[-1]
    assert ".adding" not in said
    assert [*Path().iterdir()] == []
    return said


def classes_of_images(folder: Path) -> dict[bytes, int]:
    made = {role: idx.read(folder / file) for role, file in DEFAULT_FILES.items()}
    return {
        image.tobytes(): int(label)
        for split in ("train", "test")
        for image, label in zip(made[f"{split}-images"], made[f"{split}-labels"], strict=True)
    }


RIGHT = {
    image.tobytes(): int(label)
    for images, labels in ((X, Y), (XT, YT))
    for image, label in zip(images, labels, strict=True)
}


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "all.npz", **arrays)
    return folder / "all.npz"


def test_a_validation_split_of_arrays_is_a_pair_of_its_own(here: Path, tmp_path: Path, capsys):
    """MedMNIST's files have three splits."""
    source = saved(
        tmp_path / "source",
        train_images=X[:30],
        train_labels=Y[:30, np.newaxis],
        val_images=X[30:],
        val_labels=Y[30:, np.newaxis],
        test_images=XT,
        test_labels=YT[:, np.newaxis],
    )
    assert added(capsys, source)["rows"] == {"train": 60, "test": 15}
    assert classes_of_images(here / "mine") == RIGHT


def test_arrays_that_are_not_used_are_named(here: Path, tmp_path: Path, capsys):
    source = saved(tmp_path / "source", x_train=X, y_train=Y, x_test=XT, y_test=YT, y_test_names=YT, ids=YT)
    assert any(
        "these are left out" in line and "y_test_names, ids" in line for line in added(capsys, source)["remarks"]
    )
    shutil.rmtree("mine")
    source = saved(tmp_path / "without", x_train=X, y_train=Y, x_test=XT)
    assert "x_test" in added(capsys, source, *DRAWN)["remarks"][0]


@pytest.mark.parametrize(
    "images",
    [np.asfortranarray(X), X.astype(">i4"), X[::-1][::-1], X.astype(np.float16)],
    ids=["Fortran", "big-endian", "strides", "halves"],
)
def test_how_an_array_is_stored_changes_nothing(images: np.ndarray, here: Path, tmp_path: Path, capsys):
    added(capsys, saved(tmp_path / "source", x_train=images, y_train=Y, x_test=XT, y_test=YT))
    assert classes_of_images(here / "mine") == RIGHT


def test_images_of_matlab_that_are_not_turned_are_read(here: Path, tmp_path: Path, capsys):
    """MATLAB stores arrays column by column."""
    added(capsys, sources.mat(tmp_path), "--no-transpose")
    assert set(classes_of_images(here / "mine")) == {np.ascontiguousarray(image.T).tobytes() for image in (*X, *XT)}


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.eye(3, dtype=np.uint8)[Y], "one-hot labels of shape 60×3; write the number of each class instead"),
        (np.eye(8)[Y], "one-hot labels of shape 60×8"),
        (np.repeat(Y[:, np.newaxis], 8, 1), "labels of shape 60×8; say which column"),
        (X, "these look like images"),
        (np.array([f"é{label}".encode("latin-1") for label in Y]), "labels in UTF-8"),
        (np.where(Y, "a", " "), "a label or group in each row; found 20 rows without one"),
        (np.where(Y, 1e300, 0), "found 1e+300"),
        (np.where(Y, np.inf, 0), "found inf"),
    ],
)
def test_labels_that_are_no_classes(labels: np.ndarray, says: str, here: Path, tmp_path: Path, capsys):
    assert says in refusal(capsys, saved(tmp_path / "source", x=X, y=labels), *DRAWN)


def test_a_large_label_stays_as_it_is(here: Path, tmp_path: Path, capsys):
    labels = np.where(Y, np.uint64(2**64 - 1), np.uint64(7))
    values = added(capsys, saved(tmp_path / "source", x=X, y=labels), *DRAWN)
    assert {c["name"] for c in values["classes"]} == {"7", str(2**64 - 1)}


def test_one_hot_labels_written_as_the_message_says(here: Path, tmp_path: Path, capsys):
    labels = np.eye(3)[Y].argmax(axis=1)
    added(capsys, saved(tmp_path / "source", x_train=X, y_train=labels, x_test=XT, y_test=YT))
    assert classes_of_images(here / "mine") == RIGHT


def test_pixels_that_are_true_or_false_need_a_white(here: Path, tmp_path: Path, capsys):
    source = saved(tmp_path / "source", x=X > 9, y=Y)
    assert "true and false; say that true is white: --white 1" in refusal(capsys, source, *DRAWN)


def test_a_pixel_out_of_range_is_found(here: Path, tmp_path: Path, capsys):
    images = X.astype(np.int16)
    images[41, 2, 3] = 256
    assert "found 256 in image 41 (counted from 0)" in refusal(capsys, saved(tmp_path / "a", x=images, y=Y), *DRAWN)


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("content", [None, b"", b"\x01\0\x08\x03"])
def test_half_a_split_in_idx_is_not_left_out(name: str, content: bytes | None, here: Path, tmp_path: Path, capsys):
    source = sources.idx_files(tmp_path / "source")
    (source / name).unlink()
    if content is not None:
        (source / name).write_bytes(content)
    assert "expected one IDX file of images and one of labels for test" in refusal(capsys, source)
    for file in source.glob("t10k*"):
        file.unlink()
    assert added(capsys, source, *DRAWN)["rows"] == {"train": 48, "test": 12}


@pytest.mark.parametrize(
    "lines", ["1 65\n2 99999999999\n3 67\n", "1 ²\n2 66\n3 67\n", "1 10\n2 66\n3 67\n", "1\n2\n3\n", "word 1\n"]
)
def test_characters_of_labels_that_cannot_be_read_are_not_used(lines: str, here: Path, tmp_path: Path, capsys):
    source = sources.emnist(tmp_path / "source")
    (source / "emnist-bars-mapping.txt").write_text(lines, encoding="utf-8")
    values = added(capsys, source)
    assert [c["name"] for c in values["classes"]] == ["1", "2", "3"]
    assert "emnist-bars-mapping.txt" in values["remarks"][-1]


def test_links_in_a_folder_of_pictures(here: Path, tmp_path: Path, capsys):
    source = sources.pictures(tmp_path / "source")
    link = source / "train" / "bar 0" / "link.png"
    for target, says in (
        ("link.png", "remove the link"),
        ("nowhere.png", "remove the link"),
        ("..", "put there what it links to"),
    ):
        link.symlink_to(target)
        assert says in refusal(capsys, source)
        link.unlink()
    # A link inside, to a whole picture, and a link to the source itself are used.
    link.symlink_to("0.png")
    (tmp_path / "link").symlink_to(source)
    assert added(capsys, tmp_path / "link")["rows"] == {"train": 61, "test": 15}


def test_a_split_that_is_a_link_is_refused(here: Path, tmp_path: Path, capsys):
    source = sources.pictures(tmp_path / "source")
    (source / "test").rename(tmp_path / "elsewhere")
    (source / "test").symlink_to(tmp_path / "elsewhere")
    assert "source/test: expected pictures in" in refusal(capsys, source)


def test_a_folder_around_the_classes_is_no_class(here: Path, tmp_path: Path, capsys):
    sources.pictures(tmp_path / "source" / "letters-main", "train")
    (tmp_path / "source" / "README.md").touch()
    assert len(added(capsys, tmp_path / "source", *DRAWN)["classes"]) == 3


def test_folders_inside_a_class_are_mentioned(here: Path, tmp_path: Path, capsys):
    for writer in ("one", "two"):
        sources.pictures(tmp_path / "source" / writer, "train")
    values = added(capsys, tmp_path / "source", *DRAWN)
    assert [c["name"] for c in values["classes"]] == ["one", "two"]
    assert "deeper inside are of the class of the outer one" in values["remarks"][0]


def test_a_picture_beside_the_splits_is_refused(here: Path, tmp_path: Path, capsys):
    source = sources.pictures(tmp_path / "source")
    shutil.copy(source / "train" / "bar 0" / "0.png", source / "stray.png")
    assert "stray.png: expected each picture in the folder of its class" in refusal(capsys, source)


def test_a_group_that_may_be_empty_is_refused(here: Path, tmp_path: Path, capsys):
    source = sources.pictures(tmp_path / "source", "train")
    assert "a group by '(x)?'" in refusal(capsys, source, *DRAWN, "--group-by", "(x)?")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.tar.xz", b"\xfd7zXZ\0" + bytes(300), "a file packed by xz; unpack it"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
        ("a.zip", b"PK\x03\x04" + bytes(300), "a ZIP archive or .npz that ends early"),
        ("a.mat", b"MATLAB 7.3 MAT-file".ljust(512, b"\0"), "a .mat of version 7.3"),
        ("a.csv", "label,1\n".encode("utf-16"), "text in UTF-16; save it in UTF-8"),
        ("a.arrow", b"\xff\xff\xff\xff" + bytes(300), "a stream of Arrow"),
    ],
)
def test_what_a_file_is_that_cannot_be_read(name: str, data: bytes, says: str, here: Path, tmp_path: Path, capsys):
    (tmp_path / name).write_bytes(data)
    assert says in refusal(capsys, tmp_path / name)


def test_an_archive_of_nothing_is_named_by_its_own_path(here: Path, tmp_path: Path, capsys):
    zipfile.ZipFile(tmp_path / "all.zip", "w").close()
    assert f"{tmp_path / 'all.zip'}: expected" in refusal(capsys, tmp_path / "all.zip")
    sources.zipped(sources.pictures)(tmp_path / "other")
    said = refusal(capsys, sources.pictures(tmp_path / "pictures"), "--match", "zzz")
    assert "pictures with 'zzz' in their paths; found none; correct --match" in said
    assert "files with 'zzz' in their paths" in refusal(capsys, tmp_path / "other" / "all.zip", "--match", "zzz")


def test_one_folder_of_an_archive_or_of_a_folder_is_chosen(here: Path, tmp_path: Path, capsys):
    for name in ("one", "two"):
        sources.kaggle(tmp_path / "source" / name)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in (tmp_path / "source").rglob("*.csv"):
            archive.write(file, file.relative_to(tmp_path / "source"))
    for source in (tmp_path / "source", tmp_path / "all.zip"):
        assert added(capsys, source, "--match", "one/")["rows"] == {"train": 60, "test": 15}
        shutil.rmtree("mine")


def test_a_split_may_be_the_name_of_a_folder(here: Path, tmp_path: Path, capsys):
    for split in ("train", "test"):
        sources.table(tmp_path / "source" / split / "part-0.csv", sources.rows(split), sources.HEADER)
    assert added(capsys, tmp_path / "source")["rows"] == {"train": 60, "test": 15}
    assert classes_of_images(here / "mine") == RIGHT


def text(changed: dict[tuple[int, int], object], end: str = "\n", rows: int = 60) -> bytes:
    """Kaggle's table with some cells, by row and column, that are others."""
    cells = [[str(cell) for cell in row] for row in [sources.HEADER, *sources.rows("train")][: rows + 1]]
    for (row, place), value in changed.items():
        cells[row + 1][place] = str(value)
    return "".join(",".join(row) + end for row in cells).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (text({}, end="\r"), "expected a table of text in UTF-8"),
        (text({(7, 0): "x" * 200_000}), "expected a table of text in UTF-8; found field larger"),
        (text({(7, 0): "9" * 5000}), "all numbers or all texts"),
        (text({(7, 5): "9" * 5000}), "line 9: expected a whole number from 0 to 255 in column 'pixel4'"),
        (text({(7, 5): "٣"}), "found '٣'; correct it, or take a column that is no pixel out of the table"),
        (text({(7, 5): "1.5"}), "found '1.5'; correct it, or say which value is white"),
        (text({(7, 0): " "}), "a label or group in each row; found 1 row without one"),
        (b"<!doctype html>\n<p>404</p>\n", "one column, which begins with '<!doctype html>'; give such a table"),
        (b"label|p0|p1\n0|1|2\n", "between commas, tabs or semicolons; found one column"),
        (b'"la\nbel",p0\n1,2\n', "a first row in one line; found one of 2"),
        (b"0," * 200_000, "at most 131,072 columns; found 200,001"),
    ],
)
def test_tables_that_are_refused(data: bytes, says: str, here: Path, tmp_path: Path, capsys):
    (tmp_path / "all.csv").write_bytes(data)
    assert says in refusal(capsys, tmp_path / "all.csv", *DRAWN)


def test_a_number_that_is_no_pixel_is_named_with_the_white_that_was_asked_for(here: Path, tmp_path: Path, capsys):
    (tmp_path / "all.csv").write_bytes(text({(7, 5): "x"}))
    said = refusal(capsys, tmp_path / "all.csv", *DRAWN, "--white", "1")
    assert "line 9: expected a number in column 'pixel4'; found 'x'; correct it" in said


def test_empty_lines_before_and_in_a_table_are_passed_over(here: Path, tmp_path: Path, capsys):
    (tmp_path / "all.csv").write_bytes(b"\n\n" + text({}, end="\n\n"))
    assert added(capsys, tmp_path / "all.csv", *DRAWN)["rows"] == {"train": 48, "test": 12}


def test_tables_that_do_not_belong_together_are_chosen_by_their_names(here: Path, tmp_path: Path, capsys):
    """Kaggle's folders have a table of answers to hand in, whose labels are no labels."""
    source = sources.kaggle(tmp_path / "source")
    sources.table(source / "sample_submission.csv", [[1, 0], [2, 0]], ["ImageId", "Label"])
    assert "expected 1 column of pixels as sample_submission.csv has; found 36 columns" in refusal(capsys, source)
    (source / "sample_submission.csv").unlink()
    sources.table(source / "more.csv", list(sources.rows("test")), sources.HEADER)
    values = added(capsys, source)
    assert values["rows"] == {"train": 75, "test": 15}
    assert "because their names do not say: more.csv" in values["remarks"][0]


def parquet(file: Path, meta: str = "", **columns: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [sources.png(image) for image in X], "label": Y.tolist(), **columns})
    pq.write_table(table.replace_schema_metadata({"huggingface": meta} if meta else None), file)
    return file


def test_the_same_label_of_other_names_is_refused(here: Path, tmp_path: Path, capsys):
    for split, names in (("train", '["a", "b", "c"]'), ("test", '["c", "b", "a"]')):
        meta = f'{{"info": {{"features": {{"label": {{"names": {names}}}}}}}}}'
        parquet(tmp_path / "source" / f"{split}.parquet", meta)
    assert "expected the names of classes of test.parquet; found others" in refusal(capsys, tmp_path / "source")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.eye(3)[Y].tolist(), "labels and groups as whole numbers or texts; found list<"),
        ([b"a"] * 60, "found binary"),
        (["", *"a" * 59], "1 row without one"),
    ],
)
def test_a_column_that_is_no_label(labels: list[object], says: str, here: Path, tmp_path: Path, capsys):
    assert says in refusal(capsys, parquet(tmp_path / "all.parquet", label=labels), *DRAWN)


@pytest.mark.parametrize("write", [pq.write_table, feather.write_feather])
def test_columns_of_one_name_are_refused(write, here: Path, tmp_path: Path, capsys):
    columns = [pa.array(column) for column in np.array(list(sources.rows("train"))).T]
    write(pa.Table.from_arrays(columns, ["label", *["p"] * 36]), str(tmp_path / "all.data"))
    assert "columns of different names; found 36 named 'p'" in refusal(capsys, tmp_path / "all.data", *DRAWN)


def test_columns_that_are_not_read_are_named(here: Path, tmp_path: Path, capsys):
    source = parquet(tmp_path / "all.parquet", split=["train"] * 60, note=["x"] * 60)
    assert added(capsys, source, *DRAWN)["remarks"] == ["of the columns, these are left out: split, note"]


@pytest.mark.remedies("tasks.adding.add:_check_used")
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda folder: sources.pictures(folder, "train"), ("--white", "1")),
        (lambda folder: sources.pictures(folder, "train"), ("--label-column", "label")),
        (lambda folder: parquet(folder / "all.parquet"), ("--white", "1")),
        (lambda folder: saved(folder, x=X, y=Y), ("--skip-bad",)),
        (lambda folder: saved(folder, x=X, y=Y), ("--match", "x")),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(make, options: tuple[str, ...], here: Path, tmp_path: Path, capsys):
    source = make(tmp_path / "source")
    said = refusal(capsys, source, *DRAWN, *options, code=2)
    assert f"expected no {options[0]}, because it does nothing for" in said
    added(capsys, source, *DRAWN)


@pytest.mark.remedies("tasks.adding.add:check_together", "tasks.adding.add:check_together:2")
def test_an_option_without_the_one_that_it_is_for_is_refused(here: Path, tmp_path: Path, capsys):
    source = sources.pictures(tmp_path / "source", "train")
    for options in (("--seed", "3"), ("--group-by", r"\d")):
        assert "draw one with --test-fraction 0.15" in refusal(capsys, source, *options, code=2)
    assert "such as --size 28x28" in refusal(capsys, source, *DRAWN, "--fit", "mass", code=2)
    options = ("--seed", "3", "--group-by", r"(\d)\.png", "--test-fraction", "0.15", "--fit", "mass", "--size", "28x28")
    assert added(capsys, source, *options)["image_shape"] == [28, 28]


@pytest.mark.remedies("tasks.adding.add:_check_outside")
def test_the_source_is_never_to_be_removed(here: Path, tmp_path: Path, capsys):
    """As in the home folder: `dataset add letters letters`."""
    source = sources.pictures(tmp_path / "letters")
    (tmp_path / "link").symlink_to(source)
    for place in (source, source / "out", tmp_path, tmp_path / "link" / "out"):
        said = refusal(capsys, source, "--as", str(place), code=2)
        assert "elsewhere than its source" in said
        assert "choose another folder with --as" in said
        assert "remove" not in said
    added(capsys, source, "--as", "mine")


@pytest.mark.parametrize("words", [("https://example.org/x.zip",), ("x.zip", "--as", "s3://bucket/x")])
def test_an_address_is_no_path(words: tuple[str, ...], here: Path, capsys):
    assert run_command(["dataset", "add", "mine", *words]) == 2
    assert "to be a path of this machine; found an address" in capsys.readouterr().err


def test_names_that_are_not_utf8_are_shown_and_kept(here: Path, tmp_path: Path, capfdbinary):
    """Linux allows any bytes in a name but `/` and zero."""
    source = sources.pictures(tmp_path / os.fsdecode(b"s\xff"))
    (source / "train" / "bar 0" / os.fsdecode(b"\xfe.png")).write_bytes(b"")
    (source / "train" / "bar 0" / os.fsdecode(b"x.\xfe")).write_bytes(b"")
    (source / "train" / "bar 0").rename(source / "train" / os.fsdecode(b"\xe9"))
    (source / "test" / "bar 0").rename(source / "test" / os.fsdecode(b"\xe9"))
    options = ("--skip-bad", "--classes", "a,b,c", "--as", os.fsdecode(b"m\xff"), "--json")
    assert run_command(["dataset", "add", "mine", str(source), *options]) == 0
    values = json.loads(capfdbinary.readouterr().out.decode())
    written = json.loads((Path(os.fsdecode(b"m\xff")) / "mine.json").read_text())
    assert values == {**written, "schedule": None, "error": None}
    assert os.fsencode(values["source"]) == os.fsencode(source)
    assert os.fsencode(values["classes"][2]["found_as"]) == b"\xe9"


def test_a_picture_with_a_warning_is_read_and_the_warning_is_told_once(here: Path, tmp_path: Path, capsys):
    for row, (image, label) in enumerate(zip(X, Y, strict=True)):
        file = tmp_path / "source" / str(label) / f"{row}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert run_command(["dataset", "add", "mine", str(tmp_path / "source"), *DRAWN]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "arn" in line or "EXIF" in line] == [
        line for line in said if "0.jpg: Corrupt" in line
    ]
    assert len(said) == 1


def test_pictures_of_which_none_can_be_read(here: Path, tmp_path: Path, capsys):
    (tmp_path / "source" / "a").mkdir(parents=True)
    (tmp_path / "source" / "a" / "x.png").write_bytes(b"")
    said = refusal(capsys, tmp_path / "source", *DRAWN, "--skip-bad")
    assert "found 1 picture, none of which can be read" in said


def test_pixels_that_are_all_dark_are_mentioned(here: Path, tmp_path: Path, capsys):
    source = saved(tmp_path / "source", x=X // 16, y=Y)
    assert (
        "the brightest pixel is 15 of 255; if that is white, say so: --white 15"
        in added(capsys, source, *DRAWN)["remarks"]
    )
    shutil.rmtree("mine")
    assert added(capsys, source, *DRAWN, "--white", "15")["remarks"] == []


def test_a_test_split_alone_is_named_so(here: Path, tmp_path: Path, capsys):
    sources.pictures(tmp_path / "source" / "test", "test")
    for options in ((), DRAWN):
        assert "images to train on; found a test split alone" in refusal(capsys, tmp_path / "source", *options)


@pytest.mark.parametrize("make", [sources.npz, sources.zipped(sources.pictures), sources.kaggle])
def test_a_full_disk_is_no_fault_of_the_source(make, here: Path, tmp_path: Path, monkeypatch, capsys):
    source = make(tmp_path / "source")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module, name in (
        ("tasks.adding.arrays", "shutil.copyfileobj"),
        ("tasks.adding.unpack", "_copy"),
        ("tasks.adding.add", "pack"),
    ):
        monkeypatch.setattr(f"{module}.{name}", full)
    said = refusal(capsys, source, code=1)
    assert (
        said == f"idxflow: cannot use {here / 'mine'}: No space left on device; correct that, or choose another place"
    )


def test_an_archive_larger_than_the_disk_is_not_called_untrustworthy(here: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(unpack, "MAX_BYTES", 1 << 80)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        packed.writestr("a/b.png", b"x")
        packed.filelist[0].file_size = 1 << 60
        packed.filelist[0].compress_size = 1
    assert "No space left on device" in refusal(capsys, tmp_path / "all.zip", code=1)


def test_few_large_images_are_in_memory_at_a_time(here: Path, tmp_path: Path):
    """Of 8 MB each: a thousand at a time would be 8 GB."""
    shape, rows = (2048, 4096), 10
    large = tmp_path / "idx"
    large.mkdir()
    with (large / "train-images").open("wb") as stream:
        stream.write(idx.Header(np.dtype(np.uint8), (rows, *shape)).encode())
        # A hole in the file: zeros that take no room.
        stream.truncate(stream.tell() + rows * shape[0] * shape[1])
    (large / "train-labels").write_bytes(idx.encode(np.arange(rows, dtype=np.uint8)))
    arrays = tmp_path / "npy"
    arrays.mkdir()
    np.lib.format.open_memmap(arrays / "x.npy", "w+", np.uint8, (rows, *shape)).flush()
    np.save(arrays / "y.npy", np.arange(rows))
    pictures = tmp_path / "pictures"
    (pictures / "a").mkdir(parents=True)
    Image.new("L", (shape[1], shape[0])).save(pictures / "a" / "0.png")
    for number in range(1, rows):
        (pictures / "a" / f"{number}.png").symlink_to("0.png")
    for folder in (large, arrays, pictures):
        read = recognize.source(folder, tmp_path / "scratch", Reading(), Remarks())
        assert [len(batch.images) for batch in read.batches] == [8, 2], folder
