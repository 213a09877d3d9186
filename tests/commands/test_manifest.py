"""`idxflow manifest`: what it writes can be used as it is, whatever valid set it has read."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows import retrain
from storage.datasets import catalog
from storage.datasets.catalog import DEFAULT_FILES
from storage.datasets.manifest import Limits
from storage.datasets.own_files import Layout, manifest_of
from storage.errors import ConfigError, FormatError, IdxflowError
from storage.formats import idx
from storage.store import Store
from tests.conftest import bars
from tests.support.archives import write_archives
from tests.support.badfiles import assert_says
from tests.support.commands import idxflow
from tests.support.listed_archives import write_listed
from tests.support.runs import run_without_prefect, whole_run
from tests.support.servers import BIN, clean_environment

Arrays = dict[str, np.ndarray]


def of(change: Callable[[np.ndarray], np.ndarray], arrays: Arrays | None = None) -> Arrays:
    """Return a learnable set with all images changed."""
    originals = arrays or bars(120, 30, 3, (9, 7))
    return {role: change(array).astype(np.uint8) if "images" in role else array for role, array in originals.items()}


def planes() -> Arrays:
    """Images of one value each, which tells their class: below 85, below 170, above. No value is in both splits."""
    values = {"train": np.arange(0, 256, 2, np.uint8), "test": np.arange(1, 256, 10, np.uint8)}
    result = {}
    for split, value in values.items():
        result[f"{split}-images"] = np.broadcast_to(value[:, None, None], (len(value), 4, 4)).copy()
        result[f"{split}-labels"] = np.minimum(value // 85, 2).astype(np.uint8)
    return result


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_it_is_utf_8_in_every_locale(tmp_path: Path, encoding: str):
    """TOML is. Through the installed command, as its output goes into a file."""
    folder, path = write_archives(tmp_path / "Häuser", bars(30, 30, 3, (9, 7))), tmp_path / "mine.toml"
    with path.open("wb") as out:
        environment = clean_environment(tmp_path, PYTHONIOENCODING=encoding)
        subprocess.run([str(BIN / "idxflow"), "manifest", str(folder)], stdout=out, env=environment, check=True)
    assert 'Häuser"' in path.read_text(encoding="utf-8")
    assert catalog.read(path).source == folder


SETS = {
    "0 to 255": (of(lambda images: images), Limits()),
    "0 to 16": (of(lambda images: images // 16 + images // 255), Limits(min_pixel_max=16)),
    # The noise keeps images apart that would be equal otherwise.
    "0 to 1": (of(lambda images: np.where(images > 150, 1, images % 2)), Limits(min_pixel_max=1)),
    "inverted, from 100 on": (of(lambda images: 255 - images * (155 / 255)), Limits(max_pixel_min=100)),
    "70 to 80": (of(lambda images: 70 + images * (10 / 255)), Limits(min_pixel_max=80, max_pixel_min=70)),
    "planes": (planes(), Limits(max_blank=1)),
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_any_range_is_valid_and_trained_with_the_manifest_that_is_written(store: Store, tmp_path, name: str):
    arrays, limits = SETS[name]
    manifest = tmp_path / "mine.toml"
    manifest.write_text(manifest_of(write_archives(tmp_path / "mine", arrays)), encoding="utf-8")
    assert catalog.read(manifest).limits == limits
    outcome = run_without_prefect(store, dataset_file=str(manifest), epochs=2)
    assert outcome["error"] is None or outcome["error"]["exit_code"] == 5
    assert outcome["test_accuracy"] is not None


def numbered(*values: int, kind: str = "u1") -> Arrays:
    """Return a learnable set whose classes have other labels than 0, 1 and 2."""
    class_labels, originals = np.array(values, kind), bars(120, 30, 3, (9, 7))
    return {role: class_labels[array] if "labels" in role else array for role, array in originals.items()}


@pytest.mark.parametrize(
    "arrays",
    [numbered(1, 2, 3), numbered(0, 2, 200), numbered(-1, 0, 1, kind="i1"), numbered(70_000, 5, -3, kind=">i4")],
    ids=["from 1", "with gaps", "below 0", "of 32 bits"],
)
def test_a_set_of_any_labels_is_valid_and_the_report_says_which(store: Store, tmp_path: Path, arrays: Arrays):
    manifest = tmp_path / "mine.toml"
    text = manifest_of(write_archives(tmp_path / "mine", arrays))
    manifest.write_text(text, encoding="utf-8")
    values = sorted(set(arrays["train-labels"].tolist()))
    dataset = catalog.read(manifest)
    counts_up = values == list(range(values[0], values[0] + 3))
    assert (f"\nlabel_base = {values[0]}\n" in text, f"\nlabels = {values}\n" in text) == (counts_up, not counts_up)
    assert ("# A label below 0 often marks rows without a class." in text) == (values[0] < 0)
    assert (dataset.labels, dataset.classes) == (tuple(values), tuple(map(str, values)))
    job = whole_run(store, manifest, epochs=8)
    assert job.record.evaluation.accuracy > 0.9
    labels_text = (
        "1 to 3" if values == [1, 2, 3] else "-1 to 1" if values == [-1, 0, 1] else ", ".join(map(str, values))
    )
    assert f"in 3 classes (labelled {labels_text} in the files)" in job.report.html.read_text(encoding="utf-8")


def test_letters_as_they_are_published_are_turned_upright_and_named(store: Store, tmp_path: Path):
    """As in EMNIST: labels from 1, rows and columns swapped; and here with a dimension for the only channel."""
    letters = {
        role: array.swapaxes(1, 2)[..., None] if "images" in role else array + np.uint8(1)
        for role, array in bars(120, 30, 3, (9, 7)).items()
    }
    folder, manifest = write_archives(tmp_path / "mine", letters), tmp_path / "mine.toml"
    called = idxflow("manifest", str(folder), "--transpose", "--label-base", "1", env=clean_environment(tmp_path))
    manifest.write_text(called.stdout, encoding="utf-8")
    for line in ("image_shape = [9, 7]", "transpose = true", "label_base = 1"):
        assert f"\n{line}\n" in called.stdout, called.stderr
    assert "\nlabels = " not in called.stdout
    assert run_without_prefect(store, dataset_file=str(manifest), to=retrain.to_validation)["error"] is None


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("channel", [None, -1, 1])
def test_a_dimension_for_one_channel_is_none_of_the_image(tmp_path: Path, channel: int | None, swapped: bool):
    def stored(array: np.ndarray) -> np.ndarray:
        array = array.swapaxes(1, 2) if swapped else array
        return array if channel is None else np.expand_dims(array, channel)

    arrays = {role: stored(array) if "images" in role else array for role, array in bars(20, 10, 3, (9, 7)).items()}
    text = manifest_of(write_archives(tmp_path / "mine", arrays), layout=Layout(transpose=swapped))
    assert "\nimage_shape = [9, 7]\n" in text
    assert ("\ntranspose = true\n" in text) == swapped


@pytest.mark.parametrize(
    ("base", "arrays", "message"),
    [
        (1, numbered(0, 1, 2), "expected labels that count up from 1 .* found 0 to 2, and 0 in the place of 1; remove"),
        (0, numbered(1, 2, 3), "found 1 to 3, and 1 in the place of 0; remove --label-base"),
        (1, numbered(1, 2, 4), "found 1 to 4, and 4 in the place of 3; remove --label-base"),
        (-1, numbered(0, 1, 2), "found 0 to 2, and 0 in the place of -1; remove --label-base"),
    ],
)
def test_a_base_that_the_labels_do_not_have_is_refused(tmp_path: Path, base: int, arrays: Arrays, message: str):
    folder = write_archives(tmp_path / "mine", arrays)
    with pytest.raises(FormatError, match=message) as caught:
        manifest_of(folder, layout=Layout(label_base=base))
    assert_says(caught.value)
    assert manifest_of(folder)


def test_the_base_0_is_not_written(tmp_path: Path):
    folder = write_archives(tmp_path / "mine", bars(20, 10, 3, (9, 7)))
    assert manifest_of(folder, layout=Layout(label_base=0)) == manifest_of(folder)
    assert not re.search("^label", manifest_of(folder), re.MULTILINE)


def test_a_column_of_wider_labels_is_the_class_where_it_is_chosen(store: Store, tmp_path: Path):
    wide = {
        role: np.pad(array[:, None].astype(">i4"), ((0, 0), (0, 7)), constant_values=9) if "labels" in role else array
        for role, array in bars(120, 30, 3, (9, 7)).items()
    }
    folder, manifest = write_archives(tmp_path / "mine", wide), tmp_path / "mine.toml"
    with pytest.raises(FormatError, match=r"train-labels.*found int32 of shape \(120, 8\).*: --label-column 0$"):
        manifest_of(folder)
    manifest.write_text(manifest_of(folder, layout=Layout(label_column=0)), encoding="utf-8")
    assert run_without_prefect(store, dataset_file=str(manifest))["error"] is None
    with pytest.raises(FormatError, match="choose another --label-column than 8, below 8"):
        manifest_of(folder, layout=Layout(label_column=8))


LITTLE = bars(120, 30, 3, (9, 7))["test-labels"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train-images": np.zeros((120, 9, 7), ">f4")}, "write the pixels as 0-255"),
        ({"train-images": np.full((120, 9, 7), np.nan, ">f8")}, "write the pixels as 0-255"),
        ({"test-images": np.zeros((30, 9, 8), np.uint8)}, "one size in both splits"),
        ({"test-images": np.zeros((29, 9, 7), np.uint8)}, "as many labels as images"),
        ({"train-images": np.zeros((120, 63), np.uint8)}, "give each image its height and width"),
        (
            {"train-images": np.zeros((120, 9, 7, 3), np.uint8)},
            r"\(120, 9, 7, 3\) in the header; turn colour images into grey ones, .* \.mean\(axis=3\)",
        ),
        ({"train-images": np.zeros((120, 3, 9, 7), np.uint8)}, r"such as in NumPy with \.mean\(axis=1\)"),
        ({"train-images": np.zeros((1, 4097, 1, 1), np.uint8), "train-labels": np.ones(1, np.uint8)}, "at most 4096"),
        ({"train-images": np.zeros(120, np.uint8)}, "give the archive of the images"),
        ({"train-images": np.zeros((1, 4097, 1), np.uint8), "train-labels": np.ones(1, np.uint8)}, "at most 4096"),
        ({"test-labels": np.zeros((30, 2), np.uint8)}, "t10k-labels.*--label-column 0"),
        ({"test-labels": np.zeros((30, 9, 7), np.uint8)}, "give the archive of the labels"),
        ({"test-labels": np.full(30, np.nan, ">f4")}, "found float32 with nan at row 0; give each such row the number"),
        ({"test-labels": np.where(np.arange(30) == 7, np.inf, 1).astype(">f8")}, "found float64 with inf at row 7; "),
        ({"test-labels": np.where(np.arange(30) == 29, 1.5, 1).astype(">f4")}, "found float32 with 1.5 at row 29; "),
        ({"test-labels": np.full((30, 9, 7), 1, ">f4")}, "give the archive of the labels"),
        ({"test-labels": LITTLE.astype(">f4")}, r"found float32, from 0 to 2; write them as integers, .*\(np\.uint8\)"),
        ({"test-labels": LITTLE.astype(">f8") - 1}, r"found float64, from -1 to 1; write .*\.astype\(np\.int32\)"),
        (
            {"test-labels": np.full(30, 1, "<i4").view(">i4")},
            "found 1 value, 16,777,216, or more; write them big-endian",
        ),
        (
            {"test-labels": LITTLE.astype("<i4").view(">i4")},
            "0 to 33,554,432, or more; write them big-endian",
        ),
        ({"test-labels": LITTLE.astype("<i2").view(">i2")}, "0 to 512, or more; write them big-endian"),
        (
            {"test-labels": np.arange(300, dtype=">i2"), "test-images": np.zeros((300, 9, 7), np.uint8)},
            "give the file with the classes",
        ),
    ],
)
def test_what_no_manifest_could_describe_is_refused_at_once(tmp_path: Path, change: Arrays, message: str):
    folder = write_archives(tmp_path / "mine", bars(120, 30, 3, (9, 7)) | change)
    with pytest.raises(FormatError, match=message) as caught:
        manifest_of(folder)
    assert_says(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda: np.zeros(1 << 25, ">i4"), "found 120 images and 33,554,432 labels"),
        (lambda: np.zeros(1 << 25, ">f4"), "found float32, from 0 to 0; write them as integers"),
        (lambda: np.arange(1 << 22, dtype=">i4"), "found 1,048,576 values, 0 to 1,048,575, or more; give the file"),
    ],
    ids=["one", "one, as floating-point numbers", "all different"],
)
def test_however_many_labels_there_are_little_memory_is_taken(
    tmp_path: Path, labels: Callable[[], np.ndarray], message: str
):
    folder = write_archives(tmp_path / "mine", bars(120, 30, 3, (9, 7)))
    (folder / DEFAULT_FILES["train-labels"]).write_bytes(gzip.compress(idx.encode(labels()), 1))
    tracemalloc.start()
    with pytest.raises(FormatError, match=message):
        manifest_of(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 24


def test_one_class_is_none_to_tell_apart(tmp_path: Path):
    arrays = bars(20, 10, 2, (9, 7)) | {"train-labels": np.zeros(20, np.uint8), "test-labels": np.zeros(10, np.uint8)}
    with pytest.raises(FormatError, match="found only the label 0"):
        manifest_of(write_archives(tmp_path / "mine", arrays))


def test_a_folder_of_other_files_is_described_and_what_to_do(tmp_path: Path):
    mine = tmp_path / "mine"
    for name in ("a.png", "b.png", "labels.csv"):
        mine.mkdir(exist_ok=True)
        (mine / name).write_bytes(b"x")
    with pytest.raises(
        ConfigError, match=r"four IDX files .*found none for train-images, .*among a.png, b.png, labels.csv"
    ):
        manifest_of(mine)
    write_archives(mine / "inner", bars(20, 10, 2, (9, 7)))
    with pytest.raises(ConfigError, match=f"give {mine / 'inner'}, which has them"):
        manifest_of(mine)
    assert manifest_of(mine / "inner")
    with pytest.raises(ConfigError, match="four IDX files .*found a file; correct the path"):
        manifest_of(mine / "labels.csv")
    (mine / "inner" / "train-images.idx").write_bytes(b"x")
    (mine / "inner" / "other-train-images.gz").write_bytes(b"x")
    with pytest.raises(ConfigError, match="expected one file of train-images, or .*; found 3: .*; move the others"):
        manifest_of(mine / "inner")


ARRAYS = bars(60, 15, 3, (9, 7))


def test_files_with_numbers_are_listed_in_their_order(tmp_path: Path):
    dataset = write_listed(tmp_path, ARRAYS, (30, 10, 20))
    text = manifest_of(dataset.source, name="mine")
    (tmp_path / "mine.toml").write_text(text)
    read = catalog.read(tmp_path / "mine.toml")
    assert [spec.file for spec in read.archives] == [spec.file for spec in dataset.archives]
    assert all(spec.pinned and spec.bytes for spec in read.archives)
    assert "labels = " not in text


@pytest.mark.remedies("storage.datasets.own_files:_check_numbers", "storage.datasets.own_files:_split")
def test_files_with_numbers_belong_together(tmp_path: Path):
    source = write_listed(tmp_path, ARRAYS, (30, 30)).source
    labels = source / "train-labels-001-idx1-ubyte.gz"
    labels.rename(tmp_path / "away")
    with pytest.raises(ConfigError, match="with each number; found train-images-001-idx3-ubyte.gz alone; "):
        manifest_of(source)
    (tmp_path / "away").rename(labels)
    images = source / "train-images-001-idx3-ubyte.gz"
    good = images.read_bytes()
    images.write_bytes(gzip.compress(idx.encode(ARRAYS["train-images"][30:, :8])))
    with pytest.raises(FormatError, match="train-images-001.*: expected images of 9×7 pixels, as in .*; found 8×7; "):
        manifest_of(source)
    images.write_bytes(good)
    assert manifest_of(source).count("[[archives.train-images]]") == 2


def test_what_may_be_a_fault_of_the_data_is_only_proposed(store: Store, tmp_path: Path):
    arrays = bars(400, 30, 3, (9, 7))
    arrays["train-images"][:3] = 7
    arrays["train-labels"][3:] = np.where(arrays["train-labels"][3:] == 2, 1, arrays["train-labels"][3:])
    manifest = tmp_path / "mine.toml"
    text = manifest_of(write_archives(tmp_path / "mine", arrays))
    manifest.write_text(text, encoding="utf-8")
    assert (
        "# 3 of 430 images have one value in all pixels, which is refused unless you set:\n# max_blank = 0.0075" in text
    )
    assert "# min_class_share = 0.0025" in text
    assert run_without_prefect(store, dataset_file=str(manifest))["error"]["exit_code"] == 3
    proposed = text.replace("# [limits]", "[limits]")
    for key in ("max_blank", "min_class_share"):
        proposed = proposed.replace(f"# {key}", key)
    manifest.write_text(proposed, encoding="utf-8")
    limits = catalog.read(manifest).limits
    assert (limits.max_blank, limits.min_class_share) == (0.0075, 0.0025)


def test_a_class_that_a_split_has_no_row_of_is_named_and_taking_it_out_leads_on(store: Store, tmp_path: Path):
    arrays, manifest = bars(120, 30, 3, (9, 7)), tmp_path / "mine.toml"
    rows = arrays["test-labels"] != 1
    arrays |= {"test-images": arrays["test-images"][rows], "test-labels": arrays["test-labels"][rows]}
    text = manifest_of(write_archives(tmp_path / "mine", arrays))
    assert "# The test split has no row with a label of [1], which is refused: add such rows to it, or take" in text
    rows = arrays["train-labels"] != 1
    arrays |= {"train-images": arrays["train-images"][rows], "train-labels": arrays["train-labels"][rows]}
    manifest.write_text(manifest_of(write_archives(tmp_path / "mine", arrays)), encoding="utf-8")
    assert catalog.read(manifest).labels == (0, 2)
    assert run_without_prefect(store, dataset_file=str(manifest), to=retrain.to_validation)["error"] is None


def test_without_digests_other_archives_of_these_names_are_the_data(store: Store, tmp_path: Path):
    folder, manifest = write_archives(tmp_path / "mine", bars(120, 30, 3, (9, 7))), tmp_path / "mine.toml"
    manifest.write_text(manifest_of(folder, digests=False), encoding="utf-8")
    assert not any(spec.pinned or spec.bytes for spec in catalog.read(manifest).archives)
    write_archives(folder, bars(121, 31, 3, (9, 7), seed=2))
    assert run_without_prefect(store, dataset_file=str(manifest))["error"] is None


@pytest.mark.parametrize("name", ["ümläut 😀", 'quote " and \\', "tab\tand\x7f", "mnist", "..."])
def test_a_folder_of_any_name_gives_a_manifest_that_can_be_read(tmp_path: Path, name: str):
    folder = write_archives(tmp_path / name, bars(20, 10, 2, (9, 7)))
    manifest = tmp_path / "any.toml"
    manifest.write_text(manifest_of(folder), encoding="utf-8")
    dataset = catalog.read(manifest)
    assert dataset.source == folder
    assert dataset.name not in catalog.names()


def test_a_name_that_no_manifest_can_hold_is_refused(tmp_path: Path):
    folder = write_archives(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")), bars(20, 10, 2, (9, 7)))
    with pytest.raises(ConfigError, match="in UTF-8"):
        manifest_of(folder)


@pytest.mark.parametrize("name", ["My Data", "mnist", "", "a" * 65])
def test_a_name_that_the_next_command_would_refuse_is_refused(tmp_path: Path, name: str):
    folder = write_archives(tmp_path / "mine", bars(20, 10, 2, (9, 7)))
    with pytest.raises(IdxflowError, match="--name: expected"):
        manifest_of(folder, name)
